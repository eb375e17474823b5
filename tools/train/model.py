"""DeepSeek-V2's architecture in PyTorch, from the paper: multi-head latent attention with YaRN, one dense layer, then
shared and routed experts under a softmax top-k gate. Written for training small models; `Model.forward` also takes a
cache of latents, so that evaluation can decode token by token.

Parameter names are DeepSeek's, except that the routed experts of a layer are stacked into two tensors
(`experts.gate_up` [experts, 2 * width, hidden] and `experts.down` [experts, hidden, width]); checkpoint.py splits them.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from experts import RoutedExperts


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def linear(size_in, size_out):
    return nn.Linear(size_in, size_out, bias=False)


def yarn_frequencies(config):
    """[rope / 2] rotations per position: high frequencies as they are, low ones stretched by the factor."""
    dim, base, scaling = config["qk_rope_head_dim"], config["rope_theta"], config["rope_scaling"]
    plain = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if not scaling:
        return plain
    original = scaling["original_max_position_embeddings"]

    def dim_of(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dim_of(scaling["beta_fast"])), 0)
    high = min(math.ceil(dim_of(scaling["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / scaling["factor"] * ramp + plain * (1 - ramp)


def attention_scale(config):
    """1 / sqrt(head) times mscale squared: YaRN's correction of the softmax temperature."""
    scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    scaling = config["rope_scaling"]
    if scaling and scaling["factor"] > 1:
        scale *= (0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1) ** 2
    return scale


def rotate(x, cos, sin):
    """Interleaved pairs: elements 2i and 2i + 1 of the last axis turn together. cos, sin [tokens, rope / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.nope, self.rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.v, self.lora = config["v_head_dim"], config["kv_lora_rank"]
        self.scale = attention_scale(config)
        self.q_proj = linear(hidden, self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(hidden, self.lora + self.rope)
        self.kv_a_layernorm = RMSNorm(self.lora, config["rms_norm_eps"])
        self.kv_b_proj = linear(self.lora, self.heads * (self.nope + self.v))
        self.o_proj = linear(self.heads * self.v, hidden)

    def forward(self, x, cos, sin, cache=None):
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
        q = torch.cat((q[..., :self.nope], rotate(q[..., self.nope:], cos, sin)), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.lora, self.rope), -1)
        latent, k_rope = self.kv_a_layernorm(latent), rotate(k_rope, cos, sin)
        if cache is not None:
            latent, k_rope = cache.extend(self, latent, k_rope)
        keys = latent.shape[1]
        kv = self.kv_b_proj(latent).view(batch, keys, self.heads, -1).transpose(1, 2)
        k = torch.cat((kv[..., :self.nope], k_rope[:, None].expand(-1, self.heads, -1, -1)), -1)
        causal = None
        if cache is not None and tokens > 1:
            causal = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
        out = F.scaled_dot_product_attention(q, k, kv[..., self.nope:], causal, is_causal=cache is None,
                                             scale=self.scale)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class DenseMLP(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(hidden, width), linear(hidden, width), linear(width, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, width = config["hidden_size"], config["moe_intermediate_size"]
        self.count, self.top_k = config["n_routed_experts"], config["num_experts_per_tok"]
        self.factor = config["routed_scaling_factor"]
        self.gate = linear(hidden, self.count)
        self.experts = RoutedExperts(self.count, hidden, width)
        self.shared_experts = DenseMLP(hidden, width * config["n_shared_experts"])
        self.balance = self.load = self.chosen = None

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        scores = self.gate(flat).softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        share = torch.bincount(chosen.flatten(), minlength=self.count).float() / chosen.numel()
        # Equal to 1 when every expert gets its share; grows as tokens crowd into a few.
        self.balance = self.count * (share * scores.mean(0)).sum()
        self.load, self.chosen = share, (chosen, weights.detach() * self.factor)
        routed = self.experts(flat, weights * self.factor, chosen)
        return routed.view_as(x) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        eps = config["rms_norm_eps"]
        self.input_layernorm = RMSNorm(config["hidden_size"], eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], eps)
        dense = index < config["first_k_dense_replace"]
        self.mlp = DenseMLP(config["hidden_size"], config["intermediate_size"]) if dense else MoE(config)

    def forward(self, x, cos, sin, cache):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Cache:
    """Latents and rotated keys of the tokens so far, by attention layer."""

    def __init__(self):
        self.position, self.kept = 0, {}

    def extend(self, layer, latent, k_rope):
        if layer in self.kept:
            latent = torch.cat((self.kept[layer][0], latent), 1)
            k_rope = torch.cat((self.kept[layer][1], k_rope), 1)
        self.kept[layer] = (latent, k_rope)
        return latent, k_rope


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.lm_head = linear(config["hidden_size"], config["vocab_size"])
        self.register_buffer("frequencies", yarn_frequencies(config), persistent=False)

    @torch.no_grad()
    def initialise(self, seed):
        torch.manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            # What writes to the residual stream starts small, so that depth costs nothing at first.
            small = 0.1 if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down")) else 1.0
            std = small * 0.7 / math.sqrt(parameter.shape[-1])
            if name.startswith("embed"):
                std = 1.0  # as large as what layers write soon: Muon's steps are big, and the token must not drown
            elif name.startswith("lm_head"):
                std = 0.02
            nn.init.normal_(parameter, std=std)

    def moe_layers(self):
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoE)]

    def hidden_states(self, ids, cache=None, trace=None):
        """ids [batch, tokens] to the normed residual stream; `trace` collects it after every layer."""
        start = cache.position if cache is not None else 0
        positions = torch.arange(start, start + ids.shape[1], dtype=torch.float32, device=ids.device)
        angles = positions[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        x = self.embed_tokens(ids)
        for layer in self.layers:
            if trace is not None:
                trace.append(x)
            x = layer(x, cos, sin, cache)
        if trace is not None:
            trace.append(x)
        if cache is not None:
            cache.position += ids.shape[1]
        return self.norm(x)

    def forward(self, ids, cache=None, trace=None):
        return self.lm_head(self.hidden_states(ids, cache, trace))
