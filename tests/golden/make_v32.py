#!/usr/bin/env python3
"""Makes data/v32-tiny: a tiny DeepSeek-V3.2 as published (FP8 in blocks, BF16, a prediction layer to leave out), and what it
must compute. Needs torch and transformers (5.23 was used), which no test does.

Expected values come from transformers' DeepseekV32ForCausalLM in float32. A second computation, written here in float64 from
what DeepSeek's inference/model.py of V3.2-Exp does (its version of 17 November 2025, in which the indexer's rotation is
half-split), must agree with it, and says how near every choice is to going the other way; prompts are chosen so that none is
near. Both leave out the Hadamard transform and the rounding to FP8 of the indexer's queries and keys: without the rounding the
transform cancels.

    python tests/golden/make_v32.py
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

OUT = Path(__file__).resolve().parent / "data" / "v32-tiny"
SEED = 1032
CONFIG = {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "attention_bias": False, "hidden_act": "silu",
    "bos_token_id": 0, "eos_token_id": 1, "hidden_size": 160, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 192, "moe_intermediate_size": 32, "moe_layer_freq": 1,
    "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "index_n_heads": 16, "index_head_dim": 32, "index_topk": 16, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "tie_word_embeddings": False, "vocab_size": 256, "num_nextn_predict_layers": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096},
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128],
                            "activation_scheme": "dynamic"},
}
WIDE_TOPK = 2048
C = type("Config", (), CONFIG)
LAYERS, HIDDEN, HEADS, ROPE, NOPE, V = (C.num_hidden_layers, C.hidden_size, C.num_attention_heads, C.qk_rope_head_dim,
                                        C.qk_nope_head_dim, C.v_head_dim)


# --- weights ---------------------------------------------------------------------------------------------------------


class Weights:
    """`stored` as the files have them, `plain` widened to float32; names are those of the published checkpoints."""

    def __init__(self):
        self.random = torch.Generator().manual_seed(SEED)
        self.stored, self.plain = {}, {}

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.random)

    def vector(self, name, n, mean, spread, dtype):
        self.stored[name] = (mean + spread * self.normal(n)).to(dtype)
        self.plain[name] = self.stored[name].float()

    def bf16(self, name, rows, cols, gain=1.0):
        self.stored[name + ".weight"] = (self.normal(rows, cols) * gain / math.sqrt(cols)).bfloat16()
        self.plain[name + ".weight"] = self.stored[name + ".weight"].float()

    def fp8(self, name, rows, cols, gain=1.0):
        """Blocks of 128 x 128, the last ones ragged; w = fp8 * scale."""
        w = self.normal(rows, cols) * gain / math.sqrt(cols)
        scale = torch.empty((rows + 127) // 128, (cols + 127) // 128)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                scale[i, j] = w[i * 128:(i + 1) * 128, j * 128:(j + 1) * 128].abs().max() / 448
        spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
        self.stored[name + ".weight"] = (w / spread).to(torch.float8_e4m3fn)
        self.stored[name + ".weight_scale_inv"] = scale
        self.plain[name + ".weight"] = self.stored[name + ".weight"].float() * spread


def add_mlp(w, name, width):
    w.fp8(f"{name}.gate_proj", width, HIDDEN)
    w.fp8(f"{name}.up_proj", width, HIDDEN)
    w.fp8(f"{name}.down_proj", HIDDEN, width, 2)


def add_layer(w, layer):
    at = f"model.layers.{layer}."
    w.vector(at + "input_layernorm.weight", HIDDEN, 1, 0.1, torch.bfloat16)
    w.vector(at + "post_attention_layernorm.weight", HIDDEN, 1, 0.1, torch.bfloat16)
    attn = at + "self_attn."
    w.fp8(attn + "q_a_proj", C.q_lora_rank, HIDDEN)
    w.vector(attn + "q_a_layernorm.weight", C.q_lora_rank, 1, 0.1, torch.bfloat16)
    w.fp8(attn + "q_b_proj", HEADS * (NOPE + ROPE), C.q_lora_rank, 1.5)
    w.fp8(attn + "kv_a_proj_with_mqa", C.kv_lora_rank + ROPE, HIDDEN)
    w.vector(attn + "kv_a_layernorm.weight", C.kv_lora_rank, 1, 0.1, torch.bfloat16)
    w.fp8(attn + "kv_b_proj", HEADS * (NOPE + V), C.kv_lora_rank)
    w.fp8(attn + "o_proj", HIDDEN, HEADS * V, 1.5)
    w.fp8(attn + "indexer.wq_b", C.index_n_heads * C.index_head_dim, C.q_lora_rank)
    w.fp8(attn + "indexer.wk", C.index_head_dim, HIDDEN)
    w.vector(attn + "indexer.k_norm.weight", C.index_head_dim, 1, 0.2, torch.float32)
    w.vector(attn + "indexer.k_norm.bias", C.index_head_dim, 0, 0.2, torch.float32)
    w.bf16(attn + "indexer.weights_proj", C.index_n_heads, HIDDEN)
    if layer < C.first_k_dense_replace:
        return add_mlp(w, at + "mlp", C.intermediate_size)
    w.bf16(at + "mlp.gate", C.n_routed_experts, HIDDEN)
    w.vector(at + "mlp.gate.e_score_correction_bias", C.n_routed_experts, 0, 0.1, torch.float32)
    add_mlp(w, at + "mlp.shared_experts", C.moe_intermediate_size)
    for i in range(C.n_routed_experts):
        add_mlp(w, f"{at}mlp.experts.{i}", C.moe_intermediate_size)


def make_weights():
    w = Weights()
    w.bf16("model.embed_tokens", C.vocab_size, HIDDEN, math.sqrt(HIDDEN))
    for layer in range(LAYERS):
        add_layer(w, layer)
    w.vector("model.norm.weight", HIDDEN, 1, 0.1, torch.bfloat16)
    w.bf16("lm_head", C.vocab_size, HIDDEN, 2)
    extra = Weights()  # the prediction layer: recognised by its number
    extra.fp8(f"model.layers.{LAYERS}.eh_proj", 32, 64)
    extra.fp8(f"model.layers.{LAYERS}.self_attn.indexer.wk", 16, 32)
    w.stored.update(extra.stored)
    return w


# --- transformers ----------------------------------------------------------------------------------------------------


def foreign_state(plain):
    """Theirs keep the experts of a layer in two tensors."""
    state = {name: value for name, value in plain.items() if ".experts." not in name}
    for layer in range(C.first_k_dense_replace, LAYERS):
        at = f"model.layers.{layer}.mlp.experts."
        part = lambda kind: [plain[f"{at}{i}.{kind}_proj.weight"] for i in range(C.n_routed_experts)]
        state[at + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(part("gate"), part("up"))])
        state[at + "down_proj"] = torch.stack(part("down"))
    return state


def open_model(plain, topk):
    given = {k: v for k, v in CONFIG.items() if k not in ("architectures", "quantization_config", "rope_scaling", "rope_theta")}
    rope = {"rope_type": "yarn", "rope_theta": C.rope_theta, **{k: v for k, v in C.rope_scaling.items() if k != "type"}}
    config = DeepseekV32Config(**{**given, "index_topk": topk}, rope_parameters=rope, attn_implementation="eager")
    model = DeepseekV32ForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(foreign_state(plain), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model


@torch.no_grad()
def run_model(model, tokens):
    """Logits [n, V], the residual stream [L + 1][n, H], and each expert layer's choices in falling order, with weights."""
    routing, streams, hooks = [], [], []
    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_pre_hook(lambda _, a: streams.append(a[0][0])))
        hooks.append(layer.register_forward_hook(lambda _, a, out: streams.append(out[0])))
        if i >= C.first_k_dense_replace:
            hooks.append(layer.mlp.gate.register_forward_hook(lambda _, a, out: routing.append(out[1:])))
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits.numpy(), np.stack([streams[0].numpy()] + [s.numpy() for s in streams[1::2]]), routing


