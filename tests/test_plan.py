"""`moebius plan` and `moebius doctor`: what they print, refuse and exit with. The arithmetic itself is held to the design's tables
by tests/unit/test_plan.c; what the engine then takes, by test_plan_memory.py."""

import json
import os
import re
import shutil
import subprocess

import pytest

import st
from conftest import DELETE, GOLDEN, ROOT, SETS, change_config, copy_set, moebius, refused, succeed

LITE, V3 = "deepseek-coder-v2-lite", "deepseek-v3"
CARD = ["--gpu", "rtx-4090", "--ram", "64@89"]  # nothing is left to be measured
NO_CARD = ["--gpu", "none", "--ram", "64@89"]
LONG_STEPS = ["--max-num-batched-tokens", "2048"]
COMPARED = ["qwen2.5-coder-14b", "qwen2.5-coder-32b", "codestral-22b", "mixtral-8x7b"]
DOCS = {"what-fits.md": ["--table", "what-fits"], "what-fits-bandwidth.svg": ["--plot", "bandwidth"],
        "what-fits-671b.svg": ["--plot", "671b"]}


def plan(*arguments, code=0):
    result = moebius("plan", *arguments, "--json")
    assert result.code == code and not result.err, str(result)
    return result.json


def step(report, batch, depth):
    (line,) = [d for d in report["decode"] if (d["batch"], d["depth"]) == (batch, depth)]
    return line


# --- one plan --------------------------------------------------------------------------------------------------------


def test_keys_and_numbers():
    report = plan(LITE, "--quant", "fp8", *CARD)
    assert report["model"] == LITE and report["params"] == {"total": 15706484224, "active": report["params"]["active"]}
    assert report["params"]["active"] == pytest.approx(2.451e9, rel=1e-3)
    assert report["weights_bytes"] == pytest.approx(15.92e9, rel=1e-3)
    assert report["kv_bytes_per_token"] == 31104 and report["kv_bytes"] == 31104 * 32768
    parts = ("weights_bytes", "kv_bytes", "scratch_bytes", "graphs_bytes")
    assert report["total_bytes"] == pytest.approx(sum(report[k] for k in parts), abs=8)
    assert report["fits"] is True and report["class"] == "vram" and report["headroom_bytes"] > 5e9
    assert {(d["batch"], d["depth"]) for d in report["decode"]} == {(b, d) for b in (1, 4, 8, 16, 64) for d in (0, 8192, 32768)}
    assert step(report, 1, 0)["limit_tokens_per_s"] == pytest.approx(410.5, rel=1e-3)
    assert step(report, 1, 0)["bytes_per_step"] == pytest.approx(2455.3e6, rel=1e-4)
    for line in report["decode"]:
        assert 0 < line["expected_tokens_per_s"] < line["limit_tokens_per_s"]
    assert [p["tokens"] for p in report["prefill"]] == [512, 2048, 8192, 32768]
    for line in report["prefill"]:
        assert line["ttft_s"] == pytest.approx(line["tokens"] / line["expected_tokens_per_s"], rel=1e-6)
    assert plan(LITE, "--kv", "fp8", "--quant", "fp8", *CARD)["kv_bytes_per_token"] == 17712


@pytest.mark.parametrize("name", [LITE, "deepseek-v2-lite", "deepseek-v2", V3, "deepseek-r1", *COMPARED])
def test_every_name(name):
    text = succeed("plan", name, "--quant", "int4", "--gpu", "8xh200", "--ram", "2000@600", "--parallel", "pipeline").text
    assert text.startswith(f"{name}: ") and "class vram" in text
    assert ("for comparison" in text) == (name in COMPARED)
    assert "note: planned from formulas" in text  # what the engine cannot run, or has never run, is never passed off as done


def test_text_has_units_and_fits_a_terminal():
    text = succeed("plan", LITE, "--quant", "fp8", *CARD, "--explain").text
    for words in ("31104 B a token", "GB/s", "tokens/s", "ms", "first token", "limit", "expected", "not measured by us"):
        assert words in text, words
    assert max(map(len, text.splitlines())) < 180


