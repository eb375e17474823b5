#!/usr/bin/env python3
"""GGUF files of DeepSeek-V4 for the tests, as llama.cpp's converter would write them: from a folder in the published layout.

    gguf_hybrid.py FOLDER OUT.gguf [TYPE]    TYPE: F32, F16, BF16, Q8_0 (what matrices become; default F32)

FP8 is widened, and experts in FP4 are put in MXFP4's order: the same values and scales. Source of keys, names and which tensors stay
as they are: llama.cpp's converter (DeepseekV4Model), of October 2026.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

import gguf_model
import st

ARCH = "deepseek4"
GROUP = 32  # values of FP4 that share a scale

# The published name behind "layers.N." -> GGUF's behind "blk.N.".
IN_LAYER = {
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.compressor.wkv.weight": "attn_compressor_kv.weight",
    "attn.compressor.wgate.weight": "attn_compressor_gate.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.norm.weight": "attn_compressor_norm.weight",
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "attn.indexer.compressor.wkv.weight": "indexer_compressor_kv.weight",
    "attn.indexer.compressor.wgate.weight": "indexer_compressor_gate.weight",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.norm.weight": "indexer_compressor_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
    **{f"hc_{where}_{part}": f"hc_{where}_{part}.weight" for where in ("attn", "ffn") for part in ("fn", "base", "scale")},
}
OUTSIDE = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight",
           **{f"hc_head_{part}": f"output_hc_{part}.weight" for part in ("fn", "base", "scale")}}
EXPERT = {"w1": "gate", "w2": "down", "w3": "up"}


def e4m3(raw):
    """FP8's values: 4 bits of exponent by 7, 3 of mantissa."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0 ** -9)
    return (np.where(codes < 128, values, -values)).astype("<f4")[raw]


def widen(raw, scales):
    """FP8 of blocks of 128x128."""
    factors = np.exp2(scales.astype("<f4") - 127).repeat(128, 0)[:raw.shape[0]].repeat(128, 1)[:, :raw.shape[1]]
    return e4m3(raw) * factors


def mxfp4(packed, scales):
    """[rows][cols / 2] with two neighbours a byte and [rows][cols / 32] scales -> blocks of a scale and 16 bytes, which hold value i
    in the low half and i + 16 in the high one."""
    rows = packed.shape[0]
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, GROUP)
    halves = values[..., :GROUP // 2] | values[..., GROUP // 2:] << 4
    return np.concatenate([scales[..., None], halves], axis=-1).reshape(rows, -1).astype("u1")


def read_values(folder):
    """Name -> float32 array, int32 array, or (MXFP4's bytes, type)."""
    file, values = st.File(Path(folder) / "model.safetensors"), {}

    def array(name, dtype):
        return np.frombuffer(file.bytes_of(name), dtype).reshape(file.header[name]["shape"])

    for name, entry in file.tensors().items():
        if name.startswith("mtp.") or name.endswith(".scale"):
            continue
        scale = name.removesuffix("weight") + "scale"
        if entry["dtype"] == "BF16":
            values[name] = (array(name, "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] == "F8_E4M3":
            values[name] = widen(array(name, "u1"), array(scale, "u1"))
        elif entry["dtype"] == "I8":
            values[name] = (mxfp4(array(name, "u1"), array(scale, "u1")), Type.MXFP4)
        else:
            values[name] = array(name, {"F32": "<f4", "I32": "<i4", "I64": "<i8"}[entry["dtype"]])
            if entry["dtype"] == "I64":
                values[name] = values[name].astype("<i4")
    return values


def keys_of(config):
    """The key/value pairs that the converter writes of a config.json."""
    layers, limit, scaling = config["num_hidden_layers"], float(config["swiglu_limit"]), config["rope_scaling"]
    integers = {
        "block_count": layers, "context_length": config["max_position_embeddings"], "embedding_length": config["hidden_size"],
        "attention.head_count": config["num_attention_heads"], "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"],
        "attention.q_lora_rank": config["q_lora_rank"], "attention.sliding_window": config["sliding_window"],
        "attention.indexer.head_count": config["index_n_heads"], "attention.indexer.key_length": config["index_head_dim"],
        "attention.indexer.top_k": config["index_topk"], "attention.output_group_count": config["o_groups"],
        "attention.output_lora_rank": config["o_lora_rank"], "rope.dimension_count": config["qk_rope_head_dim"],
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        "hyper_connection.count": config["hc_mult"], "hyper_connection.sinkhorn_iterations": config["hc_sinkhorn_iters"],
        "hash_layer_count": config["num_hash_layers"], "vocab_size": config["vocab_size"],
        "embedding_length_out": config["hidden_size"] * config["hc_mult"],
        "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"], "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_gating_func": 4}
    numbers = {
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "hyper_connection.epsilon": config["hc_eps"],
        "rope.freq_base": config["rope_theta"], "attention.compress_rope_freq_base": config["compress_rope_theta"],
        "rope.scaling.factor": scaling["factor"], "rope.scaling.yarn_beta_fast": scaling["beta_fast"],
        "rope.scaling.yarn_beta_slow": scaling["beta_slow"], "expert_weights_scale": config["routed_scaling_factor"]}
    keys = {key: (value, Value.UINT32) for key, value in integers.items()}
    keys.update({key: (float(value), Value.FLOAT32) for key, value in numbers.items()})
    keys.update({"expert_weights_norm": (config["norm_topk_prob"], Value.BOOL), "rope.scaling.type": ("yarn", Value.STRING),
                 "attention.compress_ratios": (config["compress_ratios"], Value.ARRAY),
                 "swiglu_clamp_exp": ([limit] * layers, Value.ARRAY), "swiglu_clamp_shexp": ([limit] * layers, Value.ARRAY)})
    return {f"{ARCH}.{key}": value for key, value in keys.items()}


def stack(matrices):
    if isinstance(matrices[0], tuple):
        return np.stack([data for data, _ in matrices]), matrices[0][1]
    return np.stack(matrices)


def tensors_of(values):
    """GGUF's names -> what gguf_model.write takes."""
    out, experts = {}, {}
    for name, value in values.items():
        if name in OUTSIDE:
            out[OUTSIDE[name]] = value
            continue
        layer, rest = name.removeprefix("layers.").split(".", 1)
        if rest.startswith("ffn.experts."):
            _, _, expert, matrix, _ = rest.split(".")
            experts.setdefault((layer, EXPERT[matrix]), {})[int(expert)] = value
        else:
            out[f"blk.{layer}.{IN_LAYER[rest]}"] = value
    for (layer, matrix), list_of in experts.items():
        out[f"blk.{layer}.ffn_{matrix}_exps.weight"] = stack([list_of[i] for i in range(len(list_of))])
    return out


def convert(folder, out, kind=Type.F32, keys=None, tensors=None, **options):
    """A folder of safetensors as GGUF. `keys` and `tensors` change or (DELETE) take away what would be written."""
    all_keys = keys_of(json.loads((Path(folder) / "config.json").read_text()))
    all_tensors = tensors_of(read_values(folder))
    gguf_model.change(all_keys, keys)
    gguf_model.change(all_tensors, tensors)
    return gguf_model.write(out, all_keys, all_tensors, kind, arch=ARCH, **options)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], Type[sys.argv[3] if len(sys.argv) > 3 else "F32"])
