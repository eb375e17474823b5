"""When the model itself fails: a checkpoint with a NaN in one token's embedding. The request that meets it gets an error
with the place; the server goes on. And when there is no memory."""

import json
import re
import resource
from pathlib import Path

import anthropic
import numpy as np
import openai
import pytest

import st
from serving import BOS_ID, FLAGS, PROGRAM, post_bytes
from words import PROMPT

POISON = 511


@pytest.fixture(scope="module")
def server(start, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("poisoned")
    for path in model.iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).symlink_to(path)
    file = st.File(model / "model.safetensors")
    rows = np.frombuffer(file.bytes_of("model.embed_tokens.weight"), "<u2").reshape(512, -1).copy()
    rows[POISON] = 0x7FC0  # NaN in BF16
    file.put("model.embed_tokens.weight", rows.tobytes())
    file.write(folder / "model.safetensors")
    server = start(folder, "--max-model-len", 2048, "--max-num-seqs", 4, "--threads", 2)
    yield server
    assert server.becomes_idle()
    assert server.stop() == 0


def test_whole_answer(server):
    reply = server.post("/v1/completions", {"prompt": [BOS_ID, POISON], "max_tokens": 4})
    assert reply.status == 500, reply
    assert reply.error["type"] == "server_error" and "layer" in reply.error["message"], reply
    assert server.complete(PROMPT, max_tokens=4, ignore_eos=True)["usage"]["completion_tokens"] == 4
    with server.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=server.model, prompt=[BOS_ID, POISON])
    assert caught.value.status_code == 500


def test_in_the_middle_of_a_stream(server):
    """The status is sent already, so the error is an event; then the connection ends, without [DONE]."""
    with server.raw() as raw:
        body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "logit_bias": {str(POISON): 100}, "stream": True}
        raw.send(post_bytes("/v1/completions", body))
        status, headers = raw.head()
        assert status == 200
        frames = []
        try:
            frames += raw.events(headers)
        except EOFError:
            pass
    assert frames and b"data: [DONE]" not in frames, frames
    error = json.loads(frames[-1].removeprefix(b"data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"} and "layer" in error["message"], error


def test_the_client_raises(server):
    with server.client() as client:
        stream = client.completions.create(model=server.model, prompt=PROMPT, max_tokens=20, temperature=0, stream=True,
                                           logit_bias={str(POISON): 100})
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                pass
    assert "layer" in caught.value.message


def test_messages_and_responses(server):
    """Each API has its own last event."""
    fields = {"temperature": 0, "logit_bias": {str(POISON): 100}}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client, pytest.raises(anthropic.APIStatusError) as caught:
        with client.messages.stream(model=server.model, max_tokens=20, messages=[{"role": "user", "content": PROMPT}],
                                    extra_body=fields) as stream:
            for _ in stream:
                pass
    assert caught.value.body["error"]["type"] == "api_error" and "layer" in caught.value.body["error"]["message"]
    with server.client() as client, client.responses.stream(model=server.model, input=PROMPT, extra_body=fields) as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and "layer" in last.response.error.message


def test_it_is_counted(server):
    before = server.metrics().value("vllm:request_success_total", finished_reason="error")
    assert server.post("/v1/completions", {"prompt": [POISON], "max_tokens": 4}).status == 500
    assert server.metrics().value("vllm:request_success_total", finished_reason="error") == before + 1
    assert server.becomes_idle()


# --- no memory -------------------------------------------------------------------------------------------------------


def address_space(pid):
    """Bytes of it that the process has taken."""
    return int(re.search(r"^VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M).group(1)) << 10


def test_no_memory_for_a_body(start, model):
    """Bodies for which there is none are refused as the server's trouble, not as bad JSON, and it lives on."""
    server = start(model, *FLAGS, program=PROGRAM)  # not the sanitizers' build, which takes all addresses
    small = {"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True}
    assert server.complete(**small)["usage"]["completion_tokens"] == 3
    pid, (_, most) = server.process.pid, resource.prlimit(server.process.pid, resource.RLIMIT_AS)
    for size in [300_000, 100_000, 700_000, 5_000_000] * 5:
        resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid), most))
        reply = server.post("/v1/completions", {"prompt": "x" * size, "max_tokens": 1})
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        assert server.process.poll() is None, server.log[-2000:]
        assert reply.status in (400, 503), reply
        assert reply.error["code"] == ("overloaded" if reply.status == 503 else "context_length_exceeded"), reply
        assert reply.status == 503 or size < 5_000_000
        assert server.complete(**small)["usage"]["completion_tokens"] == 3
    assert server.post("/v1/completions", {"prompt": "x" * 5_000_000}).status == 400
    assert server.becomes_idle() and server.stop() == 0