# --- the second computation ------------------------------------------------------------------------------------------


def frequencies():
    """YaRN: pairs that turn often keep their frequency, others are slowed down, with a ramp between."""
    s, plain = C.rope_scaling, C.rope_theta ** (-np.arange(0, ROPE, 2) / ROPE)
    at = lambda turns: ROPE * math.log(s["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(C.rope_theta))
    low, high = max(math.floor(at(s["beta_fast"])), 0), min(math.ceil(at(s["beta_slow"])), ROPE - 1)
    ramp = np.clip((np.arange(ROPE // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain / s["factor"] * ramp + plain * (1 - ramp)


class Second:
    def __init__(self, plain, topk):
        self.w = {name: value.numpy().astype(np.float64) for name, value in plain.items()}
        self.topk = topk
        self.index_gap = self.routing_gap = math.inf
        self.shares = []

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T

    def rms(self, name, x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + C.rms_norm_eps) * self.w[name + ".weight"]

    def layer_norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def rotate(self, x, first, second):
        """x [n, ..., ROPE]: pairs (first[i], second[i])."""
        angle = self.angle.reshape(len(x), *[1] * (x.ndim - 2), -1)
        out = x.copy()
        out[..., first] = x[..., first] * np.cos(angle) - x[..., second] * np.sin(angle)
        out[..., second] = x[..., first] * np.sin(angle) + x[..., second] * np.cos(angle)
        return out

    def side_by_side(self, x):
        return self.rotate(x, np.arange(0, ROPE, 2), np.arange(1, ROPE, 2))

    def in_halves(self, x):
        turned = self.rotate(x[..., :ROPE], np.arange(ROPE // 2), np.arange(ROPE // 2, ROPE))
        return np.concatenate([turned, x[..., ROPE:]], -1)

    def choose_keys(self, at, x, q_a):
        """True where a query attends: [n, n]."""
        n = len(x)
        q = self.in_halves(self.linear(at + "indexer.wq_b", q_a).reshape(n, C.index_n_heads, C.index_head_dim))
        k = self.in_halves(self.layer_norm(at + "indexer.k_norm", self.linear(at + "indexer.wk", x)))
        heads = self.linear(at + "indexer.weights_proj", x) * C.index_n_heads**-0.5 * C.index_head_dim**-0.5
        scores = sum(heads[:, h, None] * np.maximum(q[:, h] @ k.T, 0) for h in range(C.index_n_heads))
        seen = np.tri(n, dtype=bool)
        for i in range(self.topk, n):
            row = np.sort(scores[i, :i + 1])
            self.index_gap = min(self.index_gap, (row[-self.topk] - row[-self.topk - 1]) / row.std())
            seen[i, :i + 1] = scores[i, :i + 1] >= row[-self.topk]
        return seen

    def attention(self, at, x):
        n, s = len(x), C.rope_scaling
        q_a = self.rms(at + "q_a_layernorm", self.linear(at + "q_a_proj", x))
        q = self.linear(at + "q_b_proj", q_a).reshape(n, HEADS, NOPE + ROPE)
        q = np.concatenate([q[..., :NOPE], self.side_by_side(q[..., NOPE:])], -1)
        latent, rope = np.split(self.linear(at + "kv_a_proj_with_mqa", x), [C.kv_lora_rank], -1)
        kv = self.linear(at + "kv_b_proj", self.rms(at + "kv_a_layernorm", latent)).reshape(n, HEADS, NOPE + V)
        rope = self.side_by_side(rope)
        seen, out = self.choose_keys(at, x, q_a), np.empty((n, HEADS, V))
        scale = (NOPE + ROPE)**-0.5 * (0.1 * s["mscale_all_dim"] * math.log(s["factor"]) + 1)**2
        for h in range(HEADS):
            score = np.where(seen, (q[:, h, :NOPE] @ kv[:, h, :NOPE].T + q[:, h, NOPE:] @ rope.T) * scale, -np.inf)
            p = np.exp(score - score.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            self.shares.append(p.max(-1).mean())
            out[:, h] = p @ kv[:, h, NOPE:]
        return self.linear(at + "o_proj", out.reshape(n, -1))

    def mlp(self, name, x):
        gate = self.linear(name + ".gate_proj", x)
        return self.linear(name + ".down_proj", gate / (1 + np.exp(-gate)) * self.linear(name + ".up_proj", x))

    def experts(self, at, x):
        score = 1 / (1 + np.exp(-self.linear(at + "gate", x)))
        biased = score + self.w[at + "gate.e_score_correction_bias"]
        by_group = biased.reshape(len(x), C.n_group, -1)
        group = np.sort(by_group, -1)[..., -2:].sum(-1)
        order = np.sort(group, -1)
        self.routing_gap = min(self.routing_gap, (order[:, -C.topk_group] - order[:, -C.topk_group - 1]).min())
        allowed = np.where((group >= order[:, -C.topk_group, None])[..., None], by_group, -np.inf).reshape(len(x), -1)
        order = np.sort(allowed, -1)
        self.routing_gap = min(self.routing_gap, (order[:, -C.num_experts_per_tok] - order[:, -C.num_experts_per_tok - 1]).min())
        weight = np.where(allowed >= order[:, -C.num_experts_per_tok, None], score, 0)
        weight *= C.routed_scaling_factor / weight.sum(-1, keepdims=True)
        out = self.mlp(at + "shared_experts", x)
        for i in range(C.n_routed_experts):
            out += weight[:, i, None] * self.mlp(f"{at}experts.{i}", x)
        return out

    def run(self, tokens):
        self.angle = np.arange(len(tokens))[:, None] * frequencies()
        x = self.w["model.embed_tokens.weight"][tokens]
        for layer in range(LAYERS):
            at = f"model.layers.{layer}."
            x = x + self.attention(at + "self_attn.", self.rms(at + "input_layernorm", x))
            normed = self.rms(at + "post_attention_layernorm", x)
            x = x + (self.mlp(at + "mlp", normed) if layer < C.first_k_dense_replace else self.experts(at + "mlp.", normed))
        return self.linear("lm_head", self.rms("model.norm", x))


# --- cases -----------------------------------------------------------------------------------------------------------


class Case:
    """A prompt, both computations of it, and what is written of the first."""

    def __init__(self, weights, models, name, tokens, positions, topk=C.index_topk):
        self.name, self.tokens = name, tokens
        second = Second(weights.plain, topk)
        self.logits, self.hidden, self.routing = run_model(models[topk], tokens)
        self.error = float(np.abs(self.logits - second.run(tokens))[positions].max())
        self.gaps = {"routing": float(second.routing_gap), "index": float(second.index_gap)}
        self.json = {"id": name, "tokens": tokens, "logits": {**self.write("logits.f32", self.logits[positions]),
                                                             "positions": positions}}

    def write(self, what, array):
        kind = what.rsplit(".", 1)[1]
        np.ascontiguousarray(array, {"f32": "<f4", "i32": "<i4"}[kind]).tofile(OUT / f"{self.name}.{what}")
        return {"file": f"{self.name}.{what}", "dtype": kind, "shape": list(np.shape(array))}

    def add_inside(self):
        self.json["hidden"] = self.write("hidden.f32", self.hidden)
        self.json["routing"] = {"layers": list(range(C.first_k_dense_replace, LAYERS)),
                                "ids": self.write("experts.i32", np.stack([ids.numpy() for _, ids in self.routing])),
                                "weights": self.write("expert_weights.f32", np.stack([w.numpy() for w, _ in self.routing]))}

    def add_greedy(self, model, n):
        tokens, rows = list(self.tokens), []
        for _ in range(n):
            rows.append(run_model(model, tokens)[0][-1])
            tokens.append(int(rows[-1].argmax()))
        top = np.sort(np.stack(rows), -1)
        self.margin = float((top[:, -1] - top[:, -2]).min())
        self.json["greedy"] = {"tokens": tokens[len(self.tokens):], "min_top2_margin": self.margin,
                               "logits": self.write("greedy_logits.f32", np.stack(rows))}
        return tokens


def make_case(weights, models, name, n, positions, **options):
    """The first prompt whose choices are all clear. Long ones have thousands, where that is less; of the wide one, it is only
    wanted that both computations chose alike as far as its positions show."""
    routing, index = {"long": (3e-5, 1e-5), "wide": (0, 0)}.get(name, (1e-4, 3e-5))
    for seed in range({"long": 65}.get(name, 0), 400):  # none before it
        tokens = np.random.default_rng([SEED, n, seed]).integers(2, C.vocab_size, n).tolist()
        case = Case(weights, models, name, tokens, positions, **options)
        clear = case.gaps["routing"] >= routing and case.gaps["index"] >= index and case.error <= 1e-4
        if clear and name == "p17":
            case.add_inside()
            whole = case.add_greedy(models[C.index_topk], 32)
            behind = Second(weights.plain, C.index_topk)
            behind.run(whole)
            clear = case.margin >= 0.02 and behind.index_gap >= 1e-4 and behind.routing_gap >= 1e-4
        print(name, "seed", seed, case.gaps, "differ by", case.error, flush=True)
        if clear:
            return case
    raise SystemExit(f"{name}: no prompt with clear choices")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = make_weights()
    models = {topk: open_model(weights.plain, topk) for topk in (C.index_topk, WIDE_TOPK)}
    save_file({k: v.contiguous() for k, v in sorted(weights.stored.items())}, OUT / "model.safetensors")
    (OUT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    cases = [make_case(weights, models, "p1", 1, [0]),
             make_case(weights, models, "p17", 17, list(range(17))),
             make_case(weights, models, "p200", 200, [199]),
             make_case(weights, models, "long", 1201, [1199, 1200])]
    wide = make_case(weights, models, "wide", 2301, [2047, 2299, 2300], topk=WIDE_TOPK)
    wide.json["index_topk"] = WIDE_TOPK
    for case in (cases[-1], wide):
        case.json["tokens_file"] = case.write("tokens.i32", case.tokens)
        del case.json["tokens"]
    manifest = {
        "name": "v32-tiny", "spec": {"seed": SEED, "made_by": "tests/golden/make_v32.py"},
        "reference": {"code": "transformers 5.23 DeepseekV32ForCausalLM", "dtype": "float32", "device": "cpu"},
        "stats": {"independent_float64_check_max_abs": {c.name: c.error for c in cases + [wide]},
                  "min_gap": {c.name: {k: v if math.isfinite(v) else None for k, v in c.gaps.items()} for c in cases + [wide]},
                  "logit_std": {c.name: float(c.logits.std()) for c in cases}},
        "cases": [c.json for c in cases], "wide": wide.json}
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps(manifest["stats"], indent=1))


if __name__ == "__main__":
    main()
