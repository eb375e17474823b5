#!/usr/bin/env python3
"""Runs every test suite and closes with `N passed, N failed`.

`make test` builds the programs and calls this with BUILD set. A suite is one command; its own closing lines (cmocka,
pytest, or `N passed, N failed`) say how many tests it ran. Output is one line a suite, and everything of one that failed.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BUILD", "build"))
if not BUILD.is_absolute():
    BUILD = ROOT / BUILD
SANITIZE = BUILD / "sanitize"
TIMEOUT_S = 600
HALT = {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the plugins of other people's libraries take longer to load than some suites run

# They begin first, so that no processor is left with a long one at the end.
LONGEST = ("server", "test_cuda_split", "test_cuda_gguf", "test_cuda_hybrid", "test_cuda", "test_cuda_races", "test_cuda_offload",
           "races cuda/test_prefill", "test_gpu_tools", "test_golden", "test_quantize", "test_cuda_decode")

# What waits for connections and clocks more than it computes: one at a time, beside the others.
WAITING = ("test_pull", "test_fetch", "test_top", "test_plan_memory", "sanitize test_pull", "sanitize test_fetch")

# What cmocka prints at the end, and what pytest and our own programs do.
CMOCKA = re.compile(r"^\[  (PASSED|FAILED|SKIPPED)  ?\] .*?(\d+) test\(s\)", re.M)
PLAIN = re.compile(r"\b(\d+) (passed|failed|errors?|skipped)\b")


def count(output):
    """{"passed": n, "failed": n, "skipped": n} of the closing lines."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    cmocka = CMOCKA.findall(output)
    if cmocka:
        counts.update({kind.lower(): int(n) for kind, n in cmocka})
        return counts
    for line in reversed(output.splitlines()):
        found = PLAIN.findall(line)
        if found:
            for n, kind in found:
                counts["failed" if kind.startswith("error") else kind] += int(n)
            break
    return counts


class Suite:
    """One command. `one_test`: it counts its checks, by the million; here it is one test."""

    def __init__(self, name, command, env=None, one_test=False):
        self.name, self.command, self.env, self.one_test = name, [str(word) for word in command], env or {}, one_test
        self.passed = self.failed = self.skipped = 0

    def run(self):
        start = time.monotonic()
        try:
            done = subprocess.run(self.command, cwd=ROOT, env={**os.environ, **HALT, **ALONE, **self.env}, stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=TIMEOUT_S)
            self.code, self.output = done.returncode, (done.stdout + done.stderr).decode(errors="replace")
        except subprocess.TimeoutExpired as expired:
            self.code, self.output = -1, (expired.stdout or b"").decode(errors="replace") + "\n(out of time)"
        except OSError as error:
            self.code, self.output = -1, str(error)
        self.seconds = time.monotonic() - start
        self.count()
        return self

    def count(self):
        counts = count(self.output)
        if self.one_test:
            counts = {kind: min(n, 1) for kind, n in counts.items()}
        self.passed, self.failed, self.skipped = counts["passed"], counts["failed"], counts["skipped"]
        if self.code != 0 and self.failed == 0:
            self.failed = 1  # a crash, a leak, or a runner that could not start
        if self.code == 0 and self.passed == self.failed == self.skipped == 0:
            self.failed = 1
            self.output += "\n(the suite ran no test)"

    def report(self):
        line = f"{self.name:<34}{self.passed:>6} passed"
        line += f"{self.failed:>5} FAILED" if self.failed else ""
        line += f"{self.skipped:>5} skipped" if self.skipped else ""
        print(f"{line}{self.seconds:>8.1f} s", flush=True)
        if self.failed:
            print("    " + self.output.strip().replace("\n", "\n    "), flush=True)
        else:  # what was left out is said, never silent
            for text in re.findall(r"^SKIPPED.*|^left out:.*", self.output, re.M):
                print("    " + text)


def c_programs(build, prefix, folder):
    for source in sorted((ROOT / "tests" / folder).glob("*.c")):
        if source.stem.startswith(("test_", "sim_")):
            yield Suite(f"{prefix}{folder}/{source.stem}", [build / "tests" / folder / source.stem],
                        one_test=folder == "sim")


