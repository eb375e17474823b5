"""A head start for embeddings and head: before any layer has learnt, they predict the next token from the last one.

Counting pairs of tokens costs next to nothing beside training, and a table of pairs of rank `hidden` is just what an
embedding, a norm and a head can hold. So both are fitted to the smoothed counts by a few dozen full-batch Adam steps;
the layers, whose outputs start near zero, then learn what the last token alone does not tell.
"""

import time

import numpy as np
import torch

DISCOUNT = 0.6
CHUNK = 1024


def count_pairs(documents, tokens, vocab, limit_bytes):
    """[vocab, vocab] float32: how often token j follows token i."""
    counts = np.zeros(vocab * vocab, dtype=np.float32)
    used = 0
    for document in documents:
        if used > limit_bytes:
            break
        used += len(document["text"])
        ids = np.array([tokens.bos, *tokens.encode(document["text"]), tokens.eos], dtype=np.int64)
        np.add.at(counts, ids[:-1] * vocab + ids[1:], 1.0)
    return torch.from_numpy(counts).view(vocab, vocab)


def smooth(counts):
    """Absolute discounting: what is taken from seen pairs goes to all tokens by their frequency. Rows sum to 1."""
    totals = counts.sum(1, keepdim=True)
    overall = counts.sum(0, keepdim=True) + 0.5
    overall /= overall.sum()
    kept = (counts - DISCOUNT).clamp(min=0)
    left = totals - kept.sum(1, keepdim=True)
    return torch.where(totals > 0, (kept + left * overall) / totals.clamp(min=1), overall)


def fit(counts, hidden, steps, seed):
    """(embed [vocab, hidden] with rows of RMS 1, head [vocab, hidden], nats a token)."""
    generator = torch.Generator().manual_seed(seed)
    vocab = len(counts)
    weights = (counts.sum(1) + 0.1) / (counts.sum() + 0.1 * vocab)
    target = smooth(counts)
    embed = torch.randn(vocab, hidden, generator=generator).requires_grad_()
    head = (0.02 * torch.randn(vocab, hidden, generator=generator)).requires_grad_()
    adam = torch.optim.Adam([embed, head], lr=0.05, betas=(0.8, 0.95), eps=1e-20)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.08 * min(1.0, 2 * (1 - step / steps))
        loss = 0.0
        for begin in range(0, vocab, CHUNK):
            part = slice(begin, begin + CHUNK)
            x = embed[part] * embed[part].square().mean(1, keepdim=True).rsqrt()
            logits = x @ head.t()
            with torch.no_grad():
                chances = logits.log_softmax(1)
                loss -= (weights[part] * (target[part] * chances).sum(1)).sum().item()
                gradient = chances.exp_().sub_(target[part]).mul_(weights[part, None])
            logits.backward(gradient)
        adam.step()
        adam.zero_grad()
    with torch.no_grad():
        embed *= embed.square().mean(1, keepdim=True).rsqrt()
    return embed.detach(), head.detach(), loss


def start_from_pairs(model, read_documents, tokens, limit_bytes, cache, steps=60, seed=1):
    """Fits once and keeps the result in the file `cache`."""
    started, vocab, hidden = time.time(), model.config["vocab_size"], model.config["hidden_size"]
    if not cache.exists():
        counts = count_pairs(read_documents(), tokens, vocab, limit_bytes)
        embed, head, loss = fit(counts, hidden, steps, seed)
        torch.save({"embed": embed, "head": head, "loss": loss, "pairs": int(counts.sum())}, cache)
    kept = torch.load(cache)
    assert kept["embed"].shape == (vocab, hidden), f"{cache} is of another size: delete it"
    model.embed_tokens.weight.data.copy_(kept["embed"])
    model.lm_head.weight.data.copy_(kept["head"])
    print(f"{kept['pairs']} pairs of tokens fitted to {kept['loss']:.3f} nats, {time.time() - started:.0f} s", flush=True)
