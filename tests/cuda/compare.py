#!/usr/bin/env python3
"""Beside another engine, where PyTorch is: the tiny golden models through Hugging Face transformers (logits, against the reference's
and against ours on the card), and a plain PyTorch bf16 layer of Coder-V2-Lite's shape, timed, as a floor of speed.

    compare.py --root BUNDLE [--moebius PROGRAM] [--report FILE]

Needs nothing of Python beyond torch; without transformers, or without a card that torch sees, it says what it leaves out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

SETS = {"v2lite-tiny": "DeepseekV2ForCausalLM", "v2-tiny": "DeepseekV2ForCausalLM", "v3-tiny": "DeepseekV3ForCausalLM"}
LITE = {"hidden": 2048, "heads": 16, "kv_lora": 512, "nope": 128, "rope": 64, "v": 128, "experts": 64, "top_k": 6,
        "width": 1408, "shared": 2}
CONTEXT, COPIES, ROUNDS = 1024, 3, 20
MOEBIUS = None  # the program


def read_f32(path):
    values = array("f")
    values.frombytes(Path(path).read_bytes())
    return values


def error_of(got, want):
    differences = [abs(a - b) for a, b in zip(got, want, strict=True)]
    return {"mean_error": sum(differences) / len(differences), "max_error": max(differences)}


def ours(root, name, tokens):
    """All rows' logits as moebius computes them on the card."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.f32"
        command = [MOEBIUS, "logits", root / "models" / name, "--ids", ",".join(map(str, tokens)), "--all", "--out", out,
                   "--device", "cuda"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        return read_f32(out)


def compare_logits(root, torch, transformers, name, kind):
    folder = root / "models" / name
    case = next(case for case in json.loads((folder / "manifest.json").read_text())["cases"] if case["id"] == "p17")
    model = getattr(transformers, kind).from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = array("f", model(torch.tensor([case["tokens"]])).logits[0].float().flatten().tolist())
    reference = read_f32(folder / case["logits"]["file"])
    return {"set": name, "transformers_and_reference": error_of(theirs, reference),
            "moebius_and_reference": error_of(ours(root, name, case["tokens"]), reference),
            "moebius_and_transformers": error_of(ours(root, name, case["tokens"]), theirs)}


class Layer:
    """A decode step of one layer, as one writes it in PyTorch: absorbed attention, experts gathered, bf16."""

    def __init__(self, torch, device):
        s = LITE
        matrix = lambda *shape: torch.randn(*shape, dtype=torch.bfloat16, device=device) / shape[-1] ** 0.5
        self.torch = torch
        self.q, self.kv_a = matrix(s["heads"] * (s["nope"] + s["rope"]), s["hidden"]), matrix(s["kv_lora"] + s["rope"], s["hidden"])
        self.key, self.value = matrix(s["heads"], s["nope"], s["kv_lora"]), matrix(s["heads"], s["kv_lora"], s["v"])
        self.o, self.router = matrix(s["hidden"], s["heads"] * s["v"]), matrix(s["experts"], s["hidden"])
        self.up, self.down = matrix(s["experts"], 2 * s["width"], s["hidden"]), matrix(s["experts"], s["hidden"], s["width"])
        self.shared_up = matrix(2 * s["shared"] * s["width"], s["hidden"])
        self.shared_down = matrix(s["hidden"], s["shared"] * s["width"])
        self.cache = matrix(CONTEXT, s["kv_lora"] + s["rope"])
        self.gain = torch.ones(s["hidden"], dtype=torch.bfloat16, device=device)
        read = [self.q, self.kv_a, self.key, self.value, self.o, self.router, self.shared_up, self.shared_down, self.cache]
        expert = self.up.nbytes + self.down.nbytes
        self.bytes = sum(m.nbytes for m in read) + expert * s["top_k"] // s["experts"]

    def norm(self, x):
        return x * self.torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype) * self.gain

    def attention(self, x):
        s, torch = LITE, self.torch
        h = self.norm(x)
        q = (h @ self.q.T).view(s["heads"], s["nope"] + s["rope"])
        latent = h @ self.kv_a.T
        self.cache[-1] = latent[0]
        absorbed = torch.bmm(q[:, None, : s["nope"]], self.key)[:, 0]
        scores = torch.cat([absorbed, q[:, s["nope"] :]], -1) @ self.cache.T
        mixed = torch.softmax(scores.float() * 0.07, -1).to(x.dtype) @ self.cache[:, : s["kv_lora"]]
        return x + torch.bmm(mixed[:, None], self.value).reshape(1, -1) @ self.o.T

    def experts(self, x):
        s, torch = LITE, self.torch
        h = self.norm(x)
        weights, ids = torch.topk(torch.softmax((h @ self.router.T).float(), -1), s["top_k"])
        both = torch.matmul(self.up[ids[0]], h[0])
        act = torch.nn.functional.silu(both[:, : s["width"]]) * both[:, s["width"] :]
        routed = (torch.bmm(self.down[ids[0]], act[:, :, None])[:, :, 0] * weights[0, :, None].to(x.dtype)).sum(0)
        gate, up = (h @ self.shared_up.T).chunk(2, -1)
        return x + routed + (torch.nn.functional.silu(gate) * up) @ self.shared_down.T

    def step(self, x):
        return self.experts(self.attention(x))


