"""Damaged and unsupported input: each ends in one message that names the file and the tensor or key, and exit status 1
(2, wrong usage, is for what the command line says); never in a crash, a hang or a silent default. Runs under the sanitizers too."""

import json
import os
import re
import struct

import numpy as np
import pytest

import st
import tiny_tokenizer
import conftest
from conftest import DELETE, change_config, copy_set, moebius, succeed

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def refused(result, *words):
    message = conftest.refused(result, *words)
    in_the_model = re.search(r"(config|tokenizer|index)\.json|\.safetensors", message)  # not a file that --ids names
    assert result.code == 1 or not in_the_model, str(result)
    return message


def open_model(folder, ids="1,2,3", *flags):
    """Opens everything that a forward pass needs, and runs three tokens."""
    return moebius("logits", folder, "--ids", ids, *flags)


def weights(folder):
    return folder / "model.safetensors"


def rewrite(folder, change):
    """`change` gets the tensors as {name: (dtype, shape, bytes)}; the file is written anew, well formed."""
    tensors = st.tensors_of(st.File(weights(folder)))
    change(tensors)
    header, data = st.build(tensors)
    weights(folder).write_bytes(st.pack(header, data))


def test_the_undamaged_copy_opens(model, shards):
    succeed("logits", model, "--ids", "1,2,3")
    rewrite(model, lambda tensors: None)
    succeed("logits", model, "--ids", "1,2,3")


# --- the container ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 20000, -1])
def test_truncated_file(model, keep):
    raw = weights(model).read_bytes()
    weights(model).write_bytes(raw[:keep])
    refused(open_model(model), "model.safetensors")


def test_truncated_shard(shards):
    raw = (shards / SHARD_2).read_bytes()
    (shards / SHARD_2).write_bytes(raw[:-1000])
    refused(open_model(shards), SHARD_2, "truncated")


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 3_000_000, 2**32])
def test_header_length_beyond_the_file(model, length):
    raw = weights(model).read_bytes()
    weights(model).write_bytes(struct.pack("<Q", length) + raw[8:])
    refused(open_model(model), "model.safetensors", "header length", length)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}x", '{"a": 1}', "\xff\xfe"])
def test_header_is_no_table_of_tensors(model, text):
    st.File(weights(model)).write(weights(model), header_text=text.encode("latin-1"))
    refused(open_model(model), "model.safetensors")


def test_header_nested_deeply(model):
    st.File(weights(model)).write(weights(model), header_text='{"a":' * 100_000)
    refused(open_model(model), "model.safetensors")


def change_entry(folder, name, **changes):
    file = st.File(weights(folder))
    file.header[name].update(changes)
    file.write(weights(folder))


@pytest.mark.parametrize("offsets", [[0, 2**40], [-5, 100], [100, 50], [2**62, 2**63 - 1], [0.5, 1], ["0", "1"], [1], None])
def test_offsets_out_of_range(model, offsets):
    change_entry(model, Q, data_offsets=offsets)
    refused(open_model(model), "model.safetensors", Q)


def test_offset_that_no_integer_holds(model):
    change_entry(model, Q, data_offsets=[0, 2**64])
    refused(open_model(model), "model.safetensors", 2**64)


def test_overlapping_offsets(model):
    file = st.File(weights(model))
    names = sorted(file.tensors(), key=lambda name: file.header[name]["data_offsets"])
    first, second = next((a, b) for a, b in zip(names, names[1:])
                         if file.header[a]["shape"] == file.header[b]["shape"])
    file.header[second]["data_offsets"] = file.header[first]["data_offsets"]
    file.write(weights(model))
    message = refused(open_model(model), "model.safetensors", "overlap")
    assert first in message or second in message


def test_hole_between_tensors(model):
    file = st.File(weights(model))
    for entry in file.tensors().values():
        entry["data_offsets"] = [offset + 16 for offset in entry["data_offsets"]]
    file.data = bytes(16) + file.data
    file.write(weights(model))
    refused(open_model(model), "model.safetensors", "hole")


