"""Checks the training code against itself and, where they are at hand, against DeepSeek's numbers.

    python tools/train/selfcheck.py [--golden tests/golden/data/v2lite-tiny]

Closes with `N passed, N failed`.
"""

import argparse
import ast
import json
import random
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import bridge
import checkpoint
import corpus
import data
import experts
import functions
import optim
from model import Cache, Model

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "kv_lora_rank": 16,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 48,
         "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64}


def small_model():
    config = json.loads((ROOT / "tools/train/configs/demo.json").read_text()) | SMALL
    model = Model(config)
    model.initialise(7)
    return model


def worst(pairs):
    return max((a - b).abs().max().item() for a, b in pairs)


def check_experts():
    """Grouped experts and their hand-written gradients equal the plain formula."""
    n, hidden, width, count, k = 30, 16, 8, 6, 2
    x, weights = torch.randn(n, hidden, requires_grad=True), torch.rand(n, k, requires_grad=True)
    chosen = torch.stack([torch.randperm(count - 1)[:k] for _ in range(n)])  # the last expert gets no token
    gate_up = torch.randn(count, 2 * width, hidden, requires_grad=True)
    down = torch.randn(count, hidden, width, requires_grad=True)
    plain = 0
    for j in range(k):
        gate, up = torch.einsum("nh,nwh->nw", x, gate_up[chosen[:, j]]).chunk(2, -1)
        plain = plain + weights[:, j:j + 1] * torch.einsum("nw,nhw->nh", F.silu(gate) * up, down[chosen[:, j]])
    grouped = experts.GroupedExperts.apply(x, weights, chosen, gate_up, down)
    inputs, direction = (x, weights, gate_up, down), torch.randn(n, hidden)
    gradients = [torch.autograd.grad((out * direction).sum(), inputs) for out in (plain, grouped)]
    return worst([(plain, grouped), *zip(*gradients)]) < 1e-10


def check_head_loss():
    """The chunked loss and its gradients equal the weighted mean of cross_entropy."""
    n = experts.HeadLoss.CHUNK + 7
    x, head = torch.randn(n, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets, weights = torch.randint(0, 50, (n,)), torch.rand(n)
    each = F.cross_entropy(x @ head.t(), targets, reduction="none")
    plain, chunked = (each * weights).sum() / weights.sum(), experts.head_loss(x, head, targets, weights)
    gradients = [torch.autograd.grad(3 * out, (x, head)) for out in (plain, chunked)]
    return worst([(plain, chunked), *zip(*gradients)]) < 1e-10


def check_muon():
    """Newton-Schulz brings the singular values of wide and tall matrices near 1."""
    values = [torch.linalg.svdvals(optim.orthogonalised(torch.randn(2, *shape))) for shape in ((24, 64), (64, 24))]
    return all(v.min() > 0.5 and v.max() < 1.4 for v in values)


def check_cache():
    """Decoding token by token gives the logits of the whole row."""
    model, ids = small_model(), torch.randint(0, 64, (1, 40))
    whole, cache = model(ids), Cache()
    parts = [model(ids[:, :13], cache)] + [model(ids[:, i:i + 1], cache) for i in range(13, 40)]
    return worst([(whole, torch.cat(parts, 1))]) < 1e-10


def check_export():
    """Weights survive the way through DeepSeek's names, up to BF16; names and shapes are the published ones."""
    torch.set_default_dtype(torch.float32)
    model = small_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model.config))
        checkpoint.save(model.state_dict(), Path(folder) / "model.safetensors")
        back = checkpoint.load(folder)
    names = checkpoint.to_deepseek(model.state_dict())
    ids = torch.randint(0, 64, (2, 20))
    return (torch.equal(model(ids), back(ids)) and
            names["model.layers.2.mlp.experts.3.up_proj.weight"].shape == (16, 32) and
            names["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"].shape == (24, 32) and
            {"model.layers.0.mlp.gate_proj.weight", "model.norm.weight", "lm_head.weight"} <= names.keys())


