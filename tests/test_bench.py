"""`moebius bench`: structure, counts and refusals. Never speeds: they belong to the machine and the hour."""

import json
import math
import re
import subprocess
import sys

import pytest

import st
import tiny_tokenizer
from conftest import GOLDEN, ROOT, change_config, copy_set, moebius, read_i32, refused, succeed

PAGE_TOKENS = 64  # the pages that sequences share at a depth are whole
SMALL = ["--prompt", "70,20", "--generate", "6", "--repeat", "2", "--batch", "1,3", "--depth", "0,100"]
EXACT = ["--compute", "f32", "--attention", "absorbed"]  # a row's bits do not depend on its batch
NAMES = ["v2lite-tiny", "v2-tiny", "v3-tiny-fp8", "v2lite-tiny-awq"]


WHOLE = {"MOEBIUS_MEMORY": ""}


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """A quarter of the memory is read many times a run, and a GiB would take seconds. One report is made with the whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOEBIUS_MEMORY", "0.25")
        yield


@pytest.fixture(scope="module")
def reports():
    memory = {NAMES[0]: WHOLE}
    return {name: succeed("bench", GOLDEN / name, "--json", *SMALL, *EXACT, env=memory.get(name)).json for name in NAMES}


def config_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


def matrix_bytes(name):
    """(bytes of all matrices outside the experts, bytes of one expert), from the files' headers."""
    layers, fixed, expert = config_of(name)["num_hidden_layers"], 0, 0
    for path in (GOLDEN / name).glob("*.safetensors"):
        for tensor, entry in st.File(path).tensors().items():
            begin, end = entry["data_offsets"]
            if "kv_b_proj" not in tensor and tensor.endswith((".scales", ".qzeros")):  # AWQ, turned: a word for each scale
                end = begin + (end - begin) * 2 * tensor.endswith(".scales")
            layer = re.match(r"model\.layers\.(\d+)\.", tensor)
            if layer and int(layer.group(1)) >= layers or "norm" in tensor or "embed" in tensor or "bias" in tensor:
                continue
            if ".experts." not in tensor:
                fixed += end - begin
            elif re.search(rf"layers\.{layers - 1}\.mlp\.experts\.0\.", tensor):
                expert += end - begin
    return fixed, expert


