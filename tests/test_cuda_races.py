"""Tiny models end to end on the shim whose driver looks for data races (tests/shim/race.c): a race ends the program with status 66.
Prompts are cut so that every kernel of a step runs; what measures or makes up weights, tests/race and test_generated.c run."""

import re

import pytest

import conftest
from conftest import GOLDEN, TESTS, succeed
from test_cuda import BUILD, GPU, SHIM, fake
from test_cuda_gguf import mixed_model

# A model in each weight format, one with an indexer, V4, and V4.1, whose own kernels all run in the longest one.
MODELS = {
    "bf16": ["v2lite-tiny"],
    "fp8": ["v3-tiny-fp8"],
    "awq": ["v2lite-tiny-awq"],
    "int4": ["v2-tiny", "--quantization", "int4"],
    "int8": ["v2-tiny", "--quantization", "int8"],
    "sparse": ["v32-tiny"],
    "hybrid": ["v4-tiny"],
    "csa2": ["v41-tiny"],
    "blocks": ["mixed.gguf"],  # made below
}
# Rows, and how they are cut: for prompts and 16 columns; 64 columns and 8; 32.
CUTS = {
    "82 by 70": (82, 70, ["--kv-cache-dtype", "fp8"]),
    "57 by 52": (57, 52, []),
    "27 by 27": (27, 27, ["--kv-cache-dtype", "fp8"]),
}
ELSEWHERE = re.compile(r"probe_|generate_|pick$|attn_expanded$")  # tests/race, test_generated, test_pick, test_prefill (make test)


@pytest.fixture(scope="module")
def seen():
    """Kernels that ran."""
    return set()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("races") / "mixed.gguf")


@pytest.fixture
def run(monkeypatch, seen, mixed):
    monkeypatch.setattr(conftest, "PROGRAM", str(SHIM / "moebius"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(BUILD / "tests" / "race"))
    monkeypatch.setenv("MOEBIUS_CUDA_EARLY", "1")  # the same rules, and one more

    def run(model, rows, chunk, *flags, cards=1):
        ids = ",".join(str(7 * i % 97 + 3) for i in range(rows))
        path = mixed if model[0] == mixed.name else GOLDEN / model[0]
        result = succeed("logits", path, *model[1:], "--ids", ids, "--chunk", chunk, *GPU, *flags,
                         env=fake(log=1, capability=120, devices=cards))
        launches = re.findall(r"^fake cuda: (\w+) \d+ x 256, \d+ bytes(.*)$", result.err, re.M)
        kernels = {name for name, _ in launches}
        assert len(kernels) > 5
        linked = "--op-offload-min-batch" in flags
        assert all((early == ", may begin early") != linked or name.startswith("repack_") for name, early in launches)
        seen.update(kernels)

    return run


@pytest.mark.parametrize("name, cut", [(name, cut) for name in MODELS for cut in CUTS if name != "csa2" or cut == "82 by 70"])
def test_prompts(name, cut, run):
    rows, chunk, flags = CUTS[cut]
    run(MODELS[name], rows, chunk, *flags)


@pytest.mark.parametrize("form, rows, chunk", [("absorbed", 260, 258), ("expanded", 140, 70)])
def test_splits_and_windows(form, rows, chunk, run, monkeypatch):
    """Several splits of the cache, one after the other and apart, or several windows."""
    monkeypatch.setenv("MOEBIUS_CUDA_WINDOW", "64")
    run(MODELS["bf16"], rows, chunk, "--attention", form)


def test_other_paths(run, monkeypatch):
    run(MODELS["bf16"], 20, 4, "--expert-device", "cpu")
    monkeypatch.setenv("MOEBIUS_CUDA_FP8_NATIVE", "1")
    run(MODELS["fp8"], 70, 70)


def test_experts_over_the_link(run, monkeypatch):
    monkeypatch.setenv("MOEBIUS_CUDA_TURN", "3")
    run(["v2lite-tiny"], 27, 27, "--cpu-moe", "--op-offload-min-batch", 9)


def test_two_cards(run):
    """Steps of a card begin behind those of another; recorded ones too."""
    run(MODELS["bf16"], 20, 4, "-pp", 2, cards=2)


def test_every_kernel_ran(seen):
    table = (TESTS / "cuda" / "kernels.tsv").read_text().splitlines()[1:]
    kernels = {line.split("|")[2] for line in table}
    assert {name for name in kernels - seen if not ELSEWHERE.match(name)} == set()
