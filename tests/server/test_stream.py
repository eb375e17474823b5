"""Streams: frames, the first and the last chunk, usage, and that they say what the whole reply says."""

import json

import pytest

from serving import post_bytes, texts_of
from words import GREEDY, PROMPT, letters, only

MESSAGES = [{"role": "user", "content": "hello"}]


def check_common(chunks, kind, prefix, model):
    assert chunks
    first = chunks[0]
    assert first["id"].startswith(prefix)
    for chunk in chunks:
        assert (chunk["id"], chunk["created"], chunk["model"]) == (first["id"], first["created"], model)
        assert chunk["object"] == kind


def test_completion(server):
    chunks = server.complete(PROMPT, stream=True, max_tokens=12, **GREEDY)
    check_common(chunks, "text_completion", "cmpl-", server.model)
    for chunk in chunks:
        (choice,) = chunk["choices"]  # editors read choices[0].text unguarded
        assert isinstance(choice["text"], str) and choice["index"] == 0
        assert not chunk.get("usage")
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) > 5, "it did not come piece by piece"
    whole = server.complete(PROMPT, max_tokens=12, **GREEDY)["choices"][0]["text"]
    assert texts_of(chunks) == {0: whole}


def test_chat(server):
    chunks = server.chat("hello", stream=True, max_tokens=12, **GREEDY)
    check_common(chunks, "chat.completion.chunk", "chatcmpl-", server.model)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for chunk in chunks[1:]:
        (choice,) = chunk["choices"]
        assert "role" not in choice["delta"] or choice["delta"]["role"] == "assistant"
        assert not chunk.get("usage")
    assert not chunks[-1]["choices"][0]["delta"].get("content")
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert texts_of(chunks) == {0: server.chat("hello", max_tokens=12, **GREEDY)["choices"][0]["message"]["content"]}


@pytest.mark.parametrize("chat", [False, True])
def test_sampled_choices(server, chat):
    """n streams in one: each choice begins, goes on and ends by itself."""
    ask, fields = (server.chat, {"messages": "hello"}) if chat else (server.complete, {"prompt": PROMPT})
    fields |= {"n": 3, "seed": 12, "temperature": 1, "max_tokens": 20}
    chunks = ask(stream=True, **fields)
    whole = ask(**fields)
    assert texts_of(chunks) == {c["index"]: c["message"]["content"] if chat else c["text"] for c in whole["choices"]}
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert [c["finish_reason"] for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert not chat or mine[0]["delta"].get("role") == "assistant"


@pytest.mark.parametrize("chat", [False, True])
def test_include_usage(server, chat):
    ask, fields = (server.chat, {"messages": "hello"}) if chat else (server.complete, {"prompt": [PROMPT, "the"]})
    fields |= {"max_tokens": 5, **GREEDY}
    chunks = ask(stream=True, stream_options={"include_usage": True}, **fields)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == ask(**fields)["usage"]
    for chunk in chunks[:-1]:
        assert len(chunk["choices"]) == 1 and chunk["usage"] is None


@pytest.mark.parametrize("chat", [False, True])
def test_continuous_usage(server, chat):
    ask = server.chat if chat else server.complete
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = ask(PROMPT, stream=True, stream_options=options, max_tokens=5, **GREEDY)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5 and len(set(counts)) > 3
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {chunks[-1]["usage"]["prompt_tokens"]}
    chunks = ask(PROMPT, stream=True, stream_options={"continuous_usage_stats": True}, max_tokens=5, **GREEDY)
    assert all("usage" not in chunk for chunk in chunks)


def test_include_usage_false(server):
    chunks = server.complete(PROMPT, stream=True, stream_options={"include_usage": False}, max_tokens=5, **GREEDY)
    assert all(len(c["choices"]) == 1 for c in chunks)


def test_stop_across_chunks(server, engine):
    """Nothing of a stop string gets out before it is known not to be one."""
    fields = {"max_tokens": 60, "temperature": 1, "seed": 4, "logit_bias": only(letters(engine).values())}
    whole = server.complete(PROMPT, **fields)["choices"][0]["text"]
    for stop in (whole[20:23], whole[30:38], whole[50:52]):
        chunks = server.complete(PROMPT, stream=True, stop=stop, **fields)
        assert texts_of(chunks) == {0: whole[:whole.index(stop)]}
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["choices"][0]["stop_reason"] == stop


def test_echo(server):
    chunks = server.complete(["the", "one two"], stream=True, echo=True, max_tokens=4, **GREEDY)
    whole = server.complete(["the", "one two"], echo=True, max_tokens=4, **GREEDY)
    assert texts_of(chunks) == {c["index"]: c["text"] for c in whole["choices"]}


def test_suffix(server):
    """What editors send: a hole, streamed."""
    fields = {"suffix": " of the world", "max_tokens": 12, "frequency_penalty": 0, "presence_penalty": 0, "top_p": 1, **GREEDY}
    chunks = server.ask("/beta/completions", {"prompt": "the people ", "stream": True, **fields})
    assert texts_of(chunks) == {0: server.complete("the people ", **fields)["choices"][0]["text"]}


def test_score(server):
    """A score of the prompt, streamed."""
    chunks = server.complete(PROMPT, stream=True, max_tokens=0, echo=True)
    assert texts_of(chunks) == {0: PROMPT} and chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_it_really_streams(server):
    """The first text is here while the answer is still being made."""
    body = {"model": server.model, "prompt": PROMPT, "stream": True, "max_tokens": 1000, "ignore_eos": True}
    with server.raw() as raw:
        raw.send(post_bytes("/v1/completions", body))
        status, headers = raw.head()
        assert status == 200
        assert dict((k.lower(), v) for k, v in headers)["content-type"].split(";")[0] == "text/event-stream"
        events = raw.events(headers)
        for _ in range(3):
            assert next(events).startswith(b"data: {")
        assert server.metrics().value("vllm:num_requests_running") == 1


def test_client_completion(client, server):
    stream = client.completions.create(model=server.model, prompt=PROMPT, max_tokens=8, stream=True, extra_body=GREEDY)
    text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == server.complete(PROMPT, max_tokens=8, **GREEDY)["choices"][0]["text"]


def test_client_chat(client, server):
    stream = client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=8, stream=True,
                                            stream_options={"include_usage": True}, extra_body=GREEDY)
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    whole = server.chat("hello", max_tokens=8, **GREEDY)
    assert text == whole["choices"][0]["message"]["content"]
    assert usage.model_dump(exclude_none=True)["total_tokens"] == whole["usage"]["total_tokens"]


@pytest.mark.parametrize("options", [{"include_usage": True}, {}])
def test_stream_options_need_a_stream(server, options):
    reply = server.post("/v1/completions", {"model": server.model, "prompt": "x", "stream_options": options})
    assert reply.status == 400 and reply.error["param"] == "stream_options", reply


@pytest.mark.parametrize("fields, param", [({"stream": 1}, "stream"), ({"stream": True, "stream_options": 5}, "stream_options"),
                                           ({"stream": True, "max_tokens": -1}, "max_tokens")])
def test_mistakes_come_as_plain_errors(server, fields, param):
    """Before the stream begins an error has its status."""
    reply = server.post("/v1/completions", {"model": server.model, "prompt": "x", **fields})
    assert reply.status == 400 and reply.error["param"] == param, json.dumps(fields)
