"""GGUF files: the same numbers as the folder that they were made from, the same ids, and damaged ones refused. The files are made by
tests/gguf_model.py with the package `gguf`, which also says what the values of blocks are."""

import json
import shutil
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

import gguf_model
import st
import tiny_tokenizer
from conftest import GOLDEN, ROOT, copy_set, moebius, read_f32, refused, succeed
from gguf_model import DELETE
from test_text import check, pipe, read_lines, shared

SETS = ["v2lite-tiny", "v2-tiny", "v3-tiny"]
IDS = list(range(3, 40))
NO_CARD = ["--gpu", "none", "--ram", "64@89"]  # nothing is left to be measured
F32 = ["--compute", "f32", "--threads", 1]


def logits(model, out, *flags, ids=IDS):
    succeed("logits", model, "--ids", ",".join(map(str, ids)), "--all", "--out", out, *F32, *flags)
    return read_f32(out, len(ids), -1)


def largest(a, b):
    return float(np.abs(a - b).max())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The logits of the golden folders, which test_golden.py compares with the reference."""
    out = tmp_path_factory.mktemp("expected") / "logits"
    return {name: logits(GOLDEN / name, out) for name in SETS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """v2lite-tiny as F32, to be damaged, and its bytes."""
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path_factory.mktemp("gguf") / "model.gguf")
    return path.read_bytes()


def write(tmp_path, raw, name="model.gguf"):
    path = tmp_path / name
    path.write_bytes(bytes(raw))
    return path


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_kv_b", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("name", SETS)
def test_f32_is_the_same_bits(name, split_kv_b, expected, tmp_path):
    """Every BF16 value is an F32 too; so is everything in config.json, with 0.0707 * 10 among it."""
    path = gguf_model.convert(GOLDEN / name, tmp_path / "m.gguf", split_kv_b=split_kv_b)
    assert np.array_equal(logits(path, tmp_path / "out"), expected[name])


@pytest.mark.parametrize("kind", [Type.BF16, Type.F16, Type.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", SETS)
def test_types(name, kind, expected, tmp_path):
    """BF16 is what the folders hold; F16 loses what is too small for it; Q8_0 changes which experts are chosen now and then."""
    for split_kv_b in (True, False):
        path = gguf_model.convert(GOLDEN / name, tmp_path / "m.gguf", kind, split_kv_b=split_kv_b)
        got = logits(path, tmp_path / "out")
        assert largest(got, expected[name]) <= {Type.BF16: 0, Type.F16: 1e-3, Type.Q8_0: 8}[kind]
        assert np.median(np.abs(got - expected[name])) <= 0.2


# For blocks of random bytes, whose scales must be small: the largest value at a scale of 1.
LARGEST = {"Q4_0": 8, "Q4_1": 16, "Q5_0": 16, "Q5_1": 32, "Q8_0": 128, "Q2_K": 45, "Q3_K": 128, "Q4_K": 945, "Q5_K": 1953,
           "Q6_K": 4096, "IQ4_NL": 127, "IQ4_XS": 4064, "IQ1_S": 17, "IQ1_M": 17, "IQ2_XXS": 167, "IQ2_XS": 167, "IQ2_S": 167,
           "IQ3_XXS": 481, "IQ3_S": 465, "TQ1_0": 1, "TQ2_0": 2, "MXFP4": 12}
WIDE = {"architectures": ["DeepseekV2ForCausalLM"], "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "hidden_size": 256, "num_attention_heads": 2, "intermediate_size": 256, "moe_intermediate_size": 256,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "vocab_size": 256,
        "max_position_embeddings": 512, "kv_lora_rank": 256, "qk_nope_head_dim": 256, "qk_rope_head_dim": 16,
        "v_head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 1.0, "n_group": 1,
        "scoring_func": "softmax", "topk_method": "greedy", "q_lora_rank": None, "tie_word_embeddings": False}


def blocks(random, kind, shape):
    """Random blocks of a type for a tensor of `shape`, and their values as the package `gguf` reads them."""
    values, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    n = int(np.prod(shape)) // values
    raw = random.integers(0, 256, (n, size), dtype=np.uint8)
    for at in gguf_model.SCALES_AT.get(Type[kind], [0]):
        scale = (random.uniform(0.5, 1, n) * 0.2 / LARGEST[kind]).astype("<f2")
        if kind == "IQ1_M":  # four bits of it in each of four words
            for i in range(4):
                raw[:, 49 + 2 * i] = raw[:, 49 + 2 * i] & 15 | (scale.view("<u2") >> 4 * i & 15) << 4
        elif kind == "MXFP4":  # a power of two, 2^(byte - 128)
            raw[:, 0] = random.integers(119, 123, n)
        else:
            raw[:, at:at + 2] = scale.view(np.uint8).reshape(n, 2)
    raw = raw.reshape(*shape[:-1], -1)
    return raw, gguf.quants.dequantize(raw, Type[kind]).reshape(shape).astype("<f4")


def wide_shapes(config, split_kv_b):
    """GGUF's names -> shapes of WIDE and its kind: what is not in the config is 256 wide."""
    shapes = {"token_embd.weight": (256, 256), "output.weight": (256, 256), "output_norm.weight": (256,)}
    heads, nope, rope, v, lora = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim",
                                                          "v_head_dim", "kv_lora_rank"))
    experts = config["n_routed_experts"]
    for layer in range(config["num_hidden_layers"]):
        names = {"attn_norm": (256,), "ffn_norm": (256,), "attn_kv_a_norm": (lora,), "attn_kv_a_mqa": (lora + rope, 256),
                 "attn_output": (256, heads * v)}
        if config["q_lora_rank"]:
            names.update({"attn_q_a": (256, 256), "attn_q_a_norm": (256,), "attn_q_b": (heads * (nope + rope), 256)})
        else:
            names["attn_q"] = (heads * (nope + rope), 256)
        if split_kv_b:
            names.update({"attn_k_b": (heads, lora, nope), "attn_v_b": (heads, v, lora)})
        else:
            names["attn_kv_b"] = (heads * (nope + v), lora)
        if layer:
            names["ffn_gate_inp"] = (experts, 256)
            names.update({f"ffn_{m}_exps": (experts, 256, 256) for m in ("gate", "up", "down")})
            names.update({f"ffn_{m}_shexp": (256, 256) for m in ("gate", "up", "down")})
        else:
            names.update({f"ffn_{m}": (256, 256) for m in ("gate", "up", "down")})
        shapes.update({f"blk.{layer}.{name}.weight": shape for name, shape in names.items()})
        if layer and config["scoring_func"] == "sigmoid":
            shapes[f"blk.{layer}.exp_probs_b.bias"] = (experts,)
    return shapes


