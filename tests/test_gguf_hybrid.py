"""GGUF files of DeepSeek-V4 ("deepseek4"): the numbers of the folder that they were made from, in every type, and wrong ones refused.
The files are made by tests/gguf_hybrid.py; what llama.cpp makes of such files is in docs/quality.md."""

import json
import sys

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

import gguf_hybrid
import gguf_model
import tiny_tokenizer
from conftest import GOLDEN, ROOT, moebius, read_f32, read_i32, refused, succeed
from gguf_model import DELETE
from test_gguf import blocks
from test_golden import Case, experts_in_order, largest
from test_text import pipe

sys.path.insert(0, str(ROOT / "tools"))
import random_gguf  # noqa: E402

SETS = ["v4-tiny", "v4-tiny-fp8"]
IDS = np.random.default_rng(1).integers(2, 256, 300).tolist()
F32 = ["--compute", "f32", "--kv-cache-dtype", "f32", "--threads", 1]
WIDE = {**json.loads((GOLDEN / "v4-tiny/config.json").read_text()), "hidden_size": 256, "num_attention_heads": 2, "head_dim": 256,
        "q_lora_rank": 256, "o_groups": 2, "o_lora_rank": 128, "moe_intermediate_size": 256, "index_n_heads": 2,
        "index_head_dim": 128, "num_hash_layers": 1}


def logits(model, out, *flags, ids=IDS):
    succeed("logits", model, "--ids", ",".join(map(str, ids)), "--all", "--out", out, *F32, *flags)
    return read_f32(out, len(ids), -1)


def convert(tmp_path, name="v4-tiny", *flags, **options):
    return gguf_hybrid.convert(GOLDEN / name, tmp_path / "m.gguf", *flags, **options)


def key(name):
    return f"{gguf_hybrid.ARCH}.{name}"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The logits of the golden folders, which test_golden.py compares with the reference."""
    out = tmp_path_factory.mktemp("expected") / "logits"
    return {name: logits(GOLDEN / name, out) for name in SETS}


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_f32_is_the_same_bits(expected, tmp_path):
    """Every BF16 value is an F32 too; so is everything in config.json."""
    assert np.array_equal(logits(convert(tmp_path), tmp_path / "out"), expected["v4-tiny"])


def test_fp4_is_lossless(expected, tmp_path):
    """FP4's values and scales in MXFP4's order, FP8 as the F32 that it stands for: only sums are made in another order."""
    path = convert(tmp_path, "v4-tiny-fp8")
    assert 0 <= largest(logits(path, tmp_path / "out"), expected["v4-tiny-fp8"]) <= 5e-5
    found = succeed("info", path, "--json", "--verify").json["bytes_by_format"]
    assert set(found) == {"F32", "I32", "MXFP4"}


@pytest.mark.parametrize("case_id", ["p1", "p17", "p200", "long"])
@pytest.mark.parametrize("name", SETS)
def test_golden(name, case_id, tmp_path):
    case = Case(name, case_id)
    want, case.folder = case.expected, convert(tmp_path, name)
    assert largest(case.logits(tmp_path, *F32), want) <= 1e-3


@pytest.mark.parametrize("name", SETS)
def test_golden_choices(name, tmp_path):
    """The reference's experts in every layer, by token in the first."""
    case = Case(name, "p17")
    want_ids, want_weights = (case.array(case.case["routing"][what]) for what in ("ids", "weights"))
    case.folder = convert(tmp_path, name)
    case.logits(tmp_path, *F32, "--experts", tmp_path / "ids", "--expert-weights", tmp_path / "weights")
    got = experts_in_order(read_i32(tmp_path / "ids", *want_ids.shape), read_f32(tmp_path / "weights", *want_weights.shape))
    want = experts_in_order(want_ids, want_weights)
    assert np.array_equal(got[0], want[0]) and largest(got[1], want[1]) <= 1e-4