def time_layer(torch, device):
    """Several layers in turn, so that no weight is found in the card's cache; eager, then as a graph."""
    layers = [Layer(torch, device) for _ in range(COPIES)]
    x = torch.randn(1, LITE["hidden"], dtype=torch.bfloat16, device=device)

    def run():
        y = x
        for layer in layers:
            y = layer.step(y)
        return y

    def seconds(call):
        for _ in range(3):
            call()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(ROUNDS):
            call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) * 1e-3 / ROUNDS / COPIES

    with torch.no_grad():
        eager = seconds(run)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replayed = seconds(graph.replay)
    rate = lambda s: {"us": s * 1e6, "gb_per_s": layers[0].bytes / s * 1e-9}
    return {"shape": "one MoE layer of Coder-V2-Lite, bf16, batch 1", "context": CONTEXT, "bytes": layers[0].bytes,
            "eager": rate(eager), "graph": rate(replayed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--moebius")
    parser.add_argument("--report", type=Path)
    a = parser.parse_args()
    global MOEBIUS
    MOEBIUS = a.moebius or a.root / "bin/moebius"
    report, failed = {}, False

    def save():
        if a.report:
            a.report.write_text(json.dumps(report, indent=1))

    try:
        import torch
    except ImportError:
        print("left out: no PyTorch on this machine, so nothing to compare with")
        return 0
    report["torch"] = torch.__version__
    if torch.cuda.is_available():
        try:
            report["layer"] = time_layer(torch, "cuda")
        except Exception as error:  # the logits are still to come
            report["layer"], failed = {"error": f"{type(error).__name__}: {error}"}, True
        print(json.dumps(report["layer"]), flush=True)
    else:
        print("left out: PyTorch sees no card here: its layer is not timed")
    save()
    try:
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
        import transformers
    except ImportError:
        print("left out: no transformers on this machine: logits are not compared with it")
        return 0
    report["transformers"], report["logits"] = transformers.__version__, []
    for name, kind in SETS.items():
        if not hasattr(transformers, kind):
            print(f"left out: transformers {transformers.__version__} has no {kind}: {name}")
            continue
        try:
            line = compare_logits(a.root, torch, transformers, name, kind)
        except Exception as error:  # another engine's trouble is a result too; ours is `moebius_and_reference`
            line, failed = {"set": name, "error": f"{type(error).__name__}: {error}"}, True
        report["logits"].append(line)
        print(json.dumps(line), flush=True)
        save()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
