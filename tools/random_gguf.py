#!/usr/bin/env python3
"""A GGUF file of a DeepSeek model with random weights, stored as llama.cpp's quantizer stores them: to measure with, by this program
and by llama.cpp, without a download.

    tools/random_gguf.py lite-q4_k_m.gguf                            DeepSeek-V2-Lite's shape, 10.4 GB
    tools/random_gguf.py two.gguf --type q8_0 --layers 2
    tools/random_gguf.py v3.gguf --config config.json --kv-b whole   another model's shape; kv_b as before April 2025
    tools/random_gguf.py v4.gguf --config config.json --type mxfp4_moe --layers 5    a DeepSeek-V4's

q4_k_m and q5_k_m are those mixes, tensor by tensor, mxfp4_moe has experts of MXFP4 and all else in Q8_0; another type is taken for all
matrices but the head's (Q6_K), and where rows are no multiple of its block llama.cpp's next smaller one. Blocks are random bits with
scales that keep the size of what goes through a matrix, so that logits are finite; the vocabulary is made up. Needs numpy and the
package `gguf` (build/venv has both). Memory: that of the largest tensor.

Source of which tensor gets which type: llama.cpp's llama-quant.cpp; of where a block's scales are: its ggml-common.h.
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import gguf_hybrid  # noqa: E402
import gguf_model  # noqa: E402  (the keys that converters write)
import tiny_tokenizer  # noqa: E402

# Source: config.json of DeepSeek-V2-Lite.
V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "num_hidden_layers": 27, "first_k_dense_replace": 1, "hidden_size": 2048,
    "vocab_size": 102400, "num_attention_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
    "num_experts_per_tok": 6, "n_shared_experts": 2, "routed_scaling_factor": 1.0, "norm_topk_prob": False, "n_group": 1,
    "topk_group": 1, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": {
        "type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096}}

BLOCKS = [kind for kind in gguf_model.SCALES_AT if kind not in (Type.TQ1_0, Type.TQ2_0)]
# The second scale, for what is added or subtracted, is so many times the first that the values' mean is 0.
SECOND = {Type.Q4_1: -7.5, Type.Q5_1: -15.5, Type.Q2_K: 1.5, Type.Q4_K: 7.5, Type.Q5_K: 15.5}
PLAIN = [Type.F32, Type.F16, Type.BF16]
MIXES = {"q4_k_m": Type.Q4_K, "q5_k_m": Type.Q5_K}  # some tensors of some layers are Q6_K
# What stands in where rows are no multiple of 256.
SMALLER = {Type.Q2_K: Type.Q4_0, Type.Q3_K: Type.Q4_0, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


# --- which tensors, and of which type ----------------------------------------------------------------------------------


def shapes_of_layer(c, layer, split_kv_b):
    hidden, heads, lora = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    yield "attn_norm", (hidden,)
    if c.get("q_lora_rank"):
        yield "attn_q_a", (c["q_lora_rank"], hidden)
        yield "attn_q_a_norm", (c["q_lora_rank"],)
    yield "attn_q_b" if c.get("q_lora_rank") else "attn_q", (heads * (nope + rope), c.get("q_lora_rank") or hidden)
    yield "attn_kv_a_mqa", (lora + rope, hidden)
    yield "attn_kv_a_norm", (lora,)
    if split_kv_b:
        yield "attn_k_b", (heads, lora, nope)
        yield "attn_v_b", (heads, v, lora)
    else:
        yield "attn_kv_b", (heads * (nope + v), lora)
    yield "attn_output", (hidden, heads * v)
    yield "ffn_norm", (hidden,)
    experts, width, shared = c["n_routed_experts"], c["moe_intermediate_size"], c["n_shared_experts"]
    if layer < c["first_k_dense_replace"]:
        parts = [("", (), c["intermediate_size"])]
    else:
        yield "ffn_gate_inp", (experts, hidden)
        parts = [("_exps", (experts,), width), ("_shexp", (), width * shared)]
    for ending, stack, inner in parts:
        yield f"ffn_gate{ending}", (*stack, inner, hidden)
        yield f"ffn_up{ending}", (*stack, inner, hidden)
        yield f"ffn_down{ending}", (*stack, hidden, inner)


def is_hybrid(c):
    return c["architectures"][0] == "DeepseekV4ForCausalLM"


def shapes_of_compressor(prefix, ratio, hidden, dim):
    width = 2 * dim if ratio == 4 else dim
    yield f"{prefix}_kv.weight", (width, hidden)
    yield f"{prefix}_gate.weight", (width, hidden)
    yield f"{prefix}_ape.weight", (ratio, width)
    yield f"{prefix}_norm.weight", (dim,)


def shapes_of_hybrid_layer(c, layer):
    """Of a V4."""
    hidden, heads, dim, lora = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["q_lora_rank"]
    groups, streams, ratio, experts = c["o_groups"], c["hc_mult"], c["compress_ratios"][layer], c["n_routed_experts"]
    for where in ("attn", "ffn"):
        yield f"hc_{where}_fn.weight", ((2 + streams) * streams, streams * hidden)
        yield f"hc_{where}_base.weight", ((2 + streams) * streams,)
        yield f"hc_{where}_scale.weight", (3,)
        yield f"{where}_norm.weight", (hidden,)
    yield "attn_q_a.weight", (lora, hidden)
    yield "attn_q_a_norm.weight", (lora,)
    yield "attn_q_b.weight", (heads * dim, lora)
    yield "attn_kv.weight", (dim, hidden)
    yield "attn_kv_a_norm.weight", (dim,)
    yield "attn_sinks.weight", (heads,)
    yield "attn_output_a.weight", (groups * c["o_lora_rank"], heads * dim // groups)
    yield "attn_output_b.weight", (hidden, groups * c["o_lora_rank"])
    if ratio:
        yield from shapes_of_compressor("attn_compressor", ratio, hidden, dim)
    if ratio == 4:
        yield "indexer.attn_q_b.weight", (c["index_n_heads"] * c["index_head_dim"], lora)
        yield "indexer.proj.weight", (c["index_n_heads"], hidden)
        yield from shapes_of_compressor("indexer_compressor", ratio, hidden, c["index_head_dim"])
    yield "ffn_gate_inp.weight", (experts, hidden)
    if layer < c["num_hash_layers"]:
        yield "ffn_gate_tid2eid.weight", (c["vocab_size"], c["num_experts_per_tok"])
    else:
        yield "exp_probs_b.bias", (experts,)
    width = c["moe_intermediate_size"]
    for ending, stack, inner in (("exps", (experts,), width), ("shexp", (), width * c["n_shared_experts"])):
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"ffn_{name}_{ending}.weight", (*stack, *shape)


def shapes_of_hybrid(c):
    streams, hidden = c["hc_mult"], c["hidden_size"]
    yield "token_embd.weight", (c["vocab_size"], hidden)
    for layer in range(c["num_hidden_layers"]):
        for name, shape in shapes_of_hybrid_layer(c, layer):
            yield f"blk.{layer}.{name}", shape
    yield "output_hc_fn.weight", (streams, streams * hidden)
    yield "output_hc_base.weight", (streams,)
    yield "output_hc_scale.weight", (1,)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (c["vocab_size"], hidden)


def shapes_of(c, split_kv_b):
    """(name, shape) of every tensor, in the order of the file."""
    if is_hybrid(c):
        yield from shapes_of_hybrid(c)
        return
    yield "token_embd.weight", (c["vocab_size"], c["hidden_size"])
    for layer in range(c["num_hidden_layers"]):
        for name, shape in shapes_of_layer(c, layer, split_kv_b):
            yield f"blk.{layer}.{name}.weight", shape
        if gguf_model.has_sigmoid_gate(c) and layer >= c["first_k_dense_replace"]:
            yield f"blk.{layer}.exp_probs_b.bias", (c["n_routed_experts"],)
    yield "output_norm.weight", (c["hidden_size"],)
    yield "output.weight", (c["vocab_size"], c["hidden_size"])


def has_more_bits(name, layers):
    """The mixes spend more on kv_b and down in the first and last eighth of the layers, and in each third between."""
    if not name.startswith("blk.") or not ("attn_kv_b." in name or "ffn_down" in name):
        return False
    layer, eighth = int(name.split(".")[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def type_of(name, shape, asked, layers):
    """`asked`: a type's name or a mix's. Norms, biases and routers stay F32."""
    if "tid2eid" in name:
        return Type.I32
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return Type.F32
    if asked == "mxfp4_moe":
        return Type.MXFP4 if "_exps" in name else Type.Q8_0
    kind = MIXES.get(asked) or Type[asked.upper()]
    if kind in PLAIN:
        return kind
    if name == "output.weight" and kind != Type.Q8_0:
        kind = Type.Q6_K
    elif asked in MIXES and has_more_bits(name, layers):
        kind = Type.Q6_K
    if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = SMALLER.get(kind, Type.IQ4_NL)
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16


# --- values ------------------------------------------------------------------------------------------------------------


def random_bytes(random, n):
    return random.bit_generator.random_raw(n // 8 + 1).view(np.uint8)[:n]


def random_blocks(random, kind, n, unit):
    """[n][bytes of a block], whose scales are about `unit`."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    raw = random_bytes(random, n * size).reshape(n, size)
    if kind == Type.MXFP4:  # a power of two
        raw[:, 0] = 127 + np.round(np.log2(unit)) + random.integers(-1, 2, n)
        return raw
    scale = unit * random.uniform(0.75, 1.25, n).astype("<f4")
    for at, share in zip(gguf_model.SCALES_AT[kind], (1, SECOND.get(kind))):
        raw[:, at:at + 2] = (scale * share).astype("<f2").view(np.uint8).reshape(n, 2)
    return raw


