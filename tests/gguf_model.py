#!/usr/bin/env python3
"""GGUF files of DeepSeek models for the tests, as llama.cpp's converter would write them: from a folder in the published layout, with
the Python package `gguf`.

    gguf_model.py FOLDER OUT.gguf [TYPE]    TYPE: F32, F16, BF16, Q8_0 (what matrices become; default F32)
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

DELETE = object()
ARCH = "deepseek2"

# HF's name behind "model.layers.N." -> GGUF's behind "blk.N.".
IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}

# Where a block's fp16 scale is, and the one of what is added or subtracted, where there is one. IQ1_M has its in four places, MXFP4 a
# power of two.
SCALES_AT = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82], Type.Q3_K: [108],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.IQ1_S: [0], Type.IQ2_XXS: [0],
    Type.IQ2_XS: [0], Type.IQ2_S: [0], Type.IQ3_XXS: [0], Type.IQ3_S: [0], Type.TQ1_0: [52], Type.TQ2_0: [64]}


def read_values(folder):
    """Every tensor of a folder of BF16, F16 or F32 safetensors, as float32."""
    values = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        raw = path.read_bytes()
        (n,) = struct.unpack("<Q", raw[:8])
        for name, entry in json.loads(raw[8:8 + n]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + n + at for at in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                array = (np.frombuffer(raw[begin:end], "<u2").astype("<u4") << 16).view("<f4")
            else:
                array = np.frombuffer(raw[begin:end], {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]).astype("<f4")
            values[name] = array.reshape(entry["shape"])
    return values


def has_sigmoid_gate(config):
    """V3's way to choose experts."""
    return config["architectures"][0] == "DeepseekV3ForCausalLM"


def keys_of(config, split_kv_b=True):
    """The key/value pairs that the converter writes of a config.json."""
    rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    lora, v = config["kv_lora_rank"], config["v_head_dim"]
    heads = config["num_attention_heads"]
    keys = {
        "block_count": (config["num_hidden_layers"], Value.UINT32),
        "context_length": (config["max_position_embeddings"], Value.UINT32),
        "embedding_length": (config["hidden_size"], Value.UINT32),
        "feed_forward_length": (config["intermediate_size"], Value.UINT32),
        "attention.head_count": (heads, Value.UINT32),
        "attention.head_count_kv": (1 if split_kv_b else heads, Value.UINT32),
        "attention.layer_norm_rms_epsilon": (config["rms_norm_eps"], Value.FLOAT32),
        "attention.kv_lora_rank": (lora, Value.UINT32),
        "attention.key_length": (lora + rope if split_kv_b else nope + rope, Value.UINT32),
        "attention.value_length": (lora if split_kv_b else v, Value.UINT32),
        "rope.freq_base": (float(config["rope_theta"]), Value.FLOAT32),
        "rope.dimension_count": (rope, Value.UINT32),
        "vocab_size": (config["vocab_size"], Value.UINT32),
        "leading_dense_block_count": (config["first_k_dense_replace"], Value.UINT32),
        "expert_count": (config["n_routed_experts"], Value.UINT32),
        "expert_used_count": (config["num_experts_per_tok"], Value.UINT32),
        "expert_shared_count": (config["n_shared_experts"], Value.UINT32),
        "expert_feed_forward_length": (config["moe_intermediate_size"], Value.UINT32),
        "expert_weights_scale": (config["routed_scaling_factor"], Value.FLOAT32),
        "expert_gating_func": (2 if has_sigmoid_gate(config) else 1, Value.UINT32),
    }
    if config.get("norm_topk_prob"):
        keys["expert_weights_norm"] = (True, Value.BOOL)
    if config.get("q_lora_rank"):
        keys["attention.q_lora_rank"] = (config["q_lora_rank"], Value.UINT32)
    if config.get("n_group", 1) > 1:
        keys["expert_group_count"] = (config["n_group"], Value.UINT32)
        keys["expert_group_used_count"] = (config["topk_group"], Value.UINT32)
    if split_kv_b:
        keys["attention.key_length_mla"] = (nope + rope, Value.UINT32)
        keys["attention.value_length_mla"] = (v, Value.UINT32)
    scaling = config.get("rope_scaling")
    if scaling:
        keys["rope.scaling.type"] = ("yarn", Value.STRING)
        keys["rope.scaling.factor"] = (float(scaling["factor"]), Value.FLOAT32)
        keys["rope.scaling.original_context_length"] = (scaling["original_max_position_embeddings"], Value.UINT32)
        keys["rope.scaling.yarn_log_multiplier"] = (0.1 * scaling["mscale_all_dim"], Value.FLOAT32)
    return {f"{ARCH}.{key}": value for key, value in keys.items()}