def check_widen():
    """A model with a head more in every layer computes the same until that head is given something to do."""
    old, ids = small_model(), torch.randint(0, 64, (2, 20))
    new = bridge.widen(old)
    return new.config["num_attention_heads"] == 3 and worst([(old(ids), new(ids))]) < 1e-10


def check_fim():
    """Prefix, middle and suffix put together are the text, whatever is cut."""
    rng, text = random.Random(3), "def f(x):\n    y = x + 1\n\n    return y * 2\n\n\nprint(f(3))\n"
    return all("".join(data.cut_for_fim(text, rng)) == text for _ in range(2000))


class LetterTokens(data.Tokens):
    """A token a character, for checks."""

    bos, eos, fim_begin, fim_hole, fim_end = range(1000, 1005)

    def __init__(self):
        self.encode = lambda text: [ord(c) for c in text]


def check_fim_targets():
    """Behind its hole a sample asks for the middle's first token, everywhere else for what stands there."""
    tokens = LetterTokens()
    source = types.SimpleNamespace(row_tokens=1024, rng=random.Random(3), tokens=tokens)
    text = "".join(f"value_{i} = {i} + 1\n" for i in range(400))
    good = True
    for ids, wanted, weights in data.Source.fim_samples(source, text):
        hole, end = ids.index(tokens.fim_hole), ids.index(tokens.fim_end)
        same = [a == b for a, b in zip(ids, wanted)]
        del same[hole + 1]
        good &= len(ids) == len(wanted) == len(weights) and all(same) and wanted[hole + 1] == ids[end + 1]
    return good


def check_functions():
    """Docstrings and one-liners go where they may, nothing else does, and what is left is Python."""
    text = ('def f(x):\n    """Says\n    what."""\n\n    y = x\n    return y\n\n\n@one\ndef g():\n    return 1\n\n\n'
            "class A:\n    def only(self):\n        pass\n\n    def __len__(self):\n        '''Length.'''\n        return 0\n")
    bare = "def f(x):\n    y = x\n    return y\n\n\nclass A:\n    def only(self):\n        pass\n"
    never = types.SimpleNamespace(random=lambda: 0.99)
    some = [functions.shaped(text, random.Random(seed)) for seed in range(50)]
    return (functions.shaped(text, never) == bare and functions.shaped("print 1\n", never) == "print 1\n"
            and len(set(some)) > 5 and all(ast.parse(one) for one in some))


def check_windows():
    """Windows ignore indentation and blank lines, and nothing else."""
    text = "a = 1\nb = 2\n\nc = 3\nd = 4\ne = 5\n"
    same, other = text.replace("c", "   c").replace("\n\n", "\n \n\n"), text.replace("5", "6")
    return corpus.windows(text) == corpus.windows(same) and not corpus.windows(text) & corpus.windows(other)


def check_golden(folder):
    """DeepSeek's reference logits for a V2-Lite of random weights are reproduced within 1e-4."""
    torch.set_default_dtype(torch.float32)
    model = checkpoint.load(folder)
    cases = [c for c in json.loads((folder / "manifest.json").read_text())["cases"] if "tokens" in c]
    pairs = []
    for case in cases:
        expected = np.fromfile(folder / case["logits"]["file"], "<f4").reshape(case["logits"]["shape"])
        pairs.append((model(torch.tensor([case["tokens"]]))[0][case["logits"]["positions"]], torch.from_numpy(expected)))
    return len(pairs) == 3 and worst(pairs) < 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, default=ROOT / "tests/golden/data/v2lite-tiny")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    checks = [check_experts, check_head_loss, check_muon, check_cache, check_export, check_widen, check_fim,
              check_fim_targets, check_functions, check_windows]
    checks.append(lambda: check_golden(options.golden))
    checks[-1].__doc__ = check_golden.__doc__
    failed = 0
    for check in checks:
        torch.set_default_dtype(torch.float64)
        good = check()
        failed += not good
        print(f"{'ok' if good else 'FAILED':<7}{check.__doc__}")
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