@pytest.mark.parametrize("kind, bound", [(Type.BF16, 0), (Type.F16, 1e-3), (Type.Q8_0, 8)], ids=lambda v: getattr(v, "name", ""))
def test_types(kind, bound, expected, tmp_path):
    """BF16 is what the folder holds; Q8_0, here also of mixers and position biases, changes what is chosen now and then."""
    got = logits(convert(tmp_path, "v4-tiny", kind), tmp_path / "out")
    assert largest(got, expected["v4-tiny"]) <= bound
    assert np.median(np.abs(got - expected["v4-tiny"])) <= 0.2


def fill(random, kind_of):
    """WIDE's tensors in the types that kind_of(name) says, and as F32 with the same values."""
    packed, plain = {}, {}
    for name, shape in random_gguf.shapes_of(WIDE, True):
        if "tid2eid" in name:
            packed[name] = plain[name] = random_gguf.values_of(random, name, shape, Type.I32, WIDE, {})
        elif len(shape) == 1 or shape[-1] % 256:  # a table of position biases has rows of 256 only where the ratio is 4 or 128
            packed[name] = plain[name] = random.uniform(0.5, 1.5, shape).astype("<f4")
        else:
            raw, values = blocks(random, kind_of(name), shape)
            packed[name], plain[name] = (raw, Type[kind_of(name)]), values
    return packed, plain


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ2_XXS", "IQ4_XS", "MXFP4"])
def test_blocks(kind, tmp_path):
    """llama.cpp's quantizer makes blocks also of the mixers, of what compresses, and of its position biases: against F32 of the same
    values."""
    packed, plain = fill(np.random.default_rng(3), lambda name: kind)
    assert all(isinstance(packed[name], tuple) for name in (
        "blk.1.attn_compressor_ape.weight", "blk.1.indexer_compressor_ape.weight", "blk.2.attn_compressor_ape.weight",
        "blk.0.hc_attn_fn.weight", "output_hc_fn.weight"))
    keys = gguf_hybrid.keys_of(WIDE)
    paths = [gguf_model.write(tmp_path / f"{name}.gguf", keys, tensors, arch=gguf_hybrid.ARCH)
             for name, tensors in (("packed", packed), ("plain", plain))]
    got, want = (logits(path, tmp_path / "out") for path in paths)
    scale = float(np.abs(want).max())
    assert scale > 0 and np.isfinite(want).all() and largest(got, want) <= 1e-4 * scale
    succeed("info", paths[0], "--verify")


@pytest.mark.parametrize("kind", ["q4_k_m", "mxfp4_moe", "iq2_xxs"])
def test_random_file(kind, tmp_path):
    """As people run it: 8-bit activations, near what fp32 gives; experts in memory or read when they are wanted; the other commands."""
    path, out = tmp_path / "m.gguf", tmp_path / "out"
    random_gguf.write(path, WIDE, kind)
    exact = logits(path, out)
    fast = ["--compute", "fast", "--batch-invariant"]
    whole = logits(path, out, *fast)
    assert np.isfinite(exact).all() and 0.3 < exact.std() < 10
    assert 0 < np.median(np.abs(whole - exact)) <= 0.25
    for more in (["--no-repack"], ["--expert-cache", 0.002]):
        assert np.array_equal(logits(path, out, *fast, *more), whole), more
    planned = succeed("plan", path, "--gpu", "none", "--ram", "64@89", "--json").json
    assert planned["decode"][0]["expected_tokens_per_s"] > 0
    assert succeed("run", path, "-p", "return a", "-n", 2, "--json").json["prompt_tokens"] > 2
    succeed("quantize", path, "--quant", "int8", "-o", tmp_path / "out.safetensors")
    assert np.isfinite(logits(tmp_path / "out.safetensors", out)).all()


# --- what a file may leave out, or have besides ------------------------------------------------------------------------


