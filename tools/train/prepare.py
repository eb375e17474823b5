"""Makes the training data: packages by name, licence check, held-out text, deduplication, tokenizer.

    python tools/train/prepare.py --work DIR [--heldout tests/data/heldout]

Leaves in DIR: wheels/, corpus.jsonl, chat.jsonl, manifest.json, tokenizer/. Held-out packages are written to
--heldout with their licences, and no training text shares a five-line window with them.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import chat_samples
import corpus
import tokenizer_train

HERE = Path(__file__).resolve().parent
HELDOUT = ["cachetools", "humanize", "marshmallow", "schedule", "tabulate", "tinydb"]
PACKAGE_CAP_BYTES = 5_000_000
HELDOUT_CAP_BYTES = 2 << 20


def package_names():
    lines = (HERE / "packages.txt").read_text().splitlines()
    names = [name for line in lines if not line.startswith("#") for name in line.split()]
    assert not set(names) & set(HELDOUT), "a held-out package is on the training list"
    return names


def wheel_of(folder, name):
    key = name.lower().replace("-", "_").replace(".", "_")
    found = [p for p in folder.glob("*.whl") if p.name.split("-")[0].lower().replace(".", "_") == key]
    return found[0] if found else None


def download(folder, names):
    """One wheel a package, the newest that fits this Python; what cannot be had is left out and named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if wheel_of(folder, name):
            continue
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                   "--disable-pip-version-check", "-d", str(folder), name]
        if subprocess.run(command).returncode:
            print(f"  {name}: no wheel, left out")


def write_heldout(wheels, out):
    """Whole packages (.py only) with their licences; returns (windows, manifest rows)."""
    if out.exists():
        shutil.rmtree(out)
    seen, rows, total = set(), [], 0
    for name in HELDOUT:
        with corpus.open_wheel(wheel_of(wheels, name)) as wheel:
            title, version, licence, texts = corpus.read_metadata(wheel)
            assert corpus.is_permissive(licence) and texts, f"{title}: licence {licence}, {len(texts)} licence texts"
            folder = out / f"{title}-{version}"
            files = 0
            for path, text in corpus.python_files(wheel):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
                seen |= corpus.windows(text)
                files, total = files + 1, total + len(text.encode())
            for path in texts:
                (folder / Path(path).name).write_bytes(wheel.read(path))
            rows.append({"package": title, "version": version, "licence": licence, "files": files})
    assert total <= HELDOUT_CAP_BYTES, f"held-out text: {total} bytes"
    (out / "manifest.json").write_text(json.dumps({"python_bytes": total, "packages": rows}, indent=1) + "\n")
    return seen, rows


class Gatherer:
    """Takes packages one by one and keeps what is permissive, worth reading, new, and not held out."""

    def __init__(self, heldout_windows, rng):
        self.heldout, self.rng = heldout_windows, rng
        self.seen, self.documents, self.chat, self.rows = set(), [], [], []

    def take_file(self, package, path, text):
        """Returns the bytes kept and the reason for none."""
        text = corpus.strip_header(text).strip("\n") + "\n"
        if not corpus.is_worth_reading(path, text):
            return 0, "unfit"
        marks = corpus.windows(text)
        if marks & self.heldout:
            return 0, "shares_heldout"
        if marks and len(marks & self.seen) > 0.5 * len(marks):
            return 0, "duplicate"
        self.seen |= marks
        self.documents.append({"package": package, "path": path, "text": text})
        for question, answer in chat_samples.samples_of(corpus.parse(text), text, self.rng):
            self.chat.append({"user": question, "assistant": answer})
        return len(text.encode()), None

    def take_package(self, wheel):
        name, version, licence, _ = corpus.read_metadata(wheel)
        row = {"package": name, "version": version, "licence": licence, "files": 0, "bytes": 0}
        self.rows.append(row)
        if not corpus.is_permissive(licence):
            row["left_out"] = "licence"
            return
        files = list(corpus.python_files(wheel))
        self.rng.shuffle(files)
        for path, text in files:
            if row["bytes"] >= PACKAGE_CAP_BYTES:
                break
            size, reason = self.take_file(name, path, text)
            row["files"] += size > 0
            row["bytes"] += size
            if reason:
                row[reason] = row.get(reason, 0) + 1


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder outside the tree for the corpus")
    parser.add_argument("--heldout", type=Path, default=HERE.parents[1] / "tests/data/heldout")
    parser.add_argument("--vocab", type=int, default=6144, help="all ids, added tokens included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-download", action="store_true", help="use the wheels that are there")
    options = parser.parse_args()
    wheels, started = options.work / "wheels", time.time()
    if not options.no_download:
        download(wheels, package_names() + HELDOUT)
    heldout_windows, heldout_rows = write_heldout(wheels, options.heldout)
    gatherer = Gatherer(heldout_windows, random.Random(options.seed))
    for name in package_names():
        path = wheel_of(wheels, name)
        if path:
            with corpus.open_wheel(path) as wheel:
                gatherer.take_package(wheel)
            print(f"{time.time() - started:6.0f} s  {gatherer.rows[-1]}", flush=True)
    write_jsonl(options.work / "corpus.jsonl", gatherer.documents)
    write_jsonl(options.work / "chat.jsonl", gatherer.chat)
    total = sum(row["bytes"] for row in gatherer.rows)
    manifest = {"bytes": total, "documents": len(gatherer.documents), "chat_samples": len(gatherer.chat),
                "heldout": heldout_rows, "packages": gatherer.rows}
    (options.work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{total} bytes in {len(gatherer.documents)} documents, {len(gatherer.chat)} chat samples")
    tokenizer_train.train(gatherer.documents, gatherer.chat, options.vocab, options.work / "tokenizer", options.seed)


if __name__ == "__main__":
    main()