def test_bytes_after_the_last_tensor(model):
    weights(model).write_bytes(weights(model).read_bytes() + bytes(64))
    refused(open_model(model), "model.safetensors", "64 bytes")


@pytest.mark.parametrize("shape", [[-1, 128], [2**40, 2**40], [1, 2, 3, 4, 5], [1.5], "x", [3, 128], [0, 128]])
def test_shape_that_is_none(model, shape):
    change_entry(model, Q, shape=shape)
    refused(open_model(model), "model.safetensors", Q)


@pytest.mark.parametrize("shape", [[0, 2**63 - 1, 2**63 - 1, 2**63 - 1], [2**63 - 1, 0, 2**63 - 1, 2**63 - 1], [0] * 4])
def test_shape_of_many_digits(model, shape):
    """No elements, so that nothing overflows, and dimensions as long as they get: they ran over the end of a message's buffer."""
    change_entry(model, Q, shape=shape)
    refused(open_model(model), "model.safetensors", Q, f"{shape} does not take")
    change_entry(model, NORM, shape=shape)
    refused(moebius("info", model), "model.safetensors", "does not take")


@pytest.mark.parametrize("dtype", ["F7", "bf16", "", None, 3])
def test_unknown_dtype(model, dtype):
    change_entry(model, Q, dtype=dtype)
    refused(open_model(model), "model.safetensors", Q, "dtype")


@pytest.mark.parametrize("dtype", ["I16", "U8", "F64", "BOOL", "F8_E5M2", "I8"])
def test_dtype_that_no_weight_has(model, dtype):
    def change(tensors):
        _, shape, raw = tensors[Q]
        n = shape[0] * shape[1] * st.ITEM_BYTES[dtype]
        tensors[Q] = (dtype, shape, (raw * 4)[:n])

    rewrite(model, change)
    refused(open_model(model), "model.safetensors", Q, dtype)