def tokenizer_keys(tokenizer, config, vocab_size, pre):
    """Those of a tokenizer.json and tokenizer_config.json: what looks like a mark becomes a control token, other added tokens become
    user-defined, and ids without a token get fillers."""
    tokens, types = {}, {}
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    ids = {}
    for added in tokenizer["added_tokens"]:
        text, i = added["content"], added["id"]
        mark = added["special"] or (text.startswith(("<\uff5c", "<|")) and text.endswith(("\uff5c>", "|>")))
        tokens[i], types[i] = text, gguf.TokenType.CONTROL if mark else gguf.TokenType.USER_DEFINED
        ids[text] = i
    n = max(vocab_size, max(tokens) + 1)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    keys = {
        "tokenizer.ggml.model": ("gpt2", Value.STRING),
        "tokenizer.ggml.pre": (pre, Value.STRING),
        "tokenizer.ggml.tokens": ([tokens.get(i, f"[PAD{i}]") for i in range(n)], Value.ARRAY),
        "tokenizer.ggml.token_type": ([int(types.get(i, gguf.TokenType.UNUSED)) for i in range(n)], Value.ARRAY),
        "tokenizer.ggml.merges": (merges, Value.ARRAY),
        "tokenizer.ggml.add_bos_token": (config["add_bos_token"], Value.BOOL),
    }
    for key in ("bos", "eos"):
        value = config[f"{key}_token"]
        keys[f"tokenizer.ggml.{key}_token_id"] = (ids[value["content"] if isinstance(value, dict) else value], Value.UINT32)
    if config.get("chat_template"):
        keys["tokenizer.chat_template"] = (config["chat_template"], Value.STRING)
    return keys


def tensors_of(values, config, split_kv_b=True):
    """GGUF's names -> float32 arrays."""
    heads, nope, v = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    out, experts = {}, {}
    for name, value in values.items():
        if name in OUTSIDE:
            out[OUTSIDE[name]] = value
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        if rest == "self_attn.kv_b_proj.weight" and split_kv_b:
            parts = value.reshape(heads, nope + v, -1)
            out[f"blk.{layer}.attn_k_b.weight"] = np.ascontiguousarray(parts[:, :nope].transpose(0, 2, 1))
            out[f"blk.{layer}.attn_v_b.weight"] = np.ascontiguousarray(parts[:, nope:])
        elif rest.startswith("mlp.experts."):
            expert, matrix = rest.removeprefix("mlp.experts.").split(".", 1)
            experts.setdefault((layer, matrix.split("_")[0]), {})[int(expert)] = value
        else:
            out[f"blk.{layer}.{IN_LAYER[rest]}"] = value
    for (layer, matrix), list_of in experts.items():
        out[f"blk.{layer}.ffn_{matrix}_exps.weight"] = np.stack([list_of[i] for i in range(len(list_of))])
    return out


def stored_type(name, value, matrix_type):
    """Norms, biases and routers are F32 in every file."""
    plain = value.ndim == 1 or name.endswith("ffn_gate_inp.weight")
    return Type.F32 if plain else matrix_type


def put(writer, name, value, kind):
    if kind == Type.F32:
        writer.add_tensor(name, value.astype("<f4"))
    elif kind == Type.F16:
        writer.add_tensor(name, value.astype("<f2"))
    else:
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)


def open_writer(out, keys, align=None, split=0, arch=ARCH):
    """keys: name -> (value, type)."""
    writer = gguf.GGUFWriter(out, arch, split_max_tensors=split)
    if align:
        writer.add_custom_alignment(align)
    for key, (value, of) in keys.items():
        if of == Value.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, of)
    return writer


def write(out, keys, tensors, kind=Type.F32, align=None, split=0, arch=ARCH):
    """tensors: name -> float32 array, int32 array, or (bytes as uint8, type). `split`: tensors a file. Returns the first file."""
    out = Path(out)
    writer = open_writer(out, keys, align, split, arch)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        elif value.dtype == np.int32:
            writer.add_tensor(name, value)
        else:
            put(writer, name, value, stored_type(name, value, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(out.parent.glob(f"{out.stem}-00001-of-*.gguf"))[0] if split else out


def change(everything, changes):
    """Puts other values in, or (DELETE) takes some away."""
    everything.update(changes or {})
    for name in [name for name, value in everything.items() if value is DELETE]:
        del everything[name]


def convert(folder, out, kind=Type.F32, split_kv_b=True, tokenizer=None, pre="deepseek-llm", keys=None, tensors=None,
            **options):
    """A folder of safetensors as GGUF. `keys` and `tensors` change or (DELETE) take away what would be written; `tokenizer`: a
    folder with tokenizer.json and tokenizer_config.json."""
    config = json.loads((Path(folder) / "config.json").read_text())
    all_keys = keys_of(config, split_kv_b)
    if tokenizer:
        read = [json.loads((Path(tokenizer) / f"{name}.json").read_text()) for name in ("tokenizer", "tokenizer_config")]
        all_keys.update(tokenizer_keys(*read, config["vocab_size"], pre))
    all_tensors = tensors_of(read_values(folder), config, split_kv_b)
    change(all_keys, keys)
    change(all_tensors, tensors)
    return write(out, all_keys, all_tensors, kind, **options)


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], Type[sys.argv[3] if len(sys.argv) > 3 else "F32"])
