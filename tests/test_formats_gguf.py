"""GGUF's blocks, bit for bit as the package `gguf` (llama.cpp's own) understands them: random bytes, whatever numbers they make.
The program that decodes them is tests/unit/test_gguf_blocks (`decode`): by the plain C, and by the best kernels here."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

import conftest

PROGRAM = Path(conftest.PROGRAM).parent / "tests" / "unit" / "test_gguf_blocks"
FORMATS = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
           "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s",
           "iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "mxfp4"]


def decode(name, rows, cols, data):
    """Two matrices: by the plain C, by the kernels."""
    done = subprocess.run([PROGRAM, "decode", name, str(rows), str(cols)], input=data, capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return np.frombuffer(done.stdout, np.float32).reshape(2, rows, cols)


def assert_same_bits(got, expected):
    both_nan = np.isnan(got) & np.isnan(expected)
    same = (got.view(np.uint32) == expected.view(np.uint32)) | both_nan
    assert same.all(), (int((~same).sum()), got[~same][:5], expected[~same][:5])


@pytest.mark.parametrize("name", FORMATS)
def test_random_bytes(name):
    kind = gguf.GGMLQuantizationType[name.upper()]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = 37, 5 if values == 256 else 13
    raw = np.random.default_rng(1).integers(0, 256, (rows, blocks * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, kind).astype(np.float32)
    for got in decode(name, rows, blocks * values, raw.tobytes()):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_what_the_package_makes(name):
    """Real values, quantised by the package: what comes back is near them."""
    x = np.random.default_rng(2).standard_normal((20, 320), dtype=np.float32)
    data = gguf.quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])
    plain, fast = decode(name, *x.shape, data.tobytes())
    assert_same_bits(plain, fast)
    error = np.sqrt(np.mean((plain - x) ** 2))
    assert error < {"q4": 0.1, "q5": 0.05, "q8": 0.007}[name[:2]], error


def test_grids():
    """The numbers in the tree are what the package has: tools/gguf_grids.py writes the same file again."""
    done = subprocess.run([sys.executable, conftest.ROOT / "tools" / "gguf_grids.py"], capture_output=True, text=True, check=True)
    assert done.stdout == (conftest.ROOT / "src" / "model" / "gguf/grids.c").read_text()


def test_the_door_refuses():
    """Neither another format nor too few bytes make an answer."""
    for arguments, data in ((["decode", "int4", "1", "32"], bytes(18)), (["decode", "q4_0", "2", "32"], bytes(35))):
        assert subprocess.run([PROGRAM, *arguments], input=data, capture_output=True).returncode != 0