def fill_wide(random, config, split_kv_b, kind_of):
    """The tensors of such a model: in the types that kind_of(name) says, and as F32 with the same values."""
    packed, plain = {}, {}
    for name, shape in wide_shapes(config, split_kv_b).items():
        if len(shape) == 1:
            packed[name] = plain[name] = random.uniform(0.5, 1.5, shape).astype("<f4")
        elif name.endswith("ffn_gate_inp.weight"):
            packed[name] = plain[name] = random.normal(0, 0.5, shape).astype("<f4")
        else:
            raw, values = blocks(random, kind_of(name), shape)
            packed[name], plain[name] = (raw, Type[kind_of(name)]), values
    return packed, plain


@pytest.mark.parametrize("kind", LARGEST)
def test_blocks(kind, tmp_path):
    """Random blocks of each type in every matrix, against a GGUF of F32 with the values that they stand for; kv_b in two parts is
    rounded to F16."""
    random = np.random.default_rng(len(kind) * 1000 + sum(map(ord, kind)))
    results = []
    for split_kv_b in (False, True) if kind in ("Q8_0", "Q4_K", "IQ4_NL") else (False,):
        packed, plain = fill_wide(random, WIDE, split_kv_b, lambda name: kind)
        keys = gguf_model.keys_of(WIDE, split_kv_b)
        a = gguf_model.write(tmp_path / "a.gguf", keys, packed)
        b = gguf_model.write(tmp_path / "b.gguf", keys, plain)
        got, want = logits(a, tmp_path / "out"), logits(b, tmp_path / "out")
        scale = float(np.abs(want).max())
        assert scale > 0 and np.isfinite(want).all()
        results.append(largest(got, want) / scale)
    assert results[0] <= 2e-5 and max(results) <= 1e-2, results
    succeed("info", a, "--verify")
    found = succeed("info", a, "--json").json["bytes_by_format"]
    assert set(found) == {kind, "F32"}


BENCH = ["--prompt", 3, "--generate", 2, "--batch", 1, "--depth", 0, "--repeat", 1, "--json"]
ENOUGH = {"MOEBIUS_MEMORY": "0.5"}  # bench reads a quarter of it many times
TURNED = [kind for kind in LARGEST if not kind.startswith(("IQ1", "IQ2", "IQ3", "TQ", "MXFP4"))]


def of_one_kind(kind, tmp_path):
    packed, _ = fill_wide(np.random.default_rng(7), WIDE, True, lambda name: kind)
    return gguf_model.write(tmp_path / "a.gguf", gguf_model.keys_of(WIDE, True), packed)


@pytest.mark.parametrize("kind", TURNED)
def test_repack(kind, tmp_path):
    """Blocks in memory, 16 rows side by side, give the bits of blocks as they lie."""
    path, out = of_one_kind(kind, tmp_path), tmp_path / "out"
    for flags in ([], F32):
        written = []
        for repack in ([], ["--no-repack"]):
            succeed("logits", path, "--ids", ",".join(map(str, IDS)), "--all", "--out", out, *flags, *repack)
            written.append(out.read_bytes())
        assert written[0] == written[1]


def test_what_is_repacked(tmp_path):
    for kind, turns in ("Q3_K", True), ("IQ4_XS", True), ("IQ3_S", False):
        report = succeed("bench", of_one_kind(kind, tmp_path), *BENCH, env=ENOUGH).json
        assert (report["repacked_bytes"] > 0) == turns


def test_repack_wants_memory(tmp_path):
    """With just enough for the blocks as they lie, they stay."""
    bench = ["bench", of_one_kind("Q8_0", tmp_path), *BENCH]
    for mib in range(8, 64):
        result = moebius(*bench, env={"MOEBIUS_MEMORY": str(mib / 1024)})
        if result.code == 0:
            break
    assert result.json["repacked_bytes"] == 0 and "stay as they lie" in result.err
    assert succeed(*bench, env=ENOUGH).json["repacked_bytes"] > 1000000
    assert succeed(*bench, "--no-repack", env=ENOUGH).json["repacked_bytes"] == 0