def test_prediction_layer_is_left_out(expected, tmp_path):
    extra = {f"blk.3.{name}.weight": np.zeros(shape, "<f4") for name, shape in {
        "attn_norm": 64, "attn_kv": (64, 64), "hc_attn_fn": (24, 256), "nextn.eh_proj": (64, 128), "nextn.enorm": 64}.items()}
    keys = {key("block_count"): (4, Value.UINT32), key("nextn_predict_layers"): (1, Value.UINT32)}
    path = convert(tmp_path, keys=keys, tensors=extra)
    assert np.array_equal(logits(path, tmp_path / "out"), expected["v4-tiny"])
    facts = succeed("info", path, "--json").json
    assert facts["layers"] == 3 and facts["bytes_left_out"] == sum(v.nbytes for v in extra.values())


@pytest.mark.parametrize("keys", [
    {"nextn_predict_layers": (1, Value.UINT32)},  # antirez/ds4's files count no prediction layer, and have none
    {"expert_gating_func": DELETE, "rope.scaling.type": DELETE, "swiglu_clamp_shexp": DELETE, "embedding_length_out": DELETE},
    {"swiglu_clamp_exp": (1.0, Value.FLOAT32), "swiglu_clamp_shexp": (1.0, Value.FLOAT32)},
    {"attention.compress_ratios": ([0, 4, 128], Value.ARRAY), "expert_group_count": (1, Value.UINT32)},
], ids=["ds4", "fewer keys", "one limit", "as many ratios as layers"])
def test_other_writers(keys, expected, tmp_path):
    path = convert(tmp_path, keys={key(name): value for name, value in keys.items()})
    assert np.array_equal(logits(path, tmp_path / "out"), expected["v4-tiny"])


def test_pictures_are_left_out(expected, tmp_path):
    """The biases that a V4 which sees has for pictures' tokens; files of its eyes and of prediction layers lie beside."""
    path = convert(tmp_path, tensors={f"blk.{i}.exp_probs_b_vl.bias": np.ones(6, "<f4") for i in range(3)})
    for other in ("mmproj-x.gguf", "mtp-x.gguf"):
        (tmp_path / other).write_bytes(b"GGUF")
    assert np.array_equal(logits(tmp_path, tmp_path / "out"), expected["v4-tiny"])
    assert path.exists()


def test_tokenizer(tmp_path):
    """llama.cpp calls V4's pre-tokenizer by another model's name; its steps are V3's."""
    texts, found = [{"text": "def f(x):  return x ** 12345 + '\u4f60\u597d'\n", "special": False}], []
    for pre in ("joyai-llm", "deepseek-v3"):
        keys = gguf_model.tokenizer_keys(tiny_tokenizer.tokenizer(), tiny_tokenizer.config(), 256, pre)
        found.append(pipe("tokenize", convert(tmp_path, keys=keys), texts))
    assert found[0] == found[1] and len(found[0][0]["ids"]) > 10


# --- what is refused ---------------------------------------------------------------------------------------------------


def refused_logits(path, tmp_path, *words):
    refused(moebius("logits", path, "--ids", "1", "--out", tmp_path / "out"), "m.gguf", *words)