def test_explain_adds_up():
    """Every figure is the sum of its printed parts, by the rule that --explain prints."""
    report = plan(V3, "--quant", "int4", "--gpu", "rtx-4090", "--ram", "96@89", "--nvme", "7", "--context", "4096", "--explain")
    assert report["class"] == "nvme" and 0.2 < report["held"] < 0.3
    for line in report["decode"]:
        devices = {}
        for part in line["parts"]:
            if part["of"] == "waits":
                assert part["expected_s"] == pytest.approx(part["amount"] / part["rate"])
            else:
                assert part["limit_s"] == pytest.approx(part["amount"] / part["rate"])
                assert part["expected_s"] == pytest.approx(part["limit_s"] / part["share"])
            kinds = devices.setdefault(part["device"], {})
            kinds[part["of"]] = kinds.get(part["of"], 0) + part["expected_s"]
        seconds = sum(max(k.get("bytes", 0), k.get("operations", 0)) + k.get("waits", 0) for k in devices.values())
        assert line["expected_tokens_per_s"] == pytest.approx(line["batch"] / seconds, rel=1e-5)
    assert all(c["origin"] for c in report["constants"].values()) and len(report["constants"]) >= 15


def test_does_not_fit():
    result = moebius("plan", LITE, *CARD, "--experts", "gpu")
    assert result.code == 3 and not result.err, str(result)
    assert "does not fit" in result.text and "nearest settings that fit" in result.text and "decode" not in result.text
    report = plan(LITE, *CARD, "--experts", "gpu", code=3)
    assert report["fits"] is False and report["headroom_bytes"] < 0 and report["decode"] == [] == report["prefill"]
    assert len(report["nearest"]) == 3 and report["nearest"][0]["flags"] == "--quant fp8"


def test_nearest_settings_are_true():
    """What it advises does fit when it is asked for."""
    for wanted in ([LITE, *CARD, "--quant", "fp8", "--seqs", "12"], [V3, "--quant", "int4", *CARD], [LITE, "--quant", "fp8", "--gpu", "rtx-4080", "--ram", "8@50"]):
        report = plan(*wanted, "--experts", "gpu" if wanted[0] == LITE else "auto", code=3)
        assert report["nearest"], wanted
        for near in report["nearest"]:
            flags = near["flags"].split(" (")[0].split()
            again = [a for a in wanted]
            for name in flags[::2]:
                if name in again:
                    del again[again.index(name):again.index(name) + 2]
            flags = [f"{flag}@89" if before == "--ram" else flag for before, flag in zip(["", *flags], flags)]
            if "--ram" in flags or "--gpu" in flags and "x" in flags[-1]:
                flags += ["--parallel", "pipeline"]
            assert plan(*again, *flags)["fits"], (wanted, flags)


def test_largest_context_is_true():
    for kv in ("bf16", "fp8"):
        wish = [LITE, "--quant", "fp8", *CARD, "--experts", "gpu", "--kv", kv, "--seqs", "4", *LONG_STEPS]
        each = plan(*wish)["cache_tokens"] // 4
        assert plan(*wish, "--context", min(each, 163840))["fits"]
        if each + 64 < 163840:
            assert not plan(*wish, "--context", each + 64, code=3)["fits"]


def test_steps_as_long_as_fit():
    """Nobody asked for long steps, so they give way: as the engine does it."""
    wish = [LITE, "--quant", "fp8", *CARD, "--experts", "gpu", "--seqs", "4"]
    context = plan(*wish, *LONG_STEPS)["cache_tokens"] // 4 + 1024
    assert plan(*wish, "--context", context, *LONG_STEPS, code=3)["scratch_bytes"] > plan(*wish, "--context", context)["scratch_bytes"]


def test_classes():
    assert plan(V3, "--quant", "int4", "--gpu", "rtx-4090", "--ram", "384@300")["class"] == "ram"
    assert plan(V3, "--quant", "int4", "--gpu", "rtx-4090", "--ram", "96@89", "--nvme", "7")["class"] == "nvme"
    assert plan(V3, "--quant", "int4", "--gpu", "8xh200", "--ram", "96@89")["class"] == "vram"
    cluster = plan(V3, "--quant", "int4", "--gpu", "none", "--ram", "64@273", "--nodes", "8", "--network", "5,30", "--context", "8192")
    assert cluster["class"] == "cluster" and cluster["fits"]
    assert step(cluster, 1, 0)["limit_tokens_per_s"] > 5.37
    assert plan(LITE, *NO_CARD)["class"] == "cpu"
    assert "671B" in succeed("plan", V3, "--quant", "int4", "--gpu", "rtx-4090", "--ram", "384@300").text