WIDE_V3 = {**WIDE, "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 7, "q_lora_rank": 256,
           "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "scoring_func": "sigmoid",
           "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
           "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "mscale": 1.0,
                            "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}}
# Of the routed experts of each layer: gate and up, down. Everything else has more bits, as in the files that people share.
EXPERT_KINDS = [("IQ1_S", "IQ2_XXS"), ("IQ1_M", "IQ2_S"), ("IQ2_XXS", "IQ3_XXS"), ("IQ2_XS", "IQ3_S"), ("TQ1_0", "Q2_K"),
                ("TQ2_0", "MXFP4")]


def kind_in_wide_v3(name):
    if "_exps" in name:
        gate_up, down = EXPERT_KINDS[int(name.split(".")[1]) - 1]
        return "IQ1_S" if name == "blk.2.ffn_up_exps.weight" else down if "down" in name else gate_up  # one gate is unlike its up
    return {"output.weight": "Q6_K", "token_embd.weight": "Q4_K"}.get(name, "Q5_K" if "shexp" in name else "Q8_0")


@pytest.fixture(scope="module")
def mixed_v3(tmp_path_factory):
    """A V3 as it is shared in few bits, each layer's experts of other types; and the same values as F32."""
    folder = tmp_path_factory.mktemp("mixed")
    packed, plain = fill_wide(np.random.default_rng(5), WIDE_V3, False, kind_in_wide_v3)
    keys = gguf_model.keys_of(WIDE_V3, False)
    return [gguf_model.write(folder / f"{name}.gguf", keys, tensors) for name, tensors in (("m", packed), ("f32", plain))]


def test_a_v3_of_few_bits(mixed_v3, tmp_path):
    """Sigmoid, groups and biases with every type of a layer's experts: the values of F32, with experts in memory or read when they
    are wanted, and within what 8-bit activations cost."""
    got, want = (logits(path, tmp_path / "out") for path in mixed_v3)
    scale = float(np.abs(want).max())
    assert scale > 0 and np.isfinite(want).all() and largest(got, want) <= 2e-5 * scale
    packed, _ = mixed_v3
    largest_expert = 3 * 256 * 136  # of TQ2_0 and MXFP4, and more than that
    assert np.array_equal(logits(packed, tmp_path / "out", "--expert-cache", 8 * largest_expert / 2**30), got)
    fast = ["--compute", "fast", "--batch-invariant"]
    whole = logits(packed, tmp_path / "out", *fast)
    assert 0 < np.median(np.abs(whole - got)) <= 0.05 * scale
    assert np.array_equal(logits(packed, tmp_path / "out", *fast, "--expert-cache", 8 * largest_expert / 2**30), whole)


def test_commands_take_a_v3_of_few_bits(mixed_v3, tmp_path):
    packed, plain = mixed_v3
    found = succeed("info", packed, "--json", "--verify").json["bytes_by_format"]
    assert set(found) == {kind_in_wide_v3(name) for name in ("output.weight", "token_embd.weight", "_shexp", "")} | \
        {kind for pair in EXPERT_KINDS for kind in pair} | {"F32"}
    planned = succeed("plan", packed, *NO_CARD, "--json").json
    assert planned["groups"]["routed"]["format"] == "mixed" and planned["decode"][0]["expected_tokens_per_s"] > 0
    assert 2 < planned["groups"]["routed"]["bytes"] * 8 / planned["groups"]["routed"]["params"] < 2.5
    assert succeed("bench", packed, "--json", "--prompt", 8, "--repeat", 1, "--generate", 4, "--depth", 0,
                   "--max-model-len", 64, env=ENOUGH).json["decode"][0]["tokens_per_s"] > 0
    choices = []
    for path in mixed_v3:
        succeed("experts", path, "--ids", ",".join(map(str, IDS)), "--experts", tmp_path / "choices", "-o", tmp_path / "trace",
                *F32)
        choices.append((tmp_path / "choices").read_bytes())
        succeed("quantize", path, "--quant", "int4", "-o", tmp_path / f"{path.stem}.safetensors")
    assert choices[0] == choices[1] and len(choices[0]) == 6 * len(IDS) * 4 * 4
    succeed("plan", packed, *NO_CARD, "--expert-trace", tmp_path / "trace")
    a, b = (logits(tmp_path / f"{path.stem}.safetensors", tmp_path / "out") for path in mixed_v3)
    assert np.array_equal(a, b)


def test_gate_and_up_in_one(expected, tmp_path):
    """Newer converters can write gate and up of an expert as one matrix."""
    values = gguf_model.read_values(GOLDEN / "v3-tiny")
    config = json.loads((GOLDEN / "v3-tiny/config.json").read_text())
    tensors = gguf_model.tensors_of(values, config)
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        both = [tensors.pop(f"blk.{layer}.ffn_{m}_exps.weight") for m in ("gate", "up")]
        tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(both, axis=1)
    path = gguf_model.write(tmp_path / "m.gguf", gguf_model.keys_of(config), tensors)
    assert np.array_equal(logits(path, tmp_path / "out"), expected["v3-tiny"])


def test_prediction_layer_is_left_out(expected, tmp_path):
    extra = {f"blk.4.{name}.weight": np.zeros(shape, "<f4")
             for name, shape in {"attn_norm": 128, "nextn.eh_proj": (128, 256), "nextn.enorm": 128}.items()}
    keys = {"deepseek2.block_count": (5, Value.UINT32), "deepseek2.nextn_predict_layers": (1, Value.UINT32)}
    path = gguf_model.convert(GOLDEN / "v3-tiny", tmp_path / "m.gguf", keys=keys, tensors=extra)
    assert np.array_equal(logits(path, tmp_path / "out"), expected["v3-tiny"])
    facts = succeed("info", path, "--json").json
    assert facts["layers"] == 4 and facts["bytes_left_out"] == sum(v.nbytes for v in extra.values())
    # The same where the converter has left the tensors out, but not the keys.
    path = gguf_model.convert(GOLDEN / "v3-tiny", tmp_path / "n.gguf", keys=keys)
    assert np.array_equal(logits(path, tmp_path / "out"), expected["v3-tiny"])


def test_tied_embedding(tmp_path):
    folder = copy_set("v2lite-tiny", tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", tensors={"output.weight": DELETE})
    assert np.array_equal(logits(path, tmp_path / "out"), logits(folder, tmp_path / "out2"))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_old_files(expected, tmp_path):
    """Keys that converters did not write at first, and what the warnings say."""
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", split_kv_b=False,
                              keys={"deepseek2.expert_gating_func": DELETE, "deepseek2.vocab_size": DELETE,
                                    **vocabulary(size=512)})
    assert np.array_equal(logits(path, tmp_path / "out"), expected["v2lite-tiny"])
    path = gguf_model.convert(GOLDEN / "v3-tiny", tmp_path / "m.gguf", keys={
        "deepseek2.expert_group_count": DELETE, "deepseek2.expert_group_used_count": DELETE})
    done = succeed("info", path)
    assert done.err.count("expert_group_count") == 1 and "16 experts are taken as 1 groups" in done.err
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf",
                              keys={"deepseek2.rope.scaling.yarn_log_multiplier": DELETE})
    assert "yarn_log_multiplier" in succeed("info", path).err


