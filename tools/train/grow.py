"""Widens a trained model and builds into the new room what small models take long to find: copying.

    python tools/train/grow.py --work DIR --init models/demo --out DIR

After 33 M tokens the demo model of 2026-11-22 predicted a text that it had just read no better the second time. What is
missing is the induction circuit (Olsson et al., "In-context Learning and Induction Heads", 2022): one head tells each
token which token stood before it, a later head looks for places whose predecessor is the present token and copies what
stands there. Gradients find it only once all of its parts exist, so all of them are put in place here:

    residual stream  [old | CODE | LAST | LAST2 | OUT]   the new dimensions, 32 each; the last of LAST2 is constant
    embedding        CODE: a random code of the token
    layer 1          two heads look one and two places back, by position alone, and write the codes there to LAST, LAST2
    layer 2          a head looks for LAST equal to its own code, and writes the CODE found there to OUT
    layer 3          a head does the same for two tokens at once: (CODE, LAST) against (LAST, LAST2)
    lm_head          OUT against every token's code

The heads of layer 1 looked back already, and keep the better half of what they did; those of layers 2 and 3 attended least
selectively, and lose it. Numbers of layers and heads are the demo model's of that day. All else
computes what it did, but for the norms, which now divide by the length of a longer vector: their weights are adapted to
the average. Training from here on makes of the circuit what it needs.
"""

import argparse
import math
from pathlib import Path

import torch

import checkpoint
import data
import export
import model as architecture

WIDTH = 32  # of a code: as many dimensions as a head's query has without position
PLACES = ["CODE", "LAST", "LAST2", "OUT"]
CODE_SIZE = 0.3  # of a code's elements in the residual stream: small beside the old dimensions, so that norms hardly change
LOOK_BACK = {1: (2, "LAST"), 2: (1, "LAST2")}  # places back -> head of layer 1, where it writes
NEXT_PLACE_LOGIT = 6.0  # by so much the right place beats its neighbours
MATCH_ONE, MATCH_TWO = (2, 2), (3, 1)  # (layer, head)
MATCH_LOGIT = 16.0  # what a matching place's score has over others'
COPY_LOGIT = 3.0  # what a fully copied token's logit gains
SAMPLE_TOKENS = 16384


def spread_codes(count, seed, steps=300):
    """[count, WIDTH] of RMS 1, pushed apart: random codes of 32 dimensions come too close to each other by chance."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(count, WIDTH, generator=generator).requires_grad_()
    adam = torch.optim.Adam([codes], lr=0.02)
    for _ in range(steps):
        unit = torch.nn.functional.normalize(codes, dim=1)
        part = torch.randperm(count, generator=generator)[:1024]
        near = unit[part] @ unit.t() * 12
        near[torch.arange(len(part)), part] = -math.inf
        adam.zero_grad()
        near.logsumexp(1).mean().backward()
        adam.step()
    return torch.nn.functional.normalize(codes.detach(), dim=1) * math.sqrt(WIDTH)


class Averages:
    """What the old model's norms and the keys of layer 1 look like on training text."""

    def __init__(self, old, tokens, work):
        ids, documents = [], data.read_jsonl(work / "corpus.jsonl")
        for document in documents[::97]:
            ids += [tokens.bos, *tokens.encode(document["text"])][:1024]
            if len(ids) > SAMPLE_TOKENS:
                break
        rows = torch.tensor(ids[:SAMPLE_TOKENS]).view(-1, 1024)
        self.squares, self.key = {}, None
        for name, module in old.named_modules():
            if isinstance(module, architecture.RMSNorm):
                module.register_forward_pre_hook(self.note_squares(name))
        old.layers[1].self_attn.kv_a_proj_with_mqa.register_forward_hook(self.note_key(old.config))
        with torch.no_grad():
            old.hidden_states(rows)

    def note_squares(self, name):
        def hook(_, inputs):
            # The harmonic mean: what matters is the average of the reciprocal length.
            self.squares[name] = inputs[0].square().mean(-1).rsqrt().mean().item() ** -2
        return hook

    def note_key(self, config):
        def hook(_, __, out):
            keys = out[..., config["kv_lora_rank"]:].flatten(0, 1)
            self.key = keys.mean(0)
            print(f"layer 1's keys: constant part {self.key.norm():.2f}, spread {keys.std(0).norm():.2f}", flush=True)
        return hook


