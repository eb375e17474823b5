"""Lets a trained model look at the hole when it fills in the middle.

    python tools/train/bridge.py --work DIR --init models/demo --out DIR

After 47 M tokens the demo model of 2026-11-22 wrote the first token of a middle as if it knew nothing of what stands
around the hole: fim_end, after which the middle begins, is far from the hole, and how far differs. What it should do
has two steps: the hole's token finds out what comes after the prefix (data.py asks it for that), and fim_end takes it
over. Here the second is put in place: heads of the upper layers attend from fim_end to fim_hole. Training does the rest.

The direction in which one token's vectors differ from all others' is found by ridge regression on training text.
"""

import argparse
import math
import random
from pathlib import Path

import torch

import checkpoint
import data
import export
import model as architecture

HEADS = [(1, 0), (2, 0), (3, 0), (3, 3)]  # (layer, head)
LOGIT = 20.0  # what the hole's score has over others' at fim_end
SAMPLE_ROWS, ROW_TOKENS, RIDGE = 48, 1024, 1e-3


class Inputs:
    """What enters the projections of each layer's attention: normed stream, normed latent."""

    def __init__(self, model, rows):
        self.stream, self.latent, hooks = {}, {}, []
        for i, layer in enumerate(model.layers):
            hooks.append(layer.self_attn.q_proj.register_forward_hook(self.note(self.stream, i)))
            hooks.append(layer.self_attn.kv_b_proj.register_forward_hook(self.note(self.latent, i)))
        with torch.no_grad():
            model.hidden_states(rows)
        for hook in hooks:
            hook.remove()

    @staticmethod
    def note(where, layer):
        def hook(_, inputs, __):
            where[layer] = inputs[0].flatten(0, 1)
        return hook


def direction(vectors, is_token):
    """d with d . v near 1 for the token's vectors and near 0 for all others; each kind counts as much as the other."""
    counts = torch.where(is_token, 1.0 / is_token.sum(), 1.0 / (~is_token).sum())
    weighted = vectors * counts[:, None]
    square = vectors.t() @ weighted
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square))
    d = torch.linalg.solve(square, weighted.t() @ is_token.float())
    found = vectors @ d
    print(f"  the token {found[is_token].mean():.2f}, others {found[~is_token].mean():.2f} +- {found[~is_token].std():.2f}")
    return d


def bridge(model, inputs, ids, tokens, layer, head):
    config, attention = model.config, model.layers[layer].self_attn
    nope, heads = config["qk_nope_head_dim"], config["num_attention_heads"]
    q_rows = attention.q_proj.weight.view(heads, -1, config["hidden_size"])[head][:nope]
    k_rows = attention.kv_b_proj.weight.view(heads, -1, config["kv_lora_rank"])[head][:nope]
    print(f"layer {layer}, head {head}")
    asks = direction(inputs.stream[layer], ids == tokens.fim_end)
    answers = direction(inputs.latent[layer], ids == tokens.fim_hole)
    # Where queries and keys of this head vary least.
    q, k = inputs.stream[layer] @ q_rows.t(), inputs.latent[layer] @ k_rows.t()
    spread = q.t() @ q / q.square().sum() + k.t() @ k / k.square().sum()
    free = torch.linalg.eigh(spread).eigenvectors[:, 0]
    gain = math.sqrt(LOGIT / architecture.attention_scale(config))
    q_rows += gain * torch.outer(free, asks)
    k_rows += gain * torch.outer(free, answers)


def sample_rows(work, tokens):
    source = data.Source(work, tokens, ROW_TOKENS, 5)
    random.Random(5).shuffle(source.documents)
    ids = []
    while len(ids) < SAMPLE_ROWS * ROW_TOKENS:
        for sample, *_ in source.fim_samples(source.documents.pop()["text"]):
            ids += sample
    return torch.tensor(ids[:SAMPLE_ROWS * ROW_TOKENS]).view(SAMPLE_ROWS, ROW_TOKENS)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--init", type=Path, required=True, help="exported folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="where the changed one goes")
    options = parser.parse_args()
    tokens, model = data.Tokens(options.work / "tokenizer"), checkpoint.load(options.init)
    rows = sample_rows(options.work, tokens)
    inputs = Inputs(model, rows)
    for layer, head in HEADS:
        bridge(model, inputs, rows.flatten(), tokens, layer, head)
    export.write_model(options.out, model.config, model.state_dict(), options.work / "tokenizer")


if __name__ == "__main__":
    main()
