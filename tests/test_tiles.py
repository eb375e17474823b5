"""The matrix unit's kernels where there is no such unit: `tests/moebius_tiles` is the whole program over a matrix unit in plain C
(src/backend/cpu/x86/tiles.inc.h). Its vector instructions are real ones, AVX-512's."""

from pathlib import Path

import pytest

import conftest
from test_golden import FORMS, Case, largest

TILES = Path(conftest.PROGRAM).parent / "tests" / "moebius_tiles"
# BF16, FP8 in blocks, by tensor and by row, V3's and V2's shapes, and weights that only attention is left of.
SETS = ["v2lite-tiny", "v3-tiny-fp8", "v2lite-tiny-fp8-tensor", "v2lite-tiny-ct-fp8", "v2-tiny", "v2lite-tiny-awq"]


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Every command of these tests is the program with tiles."""
    assert TILES.exists(), f"{TILES}: `make test-programs` builds it"
    monkeypatch.setattr(conftest, "PROGRAM", str(TILES))
    if "which this machine lacks" in conftest.moebius("check", "no-bench", "--bench", env={"MOEBIUS_CPU": "avx512"}).err:
        pytest.skip("left out: the matrix unit's kernels in plain C, for want of AVX-512")


def bits(case, tmp_path, level, *flags):
    """All logits as bytes; level None: what is taken by itself."""
    case.logits(tmp_path, "--threads", 2, *flags, env={"MOEBIUS_CPU": level or ""})
    return (tmp_path / "logits.f32").read_bytes()


def test_check():
    """Every kernel at both levels of the unit: values, and the bits of the plain C. The levels below are the program's as it is."""
    kernels = {}
    for level in ("amx", "amx-bf16"):
        report = conftest.succeed("check", "--only", "--json", env={"MOEBIUS_CPU": level}).json
        assert report["failed"] == 0 and report["passed"] == len(report["checks"])
        assert {check["level"] for check in report["checks"]} == {level}
        kernels[level] = {check["kernel"] for check in report["checks"]}
    assert {"gemm_q8 int4", "gemm_q8 int8"} <= kernels["amx"]
    assert {"gemm bf16", "gemm fp8", "dots", "page_sum"} <= kernels["amx-bf16"]


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_amx_gives_the_same_bits(quant, tmp_path):
    case = Case("v2lite-tiny", "p200")
    assert bits(case, tmp_path, "amx", "--quantization", quant) == bits(case, tmp_path, "avx2", "--quantization", quant)


def test_bf16_has_to_be_asked_for(tmp_path):
    case = Case("v2lite-tiny", "p17")
    default = bits(case, tmp_path, None)
    assert default == bits(case, tmp_path, "amx")
    assert default != bits(case, tmp_path, "amx-bf16")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_bf16_against_f32(name, form, tmp_path):
    """Two parts of attention's factors leave more than fp32 does (2e-5), and far less than the 1e-3 of the golden tests."""
    case = Case(name, "p200")
    got = case.logits(tmp_path, "--compute", "f32", "--attention", form, env={"MOEBIUS_CPU": "amx-bf16"})
    assert largest(got, case.expected) <= 2e-4


@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8"])
def test_bf16_in_any_chunks(name, tmp_path):
    """A token has the same bits alone, in any chunk, and on any number of threads."""
    case = Case(name, "p200")
    whole = bits(case, tmp_path, "amx-bf16", "--attention", "absorbed", "--chunk", 200)
    for chunk in (1, 7, 64):
        flags = ("--attention", "absorbed", "--chunk", chunk, "--threads", 1)
        assert bits(case, tmp_path, "amx-bf16", *flags) == whole, f"chunk {chunk}"