def test_fp8_without_quantization_config(model):
    def change(tensors):
        _, shape, raw = tensors[Q]
        tensors[Q] = ("F8_E4M3", shape, raw[:len(raw) // 2])

    rewrite(model, change)
    refused(open_model(model), "model.safetensors", Q, "F8_E4M3")


def test_duplicate_tensor_in_one_header(model):
    file = st.File(weights(model))
    text = json.dumps(file.header)
    entry = json.dumps(file.header[Q])
    file.write(weights(model), header_text=text[:-1] + f', "{Q}": {entry}}}')
    refused(open_model(model), "model.safetensors", Q)


def test_tensor_in_two_shards(shards):
    first, second = st.File(shards / SHARD_1), st.File(shards / SHARD_2)
    name = next(iter(first.tensors()))
    tensors = st.tensors_of(second)
    tensors[name] = st.tensors_of(first)[name]
    header, data = st.build(tensors)
    (shards / SHARD_2).write_bytes(st.pack(header, data))
    refused(open_model(shards), name, SHARD_1, SHARD_2)


@pytest.mark.parametrize("name", [
    Q, NORM, "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
    "model.layers.2.mlp.experts.15.down_proj.weight", "model.layers.1.mlp.gate.weight",
    "model.layers.0.mlp.up_proj.weight", "model.layers.2.self_attn.kv_a_layernorm.weight"])
def test_missing_tensor(model, name):
    rewrite(model, lambda tensors: tensors.pop(name))
    refused(open_model(model), "model.safetensors", name, "missing")


def test_unknown_tensor(model):
    name = "model.layers.1.self_attn.q_a_proj.weight"
    rewrite(model, lambda tensors: tensors.update({name: ("BF16", [2, 2], bytes(8))}))
    refused(open_model(model), "model.safetensors", name)


def test_no_tensors_at_all(model):
    weights(model).write_bytes(st.pack({}, b""))
    refused(open_model(model), "no tensors")


# --- several shards and their index ----------------------------------------------------------------------------------


def test_shard_is_absent(shards):
    (shards / SHARD_2).unlink()
    refused(open_model(shards), SHARD_2)


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_index_names_an_absent_tensor(shards):
    change_index(shards, lambda index: index["weight_map"].update({"model.extra.weight": SHARD_1}))
    refused(open_model(shards), INDEX, "model.extra.weight")


def test_index_names_another_shard(shards):
    def change(index):
        name = next(n for n, file in index["weight_map"].items() if file == SHARD_1)
        index["weight_map"][name] = SHARD_2

    change_index(shards, change)
    refused(open_model(shards), INDEX, SHARD_1, SHARD_2)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b", "", ".", 3, None])
def test_index_leaves_the_folder(shards, file):
    change_index(shards, lambda index: index["weight_map"].update({"lm_head.weight": file}))
    refused(open_model(shards), INDEX, "lm_head.weight")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": []}', "{}"])
def test_index_is_damaged(shards, text):
    (shards / INDEX).write_text(text)
    refused(open_model(shards), INDEX)


# --- weights that disagree with config.json --------------------------------------------------------------------------


@pytest.mark.parametrize("key, value, tensor", [
    ("hidden_size", 64, "model.embed_tokens.weight"),
    ("vocab_size", 1000, "model.embed_tokens.weight"),
    ("num_attention_heads", 8, "self_attn"),
    ("kv_lora_rank", 32, "self_attn.kv_"),
    ("qk_rope_head_dim", 32, "self_attn"),
    ("v_head_dim", 64, "self_attn"),
    ("intermediate_size", 512, "mlp"),
    ("moe_intermediate_size", 128, "experts"),
    ("n_routed_experts", 32, "mlp"),
    ("num_hidden_layers", 4, "model.layers.3"),
    ("first_k_dense_replace", 2, "model.layers.1.mlp"),
    ("first_k_dense_replace", 0, "model.layers.0.mlp"),
])
def test_shape_disagrees_with_config(model, key, value, tensor):
    change_config(model, **{key: value})
    if key == "num_attention_heads":
        change_config(model, num_key_value_heads=value)
    refused(open_model(model), "model.safetensors", tensor)


def test_shape_message_says_both(model):
    change_config(model, vocab_size=1000)
    refused(open_model(model), "model.embed_tokens.weight", "[1000, 128]", "[512, 128]")


def test_fewer_layers_than_tensors(model):
    """Layers beyond num_hidden_layers are only left out when the config calls them multi-token prediction."""
    change_config(model, num_hidden_layers=2)
    refused(open_model(model), "model.safetensors", "model.layers.2.")


# --- scales ----------------------------------------------------------------------------------------------------------


def patch_f32_scale(folder, file_name, suffix, value):
    file = st.File(folder / file_name)
    name = next(n for n in file.tensors() if n.endswith(suffix) and "layers.1" in n)
    file.put(name, struct.pack("<f", value) + file.bytes_of(name)[4:])
    file.write(folder / file_name)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_fp8_block_scale_is_not_finite(tmp_path, value):
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    name = patch_f32_scale(folder, SHARD_1, "weight_scale_inv", value)
    refused(open_model(folder), SHARD_1, name, "finite")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fp8_tensor_scale_is_not_finite(tmp_path, value):
    folder = copy_set("v2lite-tiny-fp8-tensor", tmp_path / "m")
    name = patch_f32_scale(folder, "model.safetensors", "weight_scale", value)
    refused(open_model(folder), "model.safetensors", name, "finite")


@pytest.mark.parametrize("bits", [0x7F80, 0x7FC0, 0xFF80])  # BF16: infinity, NaN, minus infinity
def test_fp8_channel_scale_is_not_finite(tmp_path, bits):
    folder = copy_set("v2lite-tiny-ct-fp8", tmp_path / "m")
    file = st.File(folder / "model.safetensors")
    name = next(n for n in file.tensors() if n.endswith("weight_scale") and "layers.1" in n)
    raw = file.bytes_of(name)
    file.put(name, raw[:-2] + struct.pack("<H", bits))
    file.write(folder / "model.safetensors")
    refused(open_model(folder), "model.safetensors", name, "finite")


@pytest.mark.parametrize("bits", [0x7C00, 0x7E00, 0xFC00])  # F16
def test_awq_scale_is_not_finite(tmp_path, bits):
    folder = copy_set("v2lite-tiny-awq", tmp_path / "m")
    file = st.File(folder / "model.safetensors")
    name = next(n for n in file.tensors() if n.endswith(".scales") and "layers.1" in n)
    raw = file.bytes_of(name)
    file.put(name, raw[:10] + struct.pack("<H", bits) + raw[12:])
    file.write(folder / "model.safetensors")
    refused(open_model(folder), "model.safetensors", name, "finite")


EXPERT = "layers.1.ffn.experts.3.w2"  # FP4 in v4-tiny-fp8


def change_v4(tmp_path, change):
    folder = copy_set("v4-tiny-fp8", tmp_path / "m")
    rewrite(folder, change)
    return folder


@pytest.mark.parametrize("name", [EXPERT + ".scale", "layers.1.attn.wq_b.scale"])  # of FP4, of FP8
def test_scale_that_is_a_power_and_not_finite(tmp_path, name):
    def change(tensors):
        dtype, shape, raw = tensors[name]
        tensors[name] = (dtype, shape, raw[:-1] + b"\xff")

    at = int(np.prod(st.File(conftest.GOLDEN / "v4-tiny-fp8" / "model.safetensors").header[name]["shape"])) - 1
    refused(open_model(change_v4(tmp_path, change)), "model.safetensors", name, f"value {at} is nan", "finite")


@pytest.mark.parametrize("name, dtype, words", [
    (EXPERT + ".scale", "U8", ["expected F8_E8M0", "found U8"]),
    (EXPERT + ".weight", "F8_E4M3", ["expected shape", "[64, 32]", "[64, 16]"]),
    ("layers.1.attn.wq_b.scale", "I8", ["I8"]),
])
def test_fp4_of_another_type(tmp_path, name, dtype, words):
    def change(tensors):
        _, shape, raw = tensors[name]
        tensors[name] = (dtype, shape, raw)

    refused(open_model(change_v4(tmp_path, change)), "model.safetensors", name, *words)


@pytest.mark.parametrize("name", [EXPERT + ".scale", EXPERT + ".weight"])
def test_fp4_of_another_shape(tmp_path, name):
    def change(tensors):
        dtype, shape, raw = tensors[name]
        tensors[name] = (dtype, [shape[0] // 2, shape[1] * 2], raw)

    refused(open_model(change_v4(tmp_path, change)), "model.safetensors", name, "expected shape", "found")


def test_fp4_without_quantization_config(tmp_path):
    folder = copy_set("v4-tiny-fp8", tmp_path / "m")

    def change(tensors):
        for name, (dtype, shape, raw) in tensors.items():
            if dtype == "F8_E4M3":
                tensors[name] = ("BF16", shape, bytes(2 * len(raw)))
        aligned = sorted(tensors.items(), key=lambda item: -st.ITEM_BYTES[item[1][0]])
        tensors.clear()
        tensors.update(aligned)

    rewrite(folder, change)
    change_config(folder, quantization_config=None)
    refused(open_model(folder), "model.safetensors", ".experts.0.w1.weight", "found I8", "quantization_config")


def test_half_a_byte(tmp_path):
    folder = copy_set("v4-tiny-fp8", tmp_path / "m")
    change_entry(folder, EXPERT + ".weight", dtype="F4", shape=[3, 1])
    refused(open_model(folder), "model.safetensors", EXPERT, "F4 [3, 1] does not take")


@pytest.mark.parametrize("suffix", [".weight_scale_inv", ".qzeros", ".scales", ".weight_scale", ".scale"])
def test_missing_scale(tmp_path, suffix):
    set_name = {".weight_scale_inv": "v3-tiny-fp8", ".weight_scale": "v2lite-tiny-ct-fp8",
                ".scale": "v4-tiny-fp8"}.get(suffix, "v2lite-tiny-awq")
    folder = copy_set(set_name, tmp_path / "m")
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = st.tensors_of(st.File(path))
        name = next((n for n in tensors if n.endswith(suffix) and "layers.1" in n), None)
        if name:
            break
    del tensors[name]
    header, data = st.build(tensors)
    path.write_bytes(st.pack(header, data))
    if (folder / INDEX).exists():
        change_index(folder, lambda index: index["weight_map"].pop(name))
    refused(open_model(folder), "safetensors", name.removesuffix(suffix))


def test_awq_group_size_disagrees(tmp_path):
    folder = copy_set("v2lite-tiny-awq", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, quantization_config={**config["quantization_config"], "group_size": 64})
    refused(open_model(folder), "model.safetensors", "model.layers.0")


# --- config.json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{\"a\": 1,}", "\x00", "{" * 100_000])
def test_config_is_no_json_object(model, text):
    (model / "config.json").write_text(text)
    refused(open_model(model), "config.json")


def test_config_is_cut_in_half(model):
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text[:len(text) // 2])
    refused(open_model(model), "config.json")


def test_config_is_not_utf8(model):
    raw = (model / "config.json").read_bytes()
    (model / "config.json").write_bytes(raw.replace(b"silu", b"sil\xff"))
    refused(open_model(model), "config.json")


def test_config_is_absent(model):
    (model / "config.json").unlink()
    refused(open_model(model), "config.json")


def test_config_repeats_a_key(model):
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"hidden_size"', '"vocab_size": 512, "hidden_size"'))
    refused(open_model(model), "config.json", "vocab_size")


REQUIRED = ["architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
            "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size", "moe_intermediate_size",
            "num_experts_per_tok", "vocab_size", "max_position_embeddings"]


@pytest.mark.parametrize("key", REQUIRED)
def test_config_lacks_a_key(model, key):
    change_config(model, **{key: DELETE})
    refused(open_model(model), "config.json", key)


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**31 - 1, 2**63 - 1, 2**70, 1.5, "12", True, [3], {}])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"])
def test_absurd_number(model, key, value):
    change_config(model, **{key: value})
    refused(open_model(model), "config.json" if value != 2**70 else "", key if value != 2**70 else "config.json")


@pytest.mark.parametrize("key, value", [
    ("num_experts_per_tok", 17), ("num_experts_per_tok", 0), ("first_k_dense_replace", 4), ("moe_layer_freq", 2),
    ("n_routed_experts", -1), ("kv_lora_rank", 0), ("qk_rope_head_dim", 15), ("rms_norm_eps", -1), ("rms_norm_eps", "x"),
    ("rope_theta", 0), ("rope_theta", -10000), ("max_position_embeddings", 0), ("routed_scaling_factor", -1),
    ("tie_word_embeddings", "yes"), ("norm_topk_prob", 1), ("q_lora_rank", 0), ("n_shared_experts", -1)])
def test_number_that_makes_no_sense(model, key, value):
    change_config(model, **{key: value})
    refused(open_model(model), "config.json", key)


@pytest.mark.parametrize("key, value", [
    ("architectures", ["LlamaForCausalLM"]), ("architectures", []), ("architectures", "DeepseekV2ForCausalLM"),
    ("hidden_act", "gelu"), ("attention_bias", True), ("topk_method", "best_of_breed"), ("scoring_func", "tanh"),
    ("topk_method", "noaux_tc")])
def test_unsupported_arithmetic(model, key, value):
    change_config(model, **{key: value})
    message = refused(open_model(model), "config.json", key)
    if isinstance(value, str) and key != "architectures":
        assert value in message


@pytest.mark.parametrize("scaling, words", [
    ({"type": "linear", "factor": 4}, ["rope_scaling", "linear", "yarn"]),
    ({"type": "longrope", "factor": 4}, ["rope_scaling", "longrope"]),
    ({"factor": 4}, ["rope_scaling", "type"]),
    ({"type": "yarn"}, ["rope_scaling", "factor"]),
    ({"type": "yarn", "factor": 0, "original_max_position_embeddings": 4096}, ["factor"]),
    ({"type": "yarn", "factor": "40", "original_max_position_embeddings": 4096}, ["factor"]),
    ({"type": "yarn", "factor": 40}, ["original_max_position_embeddings"]),
    ({"type": "yarn", "factor": 40, "original_max_position_embeddings": 0}, ["original_max_position_embeddings"]),
    ({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": -1}, ["mscale"]),
    ({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 0}, ["beta_fast"]),
    ("yarn", ["rope_scaling"]), (40, ["rope_scaling"]), ([], ["rope_scaling"])])
def test_rope_scaling(model, scaling, words):
    change_config(model, rope_scaling=scaling)
    refused(open_model(model), "config.json", *words)


@pytest.mark.parametrize("changes, words", [
    ({"quant_method": "bitsandbytes"}, ["quant_method", "bitsandbytes"]),
    ({"quant_method": 4}, ["quant_method"]),
    ({"quant_method": None}, ["quant_method"]),
    ({"bits": 8}, ["bits"]),
    ({"group_size": 48}, ["group_size"]),
    ({"group_size": -1}, ["group_size"]),
    ({"version": "gemv"}, ["version", "gemv"]),
    ({"zero_point": False}, ["zero_point"])])
def test_quantization_config(tmp_path, changes, words):
    folder = copy_set("v2lite-tiny-awq", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, quantization_config={**config["quantization_config"], **changes})
    refused(open_model(folder), "config.json", *words)


@pytest.mark.parametrize("changes, word", [
    ({"weight_block_size": [64, 64]}, "weight_block_size"), ({"weight_block_size": "x"}, "weight_block_size"),
    ({"fmt": "e5m2"}, "fmt")])
def test_fp8_config(tmp_path, changes, word):
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, quantization_config={**config["quantization_config"], **changes})
    refused(open_model(folder), "config.json", word)


@pytest.mark.parametrize("key, value", [("n_group", 3), ("n_group", 0), ("topk_group", 5), ("topk_group", 0),
                                        ("num_experts_per_tok", 9)])
def test_groups(tmp_path, key, value):
    """v3-tiny: 16 experts in 4 groups, 2 groups kept, 4 experts a token."""
    folder = copy_set("v3-tiny", tmp_path / "m")
    change_config(folder, **{key: value})
    refused(open_model(folder), "config.json", key)


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["512", "1,2,512", "-1", "1,-1", "99999999999", "1.5", "x", "1,,2", "", ",", "1 2"])
def test_ids_outside_of_the_vocabulary(model, ids):
    refused(open_model(model, ids), "--ids")


@pytest.mark.parametrize("text, words", [
    ("[1, 512]", ["512"]), ("[-1]", ["item 0"]), ("[]", []), ("[1.5]", []), ('["1"]', []), ("{}", []), ("[1, 2", []),
    ("[[1]]", []), ("[4294967297]", ["4294967297"]), ("", [])])
def test_id_file(model, tmp_path, text, words):
    ids = tmp_path / "ids.json"
    ids.write_text(text)
    message = refused(open_model(model, ids), *words)
    assert "ids.json" in message or "--ids" in message


def test_id_file_is_absent(model, tmp_path):
    refused(open_model(model, tmp_path / "nothing.json"), "nothing.json")


def test_output_cannot_be_written(model, tmp_path):
    refused(moebius("logits", model, "--ids", "1", "--out", tmp_path / "no" / "such" / "folder"), "no/such/folder")


def test_ids_beyond_the_context(model):
    change_config(model, max_position_embeddings=16)
    message = refused(open_model(model, ",".join(["7"] * 17)))
    assert "17" in message and "16" in message


def test_greedy_beyond_the_context(model):
    change_config(model, max_position_embeddings=16)
    message = refused(open_model(model, ",".join(["7"] * 10), "--greedy", 8))
    assert "16" in message


def test_prompt_beyond_the_context(model):
    tiny_tokenizer.write(model)
    message = refused(moebius("run", model, "-p", "x1" * 100, "-n", 1, "--max-model-len", 64))
    assert "201" in message and "64" in message


def test_prompt_is_not_utf8(model):
    tiny_tokenizer.write(model)
    refused(moebius("run", model, "-p", os.fsdecode(b"caf\xe9"), "-n", 1), "UTF-8")


# --- the tokenizer's files -------------------------------------------------------------------------------------------


def tokenize(folder, text='{"text": "hello"}\n'):
    return moebius("tokenize", folder, stdin=text.encode())


@pytest.mark.parametrize("command", ["tokenize", "run"])
def test_tokenizer_is_cut_in_half(model, command):
    tiny_tokenizer.write(model)
    path = model / "tokenizer.json"
    raw = path.read_bytes()
    path.write_bytes(raw[:len(raw) // 2])
    result = tokenize(model) if command == "tokenize" else moebius("run", model, "-p", "x", "-n", 1)
    refused(result, "tokenizer.json")


@pytest.mark.parametrize("command", ["tokenize", "run"])
def test_tokenizer_is_absent(model, command):
    result = tokenize(model) if command == "tokenize" else moebius("run", model, "-p", "x", "-n", 1)
    refused(result, "tokenizer.json")


def test_tokenizer_has_more_ids_than_the_model(tmp_path):
    """Ids that the model has no row for must not reach it."""
    folder = copy_set("v3-tiny-fp8", tmp_path / "m")
    tiny_tokenizer.write(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 300, "content": "<extra>"})
    path.write_text(json.dumps(tokenizer))
    result = moebius("run", folder, "-p", "a <extra> b", "-n", 1)
    if result.code == 0:  # as text that cannot make the id it is fine
        assert "Sanitizer" not in result.err
    else:
        refused(result, "300")


# --- a NaN on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--compute", "f32"]], ids=["fast", "f32"])
@pytest.mark.parametrize("name, words", [
    ("model.layers.1.self_attn.q_proj.weight", ["layer 1", "attention"]),
    ("model.layers.2.self_attn.o_proj.weight", ["layer 2", "attention"]),
    ("model.layers.0.mlp.down_proj.weight", ["layer 0", "feed-forward"]),
    ("model.layers.2.mlp.gate.weight", ["layer 2", "route"]),
    ("model.layers.1.mlp.shared_experts.up_proj.weight", ["layer 1", "feed-forward"]),
    ("model.embed_tokens.weight", ["embed"]),
    ("lm_head.weight", ["head"]),
])
def test_nan_names_layer_and_stage(model, name, words, flags):
    file = st.File(weights(model))
    raw = np.frombuffer(file.bytes_of(name), "<u2").copy()
    raw[:] = 0x7FC0
    file.put(name, raw.tobytes())
    file.write(weights(model))
    refused(open_model(model, "1,2,3", *flags), *words)


def test_infinity_in_the_forward_pass(model):
    """Finite weights whose product is not."""
    name = "model.layers.1.mlp.shared_experts.down_proj.weight"
    file = st.File(weights(model))
    raw = np.full(len(file.bytes_of(name)) // 2, 0x7F7F, "<u2")
    file.put(name, raw.tobytes())
    file.write(weights(model))
    refused(open_model(model), "layer")


# --- the folder itself -----------------------------------------------------------------------------------------------


def test_no_such_model(tmp_path):
    refused(open_model(tmp_path / "nothing" / "here"), "nothing/here")


def test_folder_without_weights(model):
    weights(model).unlink()
    refused(open_model(model), "model.safetensors")


def test_model_is_a_file(model):
    refused(open_model(model / "config.json"), "config.json")


def test_weights_are_a_folder(model):
    weights(model).unlink()
    weights(model).mkdir()
    refused(open_model(model), "model.safetensors")


def test_folder_is_empty(tmp_path):
    refused(open_model(tmp_path), "config.json")


def test_more_weights_than_can_be_counted(model):
    """Sizes that are within bounds, one by one: `info` reads no tensor, and counted below zero."""
    change_config(model, num_hidden_layers=1024, hidden_size=1 << 20, n_routed_experts=4096, moe_intermediate_size=1 << 20)
    for arguments in (["info", model], ["run", model, "-p", "x"], ["synth", "--config", model / "config.json", "-o", model / "x"]):
        result = moebius(*arguments)
        refused(result, "config.json", "1e15")