class Grown:
    def __init__(self, old, averages, codes):
        self.old, self.config = old, dict(old.config)
        self.hidden, self.lora = old.config["hidden_size"], old.config["kv_lora_rank"]
        self.nope, self.rope, self.v = (old.config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        self.heads = old.config["num_attention_heads"]
        assert self.nope == WIDTH and self.v >= 2 * WIDTH
        self.config["hidden_size"] = self.hidden + len(PLACES) * WIDTH
        self.config["kv_lora_rank"] = self.lora + 2 * WIDTH
        self.averages, self.codes = averages, codes
        self.new = architecture.Model(self.config)
        self.state = self.new.state_dict()
        for tensor in self.state.values():
            tensor.zero_()
        self.copy_old()
        self.scales = {}
        self.adapt_norms()

    def place(self, name):
        start = self.hidden + PLACES.index(name) * WIDTH
        return slice(start, start + WIDTH)

    def copy_old(self):
        for name, tensor in self.old.state_dict().items():
            to = self.state[name]
            if "kv_a_proj" in name:  # the latent grows in front of the rotated key
                to[:self.lora, :self.hidden] = tensor[:self.lora]
                to[-self.rope:, :self.hidden] = tensor[self.lora:]
            else:
                to[tuple(slice(0, n) for n in tensor.shape)] = tensor

    def adapt_norms(self):
        """New dimensions leave a norm as things of RMS about 1; old ones as they did, on average."""
        for name, old in self.averages.squares.items():
            weight = self.state[name + ".weight"]
            if "kv_a_layernorm" in name:
                n_old, n_new, added = self.lora, 2 * WIDTH, CODE_SIZE**2 * old * 2 * WIDTH
            else:
                n_old, n_new = self.hidden, len(PLACES) * WIDTH
                added = CODE_SIZE**2 * n_new
            square = (old * n_old + added) / (n_old + n_new)
            weight[:n_old] *= math.sqrt(square / old)
            weight[n_old:] = math.sqrt(square) / (CODE_SIZE * (math.sqrt(old) if "kv_a" in name else 1.0))
            self.scales[name] = math.sqrt(old)

    def embed(self):
        self.state["embed_tokens.weight"][:, self.place("CODE")] = CODE_SIZE * self.codes
        self.state["embed_tokens.weight"][:, self.place("LAST2").stop - 1] = CODE_SIZE
        self.state["lm_head.weight"][:, self.place("OUT")] = self.codes * (COPY_LOGIT / WIDTH)

    def attention(self, layer, name):
        return self.state[f"layers.{layer}.self_attn.{name}.weight"]

    def carry(self, layer, slot, parts):
        """Puts parts [(place, dimensions)] of the normed stream into slot 0 or 1 of the latent; read back, of RMS 1."""
        at = self.lora + slot * WIDTH
        latent = slice(at, at + WIDTH)
        size = CODE_SIZE * self.scales[f"layers.{layer}.self_attn.kv_a_layernorm"]
        for name, count in parts:
            begin = self.place(name).start
            self.attention(layer, "kv_a_proj_with_mqa")[at:at + count, begin:begin + count] = size * torch.eye(count)
            at += count
        return latent

    def queries(self, layer, head):
        rows = self.attention(layer, "q_proj").view(self.heads, self.nope + self.rope, -1)[head]
        return rows[:self.nope], rows[self.nope:]

    def keys_values(self, layer, head):
        rows = self.attention(layer, "kv_b_proj").view(self.heads, self.nope + self.v, -1)[head]
        return rows[:self.nope], rows[self.nope:]

    def output(self, layer, head):
        return self.attention(layer, "o_proj").view(-1, self.heads, self.v)[:, head]

    def write(self, layer, head, latent, place):
        """The head's first values carry a code from the latent to a place of the stream."""
        self.keys_values(layer, head)[1][:WIDTH, latent] = torch.eye(WIDTH)
        self.output(layer, head)[self.place(place), :WIDTH] = CODE_SIZE * torch.eye(WIDTH)

    def halve(self, layer, head):
        """What the head did goes into the second half of its values: the best approximation of that rank."""
        values, out = self.keys_values(layer, head)[1], self.output(layer, head)
        left, sizes, right = torch.linalg.svd(out[:self.hidden] @ values[:, :self.lora], full_matrices=False)
        count = self.v - WIDTH
        root = sizes[:count].sqrt()
        values.zero_()
        out.zero_()
        values[WIDTH:, :self.lora] = root[:, None] * right[:count]
        out[:self.hidden, WIDTH:] = left[:, :count] * root
        print(f"layer {layer}, head {head}: keeps {(root.pow(4).sum() / sizes.square().sum()).item():.0%} of its output")

    def look_back(self, places, head, name):
        """Attends by position alone: the constant dimension asks for the keys' constant part, turned back."""
        self.halve(1, head)
        angles = places * self.new.frequencies
        key = self.averages.key
        turned = architecture.rotate(key[None], angles.cos(), -angles.sin())[0]
        # The best score falls by this much one place beside it.
        fall = (key.view(-1, 2).square().sum(1) * (1 - self.new.frequencies.cos())).sum()
        gain = NEXT_PLACE_LOGIT / (architecture.attention_scale(self.config) * fall)
        q_nope, q_rope = self.queries(1, head)
        q_nope.zero_()
        q_rope.zero_()
        q_rope[:, self.place("LAST2").stop - 1] = gain * turned
        self.write(1, head, self.carry(1, 0, [("CODE", WIDTH)]), name)

    def match(self, layer, head, asked, found):
        """Attends where the keys' parts `found` equal the query's parts `asked`; copies the CODE there to OUT."""
        q_nope, q_rope = self.queries(layer, head)
        k_nope, values = self.keys_values(layer, head)
        for tensor in (q_nope, q_rope, k_nope, values, self.output(layer, head)):
            tensor.zero_()
        gain = math.sqrt(MATCH_LOGIT / (architecture.attention_scale(self.config) * WIDTH))
        at = 0
        for name, count in asked:
            begin = self.place(name).start
            q_nope[at:at + count, begin:begin + count] = gain * torch.eye(count)
            at += count
        k_nope[:, self.carry(layer, 0, found)] = gain * torch.eye(WIDTH)
        self.write(layer, head, self.carry(layer, 1, [("CODE", WIDTH)]), "OUT")

    def build(self):
        self.embed()
        for places, (head, name) in LOOK_BACK.items():
            self.look_back(places, head, name)
        half = WIDTH // 2
        self.match(*MATCH_ONE, [("CODE", WIDTH)], [("LAST", WIDTH)])
        self.match(*MATCH_TWO, [("CODE", half), ("LAST", half)], [("LAST", half), ("LAST2", half)])
        self.new.load_state_dict(self.state)
        return self.new


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--init", type=Path, required=True, help="exported folder of the model to widen")
    parser.add_argument("--out", type=Path, required=True, help="where the wider one goes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tokens, old = data.Tokens(options.work / "tokenizer"), checkpoint.load(options.init)
    codes = spread_codes(old.config["vocab_size"], options.seed)
    new = Grown(old, Averages(old, tokens, options.work), codes).build()
    export.write_model(options.out, new.config, new.state_dict(), options.work / "tokenizer")
    count = sum(p.numel() for p in new.parameters())
    print(f"hidden {new.config['hidden_size']}, latent {new.config['kv_lora_rank']}, {count / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