@pytest.mark.parametrize("experts, gate, groups", [(256, 2, (8, 4)), (160, 1, (8, 3)), (64, 1, None)])
def test_groups_of_published_models(experts, gate, groups, tmp_path):
    """A header with 256 or 160 experts is V3's or V2's, whose groups are known; written into a file of ours, they can be seen."""
    name = "v3-tiny" if gate == 2 else "v2lite-tiny"
    config = json.loads((GOLDEN / name / "config.json").read_text())
    config.update(n_routed_experts=experts, num_hidden_layers=1, first_k_dense_replace=0)
    values, random = {}, np.random.default_rng(1)
    for key, value in gguf_model.read_values(GOLDEN / name).items():
        layer = key.split(".")[2] if key.startswith("model.layers.") else None
        if layer == str(config["first_k_dense_replace"] + 2) and ".mlp.experts." not in key:
            values[key.replace(f"layers.{layer}.", "layers.0.")] = value
        elif not layer:
            values[key] = value
    if gate == 2:
        values["model.layers.0.mlp.gate.e_score_correction_bias"] = np.zeros(experts, "<f4")
    values["model.layers.0.mlp.gate.weight"] = random.normal(0, 1, (experts, config["hidden_size"])).astype("<f4")
    width, hidden = config["moe_intermediate_size"], config["hidden_size"]
    for i in range(experts):
        for matrix, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
            values[f"model.layers.0.mlp.experts.{i}.{matrix}_proj.weight"] = np.zeros(shape, "<f4")
    keys = gguf_model.keys_of(config)
    for key in ("expert_group_count", "expert_group_used_count"):
        keys.pop(f"deepseek2.{key}", None)
    path = gguf_model.write(tmp_path / "m.gguf", keys, gguf_model.tensors_of(values, config), Type.BF16)
    done = succeed("quantize", path, "--quant", "bf16", "-o", tmp_path / "out.safetensors")
    assert ("expert_group_count" in done.err) == (groups is not None)
    written = json.loads(st.File(tmp_path / "out.safetensors").header["__metadata__"]["moebius.config.json"])
    assert (written["n_group"], written["topk_group"]) == (groups or (1, 1))
    assert written["topk_method"] == {2: "noaux_tc", 1: "group_limited_greedy" if groups else "greedy"}[gate]


