#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets into FOLDER/fuzz_NAME: small files cut from the golden checkpoints, and whatever
lies in tests/fuzz/seeds/NAME."""

import json
import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
import gguf_hybrid  # noqa: E402
import gguf_model  # noqa: E402
import numpy as np  # noqa: E402
import st  # noqa: E402
import tiny_tokenizer  # noqa: E402

GOLDEN = TESTS / "golden" / "data"
FEW_BITS = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4"]


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def configs(folder):
    for config in sorted(GOLDEN.glob("*/config.json")):
        shutil.copy(config, folder / f"{config.parent.name}.json")


def safetensors(folder):
    """The first and the smallest tensors of each set, each cut to at most four rows, and one whose values are half a byte."""
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
        cut["halves"] = ("F4", [3, 4], bytes(range(6)))
        header, data = st.build(cut)
        header["__metadata__"] = {"format": "pt"}
        (folder / f"{path.parent.name}-{path.stem}.bin").write_bytes(st.pack(header, data))


def headers(folder):
    """The JSON of each header: the first twenty tensors."""
    for path in sorted(GOLDEN.glob("*/*.safetensors")):
        header = dict(list(st.File(path).tensors().items())[:20])
        (folder / f"{path.parent.name}-{path.stem}.json").write_text(json.dumps(header))


def random_blocks(kind):
    """Two rows of 256 values."""
    values, size = gguf_model.gguf.GGML_QUANT_SIZES[gguf_model.Type[kind]]
    return np.random.default_rng(1).integers(0, 256, (2, 256 // values * size), dtype=np.uint8)


def ggufs(folder):
    """The keys of two models with a tokenizer, and tensors of a few rows in several types."""
    for name, pre in (("v2lite-tiny", "deepseek-llm"), ("v3-tiny", "deepseek-v3")):
        config = json.loads((GOLDEN / name / "config.json").read_text())
        keys = gguf_model.keys_of(config)
        keys.update(gguf_model.tokenizer_keys(tiny_tokenizer.tokenizer(), tiny_tokenizer.config(), 256, pre))
        tensors = gguf_model.tensors_of(gguf_model.read_values(GOLDEN / name), config)
        for kind in ("F32", "BF16", "Q8_0"):
            small = {key: value[:2, :2] if value.ndim == 3 else value[:2] if value.ndim == 2 else value
                     for key, value in list(tensors.items())[:8] + list(tensors.items())[-3:]}
            gguf_model.write(folder / f"{name}-{kind}.gguf", keys, small, gguf_model.Type[kind])
        few = {f"blk.{i}.ffn_up.weight": (random_blocks(kind), gguf_model.Type[kind]) for i, kind in enumerate(FEW_BITS)}
        gguf_model.write(folder / f"{name}-few-bits.gguf", keys, few)


def hybrid_ggufs(folder):
    """The same of V4: keys of other types, a table of integers, experts in blocks."""
    for name in ("v4-tiny", "v4-tiny-fp8"):
        keys = gguf_hybrid.keys_of(json.loads((GOLDEN / name / "config.json").read_text()))
        keys.update(gguf_model.tokenizer_keys(tiny_tokenizer.tokenizer(), tiny_tokenizer.config(), 256, "joyai-llm"))
        tensors = gguf_hybrid.tensors_of(gguf_hybrid.read_values(GOLDEN / name))
        small = {key: value if isinstance(value, tuple) else value[:2] for key, value in list(tensors.items())[-12:]}
        gguf_model.write(folder / f"{name}.gguf", keys, small, arch=gguf_hybrid.ARCH)


def main():
    out = Path(sys.argv[1])
    configs(fresh(out / "fuzz_config"))
    safetensors(fresh(out / "fuzz_safetensors"))
    ggufs(fresh(out / "fuzz_gguf"))
    hybrid_ggufs(out / "fuzz_gguf")
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
