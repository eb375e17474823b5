"""Writes MODEL_CARD.md of an exported model from the run's log, the data manifest and measurements made now.

    python tools/train/card.py --run DIR [DIR ...] [--model models/demo] [--fim 200] [--machine TEXT]
"""

import argparse
import datetime
import json
from pathlib import Path

import torch

import checkpoint
import data
import evaluate

TEXT = """# Moebius demo model

A small code model in DeepSeek-V2's architecture, trained by this project so that its engine has real text to work on.
It is a test object, not a helper: {parameters:.1f} M parameters, {minutes:.0f} minutes of training on {machine}.

| | |
| --- | --- |
| architecture | `DeepseekV2ForCausalLM`: {layers} layers (the first dense), hidden {hidden}, {heads} heads, latent of {lora}, \
{experts} routed experts (top {top_k}) and {shared} shared, YaRN |
| parameters | {parameters:.2f} M in all, {active:.2f} M used for a token (embedding not counted) |
| tokenizer | byte-level BPE, {vocab} ids, DeepSeek's special tokens as the last ones |
| weights | BF16, {megabytes:.1f} MB |
| trained on | {tokens:.2f} M tokens ({rows}), {minutes:.0f} minutes by the clock ({hours:.2f} hours), {machine}, finished {date} |
| licence | Apache-2.0 (`LICENSE`) |

## Data

{files} files of Python source ({corpus_mb:.0f} MB) from {packages} packages under permissive licences; `TRAINING_DATA.json`
lists each with version and licence. The run above saw {seen:.1f} % of it. Half of the documents are cut for fill in the
middle (`<｜fim▁begin｜>` prefix `<｜fim▁hole｜>` suffix `<｜fim▁end｜>` middle, then end of text); {chat_share:.0%} of the
bytes are questions and answers in Coder-V2's chat form, made from signatures and docstrings ({chat} of them). Most docstrings
of functions and most functions of one line are left out, so that the likeliest way to go on after a `def` is code.

Embeddings and head did not start at random: they were fitted to counted pairs of tokens in about 30 MB of the same text
(`tools/train/bigram.py`), which is where a model starts that knows the last token only.{changes}

Held out, as whole packages, and never trained on:
{heldout}.
No training text has five consecutive lines in common with them (`tools/train/check_dedup.py`; blank lines and
indentation do not count).

## What was reached

Measured on the held-out packages by `{command}` on {machine}, {measured}:

| | |
| --- | --- |
| bits per byte (bos and up to 2048 tokens of each file) | {bpb:.3f} |
| ... at the start, from counted pairs alone | {first_bpb} |
| masked line filled in exactly (greedy, {fim_count} lines) | {fim:.1%} |
| training loss over the last steps (nats a token; what was cut out for fill in the middle counts {middle:.0f} times) | {loss:.3f} |

![loss](loss.png)

How the routed experts shared the work at the end (the line is an equal share):

![experts](experts.png)

## What it can and cannot do

{ability}

It knows Python only, of at most 2048 tokens at a time. It was trained on no natural language beyond comments and
docstrings, has no notion of safety or truth, and may repeat what it was trained on. Use it to test an engine.

## To train it further

`tools/train/README.md` says how; `--init models/demo` goes on from these weights.
"""

GROWN = """

After {tokens:.1f} M tokens the model was widened, and an induction circuit was built into the new room
(`tools/train/grow.py`): heads that find where the last tokens stood before, and copy what came next there. Until then it
had predicted a text that it had just read no better the second time."""

BRIDGED = """

After {tokens:.1f} M a head was added to every layer, and that of the last one was fitted to carry what follows the prefix
from the hole to the end of the prompt (`tools/train/bridge.py`)."""

WEAK = """Very little: it has seen too few tokens. What it writes is made of Python's words and indentation, but holds no
thought: greedy continuations soon repeat one line, functions do not work, an answer in the chat form has nothing to do
with the question, and holes are not filled in as they were (see the table). It is real text for real arithmetic - its
probabilities are far from uniform, so the cost of a coarser weight or cache format can be measured on it - and no more."""
FAIR = """It writes plausible Python for a few lines: matching brackets, names that were used before, common idioms; what stood
in the text before it copies. Longer functions drift, docstrings soon repeat themselves where the likeliest token is always
taken, and what it writes seldom does what was asked. Holes are filled in with lines of Python that mostly begin as they
should, and hardly ever end so (see the table)."""


def active_parameters(config, model):
    """Parameters that take part in one token: all but the embedding and the experts not chosen."""
    total = sum(p.numel() for p in model.parameters()) - model.embed_tokens.weight.numel()
    one = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    return total - len(model.moe_layers()) * (config["n_routed_experts"] - config["num_experts_per_tok"]) * one


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, default=root / "models/demo")
    parser.add_argument("--heldout", type=Path, default=root / "tests/data/heldout")
    parser.add_argument("--fim", type=int, default=200)
    parser.add_argument("--rows", default="rows of 2048", help="how long the training's rows were, in words")
    parser.add_argument("--machine", default="a VM with 2 Sapphire Rapids cores, beside other work, at the lowest priority")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokens = checkpoint.load(options.model), data.Tokens(options.model)
    bpb = evaluate.bits_per_byte(model, tokens, options.heldout)
    fim = evaluate.fim_exact(model, tokens, options.heldout, options.fim)
    log = data.joined_logs(options.run)
    steps = [r for r in log if "loss" in r]
    held = [r for r in log if "heldout_bits_per_byte" in r]
    manifest = json.loads((options.model / "TRAINING_DATA.json").read_text())
    used = [r for r in manifest["packages"] if r["files"]]
    changes = [(GROWN, options.run[:1]), (BRIDGED, options.run[:-1])][:len(options.run) - 1]
    changes = [text.format(tokens=data.joined_logs(runs)[-1]["tokens"] / 1e6) for text, runs in changes]
    config, today = model.config, datetime.date.today().isoformat()
    start = [r for r in held if r["step"] <= 1]
    text = TEXT.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6, active=active_parameters(config, model) / 1e6,
        layers=config["num_hidden_layers"], hidden=config["hidden_size"], heads=config["num_attention_heads"],
        lora=config["kv_lora_rank"], experts=config["n_routed_experts"], top_k=config["num_experts_per_tok"],
        shared=config["n_shared_experts"], vocab=config["vocab_size"], machine=options.machine,
        megabytes=(options.model / "model.safetensors").stat().st_size / 1e6, tokens=steps[-1]["tokens"] / 1e6,
        rows=options.rows, hours=steps[-1]["seconds"] / 3600, minutes=steps[-1]["seconds"] / 60, date=today, measured=today,
        files=manifest["documents"], corpus_mb=manifest["bytes"] / 1e6, packages=len(used),
        seen=min(100.0, 100 * steps[-1]["tokens"] * 3.46 / manifest["bytes"]), chat=manifest["chat_samples"],
        chat_share=data.CHAT_SHARE, heldout=", ".join(f"{r['package']} {r['version']}" for r in manifest["heldout"]),
        command=f"python tools/train/card.py --fim {options.fim}", bpb=bpb, fim=fim, fim_count=options.fim,
        changes="".join(changes),
        first_bpb=f"{start[0]['heldout_bits_per_byte']:.3f}" if start else "not measured",
        middle=data.MIDDLE_WEIGHT, loss=sum(r["loss"] for r in steps[-5:]) / len(steps[-5:]), ability=WEAK if bpb > 1.4 else FAIR)
    (options.model / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    print(f"bits_per_byte {bpb:.4f}, fim_exact_line {fim:.3f} of {options.fim}")


if __name__ == "__main__":
    main()