@pytest.mark.parametrize("key, value, words", [
    ("general.architecture", ("llama", Value.STRING), ["deepseek2", "llama"]),
    ("deepseek2.rope.scaling.type", ("linear", Value.STRING), ["yarn"]),
    ("deepseek2.rope.scaling.type", DELETE, ["rope.scaling.type", "rope.scaling.factor"]),
    ("deepseek2.rope.scaling.yarn_attn_factor", (2.0, Value.FLOAT32), ["yarn_attn_factor"]),
    ("deepseek2.attention.temperature_scale", (0.1, Value.FLOAT32), ["temperature_scale"]),
    ("deepseek2.expert_gating_func", (7, Value.UINT32), ["expert_gating_func"]),
    ("deepseek2.block_count", DELETE, ["block_count", "missing"]),
    ("deepseek2.block_count", ("four", Value.STRING), ["block_count", "integer", "string"]),
    ("deepseek2.embedding_length", (64, Value.UINT32), ["shape"]),
    ("deepseek2.embedding_length", (2**31 + 5, Value.UINT32), ["embedding_length"]),
    ("deepseek2.attention.head_count_kv", (3, Value.UINT32), ["head_count_kv"]),
    ("deepseek2.attention.key_length_mla", (16, Value.UINT32), ["key_length"]),
    ("deepseek2.attention.layer_norm_rms_epsilon", (float("nan"), Value.FLOAT32), ["layer_norm_rms_epsilon", "finite"]),
    ("general.alignment", (48, Value.UINT32), ["alignment", "power of two"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_keys_refused(key, value, words, tmp_path):
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", keys={key: value})
    refused(moebius("logits", path, "--ids", "1", "--out", tmp_path / "out"), "m.gguf", *words)


# --- files -----------------------------------------------------------------------------------------------------------


def test_shards(expected, tmp_path):
    first = gguf_model.convert(GOLDEN / "v2-tiny", tmp_path / "m.gguf", split=30)
    assert first.name.startswith("m-00001-of-") and len(list(tmp_path.glob("m-*.gguf"))) > 1
    assert np.array_equal(logits(first, tmp_path / "out"), expected["v2-tiny"])
    assert np.array_equal(logits(tmp_path, tmp_path / "out"), expected["v2-tiny"]), "the folder"
    second = sorted(tmp_path.glob("m-*.gguf"))[1]
    refused(moebius("info", second), second.name, "first")
    shutil.copy(first, tmp_path / "renamed.gguf")
    refused(moebius("info", tmp_path / "renamed.gguf"), "-00001-of-")
    (tmp_path / "renamed.gguf").unlink()
    raw = second.read_bytes()
    second.unlink()
    refused(moebius("info", first), second.name)
    second.write_bytes(first.read_bytes())
    refused(moebius("info", first), second.name, "part 2", "part 1")
    second.write_bytes(raw)
    succeed("info", first)


def test_folders(expected, tmp_path):
    """One model in a folder is that; of two none is chosen; safetensors come first."""
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "a.gguf", Type.Q8_0)
    (tmp_path / "mmproj-x.gguf").write_bytes(b"GGUF")
    assert succeed("info", tmp_path, "--json").json["bytes_by_format"]["Q8_0"]
    shutil.copy(path, tmp_path / "b.gguf")
    refused(moebius("info", tmp_path), "2 GGUF models")
    copy_set("v2lite-tiny", tmp_path)
    assert np.array_equal(logits(tmp_path, tmp_path / "out"), expected["v2lite-tiny"])


def u64(n):
    return struct.pack("<Q", n)


DAMAGE = {
    "empty": (lambda raw: b"", []),
    "magic": (lambda raw: b"GGUG" + raw[4:], ["GGUF"]),
    "four bytes": (lambda raw: raw[:4], ["version", "truncated"]),
    "version 1": (lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:], ["version"]),
    "version 9": (lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:], ["version", "9"]),
    "big-endian": (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], ["big-endian"]),
    "no counts": (lambda raw: raw[:12], ["truncated"]),
    "2^63 tensors": (lambda raw: raw[:8] + u64(2**63) + raw[16:], [str(2**63), "tensors"]),
    "2^64 - 1 keys": (lambda raw: raw[:16] + u64(2**64 - 1) + raw[24:], [str(2**64 - 1), "keys"]),
    "a million keys": (lambda raw: raw[:16] + u64(10**6) + raw[24:], ["keys"]),
    "one key more": (lambda raw: raw[:16] + u64(struct.unpack("<Q", raw[16:24])[0] + 1) + raw[24:], []),
    "a key of 2^63 bytes": (lambda raw: raw[:24] + u64(2**63) + raw[32:], ["key", str(2**63)]),
    "an empty key": (lambda raw: raw[:24] + u64(0) + raw[32:], ["key"]),
    "half": (lambda raw: raw[:len(raw) // 2], ["truncated"]),
    "a byte short": (lambda raw: raw[:len(raw) // 32 * 32 - 64], ["truncated"]),
    "half a header": (lambda raw: raw[:3000], ["truncated"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged(case, made, tmp_path):
    change, words = DAMAGE[case]
    path = write(tmp_path, change(made))
    for command in ("info", "plan"):
        refused(moebius(command, path), "model.gguf", *words)


def value_at(raw, key):
    """Where the value of a key begins: behind its type."""
    name = u64(len(key)) + key.encode()
    assert raw.count(name) == 1
    return raw.index(name) + len(name) + 4


def tensor_at(raw, name):
    """Where a tensor's number of dimensions is."""
    text = u64(len(name)) + name.encode()
    assert raw.count(text) == 1
    return raw.index(text) + len(text)


def patched(raw, at, new):
    return raw[:at] + new + raw[at + len(new):]


NAME = "blk.0.attn_q.weight"  # two dimensions: count at 0, dimensions at 4 and 12, type at 20, offset at 24


@pytest.mark.parametrize("at, new, words", [
    (0, struct.pack("<I", 0), ["dimensions"]),
    (0, struct.pack("<I", 5), ["dimensions"]),
    (4, u64(0), ["dimensions"]),
    (4, u64(2**63), ["dimensions"]),
    (4, u64(2**62), ["outside", "dimensions"]),
    (12, u64(2**40), ["dimensions", "outside"]),
    (20, struct.pack("<I", 4), ["type 4"]),
    (20, struct.pack("<I", 2**32 - 1), ["type"]),
    (20, struct.pack("<I", 19), ["blocks"]),
    (24, u64(33), ["offset"]),
    (24, u64(2**63), ["outside"]),
    (24, u64(0), ["overlaps"]),
], ids=str)
def test_tensor_headers(at, new, words, made, tmp_path):
    path = write(tmp_path, patched(made, tensor_at(made, NAME) + at, new))
    line = refused(moebius("info", path), "model.gguf")
    assert any(word in line for word in words), line


def test_twice(made, tmp_path):
    """Two keys, or two tensors, of one name; a NUL in a key."""
    name, like = b"deepseek2.block_count", b"deepseek2.vocab_size\0"
    refused(moebius("info", write(tmp_path, made.replace(name, like))), "NUL")
    name, like = b"deepseek2.expert_used_count", b"deepseek2.expert_gating_fun"
    raw = made.replace(b"deepseek2.expert_gating_func", like + b"c")
    raw = raw.replace(u64(27) + name, u64(27) + b"deepseek2.attention.key_len")
    refused(moebius("info", write(tmp_path, raw)), "expert_used_count", "missing")
    raw = made.replace(b"deepseek2.rope.scaling.factor", b"deepseek2.expert_shared_count")
    refused(moebius("info", write(tmp_path, raw)), "expert_shared_count", "twice")
    raw = made.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight")
    refused(moebius("info", write(tmp_path, raw)), "blk.0.attn_q.weight", "twice")
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf",
                              tensors={"blk.01.attn_norm.weight": np.ones(128, "<f4")})
    refused(moebius("info", path), "m.gguf", "layers.1.input_layernorm", "twice")


def test_stacks_of_experts(tmp_path):
    """As many in a stack as the key says; and small stacks, of which each would become thousands of tensors, do not fill the memory."""
    values = gguf_model.tensors_of(gguf_model.read_values(GOLDEN / "v2lite-tiny"),
                                   json.loads((GOLDEN / "v2lite-tiny/config.json").read_text()))
    name = "blk.1.ffn_up_exps.weight"
    for stack in (values[name][:-1], np.concatenate([values[name], values[name]])):
        path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", tensors={name: stack})
        for command in ("info", "plan"):
            refused(moebius(command, path), name, "expected 16 experts", "expert_count", f"found {len(stack)}")
    stacks = {f"blk.{i}.ffn_{matrix}_exps.weight": (np.zeros((4096, 1, 1), np.int8), Type.I8)
              for i in range(100) for matrix in ("gate", "up", "down")}
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", tensors=stacks,
                              keys={"deepseek2.expert_count": (4096, Value.UINT32)})
    refused(moebius("info", path), "m.gguf", "more than 1048576 matrices")


def test_arrays(tmp_path):
    """An array whose count, element type or strings lie; one in another."""
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "model.gguf",
                              keys={"x.strings": (["one", "two"], Value.ARRAY), "x.numbers": ([1, 2, 3], Value.ARRAY)})
    raw = path.read_bytes()
    succeed("info", path)
    strings, numbers = value_at(raw, "x.strings"), value_at(raw, "x.numbers")
    for at, new, word in ((strings + 4, u64(2**63), "truncated"), (strings + 4, u64(2**20), "truncated"),
                          (strings + 12, u64(2**64 - 1), "truncated"), (strings, struct.pack("<I", 9), "array"),
                          (strings, struct.pack("<I", 13), "array"), (numbers + 4, u64(2**62), "truncated"),
                          (numbers - 4, struct.pack("<I", 77), "type")):
        refused(moebius("info", write(tmp_path, patched(raw, at, new))), word)


def test_unread_types_and_values(tmp_path):
    """Types that nobody reads here, unknown tensors, and scales that are no numbers."""
    random = np.random.default_rng(3)
    raw = random.integers(0, 256, (512, 144), dtype=np.uint8)
    shape = {"output.weight": (raw, Type.NVFP4)}  # 512 rows of four blocks of 64
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", tensors=shape)
    refused(moebius("info", path), "output.weight", "NVFP4", "Q2_K to Q6_K")
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf",
                              tensors={"blk.1.ffn_gate_inp_shexp.weight": np.ones(128, "<f4")})
    refused(moebius("logits", path, "--ids", "1", "--out", tmp_path / "out"), "ffn_gate_inp_shexp", "unknown")
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf",
                              tensors={"blk.1.attn_v_b.weight": DELETE})
    refused(moebius("logits", path, "--ids", "1", "--out", tmp_path / "out"), "kv_b_proj", "missing")
    for name in ("blk.0.attn_v_b.weight", "blk.1.ffn_up_exps.weight"):
        values = gguf_model.tensors_of(gguf_model.read_values(GOLDEN / "v2lite-tiny"),
                                       json.loads((GOLDEN / "v2lite-tiny/config.json").read_text()))[name]
        damaged = gguf.quants.quantize(values, Type.Q8_0)
        damaged.reshape(-1)[34 * 3:34 * 3 + 2] = (0, 0x7E)  # the scale of the fourth block
        path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", Type.Q8_0,
                                  tensors={name: (damaged, Type.Q8_0)})
        refused(moebius("info", path, "--verify"), name, "nan")
    # Threads look at it, and it is the first that is named.
    damaged = gguf.quants.quantize(np.ones((512, 128), "<f4"), Type.Q8_0)
    for row in (500, 41, 260):
        damaged[row, 34:36] = (0, 0x7E)
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", tensors={"output.weight": (damaged, Type.Q8_0)})
    refused(moebius("info", path, "--verify"), "output.weight: value 32 of row 41 is nan")
    # kv_b is put together at load, and looked at then.
    damaged = gguf.quants.quantize(np.ones((4, 32, 64), "<f4"), Type.Q8_0)
    damaged.reshape(-1)[0:2] = (0, 0x7C)
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", Type.Q8_0,
                              tensors={"blk.0.attn_v_b.weight": (damaged, Type.Q8_0)})
    refused(moebius("logits", path, "--ids", "1", "--out", tmp_path / "out"), "finite")


