"""Measures a model on the held-out text: bits per byte, and masked lines filled in exactly.

    python tools/train/evaluate.py MODEL_DIR [--fim 200]
"""

import argparse
import math
import random
from pathlib import Path

import torch

MAX_TOKENS = 2048
FIM_SIDE_CHARS = 2400


def heldout_texts(folder):
    return [path.read_text(encoding="utf-8") for path in sorted(Path(folder).rglob("*.py"))]


@torch.no_grad()
def bits_per_byte(model, tokens, folder):
    """bos and up to 2048 tokens of each document, in one go; summed negative log likelihood over bytes."""
    import experts
    device = next(model.parameters()).device
    nats = n_bytes = 0.0
    for text in heldout_texts(folder):
        ids = tokens.encode(text)[:MAX_TOKENS]
        if not ids:
            continue
        row = torch.tensor([[tokens.bos, *ids]], device=device)
        hidden = model.hidden_states(row[:, :-1])
        loss = experts.head_loss(hidden, model.lm_head.weight, row[:, 1:], torch.ones(len(ids), device=device))
        nats += loss.item() * len(ids)
        n_bytes += len(tokens.tokenizer.decode(ids, skip_special_tokens=False).encode())
    return nats / math.log(2) / n_bytes


@torch.no_grad()
def greedy(model, ids, most, stop):
    """Up to `most` tokens after ids, without the stop token."""
    from model import Cache
    device = next(model.parameters()).device
    cache, out = Cache(), []
    logits = model(torch.tensor([ids], device=device), cache)
    while len(out) < most:
        token = int(logits[0, -1].argmax())
        if token == stop:
            break
        out.append(token)
        logits = model(torch.tensor([[token]], device=device), cache)
    return out


def fim_cases(texts, count, seed):
    """(prefix, line, suffix): a line of at least 8 non-blank characters that occurs once in its text."""
    rng, cases = random.Random(seed), []
    texts = [t for t in texts if t.count("\n") > 20]
    for _ in range(count * 50):
        text = rng.choice(texts)
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        if sum(not c.isspace() for c in lines[at]) < 8 or lines.count(lines[at]) > 1:
            continue
        prefix = "\n".join(lines[:at]) + ("\n" if at else "")
        cases.append((prefix[-FIM_SIDE_CHARS:], lines[at], ("\n" + "\n".join(lines[at + 1:]))[:FIM_SIDE_CHARS]))
        if len(cases) == count:
            break
    return cases


def fim_exact(model, tokens, folder, count, seed=1):
    right = 0
    for prefix, line, suffix in fim_cases(heldout_texts(folder), count, seed):
        ids = greedy(model, tokens.fim_prompt(prefix, suffix), 48, tokens.eos)
        right += tokens.tokenizer.decode(ids, skip_special_tokens=False) == line
    return right / count


@torch.no_grad()
def line_bits(model, tokens, folder, count, seed=1):
    """The surprise of each masked line in bits, ascending: greedy writes one only if no other is likelier, so seldom above 3."""
    bits = []
    for prefix, line, suffix in fim_cases(heldout_texts(folder), count, seed):
        ids, want = tokens.fim_prompt(prefix, suffix), tokens.encode(line)
        rows = model(torch.tensor([ids + want]))[0, len(ids) - 1:-1].log_softmax(-1)
        bits.append(-rows[range(len(want)), want].sum().item() / math.log(2))
    return sorted(bits)


@torch.no_grad()
def first_tokens(model, tokens, folder, count, seed=1):
    """How often the middle's first token is the likeliest: after fim_hole, after fim_end, and in plain text."""
    right = [0, 0, 0]
    for prefix, line, suffix in fim_cases(heldout_texts(folder), count, seed):
        ids, want = tokens.fim_prompt(prefix, suffix), tokens.encode(line)[0]
        logits = model(torch.tensor([ids]))[0]
        plain = model(torch.tensor([[tokens.bos, *tokens.encode(prefix)]]))[0, -1]
        for i, row in enumerate((logits[ids.index(tokens.fim_hole)], logits[-1], plain)):
            right[i] += int(row.argmax()) == want
    return right


def main():
    import checkpoint
    import data
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--heldout", type=Path, default=Path(__file__).resolve().parents[2] / "tests/data/heldout")
    parser.add_argument("--fim", type=int, default=200, help="masked lines to try")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokens = checkpoint.load(options.model), data.Tokens(options.model)
    print(f"bits_per_byte {bits_per_byte(model, tokens, options.heldout):.4f}")
    if options.fim:
        print(f"fim_exact_line {fim_exact(model, tokens, options.heldout, options.fim):.3f} of {options.fim}")
        hole, end, plain = first_tokens(model, tokens, options.heldout, options.fim)
        print(f"first token right: after the hole {hole}, after the end {end}, in plain text {plain} of {options.fim}")
        bits = line_bits(model, tokens, options.heldout, options.fim)
        print("bits of a line: median {:.1f}, least {:.1f}; at most 3: {}, at most 8: {}".format(
            bits[len(bits) // 2], bits[0], *(sum(b <= most for b in bits) for most in (3, 8))))


if __name__ == "__main__":
    main()