def pytest(name, arguments, build, env=None):
    command = [sys.executable, "-m", "pytest", "-q", "-rsfE", "--no-header", "-p", "no:cacheprovider", *arguments]
    return Suite(name, command, {"MOEBIUS": str(build / "moebius"), **(env or {})})


def fuzz_targets():
    seeds = BUILD / "seeds"
    subprocess.run([sys.executable, ROOT / "tests/fuzz/seeds.py", seeds], check=True)
    for source in sorted((ROOT / "tests/fuzz").glob("fuzz_*.c")):
        yield Suite(f"sanitize fuzz/{source.stem}",
                    [SANITIZE / "tests/fuzz" / source.stem, "--seconds", "1", "--seed", "1", seeds / source.stem])


def all_suites():
    yield Suite("tree", [sys.executable, ROOT / "tests/tree/check.py"])
    for folder in ("unit", "sim", "cuda", "race", "ptx"):
        yield from c_programs(BUILD, "", folder)
    for name in ("generated", "pick", "prefill", "route"):  # the rest: make cuda-race-test
        yield Suite(f"races cuda/test_{name}", [BUILD / f"tests/cuda/test_{name}"], {"LD_LIBRARY_PATH": str(BUILD / "tests/race")})
    yield Suite("check", [BUILD / "moebius", "check"])
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        yield pytest(file.stem, [file], BUILD)
    yield pytest("server", [ROOT / "tests/server"], BUILD, {"MOEBIUS_DEBUG_BIN": str(SANITIZE / "moebius")})
    for folder in ("unit", "sim", "cuda"):
        yield from c_programs(SANITIZE, "sanitize ", folder)
    # The kernels themselves are not sanitized: plain C is, and what checks one level checks all.
    yield Suite("sanitize check", [SANITIZE / "moebius", "check"], {"MOEBIUS_CPU": "ref"})
    yield Suite("sanitize check --only", [SANITIZE / "moebius", "check", "--only"])
    yield pytest("sanitize test_bad_input", [ROOT / "tests/test_bad_input.py"], SANITIZE)
    yield pytest("sanitize test_pull", [ROOT / "tests/test_pull.py", "-k", "needs or cut or twice or python or chosen"], SANITIZE)
    yield pytest("sanitize test_fetch", [ROOT / "tests/test_fetch.py", "-k", "enough or names or shards or offline"], SANITIZE)
    yield pytest("sanitize test_gguf", [ROOT / "tests/test_gguf.py", "-k", "damaged or headers or refused or arrays or twice or shards or unread"], SANITIZE)
    yield pytest("sanitize test_tiles", [ROOT / "tests/test_tiles.py", "-k", "f32"], SANITIZE)
    yield pytest("sanitize test_golden", [ROOT / "tests/test_golden.py", "-k", "sanitize_set"], SANITIZE)
    yield pytest("sanitize test_sparse", [ROOT / "tests/test_sparse.py", "-k", "sanitize or wrong_config or missing or finite"], SANITIZE)
    yield pytest("sanitize test_v4", [ROOT / "tests/test_v4.py", "-k", "sanitize or wrong or missing or finite or none"], SANITIZE)
    yield pytest("sanitize test_v41", [ROOT / "tests/test_v41.py", "-k", "sanitize or wrong or missing or finite or none"], SANITIZE)
    yield pytest("sanitize test_expert_cache", [ROOT / "tests/test_expert_cache.py", "-k", "v3-int4 or plain and scattered"], SANITIZE)
    yield pytest("sanitize test_ranks", [ROOT / "tests/test_ranks.py", "-k", "v3-int4 or pieces or serve or not_open"], SANITIZE)
    yield from fuzz_targets()


def main():
    wanted = sys.argv[1:]  # names (or parts of names) of suites; none: all
    suites = [s for s in all_suites() if not wanted or any(w in s.name for w in wanted)]
    with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool, ThreadPoolExecutor(1) as beside:
        order = sorted(suites, key=lambda s: LONGEST.index(s.name) if s.name in LONGEST else len(LONGEST))
        running = {suite: (beside if suite.name in WAITING else pool).submit(suite.run) for suite in order}
        for suite in suites:
            running[suite].result().report()
    passed, failed, skipped = (sum(getattr(s, k) for s in suites) for k in ("passed", "failed", "skipped"))
    if failed:
        print("failed: " + ", ".join(s.name for s in suites if s.failed))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
