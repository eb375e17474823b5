"""Lets a trained model look at the hole when it fills in the middle.

    python tools/train/bridge.py --work DIR --init DIR --out DIR

The demo model of 2026-11-22 wrote the first token of a middle as if it knew nothing of what stands around the hole:
fim_end, after which the middle begins, is far from the hole, and how far differs. What it should do has two steps: the
hole's token finds out what comes after the prefix (data.py asks it for that, and a few million tokens teach it), and
fim_end takes it over. The second was not found by training, and a head that was made to look from fim_end to the hole
forgot it again: what it brought from there was of no use yet. So here, after the first step is learnt, a head is added
to every layer, and that of the last one gets all it needs:

    query    fim_end asks for the hole; every token asks, less loudly, for bos
    key      the hole and bos answer
    value    a linear map, fitted on training text, of the hole's latent to what fim_end lacks to become like the hole;
             bos's latent maps to nothing, so that the head is silent everywhere else

The new heads of the other layers start with no effect. Directions that tell one token's vectors from all others' are found
by ridge regression.
"""

import argparse
import math
import random
from pathlib import Path

import torch

import checkpoint
import data
import evaluate
import export
import model as architecture

HOLE_LOGIT, BOS_LOGIT = 24.0, 12.0  # what their scores have over others'
CASES, SIDE_CHARS = 1500, 900
RIDGE = 3e-3


def widen(old):
    """The same model with one more head in every layer, which writes nothing."""
    heads = old.config["num_attention_heads"] + 1
    config = dict(old.config) | {"num_attention_heads": heads, "num_key_value_heads": heads}
    new = architecture.Model(config)
    new.initialise(1)
    state = new.state_dict()
    for name, tensor in old.state_dict().items():
        if name.endswith("o_proj.weight"):
            state[name][:, tensor.shape[1]:] = 0
        state[name][tuple(slice(0, n) for n in tensor.shape)] = tensor
    new.load_state_dict(state)
    return new


class Watch:
    """What goes through the last layer's attention in one pass: `stream` in, `normed`, `latent`, `mid` after it."""

    def __init__(self, model):
        layer, attention = model.layers[-1], model.layers[-1].self_attn
        self.model = model
        layer.input_layernorm.register_forward_pre_hook(lambda _, inputs: self.keep("stream", inputs[0]))
        attention.q_proj.register_forward_pre_hook(lambda _, inputs: self.keep("normed", inputs[0]))
        attention.kv_b_proj.register_forward_pre_hook(lambda _, inputs: self.keep("latent", inputs[0]))
        attention.o_proj.register_forward_hook(lambda _, __, out: self.keep("mid", self.stream + out[0]))

    def keep(self, name, tensor):
        setattr(self, name, tensor[0] if tensor.dim() == 3 else tensor)

    def see(self, ids):
        self.model.hidden_states(torch.tensor([ids]))


class Samples:
    """Vectors of the last layer on FIM prompts: of bos, hole and end by name, of all other tokens together."""

    def __init__(self, model, tokens, prompts):
        watch = Watch(model)
        self.normed = {name: [] for name in ("bos", "hole", "end", "rest")}
        self.latent = {name: [] for name in self.normed}
        self.lacks = []  # what fim_end would have to add to be like the hole
        for ids in prompts:
            watch.see(ids)
            at = {"bos": [0], "hole": [ids.index(tokens.fim_hole)], "end": [len(ids) - 1]}
            at["rest"] = random.sample(range(1, len(ids) - 1), 8)
            for name, places in at.items():
                self.normed[name].append(watch.normed[places])
                self.latent[name].append(watch.latent[places])
            self.lacks.append(watch.mid[at["hole"]] - watch.mid[at["end"]])
        for kind in (self.normed, self.latent):
            kind.update({name: torch.cat(rows) for name, rows in kind.items()})
        self.lacks = torch.cat(self.lacks)


def regress(inputs, outputs):
    """The linear map [in, out] of rows to rows, by ridge regression."""
    square = inputs.t() @ inputs
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square, inputs.t() @ outputs)


def direction(kinds, name):
    """d with d . v near 1 for the vectors of this name and near 0 for the others; each kind counts as much."""
    scaled = {kind: rows / math.sqrt(len(rows)) for kind, rows in kinds.items()}
    wanted = {kind: torch.full((len(rows), 1), (kind == name) / math.sqrt(len(rows))) for kind, rows in kinds.items()}
    d = regress(torch.cat(list(scaled.values())), torch.cat(list(wanted.values())))[:, 0]
    print(f"  {name}:", ", ".join(f"{kind} {(rows @ d).mean():.2f} +- {(rows @ d).std():.2f}" for kind, rows in kinds.items()))
    return d


def fitted_values(samples, rank):
    """(values [rank, latent], out [hidden, rank]): what the hole's latent should become, and bos's nothing."""
    silent = samples.latent["bos"] * 10  # to be met exactly
    inputs = torch.cat((samples.latent["hole"], silent))
    outputs = torch.cat((samples.lacks, torch.zeros(len(silent), samples.lacks.shape[1])))
    whole = regress(inputs, outputs)
    right = torch.linalg.svd(samples.latent["hole"] @ whole, full_matrices=False).Vh[:rank]
    error = samples.lacks - samples.latent["hole"] @ whole @ right.t() @ right
    spread = samples.lacks - samples.lacks.mean(0)
    print(f"  values: {1 - (error.square().sum() / spread.square().sum()).item():.0%} of what the end lacks")
    return (whole @ right.t()).t(), right.t()


def build(model, samples):
    """Fills the last head of the last layer."""
    config, attention = model.config, model.layers[-1].self_attn
    nope, heads, v = config["qk_nope_head_dim"], config["num_attention_heads"], config["v_head_dim"]
    query = attention.q_proj.weight.view(heads, -1, config["hidden_size"])[-1]
    both = attention.kv_b_proj.weight.view(heads, -1, config["kv_lora_rank"])[-1]
    scale = architecture.attention_scale(config)
    everyone = sum(direction(samples.normed, name) for name in samples.normed)
    query.zero_()
    both.zero_()
    for i, (logit, asks, name) in enumerate(
            [(HOLE_LOGIT, direction(samples.normed, "end"), "hole"), (BOS_LOGIT, everyone, "bos")]):
        gain = math.sqrt(logit / scale)
        query[i], both[i] = gain * asks, gain * direction(samples.latent, name)
    values, out = fitted_values(samples, v)
    both[nope:] = values
    attention.o_proj.weight.view(-1, heads, v)[:, -1] = out


def prompts_of(work, tokens):
    """FIM prompts from the training text, a line missing."""
    documents = data.read_jsonl(work / "corpus.jsonl")
    random.Random(5).shuffle(documents)
    texts = [document["text"] for document in documents[:4000] if len(document["text"]) < 30000]
    for prefix, _, suffix in evaluate.fim_cases(texts, CASES, 5):
        yield tokens.fim_prompt(prefix[-SIDE_CHARS:], suffix[:SIDE_CHARS])


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--init", type=Path, required=True, help="exported folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="where the one with more heads goes")
    options = parser.parse_args()
    random.seed(5)
    tokens, old = data.Tokens(options.work / "tokenizer"), checkpoint.load(options.init)
    samples = Samples(old, tokens, prompts_of(options.work, tokens))
    new = widen(old)
    build(new, samples)
    export.write_model(options.out, new.config, new.state_dict(), options.work / "tokenizer")


if __name__ == "__main__":
    main()