def cache_row_bytes(config):
    return config["num_hidden_layers"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * 4


def mean_cache_rows(batch, depth, steps):
    shared = depth // PAGE_TOKENS * PAGE_TOKENS
    return sum(shared + batch * (depth + i + 1 - shared) for i in range(steps)) / steps


@pytest.mark.parametrize("name", NAMES)
def test_structure(reports, name):
    report = reports[name]
    assert set(report) == {"model", "synthetic", "machine", "load_s", "self_test_s", "rss_bytes", "repacked_bytes", "max_num_batched_tokens", "prefill", "ttft_s", "decode",
                           "text", "overrides", "model_hash", "version"}
    assert report["machine"]["level"] in ("ref", "avx2", "avx-vnni", "avx512", "avx512-bf16", "amx") and report["machine"]["threads"] >= 1
    assert 0 < report["machine"]["read_gb_s_min"] <= report["machine"]["read_gb_s"] <= report["machine"]["read_gb_s_max"]
    assert report["machine"]["read_gb_s_after"] > 0
    tops = report["machine"]["int8_tops"]
    assert (tops is None) == (report["machine"]["level"] == "ref") and (tops is None or tops > 0)
    assert report["synthetic"] is None and str(GOLDEN / name) in report["model"]
    assert report["model_hash"] == succeed("info", GOLDEN / name, "--json").json["hash"]
    assert f"moebius {report['version']}" in succeed("--version").text
    assert report["text"] == "random ids"
    assert 0 < report["self_test_s"] < report["load_s"]
    assert 0 < report["load_s"] < 60 and 1 << 20 < report["rss_bytes"] < 1 << 30  # what measures the memory is given back


@pytest.mark.parametrize("name", NAMES)
def test_speeds_fit_together(reports, name):
    report = reports[name]
    assert [p["prompt"] for p in report["prefill"]] == [70, 20] and report["ttft_s"] == report["prefill"][0]["ttft_s"]
    for line in report["prefill"]:
        assert line["tokens_per_s"] == pytest.approx(line["prompt"] / line["ttft_s"], rel=1e-6)
    assert [(d["batch"], d["depth"]) for d in report["decode"]] == [(1, 0), (3, 0), (1, 100), (3, 100)]
    for line in report["decode"] + report["prefill"]:
        assert line["synthetic"] is False
        assert 0 < line["tokens_per_s_min"] <= line["tokens_per_s"] <= line["tokens_per_s_max"]
    for line in report["decode"]:
        assert line["predicted_tokens_per_s"] > 0
        speed = line["bytes_per_step"] * line["tokens_per_s"] / line["batch"] * 1e-9
        assert line["gb_per_s"] == pytest.approx(speed, rel=1e-6)
        assert line["share_of_bandwidth"] == pytest.approx(speed / line["read_gb_s"], rel=1e-6)


def matrix_operations(config):
    """Of the matrices that a prompt's token meets, without the head: each value is a product and a sum."""
    hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    head, latent = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["kv_lora_rank"]
    dense, width = config["first_k_dense_replace"], config["moe_intermediate_size"]
    q, low = heads * head * hidden, config.get("q_lora_rank")
    if low:
        q = low * (hidden + heads * head)
    attention = q + (latent + config["qk_rope_head_dim"]) * hidden
    attention += heads * (config["qk_nope_head_dim"] + config["v_head_dim"]) * latent + heads * config["v_head_dim"] * hidden
    experts = (config["num_experts_per_tok"] + config["n_shared_experts"]) * 3 * width * hidden
    sparse = experts + config["n_routed_experts"] * hidden
    return 2 * (layers * attention + dense * 3 * config["intermediate_size"] * hidden + (layers - dense) * sparse)


@pytest.mark.parametrize("name", NAMES)
def test_share_of_the_8_bit_rate(reports, name):
    report = reports[name]
    tops = report["machine"]["int8_tops"]
    for line in report["prefill"]:
        if tops is None:
            assert line["share_of_peak"] is None
        else:
            share = line["tokens_per_s"] * matrix_operations(config_of(name)) / (tops * 1e12)
            assert line["share_of_peak"] == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_one_sequence(reports, name):
    """One sequence visits top_k experts in each expert layer, so every byte is known from the headers."""
    config, (fixed, expert) = config_of(name), matrix_bytes(name)
    visited = (config["num_hidden_layers"] - config["first_k_dense_replace"]) * config["num_experts_per_tok"]
    for line in reports[name]["decode"]:
        if line["batch"] == 1:
            rows = mean_cache_rows(1, line["depth"], 6)
            expected = fixed + visited * expert + rows * cache_row_bytes(config)
            assert line["bytes_per_step"] == pytest.approx(expected, rel=1e-8)


# --- batches: the same sequences through `logits`, which writes the experts of every token ---------------------------


def philox(counter, key):
    """Philox4x32-10, first word."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


def random_id(seq, pos, vocab):
    return philox((pos, seq, 0, 0), (20240507, 0)) * vocab >> 32


def experts_of(name, ids, tmp_path):
    config, path = config_of(name), tmp_path / "experts"
    (tmp_path / "ids").write_text(json.dumps(ids))
    succeed("logits", GOLDEN / name, "--ids", tmp_path / "ids", "--experts", path, *EXACT)
    layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
    return read_i32(path, layers, len(ids), config["num_experts_per_tok"])


@pytest.mark.parametrize("depth", [0, 100])
@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8"])
def test_bytes_of_a_batch(reports, tmp_path, name, depth):
    """Each expert that any of the sequences visits counts once. Routing depends on what is in the cache, so equal counts
    also mean that pages were filled and shared as they should be."""
    config, (fixed, expert) = config_of(name), matrix_bytes(name)
    vocab, steps, shared = config["vocab_size"], 6, depth // PAGE_TOKENS * PAGE_TOKENS
    chosen = []
    for seq in range(3):
        ids = [random_id(0, pos, vocab) for pos in range(shared)]
        ids += [random_id(seq, pos, vocab) for pos in range(shared, depth + steps)]
        chosen.append(experts_of(name, ids, tmp_path))
    visited = sum(len({int(e) for c in chosen for e in c[layer, depth + i]})
                  for i in range(steps) for layer in range(chosen[0].shape[0]))
    (line,) = [d for d in reports[name]["decode"] if (d["batch"], d["depth"]) == (3, depth)]
    expected = fixed + visited / steps * expert + mean_cache_rows(3, depth, steps) * cache_row_bytes(config)
    assert line["bytes_per_step"] == pytest.approx(expected, rel=1e-8)
    assert visited > steps * chosen[0].shape[0] * config["num_experts_per_tok"], "the sequences differ"


# --- random weights in memory, the hosting guide's table -------------------------------------------------------------

CONFIG = GOLDEN / "v2lite-tiny" / "config.json"
MADE = ["--config", CONFIG, "--layers", "2", "--quant", "int4"]
FEW = ["--prompt", "5", "--generate", "4", "--repeat", "1", "--batch", "1,3", "--depth", "0,70", "--json"]


def decode_bytes(report):
    return {(d["batch"], d["depth"]): d["bytes_per_step"] for d in report["decode"]}


def test_weights_in_memory(tmp_path):
    """The same as in a file of `synth`: the same experts are visited, so the same bytes are read. All of it says that it is
    synthetic, and by which seed."""
    path = tmp_path / "made.safetensors"
    succeed("synth", *MADE, "--seed", "7", "-o", path)
    memory, file = succeed("bench", *MADE, "--seed", "7", *FEW).json, succeed("bench", path, *FEW).json
    other = succeed("bench", *MADE, "--seed", "8", *FEW).json
    assert decode_bytes(memory) == decode_bytes(file) != decode_bytes(other)
    for report, seed in (memory, 7), (file, 7), (other, 8):
        assert report["synthetic"]["seed"] == seed and f"--seed {seed}" in report["synthetic"]["made"]
        assert all(line["synthetic"] is True for line in report["decode"] + report["prefill"])
    assert "--layers 2" in memory["synthetic"]["made"] and "--quant int4" in memory["synthetic"]["made"]
    assert memory["model_hash"] is None and file["model_hash"] == succeed("info", path, "--json").json["hash"]


@pytest.mark.parametrize("quant", ["int4", "int8", "fp8", "bf16"])
def test_counts_on_paper(quant):
    """tools/stage_counts.py, whose numbers the log of performance begins with, counts what bench counts."""
    tool = [sys.executable, ROOT / "tools" / "stage_counts.py", CONFIG, "--quant", quant, "--depth", "100", "--json"]
    paper = json.loads(subprocess.run(tool, check=True, capture_output=True).stdout)
    report = succeed("bench", "--config", CONFIG, "--quant", quant, "--prompt", "5", "--generate", "1", "--repeat", "1",
                     "--batch", "1", "--depth", "100", "--json").json
    (line,) = report["decode"]
    assert line["bytes_per_step"] == pytest.approx(paper["total"]["bytes"], rel=1e-8)
    by = {stage["stage"]: stage["operations"] for stage in paper["stages"]}
    on_paper = paper["total"]["operations"] - by["lm_head (head)"] - by["cache (attn)"]
    assert on_paper == matrix_operations(json.loads(CONFIG.read_text()))


def test_the_log_of_performance_says_what_the_tool_says():
    """Every stage of the first entry of docs/performance.md, in all four formats."""
    text = (ROOT / "docs" / "performance.md").read_text()
    tables = []
    for quant in ("int4", "int8", "fp8", "bf16"):
        tool = [sys.executable, ROOT / "tools" / "stage_counts.py", "--quant", quant, "--json"]
        tables.append(json.loads(subprocess.run(tool, check=True, capture_output=True).stdout))
    for stages in zip(*(table["stages"] for table in tables)):
        if stages[0]["weights"]:
            cells = [stages[0]["weights"], *(stage["bytes"] for stage in stages), stages[0]["operations"]]
            row = " | ".join(f"{cell / 1e6:.1f}" for cell in cells)
            assert f"| {row} |" in text, f"{stages[0]['stage']}: {row}"
    assert "| ".join(["", *(f"**{table['total']['bytes'] / 1e6:.1f}** " for table in tables)]) in text
    for table, quant in zip(tables, ("int4", "int8", "fp8")):
        row = " | ".join(f"{size / 1e6:.0f}" for size in table["batches"].values())
        assert f"| {quant}, MB a step | {row} |" in text


def test_guide():
    """The guide's shapes, its published figures, and what was measured in this run, in words and for programs."""
    few = ["guide", "--config", CONFIG, "--layers", "1", "--quant", "int8", "--repeat", "1"]
    report = succeed("bench", *few, "--json").json
    assert [p["prompt"] for p in report["prefill"]] == [1024, 8192]
    assert [(d["batch"], d["depth"]) for d in report["decode"]] == [(1, 1024), (4, 1024), (8, 1024)]
    guide = report["guide"]
    assert "RTX 4090" in guide["machine"] and "gigagpu.com" in guide["source"] and guide["same_shape"] is False
    published = [(row["published"]["fp8"], row["published"]["awq"]) for row in guide["rows"]]
    assert published == [(120, 145), (410, 490), (620, 720), (95, 80), (3800, 4200)]
    first, long = report["prefill"]
    here = [d["tokens_per_s"] for d in report["decode"]] + [first["ttft_s"] * 1e3, long["tokens_per_s"]]
    assert [row["here"] for row in guide["rows"]] == pytest.approx(here, rel=1e-6)
    shares = [d["share_of_bandwidth"] for d in report["decode"]] + [first["share_of_peak"], long["share_of_peak"]]
    assert [row["share"] for row in guide["rows"]] == pytest.approx(shares, rel=1e-6)
    text = succeed("bench", *few).text
    table = text[text.index("hosting guide"):]
    for words in ("RTX 4090", "as published", "not of the shape", "tokens/s", "ms", "620 ", "4200 "):
        assert words in table, text
    rows = [line for line in text.splitlines() if line.endswith("synthetic, seed 1")]
    assert len(rows) == 2 + 3 + 3 + 5, text  # prompts, decode, predictions, the guide's rows: each says what it measured


@pytest.mark.parametrize("arguments, words", [
    (["--like", "gpt-2"], ["gpt-2", "deepseek-v3"]),
    (["--like", "deepseek-v2", "model"], ["MODEL", "--like"]),
    (["--like", "deepseek-v2", "--config", CONFIG], ["--like", "--config"]),
    (["--config", CONFIG, "--quant", "int3"], ["--quantization", "int3"]),
    (["--layers", "3", GOLDEN / "v2lite-tiny"], ["--layers", "--like"]),
    (["--seed", "3", GOLDEN / "v2lite-tiny"], ["--seed", "--like"]),
    (["guide", GOLDEN / "v2lite-tiny", "--batch", "2"], ["guide", "--batch"]),
    (["guide"], ["MODEL"]),
    ([GOLDEN / "v2lite-tiny", "again"], ["again", "one MODEL"]),
])
def test_wrong_models(arguments, words):
    result = moebius("bench", *arguments)
    assert result.code == 2, str(result)
    refused(result, *words)


# --- words for people, text, refusals --------------------------------------------------------------------------------


def test_table_and_text(tmp_path):
    """With a tokenizer, text is used. The table has units, and a line for each batch and depth."""
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    tiny_tokenizer.write(folder)
    result = succeed("bench", folder, "--prompt", "40", "--generate", "3", "--repeat", "1", "--batch", "2,5", "--depth",
                     "0,64", "--threads", "1", "--max-num-batched-tokens", "16")
    text = result.text
    assert "tokens: text" in text and "1 thread reads" in text and not result.err
    for unit in ("tokens/s", "MB/step", "GB/s", "GiB", " s ", "%"):
        assert unit in text, text
    assert re.search(r"^\s+40( +[\d.]+){4} s +[\d.]+ %$", text, re.M), text
    lines = [line.split()[:2] for line in text.splitlines() if re.match(r"\s*\d+ +\d+ .*%$", line)]
    assert lines == [["2", "0"], ["5", "0"], ["2", "64"], ["5", "64"]]


def test_help_explains():
    text = succeed("bench", "--help").text
    for flag in ("--prompt", "--generate", "--batch", "--depth", "--repeat", "--json", "--threads", "--kv-cache-dtype",
                 "--like", "--config", "--layers", "--seed"):
        assert re.search(rf"^\s+{flag}\b.*\w", text, re.M), text
    assert text.startswith("Usage: moebius bench [guide] MODEL") and "Examples:" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("arguments, words", [
    (["--batch", "0"], ["--batch", "1 to", '"0"']),
    (["--batch", "1,,2"], ["--batch", "1,,2"]),
    (["--batch", ""], ["--batch"]),
    (["--depth", "-1"], ["--depth", "-1"]),
    (["--depth", "many"], ["--depth", "many"]),
    (["--depth", ",".join(["1"] * 33)], ["--depth", "32"]),
    (["--generate", "0"], ["--generate", "0"]),
    (["--repeat", "0"], ["--repeat", "0"]),
    (["--prompt", "1x"], ["--prompt", "1x"]),
])
def test_wrong_values(arguments, words):
    result = moebius("bench", GOLDEN / "v2lite-tiny", *arguments)
    assert result.code == 2, str(result)
    refused(result, *words)


def test_no_model():
    result = moebius("bench")
    assert result.code == 2
    refused(result, "MODEL")


@pytest.mark.parametrize("arguments, words", [
    (["--prompt", "5", "--depth", "0,500", "--generate", "50", "--max-model-len", "549"], ["--depth 500", "550", "549", "--max-model-len"]),
    (["--prompt", "300", "--depth", "0", "--max-model-len", "299"], ["--prompt 300", "299", "--max-model-len"]),
    (["--batch", "1,4", "--max-num-seqs", "3"], ["--batch 4", "--max-num-seqs 3"]),
    (["--batch", "512", "--depth", "0", "--generate", "160000", "--memory-utilization", "0.01"],  # 39 GB
     ["cache", "--batch 512", "--depth 0", "--max-model-len"]),
])
def test_what_does_not_fit(arguments, words):
    result = moebius("bench", GOLDEN / "v2lite-tiny", "--json", *arguments, env=WHOLE)
    assert result.code == 1 and result.out == b"", str(result)
    refused(result, *words)


def test_context_of_the_model(model):
    """The limit is the model's own when no flag sets one; what just fits runs, although the pages of a batch begin anew."""
    change_config(model, max_position_embeddings=130)
    few = ["--prompt", "130", "--generate", "1", "--repeat", "1", "--batch", "2"]
    refused(moebius("bench", model, *few, "--depth", "130"), "--depth 130", "131", "130")
    report = succeed("bench", model, *few, "--depth", "129", "--json").json
    assert [d["depth"] for d in report["decode"]] == [129] and math.isfinite(report["decode"][0]["tokens_per_s"])


def test_many_depths_in_any_order(model):
    """The shared pages of the deepest serve the others, and nobody overwrites them."""
    few = ["--prompt", "10", "--generate", "4", "--repeat", "1", "--batch", "3", *EXACT, "--json"]
    orders = [succeed("bench", model, *few, "--depth", depths).json["decode"] for depths in ("200,64,0", "0,64,200")]
    falling, rising = [{d["depth"]: d["bytes_per_step"] for d in lines} for lines in orders]
    assert falling == rising and len(falling) == 3


def test_a_folder_that_is_no_model(tmp_path):
    refused(moebius("bench", tmp_path), str(tmp_path))


def test_report_through_a_link(tmp_path):
    """What --report names is written to, never replaced: as root, /dev/null would be gone."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    succeed("bench", GOLDEN / "v2lite-tiny", *SMALL, "--report", link)
    assert link.is_symlink() and json.loads(target.read_text())["decode"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]
