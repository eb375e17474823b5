"""`moebius bench`: structure, counts and refusals. Never speeds: they belong to the machine and the hour."""

import json
import math
import re

import pytest

import st
import tiny_tokenizer
from conftest import GOLDEN, change_config, copy_set, moebius, read_i32, refused, succeed

PAGE_TOKENS = 64  # the pages that sequences share at a depth are whole
SMALL = ["--prompt", "70", "--generate", "6", "--repeat", "2", "--batch", "1,3", "--depth", "0,100"]
EXACT = ["--compute", "f32", "--attention", "absorbed"]  # a row's bits do not depend on its batch
NAMES = ["v2lite-tiny", "v2-tiny", "v3-tiny-fp8", "v2lite-tiny-awq"]


@pytest.fixture(scope="module")
def reports():
    return {name: succeed("bench", GOLDEN / name, "--json", *SMALL, *EXACT).json for name in NAMES}


def config_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


def matrix_bytes(name):
    """(bytes of all matrices outside the experts, bytes of one expert), from the files' headers."""
    layers, fixed, expert = config_of(name)["num_hidden_layers"], 0, 0
    for path in (GOLDEN / name).glob("*.safetensors"):
        for tensor, entry in st.File(path).tensors().items():
            begin, end = entry["data_offsets"]
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
    assert set(report) == {"machine", "load_s", "rss_bytes", "prefill", "ttft_s", "decode", "text", "model_hash", "version"}
    assert report["machine"]["level"] in ("ref", "avx2", "avx512") and report["machine"]["threads"] >= 1
    assert 0 < report["machine"]["read_gb_s_min"] <= report["machine"]["read_gb_s"] <= report["machine"]["read_gb_s_max"]
    assert report["machine"]["read_gb_s_after"] > 0
    assert report["model_hash"] == succeed("info", GOLDEN / name, "--json").json["hash"]
    assert f"moebius {report['version']}" in succeed("--version").text
    assert report["text"] == "random ids"
    assert 0 < report["load_s"] < 60 and 1 << 20 < report["rss_bytes"] < 1 << 30  # what measures the memory is given back


@pytest.mark.parametrize("name", NAMES)
def test_speeds_fit_together(reports, name):
    report = reports[name]
    (prefill,) = report["prefill"]
    assert prefill["prompt"] == 70
    assert prefill["tokens_per_s"] == pytest.approx(70 / report["ttft_s"], rel=1e-6)
    assert [(d["batch"], d["depth"]) for d in report["decode"]] == [(1, 0), (3, 0), (1, 100), (3, 100)]
    for line in report["decode"] + [prefill]:
        assert 0 < line["tokens_per_s_min"] <= line["tokens_per_s"] <= line["tokens_per_s_max"]
    for line in report["decode"]:
        speed = line["bytes_per_step"] * line["tokens_per_s"] / line["batch"] * 1e-9
        assert line["gb_per_s"] == pytest.approx(speed, rel=1e-6)
        assert line["share_of_bandwidth"] == pytest.approx(speed / report["machine"]["read_gb_s"], rel=1e-6)


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


# --- words for people, text, refusals --------------------------------------------------------------------------------


def test_table_and_text(tmp_path):
    """With a tokenizer, text is used. The table has units, and a line for each batch and depth."""
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    tiny_tokenizer.write(folder)
    result = succeed("bench", folder, "--prompt", "40", "--generate", "3", "--repeat", "1", "--batch", "2,5", "--depth",
                     "0,64", "--threads", "1", "--max-num-batched-tokens", "16")
    text = result.text
    assert "tokens: text" in text and "1 thread" in text and not result.err
    for unit in ("tokens/s", "MB/step", "GB/s", "GiB", " s\n", "%"):
        assert unit in text, text
    lines = [line.split()[:2] for line in text.splitlines() if line.endswith("%")]
    assert lines == [["2", "0"], ["5", "0"], ["2", "64"], ["5", "64"]]


def test_help_explains():
    text = succeed("bench", "--help").text
    for flag in ("--prompt", "--generate", "--batch", "--depth", "--repeat", "--json", "--threads", "--kv-cache-dtype"):
        assert re.search(rf"^\s+{flag}\b.*\w", text, re.M), text
    assert text.startswith("Usage: moebius bench MODEL") and "Examples:" in text
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
    result = moebius("bench", GOLDEN / "v2lite-tiny", "--json", *arguments)
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
