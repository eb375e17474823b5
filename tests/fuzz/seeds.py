#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets into FOLDER/fuzz_NAME: small files cut from the golden checkpoints, and whatever
lies in tests/fuzz/seeds/NAME."""

import json
import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
import st  # noqa: E402

GOLDEN = TESTS / "golden" / "data"


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def configs(folder):
    for config in sorted(GOLDEN.glob("*/config.json")):
        shutil.copy(config, folder / f"{config.parent.name}.json")


def safetensors(folder):
    """The first and the smallest tensors of each set, each cut to at most four rows."""
    for path in sorted(GOLDEN.glob("*/*.safetensors")):
        file = st.File(path)
        names = list(file.tensors())
        small = sorted(names, key=lambda name: len(file.bytes_of(name)))[:4]
        cut = {}
        for name in dict.fromkeys(names[:4] + small):
            entry = file.header[name]
            shape = [min(4, n) for n in entry["shape"]]
            n_bytes = st.ITEM_BYTES[entry["dtype"]]
            for n in shape:
                n_bytes *= n
            cut[name] = (entry["dtype"], shape, file.bytes_of(name)[:n_bytes])
        header, data = st.build(cut)
        header["__metadata__"] = {"format": "pt"}
        (folder / f"{path.parent.name}-{path.stem}.bin").write_bytes(st.pack(header, data))


def headers(folder):
    """The JSON of each header: the first twenty tensors."""
    for path in sorted(GOLDEN.glob("*/*.safetensors")):
        header = dict(list(st.File(path).tensors().items())[:20])
        (folder / f"{path.parent.name}-{path.stem}.json").write_text(json.dumps(header))


def main():
    out = Path(sys.argv[1])
    configs(fresh(out / "fuzz_config"))
    safetensors(fresh(out / "fuzz_safetensors"))
    configs(fresh(out / "fuzz_plan"))
    headers(out / "fuzz_plan")
    for kept in sorted((TESTS / "fuzz" / "seeds").glob("*/")):
        folder = out / f"fuzz_{kept.name}"
        if not folder.exists():
            folder.mkdir(parents=True)
        for file in kept.iterdir():
            shutil.copy(file, folder / file.name)


if __name__ == "__main__":
    main()
