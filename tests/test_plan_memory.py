"""What `moebius plan` says a server takes, against what the process takes (its resident memory): within 3 %.

Left out, because no plan of a model knows it: the program and its libraries, threads, tokenizer. It is the same for two
servers of one model, so the tests compare differences: a large setting less a small one, a large model less a small one.
Differences are 100 MB and more; a golden model itself has 3 MB."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import make_tiny_text_model
import st
from conftest import GOLDEN, TESTS, change_config, succeed

sys.path.insert(0, str(TESTS / "server"))
from serving import Server

THREADS = ["--threads", "2"]


def resident_bytes(process):
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


def settled_bytes(process, patience_s=60):
    """Resident memory once it no longer grows: the cache's is taken beside the first requests."""
    end, before, quiet = time.monotonic() + patience_s, 0, 0
    while quiet < 5:
        assert time.monotonic() < end, "it grows and grows"
        time.sleep(0.1)
        now = resident_bytes(process)
        quiet = quiet + 1 if now == before else 0
        before = now
    return before


def served_bytes(model, folder, flags, prompt=None):
    """Of a server that has taken its memory; with a prompt, of one that has read its weights."""
    server = Server(model, *flags, *THREADS, folder=folder)
    try:
        if prompt:
            server.complete(prompt, max_tokens=2)
        return settled_bytes(server.process)
    finally:
        server.process.kill()
        server.process.wait()


def planned(model, flags):
    return succeed("plan", model, *flags, *THREADS, "--gpu", "none", "--ram", "64@20", "--json").json


@pytest.fixture(scope="module")
def text_models(tmp_path_factory):
    """name -> a golden model with a tokenizer, so that it can be served."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("v2lite-tiny", "v3-tiny"):
        make_tiny_text_model.make(GOLDEN / name, folder / name)
    return folder


SMALL = ["--max-model-len", "512", "--max-num-seqs", "1", "--max-num-batched-tokens", "16"]


@pytest.mark.parametrize("name, flags", [
    ("v2lite-tiny", ["--max-model-len", "65536", "--max-num-seqs", "4", "--max-num-batched-tokens", "16"]),  # cache alone
    ("v2lite-tiny", ["--max-model-len", "512", "--max-num-seqs", "1", "--max-num-batched-tokens", "8192"]),  # scratch alone
    ("v3-tiny", ["--max-model-len", "65536", "--max-num-seqs", "3", "--max-num-batched-tokens", "2048", "--kv-cache-dtype", "fp8"]),
])
def test_cache_and_scratch(text_models, tmp_path, name, flags):
    model = text_models / name
    small, large = planned(model, SMALL), planned(model, flags)
    expected = large["total_bytes"] - small["total_bytes"]
    taken = served_bytes(model, tmp_path, flags) - served_bytes(model, tmp_path, SMALL)
    assert expected > 50e6, "large enough to be told from noise"
    assert taken == pytest.approx(expected, rel=0.03)


LARGE = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 4096,
         "moe_intermediate_size": 768, "n_routed_experts": 8, "num_experts_per_tok": 8, "n_shared_experts": 1}


def large_shape(name, config, shape):
    """The shape that a tensor of v2lite-tiny has in a model of LARGE's sizes."""
    hidden, heads, c = config["hidden_size"], config["num_attention_heads"], config
    q, kv_b = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]), heads * (c["qk_nope_head_dim"] + c["v_head_dim"])
    width = c["moe_intermediate_size"] if ".experts." in name else c["moe_intermediate_size"] * c["n_shared_experts"]
    width = width if "experts" in name else c["intermediate_size"]
    for part, new in ((".q_proj.", [q, hidden]), (".kv_a_proj_with_mqa.", [shape[0], hidden]), (".kv_b_proj.", [kv_b, shape[-1]]),
                      (".o_proj.", [hidden, heads * c["v_head_dim"]]), (".gate_proj.", [width, hidden]), (".up_proj.", [width, hidden]),
                      (".down_proj.", [hidden, width]), (".mlp.gate.", [c["n_routed_experts"], hidden]), ("kv_a_layernorm", shape),
                      ("norm", [hidden]), ("embed_tokens", [shape[0], hidden]), ("lm_head", [shape[0], hidden])):
        if part in name:
            return new
    raise AssertionError(name)


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """Random weights of about 130 MB: v2lite-tiny with larger sizes. Every token visits every expert, so all are read."""
    folder = tmp_path_factory.mktemp("large") / "model"
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", folder)
    change_config(folder, **LARGE)
    config, tensors = json.loads((folder / "config.json").read_text()), {}
    random = np.random.default_rng(1)
    path = folder / "model.safetensors"
    for name, entry in st.File(path).tensors().items():
        expert = re.search(r"\.experts\.(\d+)\.", name)
        if expert and int(expert[1]) >= LARGE["n_routed_experts"]:
            continue
        shape = large_shape(name, config, entry["shape"])
        values = random.standard_normal(int(np.prod(shape)), dtype=np.float32) * 0.02 + ("norm" in name)
        tensors[name] = ("BF16", shape, st.bf16_from(values))
    path.write_bytes(st.pack(*st.build(tensors)))
    return folder


def test_weights(text_models, large_model, tmp_path):
    small, large = planned(text_models / "v2lite-tiny", SMALL), planned(large_model, SMALL)
    expected = large["total_bytes"] - small["total_bytes"]
    prompt = "the quick brown fox"
    taken = served_bytes(large_model, tmp_path, SMALL, prompt) - served_bytes(text_models / "v2lite-tiny", tmp_path, SMALL, prompt)
    assert expected > 100e6 and large["weights_bytes"] > 0.9 * expected
    assert taken == pytest.approx(expected, rel=0.03)