def test_network_and_hops():
    """A slower network costs as many microseconds as there are hops; more sharing reads less."""
    base = [V3, "--quant", "int4", "--gpu", "none", "--ram", "64@273", "--nodes", "8", "--context", "8192"]
    near, far = (1 / step(plan(*base, "--network", f"5,{us}"), 1, 0)["limit_tokens_per_s"] for us in (30, 1030))
    assert far - near == pytest.approx(8e-3, rel=1e-3)
    tensor = step(plan(*base, "--network", "5,30", "--parallel", "tensor"), 1, 0)
    parts = succeed("plan", *base, "--network", "5,30", "--parallel", "tensor", "--json", "--explain").json["decode"][0]["parts"]
    assert tensor["limit_tokens_per_s"] > 2 / near and any(p["what"] == "two all-reduces a layer" for p in parts)


def test_ranks():
    """The engine's own way to use several machines; the arithmetic is tests/unit/test_plan_ranks.c's."""
    base = [V3, "--quant", "int4", "--gpu", "none", "--ram", "256@200", "--context", "8192"]
    report = plan(*base, "--ranks", "2", "--network", "10gbit,30", "--explain")
    assert report["class"] == "cluster" and report["machine"]["parallel"] == "ranks" and report["machine"]["nodes"] == 2
    assert report["ranks"]["experts"] == [128, 128] and "no real network" in report["not_here"]
    assert report["ranks"]["other_bytes"] < report["ranks"]["first_bytes"] < report["ranks"]["have_bytes"] == 248e9
    (waits,) = [p for p in step(report, 1, 0)["parts"] if p["of"] == "waits"]
    sent = report["ranks"]["sent_bytes_per_layer"] + report["ranks"]["received_bytes_per_layer"]
    assert waits["amount"] == 58 and 1 / waits["rate"] == pytest.approx(60e-6 + sent / 1.25e9)
    slow = plan(*base, "--machines", "2", "--network", "1gbit,30")
    assert step(slow, 1, 0)["limit_tokens_per_s"] < step(report, 1, 0)["limit_tokens_per_s"]
    text = succeed("plan", *base, "--ranks", "3", "--network", "10gbit,30").text
    for words in ("RAM of the first machine", "RAM of each other", "experts of the first", "85 to 86", "KB back a layer"):
        assert words in text, text
    assert plan(*base[:6], "100@200", "--context", "8192", "--ranks", "2", code=3)["fits"] is False


def test_steps_are_longer_with_a_disk():
    """As the engine's are: where their scratch takes less than an eighth of the RAM, and leaves room for the rest."""
    base = [V3, "--quant", "int4", *NO_CARD[:2], "--nvme", 2, "--context"]
    scratch = lambda ram, context, *flags: plan(*base, context, "--ram", ram, *flags)["scratch_bytes"]
    short, long = (scratch("30@50", 8192, "--max-num-batched-tokens", n) for n in (512, 2048))
    assert scratch("30@50", 8192) == scratch("26@50", 131072) == long > short
    assert scratch("17@50", 8192) == scratch("25@50", 131072) == short


def test_layers_beside_a_card():
    """Which N, what it takes on each side, and the flags to have it; the arithmetic is tests/unit/test_plan.c's."""
    base = [LITE, "--quant", "int4", "--gpu", "small=8,448,40", "--ram", "32@50", "--context", "8192"]
    report = plan(*base)
    n = report["n_cpu_moe"]
    assert 0 < n < 26 and report["class"] == "ram" and report["fits"]
    text = succeed("plan", *base).text
    assert f"{n} of 26 layers' in RAM" in text and f"--n-cpu-moe {n}: as few as" in text
    assert plan(*base, "-ncmoe", n)["decode"] == report["decode"] and plan(*base, "-ncmoe", n)["n_cpu_moe"] == n
    short = plan(*base, "-ncmoe", n - 1, *LONG_STEPS, code=3)
    assert short["nearest"][0]["flags"] == f"--n-cpu-moe {n}" and "memory of the cards" in plan(*base, "-ncmoe", 0, code=3)["place"]
    everything = [plan(*base, *flags) for flags in (["-ncmoe", 26], ["-ncmoe", 300], ["-cmoe"], ["--expert-device", "cpu"])]
    assert all(other["n_cpu_moe"] == 26 and other["decode"] == everything[0]["decode"] for other in everything)
    assert step(everything[0], 1, 0)["expected_tokens_per_s"] < step(report, 1, 0)["expected_tokens_per_s"]
    for several in (["--nodes", 2], ["--gpu", "2xrtx-4090", "--parallel", "tensor"]):
        refused(moebius("plan", *base, "-ncmoe", 3, *several), "--n-cpu-moe 3", "one machine", "--parallel pipeline")
    assert plan(LITE, *NO_CARD)["n_cpu_moe"] is None and plan(LITE, *CARD, "--quant", "int4")["n_cpu_moe"] == 0


