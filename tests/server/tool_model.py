"""The tiny model with the marks of V3's family and V3.2's as tokens, in the place of the words that were made last."""

import json

import make_tiny_text_model
from serving import GOLDEN

NAMES = ["calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin", "outputs▁end", "output▁begin", "output▁end", "sep"]
DSML = "｜DSML｜"
MARKS = [DSML, "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", *(f"<｜tool▁{name}｜>" for name in NAMES)]


def make(folder, special=False, without=()):
    """Writes the folder; mark -> id. `special`: the tokenizer calls its marks special. `without` some marks, they are text."""
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    last = sorted(vocab, key=vocab.get)[-len(MARKS):]
    ids = {mark: vocab.pop(word) for mark, word in zip(MARKS, last)}
    tokenizer["model"]["merges"] = [merge for merge in merges if merge.replace(" ", "") in vocab]
    for mark in without:
        del ids[mark]
    for mark, number in ids.items():
        tokenizer["added_tokens"].append({"id": number, "content": mark, "single_word": False, "lstrip": False, "rstrip": False,
                                          "normalized": True, "special": special})
    path.write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", encoding="utf-8")
    return ids
