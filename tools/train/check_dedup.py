"""Proves that no training text shares a normalised five-line window with the held-out text.

    python tools/train/check_dedup.py --work DIR [--heldout tests/data/heldout]

A window is five consecutive non-blank lines, whitespace at both ends of each left out. The corpus and the chat samples
are read as train.py reads them. Exit status 1, and the places, if there is a window in common.
"""

import argparse
import sys
from pathlib import Path

import corpus
import data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what prepare.py made")
    parser.add_argument("--heldout", type=Path, default=Path(__file__).resolve().parents[2] / "tests/data/heldout")
    options = parser.parse_args()
    held, files = set(), 0
    for path in sorted(options.heldout.rglob("*.py")):
        held |= corpus.windows(path.read_text(encoding="utf-8"))
        files += 1
    common = total = 0
    documents = data.read_jsonl(options.work / "corpus.jsonl")
    chat = data.read_jsonl(options.work / "chat.jsonl")
    texts = [(f"{d['package']}: {d['path']}", d["text"]) for d in documents]
    texts += [(f"chat sample {i}", c["assistant"]) for i, c in enumerate(chat)]
    for where, text in texts:
        marks = corpus.windows(text)
        total += len(marks)
        shared = len(marks & held)
        common += shared
        if shared:
            print(f"{where}: {shared} windows in common")
    print(f"{files} held-out files, {len(held)} windows; {len(texts)} training texts, {total} windows; {common} in common")
    return 1 if common or not held or not total else 0


if __name__ == "__main__":
    sys.exit(main())
