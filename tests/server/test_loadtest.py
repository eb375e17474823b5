"""tools/loadtest.py does what its help says, on a server that is known."""

import json
import subprocess
import sys

from serving import PROGRAM, TESTS

TOOL = TESTS.parent / "tools" / "loadtest.py"


def loadtest(*arguments):
    done = subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    return done.stdout


def test_json(server, model):
    before = server.metrics()
    report = json.loads(loadtest(server.url, "--clients", "1,3", "--requests", 4, "--prompt-tokens", 10, "--max-tokens", 20,
                                 "--json", "--run", model, "--program", PROGRAM, "--", "--threads", 2))
    after = server.metrics()
    assert report["model"] == server.model
    assert [(row["clients"], row["requests"], row["output_tokens"]) for row in report["rounds"]] == [(1, 4, 80), (3, 4, 80)]
    for row in report["rounds"]:
        rounding = 0.01 + 0.0006 / row["wall_s"]  # the report gives milliseconds
        assert abs(row["output_tokens_per_s"] - row["output_tokens"] / row["wall_s"]) < rounding * row["output_tokens_per_s"]
        for name in ("first_token_ms", "inter_token_ms", "per_token_ms"):
            assert 0 <= row[name]["p50"] <= row[name]["p95"] <= row[name]["p99"], row
        assert row["first_token_ms"]["p50"] > 0  # pieces that arrive in one read have no time between them
        assert 0 < row["forward_ms"] < row["step_ms"] and 0 < row["scheduler_percent"] < 100
    assert report["run"]["run_token_ms"] > 0 and report["run"]["served_token_ms"] >= 0  # a few tokens may come in one read
    # warm-up, two rounds, and the pairs with `run`
    requests = 2 + 8 + report["run"]["pairs"]
    assert after.value("vllm:generation_tokens_total") - before.value("vllm:generation_tokens_total") == 20 * requests
    assert after.value("vllm:prompt_tokens_total") - before.value("vllm:prompt_tokens_total") == 10 * requests


def test_table(server):
    lines = loadtest(server.url, "--clients", "2", "--requests", 2, "--max-tokens", 5).splitlines()
    assert lines[1].split()[:3] == ["clients", "out", "t/s"] and lines[2].split()[0] == "2" and len(lines) == 3


def test_no_server():
    done = subprocess.run([sys.executable, str(TOOL), "http://127.0.0.1:1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("loadtest: ") and done.stderr.count("\n") == 1
