"""vLLM's return_token_ids: the ids of prompts and answers, whole and in streams, beside the text that they spell."""

import pytest

from serving import EOS_ID, parse_events

PATHS = ["/v1/completions", "/v1/chat/completions"]


def ask(server, path, **fields):
    prompt = {"prompt": "hello"} if path == PATHS[0] else {"messages": [{"role": "user", "content": "hello"}]}
    reply = server.post(path, {"model": server.model, "max_tokens": 12, "temperature": 1, "seed": 5, **prompt, **fields})
    assert reply.status == 200, reply
    return reply


def prompt_ids(server, path):
    prompt = {"prompt": "hello"} if path == PATHS[0] else {"messages": [{"role": "user", "content": "hello"}]}
    return server.post("/tokenize", {"model": server.model, **prompt}).json["tokens"]


@pytest.mark.parametrize("path", PATHS)
def test_whole(server, path):
    answer = ask(server, path, return_token_ids=True, n=2).json
    expected = prompt_ids(server, path)
    assert len(expected) == answer["usage"]["prompt_tokens"]
    owners = answer["choices"] if path == PATHS[0] else [answer]
    assert [owner["prompt_token_ids"] for owner in owners] == [expected] * len(owners)
    assert sum(len(choice["token_ids"]) for choice in answer["choices"]) == answer["usage"]["completion_tokens"]
    for choice in answer["choices"]:
        ids = [id for id in choice["token_ids"] if id != EOS_ID]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert server.post("/detokenize", {"tokens": ids}).json["prompt"] == text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("logprobs", [False, True])
def test_streams_say_the_same(server, path, logprobs):
    fields = {"return_token_ids": True, "n": 2, **({"logprobs": True if "chat" in path else 1} if logprobs else {})}
    whole = ask(server, path, **fields).json
    chunks = parse_events(ask(server, path, stream=True, **fields).body)
    ids, prompts = {0: [], 1: []}, {0: [], 1: []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            ids[choice["index"]] += choice.get("token_ids", [])
            prompts[choice["index"]] += [owner["prompt_token_ids"] for owner in (chunk, choice) if "prompt_token_ids" in owner]
    assert ids == {choice["index"]: choice["token_ids"] for choice in whole["choices"]}
    assert prompts == {0: [prompt_ids(server, path)], 1: [prompt_ids(server, path)]}  # each once


@pytest.mark.parametrize("path", PATHS)
def test_only_for_those_who_ask(server, path):
    for fields in ({}, {"return_token_ids": False}, {"return_token_ids": None}):
        assert b"token_ids" not in ask(server, path, **fields).body
        assert b"token_ids" not in ask(server, path, stream=True, **fields).body
    reply = server.post(path, {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "return_token_ids": 1})
    assert reply.status == 400 and reply.error["param"] == "return_token_ids"


def test_several_prompts(server):
    answer = ask(server, PATHS[0], prompt=["a", [0, 9, 8]], return_token_ids=True, echo=True, logprobs=1, max_tokens=3).json
    assert answer["choices"][1]["prompt_token_ids"] == [0, 9, 8]
    assert answer["choices"][0]["prompt_token_ids"] != [0, 9, 8]
    assert all(1 <= len(choice["token_ids"]) <= 3 for choice in answer["choices"])  # the prompt's are not among them
