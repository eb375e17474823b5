#!/usr/bin/env python3
"""Bytes and operations of one token, stage by stage, from a model's config.json: what its speed cannot pass.

  tools/stage_counts.py                          DeepSeek-Coder-V2-Lite in int4
  tools/stage_counts.py config.json --quant fp8 --depth 4096

Bytes: what one decoded token has to read once each (matrices, experts visited, cache rows). Operations: a product and a
sum are two. The numbers of `moebius bench` must agree; tests compare them.
"""

import argparse
import json
from pathlib import Path

# config.json of DeepSeek-Coder-V2-Lite on Hugging Face.
LITE = {"num_hidden_layers": 27, "first_k_dense_replace": 1, "hidden_size": 2048, "num_attention_heads": 16,
        "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "num_experts_per_tok": 6,
        "n_shared_experts": 2, "vocab_size": 102400}

# Formats of: routed, shared, dense, attention; kv_b; head; router. As src/model/recipe.c.
RECIPES = {"int4": ("int4", "fp8", "int8", "bf16"), "int8": ("int8", "int8", "int8", "bf16"),
           "fp8": ("fp8", "fp8", "fp8", "bf16"), "bf16": ("bf16", "bf16", "bf16", "bf16")}
BLOCK_BYTES = {"int4": 2112, "int8": 4160}  # 32 rows x 128 columns, one scale per 128
CACHE_VALUE_BYTES = {"bf16": 2, "f32": 4}


def up(n, unit):
    return -(-n // unit)


def matrix_bytes(rows, cols, form):
    if form in BLOCK_BYTES:
        return up(rows, 32) * up(cols, 128) * BLOCK_BYTES[form]
    if form == "fp8":
        return rows * cols + 4 * up(rows, 128) * up(cols, 128)
    return 2 * rows * cols


def stage_matrices(c):
    """stage -> [(how often one token meets it, rows, cols, which of the recipe's four formats)]"""
    hidden, heads, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    dense, width = min(c["first_k_dense_replace"], layers), c["moe_intermediate_size"]
    head_dim, latent = c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["kv_lora_rank"]
    shared = c["n_shared_experts"] * width if c.get("n_shared_experts") else 0

    def mlp(times, wide):
        return [(2 * times, wide, hidden, 0), (times, hidden, wide, 0)]

    q = [(layers, heads * head_dim, hidden, 0)]
    if c.get("q_lora_rank"):
        q = [(layers, c["q_lora_rank"], hidden, 0), (layers, heads * head_dim, c["q_lora_rank"], 0)]
    return {
        "q, kv_a (attn_in)": q + [(layers, latent + c["qk_rope_head_dim"], hidden, 0)],
        "kv_b (attn_in, attn)": [(layers, heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), latent, 1)],
        "o (attn_out)": [(layers, hidden, heads * c["v_head_dim"], 0)],
        "dense (ffn_dense)": mlp(dense, c["intermediate_size"]),
        "router (route)": [(layers - dense, c["n_routed_experts"], hidden, 3)],
        "shared (experts)": mlp(layers - dense, shared) if shared else [],
        "routed (experts)": mlp((layers - dense) * c["num_experts_per_tok"], width),
        "lm_head (head)": [(1, c["vocab_size"], hidden, 2)],
    }


def count(c, quant, depth, cache):
    """[{"stage", "weights", "bytes", "operations"}], for one decoded token that has `depth` tokens before it."""
    lines = []
    for stage, matrices in stage_matrices(c).items():
        lines.append({"stage": stage,
                      "weights": sum(n * rows * cols for n, rows, cols, _ in matrices),
                      "bytes": sum(n * matrix_bytes(rows, cols, RECIPES[quant][f]) for n, rows, cols, f in matrices),
                      "operations": sum(2 * n * rows * cols for n, rows, cols, _ in matrices)})
    row = c["kv_lora_rank"] + c["qk_rope_head_dim"]
    lines.append({"stage": "cache (attn)", "weights": 0,
                  "bytes": c["num_hidden_layers"] * (depth + 1) * row * CACHE_VALUE_BYTES[cache],
                  "operations": 2 * c["num_hidden_layers"] * c["num_attention_heads"] * (row + c["kv_lora_rank"]) * (depth + 1)})
    return lines


def batch_bytes(c, lines, batch):
    """Of a step of `batch` sequences whose experts are chosen evenly and independently: a cache row each, the rest once."""
    experts, top_k = c["n_routed_experts"], c["num_experts_per_tok"]
    visited = experts * (1 - (1 - top_k / experts) ** batch)
    by = {line["stage"]: line["bytes"] for line in lines}
    routed, cache = by["routed (experts)"], by["cache (attn)"]
    return sum(by.values()) - routed - cache + routed / top_k * visited + cache * batch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="config.json (default: DeepSeek-Coder-V2-Lite)")
    parser.add_argument("--quant", choices=RECIPES, default="int4")
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--cache", choices=CACHE_VALUE_BYTES, default="bf16")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    config = json.loads(Path(a.config).read_text()) if a.config else LITE
    lines = count(config, a.quant, a.depth, a.cache)
    total = {key: sum(line[key] for line in lines) for key in ("weights", "bytes", "operations")}
    batches = {batch: batch_bytes(config, lines, batch) for batch in (1, 4, 8, 16)}
    if a.json:
        print(json.dumps({"stages": lines, "total": total, "batches": batches}, indent=2))
        return
    print(f"{'stage':<24}{'M weights':>11}{'MB':>11}{'Mop':>11}")
    for line in [*lines, {"stage": "all", **total}]:
        print(f"{line['stage']:<24}{line['weights'] / 1e6:>11.1f}{line['bytes'] / 1e6:>11.1f}{line['operations'] / 1e6:>11.1f}")
    print("MB a step of a batch, experts chosen evenly: " + ", ".join(f"{n}: {b / 1e6:.0f}" for n, b in batches.items()))


if __name__ == "__main__":
    main()
