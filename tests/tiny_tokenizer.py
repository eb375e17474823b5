#!/usr/bin/env python3
"""A tokenizer of 256 tokens for the golden checkpoints, which have none: in the layout of DeepSeek's tokenizer.json, every
byte of UTF-8, eight merges, and the special tokens.

    tiny_tokenizer.py FOLDER    writes tokenizer.json and tokenizer_config.json

tests/golden/tokenizer holds what it writes, for `make demo`, which must do without Python.
"""

import json
import sys
from pathlib import Path

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
FIM_BEGIN, FIM_HOLE, FIM_END = (f"<\uff5cfim\u2581{name}\uff5c>" for name in ("begin", "hole", "end"))
MERGES = ["Ġ t", "h e", "i n", "Ġ a", "r e", "o n", "Ġt he", "e r"]  # Ġ is how byte-level BPE writes a blank


def byte_letters():
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, n = {}, 0
    for byte in range(256):
        letters[byte] = chr(byte) if byte in printable else chr(256 + n)
        n += byte not in printable
    return letters


def tokenizer():
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 does not have; V2's tokenizer lacks them too
    letters = [letter for byte, letter in byte_letters().items() if byte not in never]
    words = [BOS, EOS, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    vocab = {word: i for i, word in enumerate(words)}
    specials = [(0, BOS, True), (1, EOS, True)]
    specials += [(len(words) + i, text, False) for i, text in enumerate((FIM_BEGIN, FIM_HOLE, FIM_END))]
    assert len(words) + 3 == 256
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
             "special": special} for i, text, special in specials],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\s?[A-Za-z]+"}, "behavior": "Isolated", "invert": False},
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "vocab": vocab, "merges": MERGES},
    }


def config():
    return {"add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS,
            "tokenizer_class": "LlamaTokenizerFast"}


def write(folder):
    folder = Path(folder)
    for name, content in (("tokenizer.json", tokenizer()), ("tokenizer_config.json", config())):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
