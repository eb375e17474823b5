"""The model in the tree: the engine computes what the code that trained it computes (tests/golden/demo, by
tools/train/golden.py), and its quality is what its card says."""

import json
import os
import subprocess

import numpy as np
import pytest

from conftest import PROGRAM, ROOT, TESTS, succeed

MODEL = ROOT / "models" / "demo"
GOLD = TESTS / "golden" / "demo"
MANIFEST = json.loads((GOLD / "manifest.json").read_text())
VOCAB = json.loads((MODEL / "config.json").read_text())["vocab_size"]
CASES = {case["id"]: case for case in MANIFEST["cases"]}


def run_logits(case, tmp_path, *flags):
    ids, out = tmp_path / "ids.json", tmp_path / "logits.f32"
    ids.write_text(json.dumps(case["tokens"]))
    result = succeed("logits", MODEL, "--ids", ids, "--out", out, *flags)
    return result, np.fromfile(out, "<f4")


@pytest.mark.parametrize("attention", ["absorbed", "expanded"])
@pytest.mark.parametrize("name", CASES)
def test_logits_of_the_training_code(name, attention, tmp_path):
    case = CASES[name]
    logits = run_logits(case, tmp_path, "--all", "--compute", "f32", "--attention", attention)[1].reshape(-1, VOCAB)
    want = np.fromfile(GOLD / case["logits"]["file"], "<f4").reshape(case["logits"]["shape"])
    got = logits[case["logits"]["positions"]]
    assert np.abs(got - want).max() < 1e-3
    assert np.abs(want).max() > 1  # the comparison is of something


@pytest.mark.parametrize("quant", ["auto", "int4", "int8", "fp8"])
def test_many_threads_give_the_same_bits(quant, tmp_path):
    """Tasks are cut smaller the more threads there are: one, few and more than the matrices have panels of 32 rows."""
    case = next(iter(CASES.values()))
    one, few, many = (run_logits(case, tmp_path, "--quantization", quant, "--threads", n)[1].tobytes() for n in (1, 3, 24))
    assert one == few and one == many


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "greedy" in case])
def test_greedy_continuation(name, tmp_path):
    case = CASES[name]
    want = case["greedy"]["tokens"]
    result, _ = run_logits(case, tmp_path, "--greedy", len(want), "--compute", "f32")
    assert json.loads(result.text) == want


def test_quality_is_what_the_card_says():
    """By the card's command, but for a few questions only, which a sanitizer's build can answer in time."""
    card = (MODEL / "MODEL_CARD.md").read_text()
    said = float(card.split("| bits per byte")[1].split("|")[1])
    (row,) = succeed("eval", MODEL, "--fim", 4, "--parseable", 4, "--json", "--heldout", TESTS / "data" / "heldout", timeout=600).json
    assert row["bits_per_byte"] == pytest.approx(said, abs=0.002)
    assert row["top1"] > 0.3


@pytest.mark.parametrize("failing", ["info", "run", "logits", None])
def test_demo_script_ends_where_the_program_fails(tmp_path, failing):
    program = tmp_path / "moebius"
    program.write_text(f'#!/bin/sh\n[ "$1" != "{failing}" ] || exit 7\nexec "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run([ROOT / "tools" / "demo.sh"], env={**os.environ, "BUILD": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode == 0) == (failing is None) == ("All 32 tokens" in done.stdout), done.stdout + done.stderr