def test_layers_beside_several_cards():
    """As the engine does it: the cards share layers, and what is not on them is in RAM."""
    base = [LITE, "--quant", "int4", "--ram", "32@50", "--context", "8192"]
    one, two = (plan(*base, "--gpu", gpu, "-ncmoe", 20) for gpu in ("small=8,448,40", "2xsmall=8,448,40"))
    assert two["n_cpu_moe"] == one["n_cpu_moe"] == 20 and two["fits"] and two["class"] == "ram"
    assert two["machine"]["parallel"] == "pipeline" and two["weights_bytes"] == one["weights_bytes"]
    assert two["cache_tokens"] > 2 * one["cache_tokens"] and "20 of 26 layers' in RAM" in succeed("plan", *base, "--gpu", "2xsmall=8,448,40", "-ncmoe", 20).text
    fewer = plan(*base, "--gpu", "2xsmall=8,448,40", "--parallel", "pipeline", "-ncmoe", 5)
    assert step(fewer, 1, 0)["expected_tokens_per_s"] > step(two, 1, 0)["expected_tokens_per_s"]


def test_hit_rate():
    report = lambda h: step(plan(V3, "--quant", "int4", "--gpu", "rtx-4090", "--ram", "96@89", "--nvme", "7", "--hit-rate", h), 1, 0)
    slow, fast = report("0.5"), report("0.9")
    assert slow["expected_tokens_per_s"] < fast["expected_tokens_per_s"] < fast["overlapped_tokens_per_s"]


def test_prompts_while_the_disk_is_read():
    base = (V3, "--quant", "int4", "--gpu", "none", "--ram", "64@89", "--cpu-gflops", "1000")
    text = succeed("plan", *base, "--nvme", "7").text
    assert "overlapped" in text.split("\nprefill")[1].splitlines()[1], text
    (prompt, *_) = plan(*base, "--nvme", "7")["prefill"]
    assert prompt["expected_tokens_per_s"] < prompt["overlapped_tokens_per_s"] <= prompt["limit_tokens_per_s"]


def test_quant_by_group():
    both = plan(LITE, "--quant", "awq,head=awq", *CARD)
    assert both["groups"]["head"]["format"] == "awq" and both["groups"]["router"]["format"] == "f16"
    assert step(both, 1, 0)["bytes_per_step"] == pytest.approx(1278.6e6, rel=1e-3)
    small = plan(V3, "--quant", "int4,routed=2.4", "--gpu", "rtx-4090", "--ram", "256@89")
    assert small["groups"]["routed"]["bytes"] == pytest.approx(196e9, rel=5e-3)


# --- where a model comes from ----------------------------------------------------------------------------------------


def header_bytes(folder, layers):
    """Bytes of the tensors that the engine has in memory: no prediction layers, nothing that sees, no n-gram tables."""
    total = 0
    for path in folder.glob("*.safetensors"):
        for name, entry in st.File(path).tensors().items():
            layer = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
            is_left_out = re.search(r"^(mtp|vision|aligner)\.|^image_|gate\.bias_vl$|\.engram\.embed\.", name)
            if not is_left_out and (not layer or int(layer.group(1)) < layers):
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return total


@pytest.mark.parametrize("name", SETS)
def test_folder(name):
    """Bytes by the headers, whatever the format; the same cache as the engine's own."""
    report, info = plan(GOLDEN / name, *NO_CARD), succeed("info", GOLDEN / name, "--json").json
    assert report["weights_bytes"] == header_bytes(GOLDEN / name, info["layers"])
    assert report["params"]["total"] == info["params"]["total"] and report["params"]["active"] == info["params"]["active"]
    assert int(report["kv_bytes_per_token"]) == info["kv_bytes_per_token"]["bf16"]
    assert report["left_out_bytes"] == info["bytes_left_out"] and report["recipe"] == "files"
    for group, found in report["groups"].items():
        assert found["params"] > 0 and found["format"], group


def test_weights_are_never_read(tmp_path):
    """Files that end after their headers are as good as whole ones."""
    whole, cut = copy_set("v2-tiny", tmp_path / "whole"), copy_set("v2-tiny", tmp_path / "cut")
    for path in cut.glob("*.safetensors"):
        os.truncate(path, st.File(path).header_bytes)
    a, b = plan(whole, *NO_CARD), plan(cut, *NO_CARD)
    a.pop("model"), b.pop("model")
    assert a == b


