"""Level avx512-bf16: activations rounded to bf16, products and sums of pairs. Its kernels against plain C: test_check.py and
test_selftest.py."""

import numpy as np
import pytest

import conftest
from test_golden import FORMS, Case

SETS = ["v2lite-tiny", "v3-tiny-fp8", "v2lite-tiny-fp8-tensor", "v2lite-tiny-ct-fp8", "v2lite-tiny-awq"]
CACHES = ["bf16", "fp8"]


@pytest.fixture(autouse=True, scope="module")
def pairs():
    if "which this machine lacks" in conftest.moebius("check", "no-bench", "--bench", env={"MOEBIUS_CPU": "avx512-bf16"}).err:
        pytest.skip("left out: sums of bf16, for want of AVX512_BF16 and VBMI")


def logits(case, tmp_path, level, *flags):
    """What is expected, and all rows as bytes."""
    got = case.logits(tmp_path, "--threads", 2, *flags, env={"MOEBIUS_CPU": level})
    return got, (tmp_path / "logits.f32").read_bytes()


def rows(case, tmp_path, level, *flags):
    """All rows, and the experts of each."""
    experts = tmp_path / "experts"
    case.logits(tmp_path, "--experts", experts, *flags, env={"MOEBIUS_CPU": level})
    chosen = conftest.read_i32(experts, *case.array(case.case["routing"]["ids"]).shape)
    return conftest.read_f32(tmp_path / "logits.f32", len(case.tokens), case.vocab), np.sort(chosen, -1)


def test_taken_by_vendor():
    """By itself on AMD's processors alone."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        is_amd = "AuthenticAMD" in file.read()
    assert (conftest.taken_level() == "avx512-bf16") == is_amd


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("name", SETS)
def test_beside_fp32(name, kv, form, tmp_path):
    """Other bits, and near those of fp32 wherever the same experts were chosen: the bars of the golden tests' caches."""
    case = Case(name, "p17")
    flags = ("--kv-cache-dtype", kv, "--attention", form)
    got, experts = rows(case, tmp_path, "avx512-bf16", *flags)
    plain, plain_experts = rows(case, tmp_path, "avx512", *flags)
    agree = (experts == plain_experts).all(axis=(0, 2))
    error = np.abs(got - plain)
    assert 0 < error.max() and agree.mean() >= (0.8 if kv == "bf16" else 0.5)
    assert error[agree].mean() <= (0.05 if kv == "bf16" else 0.25)


@pytest.mark.parametrize("name", SETS)
def test_compute_f32_has_plain_bits(name, tmp_path):
    """The yardstick sums fp32, attention included, whatever the cache."""
    case = Case(name, "p17")
    for flags in (["--attention", "absorbed"], ["--attention", "expanded", "--kv-cache-dtype", "bf16"]):
        flags = ["--compute", "f32", *flags]
        assert logits(case, tmp_path, "avx512-bf16", *flags)[1] == logits(case, tmp_path, "avx2", *flags)[1]


@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8"])
def test_routers_are_not_rounded(name, tmp_path):
    """With weights of 8 bits and an fp32 cache routers alone have BF16 weights, and they decide as at every level."""
    case = Case(name, "p17")
    flags = ("--quantization", "int8", "--kv-cache-dtype", "f32")
    assert logits(case, tmp_path, "avx512-bf16", *flags)[1] == logits(case, tmp_path, "avx2", *flags)[1]


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8"])
def test_in_any_chunks(name, kv, tmp_path):
    """A token has the same bits alone, in any chunk, and on any number of threads."""
    case = Case(name, "p200")
    flags = ("--attention", "absorbed", "--kv-cache-dtype", kv)
    whole = logits(case, tmp_path, "avx512-bf16", *flags, "--chunk", 200)[1]
    for chunk in (1, 7, 64):
        assert logits(case, tmp_path, "avx512-bf16", *flags, "--chunk", chunk, "--threads", 1)[1] == whole, f"chunk {chunk}"