# --- the other commands ----------------------------------------------------------------------------------------------


def test_info_and_plan(tmp_path):
    keys = {"general.name": ("Tiny", Value.STRING), "general.license": ("mit", Value.STRING),
            "general.quantized_by": ("somebody\x1b[2J", Value.STRING)}
    path = gguf_model.convert(GOLDEN / "v3-tiny", tmp_path / "m.gguf", Type.Q8_0, keys=keys)
    facts = succeed("info", path, "--json").json
    assert facts["gguf"]["name"] == "Tiny" and facts["licence"] == "mit" and facts["packed"] is None
    text = succeed("info", path).text
    assert "quantized by: somebody" in text and "\x1b" not in text and "Q8_0" in text
    both = [succeed("info", model, "--json").json for model in (path, GOLDEN / "v3-tiny")]
    assert both[0]["params"] == both[1]["params"] and both[0]["context"] == both[1]["context"]
    assert both[0]["hash"] != both[1]["hash"] and len(both[0]["hash"]) == 64
    succeed("quantize", path, "--quant", "int8", "-o", tmp_path / "out.safetensors")
    assert succeed("info", tmp_path / "out.safetensors", "--json").json["licence"] == "mit"
    planned = succeed("plan", path, *NO_CARD, "--json").json
    assert "q8_0" in json.dumps(planned).lower()