def test_a_part_of_the_files(shards):
    """One shard of two: the rest is taken to be stored alike, and said to be."""
    whole = plan(shards, *NO_CARD)
    (shards / "model-00002-of-00002.safetensors").unlink()
    part = plan(shards, *NO_CARD)
    assert part["weights_bytes"] == pytest.approx(whole["weights_bytes"], rel=0.01)
    assert "taken to be stored alike" in part["note"] and "note" not in whole


def test_one_header_and_its_config(model):
    path = model / "model.safetensors"
    whole = plan(model, *NO_CARD)
    os.truncate(path, st.File(path).header_bytes)
    header = plan(path, *NO_CARD)
    assert header["weights_bytes"] == whole["weights_bytes"] and header["groups"] == whole["groups"]


def published_header(path, last_layer):
    """The header of a shard of V3 as published, without its 600 GB."""
    tensors, at = {}, 0

    def add(name, dtype, *shape):
        nonlocal at
        size = st.ITEM_BYTES[dtype]
        for n in shape:
            size *= n
        tensors[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size

    def matrix(name, rows, cols):
        add(name + ".weight", "F8_E4M3", rows, cols)
        add(name + ".weight_scale_inv", "F32", -(-rows // 128), -(-cols // 128))

    add("model.embed_tokens.weight", "BF16", 129280, 7168)
    for i in range(last_layer + 1):
        layer = f"model.layers.{i}."
        add(layer + "input_layernorm.weight", "BF16", 7168)
        matrix(layer + "self_attn.q_a_proj", 1536, 7168)
        matrix(layer + "self_attn.q_b_proj", 24576, 1536)
        matrix(layer + "self_attn.kv_a_proj_with_mqa", 576, 7168)
        matrix(layer + "self_attn.kv_b_proj", 32768, 512)
        matrix(layer + "self_attn.o_proj", 7168, 16384)
        for e in range(256 if i > 2 else 0):
            for part, rows, cols in (("gate", 2048, 7168), ("up", 2048, 7168), ("down", 7168, 2048)):
                matrix(f"{layer}mlp.experts.{e}.{part}_proj", rows, cols)
    path.write_bytes(st.pack(tensors, b""))


def test_header_of_a_published_model(tmp_path):
    """Eight bytes and a header, as a range request gives them, and no config.json: the shapes tell which model it is."""
    path = tmp_path / "model-00001-of-00163.safetensors"
    published_header(path, 4)
    report = plan(path, "--gpu", "rtx-4090", "--ram", "1000@600")
    assert report["model"] == V3 and report["class"] == "ram" and "stored alike" in report["note"]
    assert report["weights_bytes"] == pytest.approx(plan(V3, "--gpu", "rtx-4090", "--ram", "1000@600")["weights_bytes"], rel=2e-3)
    assert report["groups"]["routed"]["format"] == "fp8"


def test_header_of_nobody(tmp_path, model):
    path = tmp_path / "model.safetensors"
    shutil.copy(model / "model.safetensors", path)
    refused(moebius("plan", path, *NO_CARD), path, "config.json")


QWEN = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 48, "hidden_size": 5120, "num_attention_heads": 40,
        "num_key_value_heads": 8, "intermediate_size": 13824, "vocab_size": 152064, "max_position_embeddings": 32768}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
           "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "max_position_embeddings": 32768,
           "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize("config, name", [(QWEN, "qwen2.5-coder-14b"), (MIXTRAL, "mixtral-8x7b")])
def test_config_alone(tmp_path, config, name):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    for model in (path, tmp_path):
        report, builtin = plan(model, "--gpu", "h100", "--ram", "200@89"), plan(name, "--gpu", "h100", "--ram", "200@89")
        assert report.pop("model") == str(model) and builtin.pop("model") == name
        assert report == builtin


@pytest.mark.parametrize("changes, words", [
    ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "architectures"]),
    ({"hidden_size": DELETE}, ["hidden_size"]),
    ({"num_experts_per_tok": 99}, ["num_experts_per_tok", "99"]),
    ({"n_routed_experts": -1}, ["n_routed_experts"]),
    ({"n_routed_experts": 4096, "num_hidden_layers": 1024, "hidden_size": 1 << 20, "moe_intermediate_size": 1 << 20}, ["1e15"]),
])
def test_wrong_config(model, changes, words):
    change_config(model, **changes)
    result = moebius("plan", model, *NO_CARD)
    refused(result, "config.json", *words)
    assert result.code == 1


