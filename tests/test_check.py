"""`moebius check`: what it covers, how it counts, and what it refuses. That it notices wrong kernels: tests/unit/test_check.c."""

import os
import re
import signal
import subprocess

import pytest

from conftest import PROGRAM, moebius, refused, succeed

LEVELS = ["ref", "avx2", "avx-vnni", "avx512", "avx512-bf16", "amx", "amx-bf16"]  # the last one has to be asked for
GGUF = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
        "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s",
        "iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "mxfp4"]
FORMATS = ["f32", "f16", "bf16", "fp8", "int4_awq", "int4_gptq", "int4_packed", "int4", "int8", *GGUF]
EIGHT_BIT = ["int4_awq", "int4_gptq", "int4_packed", "int4", "int8", *GGUF]  # with 8-bit activations
OTHERS = ["dots", "weighted_sum", "softmax_step", "exp", "quantize", "rms_norm", "silu_mul", "add_scaled", "gemm, -0", "gemm fp8_32",
          "awq layout", "gptq layout", "packed layout", "int4 layout", "int8 layout"]
KERNELS = {f"gemm {f}" for f in FORMATS} | {f"decode {f}" for f in FORMATS} | {f"gemm_q8 {f}" for f in EIGHT_BIT} | set(OTHERS)

LITTLE = {"MOEBIUS_MEMORY": "0.25"}  # memory, of which speeds read an eighth many times


def has(level):
    return "which this machine lacks" not in moebius("check", "no-bench", "--bench", env={"MOEBIUS_CPU": level}).err


@pytest.fixture(scope="module")
def best():
    """The level that is taken here by itself: the program refuses what the machine lacks."""
    return offered(LEVELS[-2])[-1]


def offered(best):
    """Levels up to one; avx-vnni and avx512-bf16 may be missing where better ones are there."""
    return [level for level in LEVELS[:LEVELS.index(best) + 1] if has(level)]


def test_everything_is_checked():
    """Every kernel; what is left out is named. (All levels of the machine: a suite of its own in run.py.)"""
    report = succeed("check", "--json", env={"MOEBIUS_CPU": LEVELS[0]}).json
    assert set(report) == {"version", "checks", "left_out", "passed", "failed"}
    assert report["left_out"] == LEVELS[1:]
    checks = {check["kernel"]: check for check in report["checks"]}
    assert {check["level"] for check in report["checks"]} == {LEVELS[0]} and KERNELS <= set(checks)
    for name, check in checks.items():
        assert check["passed"] is True and check["fault"] is None and check["cases"] > 0, check
        assert 0 <= check["max_error"] < 1e-5 or name in OTHERS, check
    assert report["passed"] == len(report["checks"]) and report["failed"] == 0


def test_only_the_highest_in_words(best):
    result = succeed("check", "--only", env={"MOEBIUS_CPU": best})
    *lines, last = result.text.splitlines()
    checked = [line for line in lines if line.startswith(f"{best} ")]
    assert last == f"{len(checked)} passed, 0 failed" and not result.err
    found = [re.fullmatch(rf"{best} +(\S.*?) +\d+ cases  max error .* ok", line) for line in checked]
    assert all(found) and KERNELS <= {match[1] for match in found}, result.text
    assert [line for line in lines if line not in checked and line.strip()] == \
        [f"left out: {level}, which this machine does not have or MOEBIUS_CPU does not ask for" for level in LEVELS[LEVELS.index(best) + 1:]]


def test_bench(best):
    """Speeds belong to the machine; their shares must be of what was measured beside them."""
    report = succeed("check", "--bench", "int4", "--threads", "2", "--json", env=LITTLE).json
    assert set(report) == {"version", "level", "machine", "speeds"} and report["level"] == best
    assert [m["threads"] for m in report["machine"]] == [1, 2]
    tops = {m["threads"]: m["int8_tops"] for m in report["machine"]}
    timed = offered(best)[1:] or ["ref"]
    assert [(s["threads"], s["level"]) for s in report["speeds"]] == [(n, level) for n in (1, 2) for level in timed]
    for speed in report["speeds"]:
        assert speed["weights"] == "int4" and speed["activations"] == "8-bit" and speed["tokens"] == 64
        assert speed["share_of_bandwidth"] == pytest.approx(speed["gb_per_s"] / speed["read_gb_s"], rel=1e-6)
        if tops[speed["threads"]] is not None:
            share = speed["gop_per_s"] / (tops[speed["threads"]] * 1e3)
            assert speed["share_of_peak"] == pytest.approx(share, rel=1e-6)
        else:
            assert speed["share_of_peak"] is None


def test_bench_in_words(best):
    level = LEVELS[min(LEVELS.index(best), 1)]
    text = succeed("check", "--bench", "bf16", "--threads", "1", env={"MOEBIUS_CPU": level, **LITTLE}).text
    assert re.search(r"^1 thread: reads [\d.]+ GB/s from memory", text), text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{level} ")]
    assert re.match(rf"{level}\s+bf16\s+f32\s+[\d.]+\s+[\d.]+ %", line), line


@pytest.mark.parametrize("arguments, words", [
    (["int4"], ["int4", "--bench"]),
    (["--bench", "int5"], ["int5", "int4_awq"]),
    (["--bench", "int4", "int8"], ["int8"]),
    (["--bench", "--only"], ["--only", "--bench"]),
    (["--threads", "0"], ["--threads", "0"]),
])
def test_wrong_usage(arguments, words):
    result = moebius("check", *arguments)
    assert result.code == 2, str(result)
    refused(result, *words)


def test_unknown_level():
    refused(moebius("check", env={"MOEBIUS_CPU": "sse2"}), "MOEBIUS_CPU", "sse2")


def test_a_stray_access_says_where():
    """The signal that a guard page raises: the message names the kernel that was running."""
    process = subprocess.Popen([PROGRAM, "check"], env={**os.environ, "MOEBIUS_CPU": "ref"}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"ref ")
    process.send_signal(signal.SIGSEGV)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(r"moebius check: a kernel touched memory beside its arrays: ref .+\n", err.decode())
