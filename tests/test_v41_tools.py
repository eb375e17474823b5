"""DeepSeek-V4.1 around its arithmetic: what `synth` and `quantize` write, what `info`, `plan` and `bench` say of it."""

import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import st
from conftest import PROGRAM, moebius, read_f32, read_i32, succeed
from test_v4_tools import check_computes, config, made, plan, tensors_of  # noqa: F401 (fixtures are among them)

FORMATS = ["int4", "fp4", "int8", "fp8", "bf16"]
VOCAB, EXPERTS, TOP_K, HIDDEN, WIDTH, LAYERS = 1000, 16, 3, 256, 96, 9
RATIOS, MAKERS, CHOOSERS, CANDIDATES = [0, 0, 2, 2, 2, 1, 1, 1, 1], [2, 4, 5], [2, 4, 5, 7], 5
TABLES = {1: 24 * 800, 4: 24 * 800}  # rows: six hashes of about 500 in each, and some that nothing finds
TEXT = {
    "model_type": "deepseek_v41_text", "vocab_size": VOCAB, "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "qk_rope_head_dim": 16,
    "q_lora_rank": 96, "o_groups": 2, "o_lora_rank": 64, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "num_experts_per_tok": TOP_K, "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True,
    "routed_scaling_factor": 1.5, "swiglu_limit": 10.0, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "sliding_window": 128,
    "compress_ratios": [*RATIOS, 0], "kv_source_layer_ids": MAKERS, "index_source_layer_ids": CHOOSERS,
    "candidate_source_layer_id": CANDIDATES, "candidate_topk_blocks": 4, "candidate_block_size": 4, "compress_rope_theta": 160000,
    "rope_theta": 10000, "rope_scaling": {"rope_type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
                                          "original_max_position_embeddings": 65536},
    "index_n_heads": 4, "index_head_dim": 32, "index_topk": 8, "max_position_embeddings": 4096, "rms_norm_eps": 1e-20,
    "num_nextn_predict_layers": 1, "engram_layer_ids": list(TABLES), "engram_num_embeddings": list(TABLES.values()),
    "engram_max_ngram_size": 4, "engram_vocab_size": 500, "engram_n_heads": 8, "engram_head_dim": 32, "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 900}
CONFIG = {"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41", "text_config": TEXT,
          "vision_config": {"model_type": "deepseek_v41_vision"}}
COLUMNS, DIM, ROW, KEY = 24, 32, 64, 32  # rows of a table a token, their values; values of a cache row, of an index key
MIXERS = re.compile(r"hc_(attn|ffn)_fn$")
FLOATS = re.compile(r"norm\.weight$|hc_.*_(base|scale)$|attn_sink$|gate\.bias$|engram\.[qk]_weight$")
KV_B = re.compile(r"compressor\.(wkv|wgate)\.weight$|indexer\.(wq_b|wk)\.weight$")
ROUTER = re.compile(r"ffn\.gate\.weight$|weights_proj\.weight$|^embed\.weight$")
TABLE = re.compile(r"engram\.embed\.weight")


# --- as published ----------------------------------------------------------------------------------------------------


def fp8_bytes(random, shape):
    raw = random.integers(0, 256, math.prod(shape), dtype=np.uint8)
    return np.where(raw & 0x7f == 0x7f, raw - 1, raw).astype(np.uint8).tobytes()


def exponents(random, shape):
    return random.integers(110, 122, math.prod(shape), dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def published(made, tmp_path_factory):
    """A folder with the published names and types: FP8 in blocks of 32 x 32, FP4 experts, tables of FP8 by rows, and parts that nothing
    here reads."""
    random, before, tensors = np.random.default_rng(41), st.File(made["bf16"]), {}
    for name, entry in tensors_of(made["bf16"]).items():
        rows, *cols = shape = entry["shape"]
        scale = name.replace(".weight", ".scale")
        if TABLE.search(name):
            tensors[name] = "F8_E4M3", shape, fp8_bytes(random, shape)
            tensors[scale] = "F8_E8M0", [rows, cols[0] // 32], exponents(random, [rows, cols[0] // 32])
        elif ".experts." in name:
            tensors[name] = "I8", [rows, cols[0] // 2], random.bytes(rows * cols[0] // 2)
            tensors[scale] = "F8_E8M0", [rows, cols[0] // 32], exponents(random, [rows, cols[0] // 32])
        elif re.search(r"attn\.w|indexer\.wq_b|shared_experts|engram\.wkv", name):
            blocks = [-(-rows // 32), -(-cols[0] // 32)]
            tensors[name] = "F8_E4M3", shape, fp8_bytes(random, shape)
            tensors[scale] = "F8_E8M0", blocks, exponents(random, blocks)
        else:
            tensors[name] = entry["dtype"], shape, before.bytes_of(name)
    for name in ("mtp.0.attn.wq_a.weight", "vision.blocks.0.w.weight", "image_start", "layers.0.ffn.gate.bias_vl"):
        tensors[name] = "BF16", [40], bytes(80)
    folder = tmp_path_factory.mktemp("published")
    (folder / "model.safetensors").write_bytes(st.pack(*st.build(tensors)))
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": quantization}))
    return folder, tensors


def test_fp4_keeps_what_is_published(published, tmp_path):
    """Every FP8 and FP4 value and scale stays; what fp4 wants in FP8 besides gets the model's blocks."""
    folder, tensors = published
    succeed("quantize", folder, "--quant", "fp4", "-o", tmp_path / "m")
    succeed("info", "--verify", tmp_path / "m")
    after, kept = st.File(tmp_path / "m"), 0
    for name, (dtype, shape, raw) in tensors.items():
        if dtype not in ("F8_E4M3", "I8"):
            continue
        _, scale_shape, scale = tensors[name.replace(".weight", ".scale")]
        ours, scales = after.header[name], after.header[name.replace(".weight", ".weight_scale_inv")]
        assert (ours["dtype"], ours["shape"]) == (dtype, shape) and after.bytes_of(name) == raw, name
        got, kept = after.bytes_of(name + "_scale_inv"), kept + 1
        assert scales["shape"] == scale_shape, name
        if scales["dtype"] == "F32":  # blocks: widened, as all FP8 matrices have them
            got = (np.log2(np.frombuffer(got, "<f4")) + 127).astype(np.uint8).tobytes()
        assert got == scale, name
    assert kept > 100
    assert after.header["layers.2.attn.compressor.wkv.weight_scale_inv"]["shape"] == [ROW // 32, HIDDEN // 32]
    described = json.loads(after.header["__metadata__"]["moebius.config.json"])
    assert described["quantization_config"]["weight_block_size"] == [32, 32] and described["text_config"] == TEXT
    left_out = {name for name in tensors if name.startswith(("mtp.", "vision.", "image_")) or name.endswith("_vl")}
    assert len(left_out) == 4 and not left_out & set(after.header)


@pytest.mark.parametrize("quant", FORMATS)
def test_tables_stay(published, quant, tmp_path):
    folder, tensors = published
    report = succeed("quantize", folder, "--quant", quant, "--embedding", "bf16", "-o", tmp_path / "m", "--json").json
    after = st.File(tmp_path / "m")
    for layer in TABLES:
        name = f"layers.{layer}.engram.embed.weight"
        assert after.bytes_of(name) == tensors[name][2]
        assert after.bytes_of(name + "_scale_inv") == tensors[name.replace(".weight", ".scale")][2]
    assert report["bytes"] == (tmp_path / "m").stat().st_size


def test_info_of_published(published):
    folder, tensors = published
    info = succeed("info", folder, "--json").json
    assert info["bytes_left_out"] == 4 * 80
    assert sum(info["bytes_by_format"].values()) == sum(len(raw) for _, _, raw in tensors.values()) - 4 * 80
    assert "what sees images" in succeed("info", folder).text


def test_plan_of_published(published):
    """Tables are bytes of a file, the rest of the model is in memory."""
    folder, tensors = published
    report, tables = plan(folder), sum(len(raw) for name, (_, _, raw) in tensors.items() if ".engram.embed." in name)
    assert report["tables"] == {"bytes": tables, "format": "fp8-rows", "rows_per_token": 2 * COLUMNS}
    assert tables == sum(TABLES.values()) * (DIM + DIM // 32)
    assert report["weights_bytes"] == sum(len(raw) for _, _, raw in tensors.values()) - tables - 4 * 80
    assert report["left_out_bytes"] == 4 * 80 and "note" not in report
    groups = report["groups"]
    assert groups["routed"]["format"] == "fp4" and groups["attention"]["format"] == groups["shared"]["format"] == "fp8"
    assert "tables" not in groups


def test_a_scale_that_is_no_number(published, tmp_path):
    """Of a table it is found where everything is read."""
    succeed("quantize", published[0], "--quant", "fp4", "-o", tmp_path / "m")
    file = st.File(tmp_path / "m")
    begin, end = file.header["layers.4.engram.embed.weight_scale_inv"]["data_offsets"]
    raw = bytearray((tmp_path / "m").read_bytes())
    raw[file.header_bytes + begin + 7] = 255
    (tmp_path / "m").write_bytes(raw)
    result = moebius("info", "--verify", tmp_path / "m")
    assert result.code == 1 and "layers.4.engram.embed.weight_scale_inv" in result.err


# --- synth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", FORMATS)
def test_formats(made, quant):
    """Each tensor in what its group gets; mixers, norms and biases in F32; tables never in integers."""
    most = {"int4": "U8", "fp4": "F8_E4M3", "int8": "U8", "fp8": "F8_E4M3", "bf16": "BF16"}[quant]
    entries = tensors_of(made[quant])
    for name, entry in entries.items():
        if name.endswith("_scale_inv"):
            continue
        want = ("BF16" if TABLE.search(name) and quant == "bf16" else "F8_E4M3" if TABLE.search(name) else
                "F32" if MIXERS.search(name) or FLOATS.search(name) else "BF16" if ROUTER.search(name) else
                "F8_E4M3" if quant == "int4" and KV_B.search(name) else "I8" if quant == "fp4" and ".experts." in name else most)
        assert entry["dtype"] == want, name
        if want == "F8_E4M3":
            rows, cols = entry["shape"]
            scale = entries[name + "_scale_inv"]
            by = ("F8_E8M0", [rows, cols // 32]) if TABLE.search(name) else ("F32", [-(-rows // 32), -(-cols // 32)])
            assert (scale["dtype"], scale["shape"]) == by, name
    succeed("info", "--verify", made[quant])


def test_parts_of_a_layer(made):
    """Who makes rows and keys, who chooses, who has a table."""
    names = tensors_of(made["bf16"])
    for layer, ratio in enumerate(RATIOS):
        mine = {name.split(".", 2)[2] for name in names if name.startswith(f"layers.{layer}.")}
        assert ("attn.compressor.wkv.weight" in mine) == ("attn.indexer.wk.weight" in mine) == (layer in MAKERS)
        assert ("attn.compressor.wgate.weight" in mine) == (layer in MAKERS and ratio == 2)
        assert ("attn.indexer.wq_b.weight" in mine) == (layer in CHOOSERS)
        assert ("engram.embed.weight" in mine) == ("engram.q_weight" in mine) == (layer in TABLES)
        assert "ffn.gate.bias" in mine and "ffn.gate.tid2eid" not in mine and "attn.compressor.ape" not in mine
    assert "hc_head_fn" not in names
    assert names["layers.2.attn.indexer.wk.weight"]["shape"] == [KEY, ROW]
    assert names["layers.1.engram.embed.weight"]["shape"] == [TABLES[1], DIM]
    assert names["layers.1.engram.wkv.weight"]["shape"] == [5 * HIDDEN, COLUMNS * DIM]


@pytest.mark.parametrize("layers, makers, choosers, candidates, tables", [
    (1, [], [], None, []), (2, [], [], None, [1]), (4, [2], [2], None, [1]), (6, [2, 4, 5], [2, 4, 5], 5, [1, 4])])
def test_layers(config, layers, makers, choosers, candidates, tables, tmp_path):
    """Of somebody's config.json the first layers are kept: nothing points behind them."""
    succeed("synth", "--config", config, "--layers", layers, "--quant", "int4", "-o", tmp_path / "m")
    hybrid = succeed("info", tmp_path / "m", "--json").json["hybrid"]
    assert (hybrid["ratios"], hybrid["makes_rows"], hybrid["chooses"]) == (RATIOS[:layers], makers, choosers)
    assert (hybrid["candidates"] or {}).get("layer") == candidates and [table["layer"] for table in hybrid["tables"]] == tables


def test_large_tables_are_not_made(config, tmp_path):
    """At most 160,000 rows a hash; hashed as published tables are: each by a prime number of its own."""
    text = {**TEXT, "engram_vocab_size": 16000000, "engram_num_embeddings": [384006168, 384016682], "engram_head_dim": 2}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "text_config": text}))
    said = succeed("synth", "--config", tmp_path / "config.json", "--layers", 5, "--quant", "int4", "-o", tmp_path / "m").text
    primes = [n for n in range(160000, 162000) if all(n % d for d in range(2, 403))][:48]
    rows = [sum(primes[:24]), sum(primes[24:])]
    assert [table["rows"] for table in succeed("info", tmp_path / "m", "--json").json["hybrid"]["tables"]] == rows
    assert f"n-gram table of layer 1: {rows[0]} rows of 2 " in said and f"n-gram table of layer 4: {rows[1]} rows" in said
    assert "synthetic models have small ones" in succeed("info", tmp_path / "m").text


@pytest.mark.parametrize("quant", FORMATS)
def test_synth_computes(made, quant, tmp_path):
    check_computes(made[quant], LAYERS, tmp_path)


# --- quantize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", FORMATS)
def test_quantize(made, quant, tmp_path):
    """The same tensors; what is not a matrix keeps its bytes, and so do mixers and tables, however few bits the rest gets."""
    succeed("quantize", made["bf16"], "--quant", quant, "-o", tmp_path / "m")
    before, after = st.File(made["bf16"]), st.File(tmp_path / "m")
    names, alike = {name for name in tensors_of(tmp_path / "m") if not name.endswith("_scale_inv")}, tensors_of(made[quant])
    assert names == set(tensors_of(made["bf16"]))
    for name in names:
        if TABLE.search(name) or MIXERS.search(name) or FLOATS.search(name):
            assert after.bytes_of(name) == before.bytes_of(name), name
        else:
            assert after.header[name]["dtype"] == alike[name]["dtype"], name
    succeed("info", "--verify", tmp_path / "m")


@pytest.mark.parametrize("quant", ["int4", "fp4", "fp8"])
def test_on_the_way_in(made, quant, tmp_path):
    """--quantization makes the same matrices in memory; tables are looked up in the file that is there."""
    flags = ["--ids", "3,1,4,1,5,9,2,6,5,3", "--all", "--compute", "f32", "--out"]
    succeed("quantize", made["bf16"], "--quant", quant, "-o", tmp_path / "m")
    succeed("logits", tmp_path / "m", *flags, tmp_path / "file")
    succeed("logits", made["bf16"], "--quantization", quant, *flags, tmp_path / "memory")
    assert (tmp_path / "file").read_bytes() == (tmp_path / "memory").read_bytes()


def test_a_table_larger_than_its_share_of_memory(published, tmp_path):
    """It goes from file to file piece by piece: with 300 MB of it the process never has 150 MB."""
    folder, tensors = published
    rows, name = 9 << 20, "layers.4.engram.embed.weight"
    header, at = {}, 0
    for other, (dtype, shape, raw) in tensors.items():
        shape = [rows, shape[1]] if other in (name, name.replace(".weight", ".scale")) else shape
        size = int(math.prod(shape) * st.ITEM_BYTES[dtype])
        header[other] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["engram_num_embeddings"][1] = rows
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "model.safetensors", "wb") as file:  # zeros that take no disk
        file.write(st.pack(header, b""))
        file.truncate(file.tell() + at)
    process = subprocess.Popen([PROGRAM, "quantize", tmp_path, "--quant", "fp4", "-t", "1", "-o", tmp_path / "m"],
                               stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:  # the kernel keeps the most that it ever was
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        most = 1024 * int(found[1]) if found else most
    assert process.returncode == 0 and (tmp_path / "m").stat().st_size > rows * DIM > 300e6
    assert 10e6 < most < 150e6
    (tmp_path / "m").unlink()


def test_no_calibration(made, tmp_path):
    text = tmp_path / "text"
    text.write_text("a" * 1000)
    result = moebius("quantize", made["bf16"], "--quant", "int4", "--calibrate", text, "-o", tmp_path / "m")
    assert result.code == 1 and "--calibrate: not for DeepseekV41ForCausalLM yet" in result.err and not (tmp_path / "m").exists()


# --- info, plan ------------------------------------------------------------------------------------------------------


def test_counts(made):
    """All that the file holds, and the same by `plan`, from the description and from headers."""
    total = sum(math.prod(entry["shape"]) for entry in tensors_of(made["bf16"]).values())
    info, planned = succeed("info", made["bf16"], "--json").json, plan(made["bf16"])
    expert, tables = 3 * HIDDEN * WIDTH, sum(TABLES.values()) * DIM
    active = total - VOCAB * HIDDEN - LAYERS * (EXPERTS - TOP_K) * expert - tables
    assert (info["params"]["total"], info["params"]["active"], info["params"]["tables"]) == (total, active, tables)
    assert planned["params"] == {"total": total, "active": active}
    assert sum(info["params"][group] for group in info["params"] if group not in ("total", "active")) == total


def test_published_counts():
    """552 B beside tables of 197 B, whose file is 203 GB; the published card counts what sees and what drafts besides: 763 B, 510 GB."""
    report = plan("deepseek-v4.1-flash")
    assert report["params"]["total"] == pytest.approx((552 + 196.6) * 1e9, rel=0.001)
    assert report["params"]["active"] == pytest.approx(16.1e9, rel=0.01)
    assert report["tables"] == {"bytes": 768022850 * 264, "format": "fp8-rows", "rows_per_token": 48}
    assert report["weights_bytes"] + report["tables"]["bytes"] == pytest.approx(501e9, rel=0.01)


def page_bytes(layer, row, compressed, key):
    """The far part of a page: compressed rows and keys where they are made; and of eight pages one near part: rows of 64 tokens, and sums
    of rows of two tokens."""
    made = 64 // RATIOS[layer] if layer in MAKERS else 0
    sums = 3 * ROW * 4 if made and RATIOS[layer] == 2 else 0
    return -(-made * (compressed + key) // 16) * 16 + -(-(64 * row + sums) // 16) * 16 / 8


def test_cache(made):
    info, planned = succeed("info", made["int4"], "--json").json, plan(made["int4"])
    # fp8: e4m3 and a scale for 32; e2m1 and a scale for 16, padded to 16 bytes; e2m1 and a scale for 32
    pages = {kind: sum(page_bytes(layer, *sizes) for layer in range(LAYERS))
             for kind, *sizes in (("f32", 256, 256, 128), ("bf16", 128, 128, 64), ("fp8", 80, 48, 17))}
    assert info["kv_bytes_per_token"] == {kind: int(page / 64) for kind, page in pages.items()}
    assert planned["kv_bytes_per_token"] == pytest.approx(pages["bf16"] / 64)
    assert plan(made["int4"], "--kv-cache-dtype", "fp8")["kv_bytes_per_token"] == pytest.approx(pages["fp8"] / 64)


def test_info_in_words(made):
    text = succeed("info", made["int4"]).text
    for words in ("the last 128 tokens; in 3 layers also rows of two tokens each, made in layers 2 and 4, chosen in layers 2 and 4",
                  "in 4 layers also rows of a token each, made in layer 5, chosen in layers 5 and 7", "4 heads of 32 choose 8 rows",
                  "behind layer 5 among its 4 best blocks of 4", f"layer 4 adds 24 rows a token of a table of {TABLES[4]} rows of 32",
                  "4 streams; gates limited to 10"):
        assert words in text, words


def test_plan_by_depth():
    """Far on, a step reads the window and chosen rows in all layers, and index keys where somebody chooses: all, or the candidates'."""
    report = plan("deepseek-v4.1-flash", "--quant", "int4", "--context", "1000000")
    far, row, key = 32768, 1024, 256
    by = {line["depth"]: line["bytes_per_step"] for line in report["decode"] if line["batch"] == 1}
    chosen = (3 * far // 2 + far + 4 * 2048 * 8) * key + 38 * 512 * row + 40 * 128 * row
    assert by[far] - by[0] == pytest.approx(chosen, rel=0.001)


def test_plan_reads_tables_from_the_disk():
    flags = ["deepseek-v4.1-flash", "--gpu", "none", "--ram", "512@400", "--nvme", "7", "--explain"]
    text = succeed("plan", *flags).text
    assert "n-gram tables               202.758 GB   fp8-rows; read from the file: 48 rows a token" in text
    assert f"rows of n-gram tables, disk{' ' * 18}{48 * 8192e-9:10.3f} GB / 7.00 GB/s" in text
    assert "n-gram" not in succeed("plan", "deepseek-v4-flash", *flags[1:]).text


def test_plan_counts_the_scratch(made):
    """From counts of layers, which do not say which is which, as the engine does from the model."""
    flags = ["--max-num-batched-tokens", "16384", "--max-num-seqs", "4", "--threads", "2"]
    result = moebius("serve", made["int4"], "--port", "0", *flags, env={"MOEBIUS_MEMORY": "0.05"})
    said = re.search(r"needs ([\d.]+) GiB of scratch", result.err)
    assert result.code == 1 and said, str(result)
    assert plan(made["int4"], *flags)["scratch_bytes"] / 2**30 == pytest.approx(float(said[1]), rel=0.02)


def test_plan_with_a_card():
    """Experts in RAM, the rest on the card, where scales of FP8 are one for each row; tables from the disk. It goes on one card."""
    flags = ["deepseek-v4.1-flash", "--ram", "512@89", "--nvme", "7", "--gpu"]
    text = succeed("plan", *flags, "rtx-4090", "--explain").text
    assert "routed experts in RAM, the rest on the card" in text and "rows of n-gram tables, disk" in text
    report = succeed("plan", *flags, "rtx-4090", "--json").json
    assert report["not_here"] == "the engine's GPU code has not been run on a GPU yet"
    assert succeed("plan", *flags, "2xrtx-4090", "--json").json["not_here"] == "DeepSeek-V4.1 goes on one card in this engine"


# --- bench -----------------------------------------------------------------------------------------------------------


def test_bench(made):
    """Steps begin anew at a depth in the middle of a page and at one that is a page's beginning, together with others."""
    flags = ["--prompt", "200,70", "--batch", "1,3", "--depth", "0,100,256", "--generate", "20", "--repeat", "1", "--threads", "2"]
    report = succeed("bench", made["int4"], *flags, "--json", timeout=300).json
    by = {(line["batch"], line["depth"]): line["bytes_per_step"] for line in report["decode"]}
    assert by[1, 0] < by[1, 100] < by[1, 256] and all(line["tokens_per_s"] > 0 for line in report["decode"])


def test_bench_of_what_is_made_in_memory(config):
    flags = ["--prompt", "70", "--batch", "1", "--depth", "0", "--generate", "4", "--repeat", "1", "--threads", "2"]
    report = succeed("bench", "--config", config, "--quant", "fp4", *flags, "--json", timeout=300).json
    assert report["decode"][0]["tokens_per_s"] > 0


@pytest.mark.parametrize("command", [["run", "-p", "x"], ["bench"], ["serve", "--port", "0"]])
def test_no_drafts(made, command):
    name, *flags = command
    result = moebius(name, made["int4"], *flags, "--draft-max", "4")
    line = result.err.splitlines()[-1]
    assert result.code == 1 and line.startswith(f"moebius {name}: --draft-max 4: DeepseekV41ForCausalLM "), str(result)