@pytest.mark.parametrize("damage, word", [
    (lambda raw: raw[:100], "cut off"),
    (lambda raw: b"\xff" * 7 + b"\0" + raw[8:], "header"),
    (lambda raw: raw[:8] + b"[" + raw[9:], "safetensors"),
    (lambda raw: raw.replace(b'"data_offsets":', b'"data_offfets":'), "data_offsets"),
    (lambda raw: raw.replace(b'"shape":[', b'"shape":[-', 1).replace(b'"shape": [', b'"shape": [-', 1), "shape"),
    (lambda raw: b"\2\0\0\0\0\0\0\0{}", "config.json"),
])
def test_damaged_header(model, damage, word):
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    if word == "config.json":
        (model / "config.json").unlink()
    refused(moebius("plan", path, *NO_CARD), "model.safetensors", word)


def test_names_that_are_nothing(tmp_path):
    message = refused(moebius("plan", "deepseek-v9", *NO_CARD), "deepseek-v9", "built in", V3)
    assert "mixtral-8x7b" in message
    refused(moebius("plan", tmp_path, *NO_CARD), "config.json")


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, words", [
    ([], ["MODEL"]),
    ([LITE, "--gpu", "rtx-9999"], ["--gpu", "rtx-4090", "rtx-9999"]),
    ([LITE, "--gpu", "mine=24,1000"], ["--gpu", "TFLOPS"]),
    ([LITE, "--gpu", "mine=24,1000,0"], ["--gpu"]),
    ([LITE, "--gpu", "0xrtx-4090"], ["--gpu"]),
    ([LITE, "--ram", "lots"], ["--ram", "lots"]),
    ([LITE, "--ram", "64@"], ["--ram", "64@"]),
    ([LITE, "--ram", "-4"], ["--ram"]),
    ([LITE, "--nvme", "0"], ["--nvme"]),
    ([LITE, "--network", "5"], ["--network", "5"]),
    ([LITE, "--network", "10furlong,5"], ["--network", "10furlong"]),
    ([LITE, "--ranks", "1"], ["--ranks"]),
    ([LITE, "--ranks", "2", "--nodes", "2", *NO_CARD], ["--ranks", "--nodes"]),
    ([LITE, "--ranks", "2", "--parallel", "tensor", *NO_CARD], ["--ranks", "--parallel"]),
    ([LITE, "--ranks", "2", "--gpu", "2xrtx-4090", "--ram", "64@89"], ["--ranks", "one card"]),
    ([LITE, "--ranks", "2", "--experts", "disk", *NO_CARD], ["--ranks", "RAM"]),
    (["qwen2.5-coder-14b", "--ranks", "2", *NO_CARD], ["--ranks", "no experts"]),
    ([LITE, "--quant", "int3"], ["--quant", "int3", "awq-g64"]),
    ([LITE, "--quant", "int4,tail=bf16"], ["--quant", "tail=bf16", "routed"]),
    ([LITE, "--quant", "int4,head=bf17"], ["--quant", "head", "bf17"]),
    ([LITE, "--quant", "int4,head"], ["--quant", "head"]),
    ([LITE, "--kv", "int8"], ["--kv", "int8"]),
    ([LITE, "--hit-rate", "1.5"], ["--hit-rate"]),
    ([LITE, "--experts", "gpu", *NO_CARD], ["--experts gpu", "card"]),
    ([LITE, "--context", "163841"], ["--max-model-len", "163841", "163840"]),
    ([LITE, "--tps", "5"], ["--check"]),
    ([LITE, "--table", "vram"], ["--table", "MODEL"]),
    (["--table", "chairs"], ["--table", "chairs"]),
    (["--check", "--params", "14.8B", "--bits", "4.6", "--bandwidth", "1008"], ["--check", "--tps"]),
    (["--check", "--params", "14.8X", "--bits", "4.6", "--bandwidth", "1008", "--tps", "1"], ["--params", "14.8X"]),
    (["--check", "--params", "14B,15B", "--bits", "4.6", "--bandwidth", "1008", "--tps", "1"], ["--params"]),
    (["--check", LITE], ["--check", "MODEL"]),
])
def test_wrong_usage(arguments, words):
    result = moebius("plan", *arguments)
    assert result.code == 2, str(result)
    refused(result, *words)


def test_own_card():
    own = plan(LITE, "--quant", "fp8", "--gpu", "2xmine=24,1008,165.2", "--ram", "64@89")
    assert own["machine"]["gpu"]["count"] == 2 and own["machine"]["gpu"]["name"] == "mine" and own["fits"]