@pytest.mark.parametrize("k, v, bytes_each", [(Type.F32, Type.F32, 4), (Type.BF16, Type.BF16, 2), (Type.F16, Type.Q8_0, 2),
                                              (Type.Q8_0, Type.Q8_0, 2), (Type.BF16, Type.Q8_0, 4), (Type.Q8_0, Type.F32, 4)],
                         ids=lambda value: getattr(value, "name", ""))
def test_plan_counts_what_kv_b_becomes(k, v, bytes_each, tmp_path):
    config = json.loads((GOLDEN / "v2lite-tiny/config.json").read_text())
    tensors = gguf_model.tensors_of(gguf_model.read_values(GOLDEN / "v2lite-tiny"), config)
    for layer in range(config["num_hidden_layers"]):
        for part, kind in (("k", k), ("v", v)):
            name = f"blk.{layer}.attn_{part}_b.weight"
            tensors[name] = (gguf.quants.quantize(tensors[name], kind).view(np.uint8), kind)
    path = gguf_model.write(tmp_path / "m.gguf", gguf_model.keys_of(config), tensors, Type.Q8_0)
    group = succeed("plan", path, *NO_CARD, "--json").json["groups"]["kv_b"]
    assert group["bytes"] == bytes_each * group["params"] > 0
    assert group["format"] == ("f32" if bytes_each == 4 else "bf16" if k == Type.BF16 else "f16")


@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny"])
def test_quantize(name, expected, tmp_path):
    """From blocks to a file of ours, and on the way: the same bits."""
    path = gguf_model.convert(GOLDEN / name, tmp_path / "m.gguf", Type.Q8_0)
    succeed("quantize", path, "--quant", "int8", "-o", tmp_path / "int8.safetensors")
    a = logits(tmp_path / "int8.safetensors", tmp_path / "out")
    b = logits(path, tmp_path / "out", "--quantization", "int8")
    assert np.array_equal(a, b)
    assert 0 < np.median(np.abs(a - expected[name])) <= 0.2


def test_expert_cache(tmp_path):
    """Experts are views into stacked tensors, read from the file by offset: 8 of 32 fit."""
    path = gguf_model.convert(GOLDEN / "v2lite-tiny", tmp_path / "m.gguf", Type.Q8_0)
    whole = logits(path, tmp_path / "out")
    assert np.array_equal(logits(path, tmp_path / "out", "--expert-cache", 8 * 34000 / 2**30), whole)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def tokenizer_file(folder, path, pre):
    """A GGUF with a tokenizer and no tensors, as llama.cpp has them for tests."""
    config = json.loads((GOLDEN / "v2lite-tiny/config.json").read_text())
    config["vocab_size"] = 130000 if pre == "deepseek-v3" else 102400
    read = [json.loads((folder / f"{name}.json").read_text()) for name in ("tokenizer", "tokenizer_config")]
    keys = {**gguf_model.keys_of(config), **gguf_model.tokenizer_keys(*read, config["vocab_size"], pre)}
    return gguf_model.write(path, keys, {})


