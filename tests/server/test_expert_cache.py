"""A server with room for a few of its experts, of a packed file and of a checkpoint in shards: the same answers alone and together,
its counters, and a file that is cut short while it runs."""

import json
import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

import st
from serving import FLAGS, PROGRAM
from words import NO_END, PROMPT

PROMPTS = [PROMPT + " and " + word for word in ("a", "the house", "of all people", "one more word than that")]


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """The tiny model in one file, and how many GiB two of its experts take."""
    path = tmp_path_factory.mktemp("packed") / "tiny.safetensors"
    subprocess.run([PROGRAM, "quantize", model, "--quant", "int8", "-o", path], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def shards(model, tmp_path_factory):
    """The tiny model as it is published, with the last layer's experts in a file of their own."""
    folder = tmp_path_factory.mktemp("shards") / "tiny"
    last = f"model.layers.{layers_of(model) - 1}.mlp.experts."
    st.scatter(model, folder, shard_of=lambda name: 2 if name.startswith(last) else None)
    return folder


def two_experts(file):
    """GiB."""
    done = subprocess.run([PROGRAM, "logits", file, "--ids", "1", "--expert-cache", "1e-9"], capture_output=True, text=True)
    return 2.1 * float(re.search(r"room for 2 experts of (\S+) GiB", done.stderr).group(1))


def layers_of(model):
    return json.loads((model / "config.json").read_text())["num_hidden_layers"]


def answers(server):
    """One after the other, then all at once, and as text."""
    def ask(prompt):
        reply = server.complete(prompt, max_tokens=24, temperature=0, logit_bias=NO_END, logprobs=1)
        choice = reply["choices"][0]
        return choice["text"], choice["logprobs"]["token_logprobs"]

    alone = [ask(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(ask, PROMPTS)) == alone
    return alone


@pytest.mark.parametrize("is_packed", [True, False])
def test_same_answers(is_packed, start, file, shards):
    file = file if is_packed else shards
    server = start(file, *FLAGS)
    expected = answers(server)
    assert [one["id"] for one in server.get("/v1/models").json["data"]] == [file.name]  # where it lies is nobody's business
    assert "moebius:expert_cache_hits_total" not in server.metrics().families
    assert server.stop() == 0
    server = start(file, *FLAGS, "--expert-cache", 8 * two_experts(file))
    assert answers(server) == expected
    metrics = server.metrics()
    for name in ("hits_total", "misses_total", "read_bytes_total", "wait_seconds_total", "predicted_total"):
        assert metrics.value(f"moebius:expert_cache_{name}") > 0, name
    assert metrics.value("moebius:expert_cache_predicted_used_total") <= metrics.value("moebius:expert_cache_predicted_total")
    assert server.stop() == 0


def offset_of(path, tensor):
    with open(path, "rb") as file:
        (n,) = struct.unpack("<Q", file.read(8))
        return 8 + n + json.loads(file.read(n))[tensor]["data_offsets"][0]


def test_file_cut_short(start, model, file):
    """The last layer's experts are gone: every request fails with a sentence, until they are back."""
    last = layers_of(model) - 1
    cut_short(start, file, last, file, offset_of(file, f"model.layers.{last}.mlp.experts.0.gate_proj.weight"))


def test_shard_cut_short(start, model, shards):
    last, cut = layers_of(model) - 1, shards / "model-00003-of-00003.safetensors"
    cut_short(start, shards, last, cut, cut.stat().st_size // 16)


def cut_short(start, served, layer, file, cut):
    server = start(served, *FLAGS, "--expert-cache", two_experts(served))
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logit_bias": NO_END}
    expected = server.complete(**body)["choices"]
    data = file.read_bytes()
    with open(file, "r+b") as handle:
        handle.truncate(cut)
        for _ in range(2):
            reply = server.post("/v1/completions", {"model": server.model, **body})
            assert reply.status == 503 and reply.error["type"] == "server_error", reply
            for word in (f"layer {layer}, expert", "expected", "found", "cut short", file.name):
                assert word in reply.error["message"], reply
        handle.seek(cut)
        handle.write(data[cut:])
    assert server.complete(**body)["choices"] == expected
    assert server.becomes_idle()
    assert server.stop() == 0