def test_help():
    text = succeed("plan", "--help").text
    for flag in ("--gpu", "--ram", "--nvme", "--quantization", "--kv-cache-dtype", "--max-model-len", "--max-num-seqs", "--nodes",
                 "--ranks", "--expert-trace", "--network", "--explain", "--json", "--table", "--check", "--params"):
        assert re.search(rf"^\s+{flag}\b", text, re.M), flag
    assert "Exit status" in text and "Examples:" in text


# --- is it possible? -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params, bits, bandwidth, tps, limit, possible", [
    ("14.8B", 4.6, 1008, 135, 118.4, False),
    ("32.5B", 4.27, 1008, 65, 58.1, False),
    ("15.7B,2.45B", 8, 1008, 120, 411, True),
    ("671B,36.6B", 4.5, 273, 5.37, 13.3, True),
    ("350M", 16, 100, 140, 142.9, True),
])
def test_check(params, bits, bandwidth, tps, limit, possible):
    arguments = ["--check", "--params", params, "--bits", bits, "--bandwidth", bandwidth, "--tps", tps]
    report = plan(*arguments, code=0 if possible else 3)
    assert report["possible"] is possible and report["limit_tokens_per_s"] == pytest.approx(limit, rel=3e-3)
    text = moebius("plan", *arguments).text
    assert text.startswith("possible" if possible else "not possible") and f"{report['limit_tokens_per_s']:.1f} at most" in text


# --- tables and the page that they make ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCS)
def test_docs_are_what_the_command_prints(name):
    printed = succeed("plan", *DOCS[name]).text
    written = (ROOT / "docs" / name).read_text()
    assert printed == written, f"moebius plan {' '.join(DOCS[name])} > docs/{name}"


def test_tables_correct_the_guides():
    vram = succeed("plan", "--table", "vram").text
    assert "| total | 38.5 / 22.5 / 15.5 |" in vram and "31,104 B a token in bf16 (17,712 B in fp8), not 221 KB" in vram
    concurrency = succeed("plan", "--table", "concurrency").text
    row = re.search(r"\| 16 x 8192 \| .*? \| [\d.]+ \| ([\d.]+) / ([\d.]+) \| (\d+) / (\d+) \|", concurrency)
    assert float(row[1]) == pytest.approx(16 * 8192 * 31104e-9, abs=0.01) and int(row[3]) >= 16 and int(row[4]) > int(row[3])
    estimates = succeed("plan", "--table", "estimates").text
    for words in ("5-15", "1-5", "out of memory", "5.37", "cluster", "does not fit", "nvme"):
        assert words in estimates, words


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_quick():
    report = succeed("doctor", "--quick", "--json").json
    assert report["processor"]["level"] in ("ref", "avx2", "avx-vnni", "avx512", "avx512-bf16", "amx") and report["processor"]["threads"] >= 1
    assert 0 < report["memory"]["available_bytes"] <= report["memory"]["bytes"]
    assert "read_gb_s" not in report["memory"] and report["disk"] is None
    assert report["cards"] or report["no_card"]
    assert set(report["limits"]) == {"files", "locked_bytes", "address_bytes", "huge_pages", "overcommit"}
    text = succeed("doctor", "--quick").text
    for word in ("processor", "memory", "card", "energy", "limits", "huge pages"):
        assert re.search(rf"^{word} ", text, re.M), text


def test_doctor_measures(tmp_path):
    report = succeed("doctor", tmp_path, "--json").json
    assert report["memory"]["read_gb_s"] > 0.1
    assert report["disk"]["gb_s"] > 0 and report["disk"]["own_file"] is True and report["disk"]["bytes"] > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_doctor_says_when_reads_are_not_direct():
    """A file system in memory allows no direct reads (or, on new kernels, does); either way it is said."""
    folder = "/dev/shm"
    if not os.access(folder, os.W_OK):
        pytest.skip("no /dev/shm here")
    result = succeed("doctor", folder, "--json")
    if not result.json["disk"]["direct"]:
        assert any("no direct reads" in advice for advice in result.json["advice"])


def test_doctor_is_alone():
    """Several at once would measure what the others leave."""
    several = {"OMPI_COMM_WORLD_SIZE": "2"}
    refused(moebius("doctor", "--quick", env=several), "without mpirun", "--ranks")
    succeed("doctor", "--quick", env={**several, "MOEBIUS_MPI": "0"})