@pytest.mark.parametrize("name, pre", [("deepseek-v2", "deepseek-llm"), ("deepseek-v3", "deepseek-v3")])
def test_vectors(name, pre, tmp_path):
    """The released tokenizers by way of GGUF: every vector in both directions, and the template."""
    folder = shared("tokenizers", name)
    path = tokenizer_file(folder, tmp_path / "m.gguf", pre)
    vectors = read_lines(folder / "vectors.jsonl")
    assert len(vectors) > 1000
    check(vectors, pipe("tokenize", path, [{"text": v["text"], "special": v["special"]} for v in vectors]), "ids")
    back = read_lines(folder / "decode.jsonl")
    lines = [{"ids": v["ids"], "skip_special_tokens": v["skip_special_tokens"]} for v in back]
    check(back, pipe("detokenize", path, lines), "text")
    request = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
                            {"role": "user", "content": "Hum"}]}
    both = [succeed("render", model, "--messages", "-", "--json", stdin=json.dumps(request).encode()).json
            for model in (folder, path)]
    assert both[0] == both[1] and both[0]["ids"]


def test_demo_model(tmp_path):
    """models/demo has the steps of deepseek-llm and a template: the same texts in and out as its folder."""
    demo = ROOT / "models" / "demo"
    path = gguf_model.convert(demo, tmp_path / "m.gguf", Type.BF16, tokenizer=demo)
    texts = ["def f(x):\n    return x * 1234 + 'Grüße, Привет, 漢字かな' # ½ \t \n\n", "a  b \u00a0", "<\uff5cfim\u2581hole\uff5c>x"]
    lines = [{"text": text, "special": special} for text in texts for special in (False, True)]
    ids = pipe("tokenize", demo, lines)
    assert pipe("tokenize", path, lines) == ids and ids[4] != ids[5]
    assert pipe("detokenize", path, ids) == pipe("detokenize", demo, ids)
    flags = ["-p", "def add(a, b):", "-n", 24, "--temperature", 0, "--json", *F32]
    both = [succeed("run", model, *flags).json for model in (demo, path)]
    assert both[0]["text"] == both[1]["text"] and both[0]["text"]


def vocabulary(size=260, **changes):
    """A tokenizer of every byte of UTF-8, changed."""
    tokenizer, config = tiny_tokenizer.tokenizer(), tiny_tokenizer.config()
    keys = gguf_model.tokenizer_keys(tokenizer, config, size, "deepseek-llm")
    for key, change in changes.items():
        name = f"tokenizer.ggml.{key}"
        keys[name] = (change(keys[name][0]), keys[name][1])
    return keys


def with_token(i, text):
    return lambda tokens: [*tokens[:i], text, *tokens[i + 1:]]


@pytest.mark.parametrize("changes, words", [
    ({"model": lambda _: "llama"}, ["tokenizer.ggml.model", "llama"]),
    ({"pre": lambda _: "kimi-k2"}, ["tokenizer.ggml.pre", "kimi-k2", "deepseek-v3"]),
    ({"tokens": with_token(9, "(")}, ["twice"]),
    ({"tokens": with_token(9, "")}, ["token 9", "empty"]),
    ({"token_type": lambda types: types[:-1]}, ["type for each"]),
    ({"token_type": lambda types: [*types[:-1], 99]}, ["unknown type"]),
    ({"merges": lambda merges: [*merges, "q w"]}, ["merges", "vocabulary"]),
    ({"merges": lambda merges: [*merges, "qw"]}, ["merges"]),
    ({"eos_token_id": lambda _: 5000}, ["eos_token_id"]),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_tokenizers_refused(changes, words, tmp_path):
    config = json.loads((GOLDEN / "v2lite-tiny/config.json").read_text())
    path = gguf_model.write(tmp_path / "m.gguf", {**gguf_model.keys_of(config), **vocabulary(**changes)}, {})
    refused(moebius("tokenize", path, stdin=b'{"text": "a"}\n'), "m.gguf", *words)


def test_old_tokenizers(tmp_path):
    """Converters of 2024: fillers as user-defined tokens, and spaces in marks that are not control tokens."""
    def spaced(tokens):
        return [t.replace("\u2581", " ") if "fim" in t else t for t in tokens]

    def types(types):
        return [4 if t == 5 or i in (253, 254, 255) else t for i, t in enumerate(types)]

    config = json.loads((GOLDEN / "v2lite-tiny/config.json").read_text())
    texts = [{"text": "[PAD257] <\uff5cfim\u2581hole\uff5c>"}]
    new, old = (gguf_model.write(tmp_path / name, {**gguf_model.keys_of(config), **keys}, {})
                for name, keys in (("new.gguf", vocabulary()), ("old.gguf", vocabulary(tokens=spaced, token_type=types))))
    ids = pipe("tokenize", new, texts)[0]["ids"]
    assert pipe("tokenize", old, texts)[0]["ids"] == ids and ids[-1] == 254


def test_ids_alone(made, tmp_path):
    """A file without a tokenizer serves ids; a text is refused."""
    path = write(tmp_path, made)
    refused(moebius("tokenize", path, stdin=b'{"text": "a"}\n'), "tokenizer.ggml")