@pytest.mark.parametrize("name, value, words", [
    ("attention.value_length", (32, Value.UINT32), ["value_length", "key_length"]),
    ("attention.head_count_kv", (2, Value.UINT32), ["num_key_value_heads"]),
    ("attention.sliding_window", DELETE, ["deepseek4.attention.sliding_window", "missing"]),
    ("attention.compress_ratios", DELETE, ["deepseek4.attention.compress_ratios", "missing"]),
    ("attention.compress_ratios", ([0, 4], Value.ARRAY), ["compress_ratios", "each layer", "fewer"]),
    ("attention.compress_ratios", ([0, 4, 64], Value.ARRAY), ["compress_ratios", "0, 4 or 128"]),
    ("attention.compress_ratios", ([0.0, 4.0, 128.0], Value.ARRAY), ["compress_ratios", "array"]),
    ("attention.compress_ratios", (4, Value.UINT32), ["compress_ratios", "array"]),
    ("swiglu_clamp_exp", DELETE, ["deepseek4.swiglu_clamp_exp", "missing"]),
    ("swiglu_clamp_exp", ([1.0, 2.0, 1.0], Value.ARRAY), ["swiglu_clamp_exp", "same number"]),
    ("swiglu_clamp_exp", ([1.0], Value.ARRAY), ["swiglu_clamp_exp", "fewer"]),
    ("swiglu_clamp_exp", (["one"] * 3, Value.ARRAY), ["swiglu_clamp_exp", "array"]),
    ("swiglu_clamp_shexp", ([2.0] * 3, Value.ARRAY), ["swiglu_clamp_shexp", "swiglu_clamp_exp"]),
    ("swiglu_clamp_exp", ([float("nan")] * 3, Value.ARRAY), ["swiglu_clamp_exp"]),
    ("swiglu_clamp_exp", ([float("inf")] * 3, Value.ARRAY), ["swiglu_clamp_exp", "finite"]),
    ("expert_gating_func", (2, Value.UINT32), ["expert_gating_func", "sqrtsoftplus"]),
    ("expert_group_count", (8, Value.UINT32), ["expert_group_count"]),
    ("expert_weights_norm", (False, Value.BOOL), ["norm_topk_prob"]),
    ("expert_count", (8, Value.UINT32), ["deepseek4.expert_count", "8", "6"]),
    ("rope.scaling.type", ("linear", Value.STRING), ["rope.scaling.type", "yarn"]),
    ("rope.scaling.original_context_length", DELETE, ["original_context_length", "missing"]),
    ("rope.scaling.yarn_attn_factor", (2.0, Value.FLOAT32), ["yarn_attn_factor"]),
    ("hyper_connection.count", (40, Value.UINT32), ["hc_mult"]),
    ("hyper_connection.epsilon", (float("inf"), Value.FLOAT32), ["hyper_connection.epsilon", "finite"]),
    ("hash_layer_count", DELETE, ["deepseek4.hash_layer_count", "missing"]),
    ("block_count", (0, Value.UINT32), ["num_hidden_layers"]),
])
def test_keys_refused(name, value, words, tmp_path):
    refused_logits(convert(tmp_path, keys={key(name): value}), tmp_path, *words)


@pytest.mark.parametrize("name, value, words", [
    ("blk.1.attn_sinks.weight", DELETE, ["layers.1.attn.attn_sink is missing"]),
    ("blk.1.attn_sinks.weight", np.ones(3, "<f4"), ["attn_sink", "[4]", "[3]"]),
    ("blk.2.attn_compressor_ape.weight", np.ones((4, 64), "<f4"), ["compressor.ape", "[128, 64]", "[4, 64]"]),
    ("blk.0.ffn_gate_tid2eid.weight", np.full((256, 2), 6, "<i4"), ["tid2eid", "experts from 0 to 5"]),
    ("blk.0.ffn_gate_tid2eid.weight", np.ones((256, 2), "<f4"), ["tid2eid", "I64 or I32", "F32"]),
    ("output_hc_fn.weight", DELETE, ["hc_head_fn is missing"]),
    ("blk.0.attn_kv_b.weight", np.ones((4, 4), "<f4"), ["attn_kv_b", "unknown tensor"]),
    ("blk.0.attn_compress_ape", np.ones((4, 4), "<f4"), ["attn_compress_ape", "unknown tensor"]),
    ("blk.1.attn_compressor_ape.weight", (np.full((4, 136), 255, "u1"), Type.Q8_0), ["compressor.ape", "finite"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_tensors_refused(name, value, words, tmp_path):
    refused_logits(convert(tmp_path, tensors={name: value}), tmp_path, *words)


def test_the_other_family_has_none_of_it(tmp_path):
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", tensors={"blk.1.attn_sinks.weight": np.ones(4, "<f4")})
    refused_logits(path, tmp_path, "attn_sinks", "unknown tensor")