def root_mean_square(kind):
    """Of what random blocks with scales of about 1 stand for."""
    raw = random_blocks(np.random.Generator(np.random.SFC64(0)), kind, 4096, 1)
    return float(np.sqrt(np.mean(gguf.quants.dequantize(raw, kind).astype("f8") ** 2)))


def deviation_of(name, shape, c):
    """With 1/sqrt(inputs), what goes in is as large as what comes out; the head spreads its logits a little more."""
    if name == "token_embd.weight":
        return 1.0
    inputs = c["kv_lora_rank"] if "attn_k_b" in name else shape[-1]  # attn_k_b is turned
    return (2.0 if name == "output.weight" else 1.0) / np.sqrt(inputs)


def values_of(random, name, shape, kind, c, sizes):
    """A tensor's bytes. `sizes` remembers root_mean_square."""
    if kind == Type.I32:  # experts of each token, none of them twice
        first = random.integers(c["n_routed_experts"], size=(shape[0], 1))
        return ((first + np.arange(shape[1])) % c["n_routed_experts"]).astype("<i4")
    if name.endswith(("_base.weight", "sinks.weight")):
        return random.normal(0, 0.3, shape).astype("<f4")
    if len(shape) == 1:
        return np.full(shape, 0 if name.endswith(".bias") else 1, "<f4")
    n, deviation = int(np.prod(shape)), deviation_of(name, shape, c)
    if kind not in PLAIN:
        if kind not in sizes:
            sizes[kind] = root_mean_square(kind)
        return random_blocks(random, kind, n // gguf.GGML_QUANT_SIZES[kind][0], deviation / sizes[kind])
    values = random.standard_normal(n, dtype=np.float32) * np.float32(deviation)
    if kind == Type.BF16:
        return (values.view("<u4") >> 16).astype("<u2")
    return values.astype("<f2" if kind == Type.F16 else "<f4")


# --- the file ----------------------------------------------------------------------------------------------------------


def keys_of(c, split_kv_b, seed):
    if is_hybrid(c):
        keys, pre = gguf_hybrid.keys_of(c), "joyai-llm"
    else:
        keys, pre = gguf_model.keys_of(c, split_kv_b), "deepseek-llm"
        # llama.cpp does without this key only where the layers are as many as V2-Lite's; 0 is "none".
        keys.setdefault("deepseek2.attention.q_lora_rank", (0, Value.UINT32))
    keys.update(gguf_model.tokenizer_keys(tiny_tokenizer.tokenizer(), tiny_tokenizer.config(), c["vocab_size"], pre))
    keys["general.name"] = (f"random weights, seed {seed}", Value.STRING)
    keys["general.quantization_version"] = (gguf.GGML_QUANT_VERSION, Value.UINT32)
    return keys


def write(out, c, asked, split_kv_b=True, seed=1):
    """Returns type -> bytes."""
    random, sizes, found = np.random.Generator(np.random.SFC64(seed)), {}, {}
    tensors = [(name, shape, type_of(name, shape, asked, c["num_hidden_layers"])) for name, shape in shapes_of(c, split_kv_b)]
    beside = out.with_name(out.name + ".partial")
    arch = gguf_hybrid.ARCH if is_hybrid(c) else gguf_model.ARCH
    writer = gguf_model.open_writer(beside, keys_of(c, split_kv_b, seed), arch=arch)
    for name, shape, kind in tensors:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(shape)) // values * size
        writer.add_tensor_info(name, shape, np.float32, n_bytes, raw_dtype=kind)
        found[kind.name] = found.get(kind.name, 0) + n_bytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, kind in tensors:
        writer.write_tensor_data(values_of(random, name, shape, kind, c, sizes))
    writer.close()
    beside.rename(out)
    return found


def main():
    types = [*MIXES, "mxfp4_moe", *(kind.name.lower() for kind in [*BLOCKS, *PLAIN])]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="q4_k_m", choices=types, metavar="TYPE", help=", ".join(types) + " (default: %(default)s)")
    parser.add_argument("--config", type=Path, help="config.json of a DeepSeek model (default: V2-Lite's shape)")
    parser.add_argument("--layers", type=int, help="only so many")
    parser.add_argument("--kv-b", default="split", choices=["split", "whole"], help="attn_k_b and attn_v_b (default), or attn_kv_b")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        config = json.loads(args.config.read_text()) if args.config else dict(V2_LITE)
        if args.layers:
            config["num_hidden_layers"] = args.layers
            config["first_k_dense_replace"] = min(args.layers, config.get("first_k_dense_replace", 0))
        found = write(args.out, config, args.type, args.kv_b == "split", args.seed)
    except KeyError as e:
        sys.exit(f"random_gguf.py: {args.config}: no key {e}")
    except (OSError, ValueError) as e:
        sys.exit(f"random_gguf.py: {e}")
    parts = ", ".join(f"{kind} {n / 1e9:.2f}" for kind, n in sorted(found.items()))
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB: {parts}")


if __name__ == "__main__":
    main()
