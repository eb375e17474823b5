"""Golden data for an engine: what this training code computes, in f32, from an exported folder.

    python tools/train/golden.py [--model models/demo] [--out tests/golden/demo]

The same layout as the other golden sets (manifest.json, raw little-endian arrays), with the texts beside the tokens.
Prompts are kept only where no routing decision and no greedy choice is near a tie, so that another order of summation
cannot change them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import checkpoint
import data
from model import Cache

GREEDY = 32
MIN_ROUTING_GAP, MIN_GREEDY_MARGIN = 1e-4, 0.02
MIN_ROUTING_GAP_LONG = 1e-5  # 600 decisions of a gate that is far from sure; float32 differs by less than 1e-6
SHORT = [
    "def add(a, b):\n    \"\"\"Return the sum of two numbers.\"\"\"\n    return",
    "import os\nimport sys\n\n\ndef main():\n    parser = ",
    "class Stack:\n    def __init__(self):\n        self.items = []\n",
    "for name in sorted(os.listdir(path)):\n    if name.endswith('.py'):\n",
    "    def __repr__(self):\n        return f\"{self.__class__.__name__}(",
    "def read_lines(path):\n    with open(path) as f:\n        for line in f:\n",
    "try:\n    import json\nexcept ImportError:\n    json = None\n\n\ndef load(",
    "class Node:\n    def __init__(self, value, next=None):\n        self.value =",
    "def test_empty_list():\n    result = sort([])\n    assert result ==",
    "if __name__ == \"__main__\":\n    import argparse\n\n    parser =",
]


def routing_gap(model, tokens):
    """The smallest distance between the last expert chosen and the first left out, over layers and tokens."""
    gaps, hooks = [], []

    def look(layer, inputs, _):
        scores = layer.gate(inputs[0].reshape(-1, inputs[0].shape[-1])).softmax(-1).sort(-1, descending=True).values
        gaps.append((scores[:, layer.top_k - 1] - scores[:, layer.top_k]).min().item())

    for layer in model.moe_layers():
        hooks.append(layer.register_forward_hook(look))
    model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return min(gaps)


def run_greedy(model, tokens):
    """(tokens, logits [GREEDY, vocab], smallest lead of the best over the second)."""
    cache, chosen, rows = Cache(), [], []
    logits = model(torch.tensor([tokens]), cache)[0, -1]
    for _ in range(GREEDY):
        rows.append(logits)
        chosen.append(int(logits.argmax()))
        logits = model(torch.tensor([[chosen[-1]]]), cache)[0, -1]
    best = torch.stack(rows).topk(2).values
    return chosen, torch.stack(rows), (best[:, 0] - best[:, 1]).min().item()


class Writer:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name, tensor, **more):
        kind = "i32" if tensor.dtype in (torch.int64, torch.int32) else "f32"
        tensor.numpy().astype("<i4" if kind == "i32" else "<f4").tofile(self.folder / f"{name}.{kind}")
        return {"file": f"{name}.{kind}", "dtype": kind, "shape": list(tensor.shape), **more}


def full_case(model, text, tokens, write):
    trace = []
    logits = model(torch.tensor([tokens]), trace=trace)[0]
    layers = model.moe_layers()
    first = model.config["first_k_dense_replace"]
    chosen, greedy_logits, margin = run_greedy(model, tokens)
    scratch = model(torch.tensor([tokens + chosen[:-1]]))[0, len(tokens) - 1:]
    model(torch.tensor([tokens]))  # again, so that the layers remember this prompt's routing
    name = f"p{len(tokens)}"
    return {
        "id": name, "text": text, "tokens": tokens,
        "logits": write(f"{name}.logits", logits, positions=list(range(len(tokens)))),
        "hidden": write(f"{name}.hidden", torch.cat(trace)),
        "routing": {"layers": list(range(first, first + len(layers))),
                    "ids": write(f"{name}.experts", torch.stack([layer.chosen[0] for layer in layers])),
                    "weights": write(f"{name}.expert_weights", torch.stack([layer.chosen[1] for layer in layers]))},
        "greedy": {"tokens": chosen, "min_top2_margin": margin, "logits": write(f"{name}.greedy_logits", greedy_logits),
                   "cached_vs_scratch_max_abs": (scratch - greedy_logits).abs().max().item()},
    }


def last_case(model, text, tokens, write):
    name = f"p{len(tokens)}"
    logits = model(torch.tensor([tokens]))[0, -1:]
    return {"id": name, "text": text, "tokens": tokens,
            "logits": write(f"{name}.logits", logits, positions=[len(tokens) - 1])}


def short_prompts(heldout):
    yield from SHORT
    for path in sorted(heldout.rglob("*.py")):
        for part in path.read_text(encoding="utf-8").split("\n\n\n")[1:4]:
            yield part


def decisive_prompt(model, tokens, heldout):
    """The first of the prompts, cut to 17 tokens, that is far from every tie."""
    for text in short_prompts(heldout):
        ids = [tokens.bos, *tokens.encode(text)][:17]
        if len(ids) < 17:
            continue
        chosen, _, margin = run_greedy(model, ids)
        if margin >= MIN_GREEDY_MARGIN and routing_gap(model, ids + chosen) >= MIN_ROUTING_GAP:
            return tokens.tokenizer.decode(ids[1:], skip_special_tokens=False), ids
    raise SystemExit("every prompt is near a tie: add prompts to SHORT")


def long_prompt(model, tokens, heldout):
    """200 tokens of held-out text whose routing is decisive."""
    for path in sorted(heldout.rglob("*.py")):
        whole = tokens.encode(path.read_text(encoding="utf-8"))
        for begin in range(0, len(whole) - 199, 100):
            ids = [tokens.bos, *whole[begin:begin + 199]]
            if routing_gap(model, ids) >= MIN_ROUTING_GAP_LONG:
                return tokens.tokenizer.decode(ids[1:], skip_special_tokens=False), ids
    raise SystemExit("no held-out text has decisive routing")


@torch.no_grad()
def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=root / "models/demo")
    parser.add_argument("--out", type=Path, default=root / "tests/golden/demo")
    parser.add_argument("--heldout", type=Path, default=root / "tests/data/heldout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokens, write = checkpoint.load(options.model), data.Tokens(options.model), Writer(options.out)
    text17, ids17 = decisive_prompt(model, tokens, options.heldout)
    text200, ids200 = long_prompt(model, tokens, options.heldout)
    cases = [last_case(model, "", [tokens.bos], write), full_case(model, text17, ids17, write),
             last_case(model, text200, ids200, write)]
    manifest = {
        "name": "demo", "model": "models/demo",
        "reference": {"code": "tools/train/model.py", "torch": torch.__version__, "device": "cpu",
                      "dtype": "float32 throughout (BF16 weights widened)", "numpy": np.__version__},
        "cases": cases,
        "stats": {"min_routing_gap": {c["id"]: routing_gap(model, c["tokens"]) for c in cases},
                  "logit_std": {c["id"]: model(torch.tensor([c["tokens"]])).std().item() for c in cases}},
    }
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(manifest["stats"]), manifest["cases"][1]["greedy"]["min_top2_margin"])


if __name__ == "__main__":
    main()