def test_doctor_advises_on_limits():
    limited = f'ulimit -n 512 -v 8000000; exec "{os.environ.get("MOEBIUS", ROOT / "build/moebius")}" doctor --quick --json'
    done = subprocess.run(["bash", "-c", limited], capture_output=True, check=True)
    advice = " ".join(json.loads(done.stdout)["advice"])
    assert "ulimit -n" in advice and "ulimit -v" in advice


def test_doctor_refuses():
    result = moebius("doctor", "/nowhere/at/all")
    assert result.code == 2
    refused(result, "/nowhere/at/all", "folder")


# --- cards, through a driver that is not one --------------------------------------------------------------------------

DRIVER = r"""
#include <stddef.h>
#include <stdio.h>
int cuInit(unsigned flags) { (void)flags; return INIT; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, device == 9 ? "Other" : "NVIDIA Test 4090"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 25757220864; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 13 ? 2520000 : attribute == 16 ? 128 : attribute == 36 ? 10501000 : attribute == 37 ? 384
             : attribute == 75 ? MAJOR : attribute == 76 ? 9 : 0;
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path):
    """driver(INIT=..., COUNT=..., MAJOR=...) -> an environment in which libcuda.so.1 is ours."""
    def build(**settings):
        source = tmp_path / "driver.c"
        source.write_text(DRIVER)
        defines = [f"-D{name}={value}" for name, value in {"INIT": 0, "COUNT": 1, "MAJOR": 8, **settings}.items()]
        subprocess.run(["cc", "-shared", "-fPIC", *defines, "-o", tmp_path / "libcuda.so.1", source], check=True)
        return {"LD_LIBRARY_PATH": str(tmp_path)}
    return build


def test_card_by_the_driver(driver):
    env = driver(COUNT=3)
    (first, second, third) = succeed("doctor", "--quick", "--json", env=env).json["cards"]
    assert first == second and first["name"] == "NVIDIA Test 4090" and third["name"] == "Other"
    assert first["gb_s"] == pytest.approx(1008, rel=1e-3) and first["tflops"] == pytest.approx(165.2, rel=1e-3)
    assert first["capability"] == 89 and first["memory_bytes"] == 25757220864
    text = succeed("doctor", "--quick", env=env).text
    assert "compute capability 8.9" in text and "CUDA 13.0" in text
    result = succeed("plan", LITE, "--quant", "fp8", "--ram", "64@89", "--json", env=env).json
    assert result["class"] == "vram" and result["machine"]["gpu"]["count"] == 2 and result["machine"]["gpu"]["from"] == "by the driver"
    assert result["machine"]["parallel"] == "pipeline"  # as the engine would use them
    assert "--device cuda -pp 3" in text


def test_old_card(driver):
    report = succeed("doctor", "--quick", "--json", env=driver(MAJOR=7)).json
    assert any("8.0" in advice for advice in report["advice"])


@pytest.mark.parametrize("settings, word", [({"INIT": 100}, "error 100"), ({"COUNT": 0}, "no card")])
def test_driver_without_cards(driver, settings, word):
    report = succeed("doctor", "--quick", "--json", env=driver(**settings)).json
    assert report["cards"] == [] and word in report["no_card"]


def test_library_that_is_no_driver(tmp_path):
    (tmp_path / "empty.c").write_text("int nothing;")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "empty.c"], check=True)
    report = succeed("doctor", "--quick", "--json", env={"LD_LIBRARY_PATH": str(tmp_path)}).json
    assert report["cards"] == [] and "missing" in report["no_card"]


def test_device_cuda_without_a_card(tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    env = {"LD_LIBRARY_PATH": str(tmp_path)}
    if moebius("doctor", "--quick", "--json", env=env).json["cards"]:
        pytest.skip("this machine's own driver answers")
    refused(moebius("plan", LITE, "--device", "cuda", "--ram", "64@89", env=env), "--device cuda", "--gpu")
    assert plan(LITE, "--device", "cpu", "--gpu", "rtx-4090", "--ram", "64@89")["class"] == "cpu"


# --- this machine ----------------------------------------------------------------------------------------------------


def test_measured_here():
    """Nothing given: memory, its speed, and cards are this machine's."""
    report = plan(GOLDEN / "v2lite-tiny", "--device", "cpu")
    assert report["fits"] and report["class"] == "cpu" and report["machine"]["ram"]["gb_s"] > 0.1
    assert "measured here" in report["machine"]["ram"]["speed_from"] and report["machine"]["ram"]["from"] == "free here"
    assert report["prefill"]
