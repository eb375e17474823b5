"""Thoughts apart from the answer: reasoning_content, whole and streamed, counted, hidden, or left in the text."""

import pytest
import tool_model
from serving import FLAGS, parse_events

TALK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning") / "tiny"
    return folder, tool_model.make(folder)


@pytest.fixture(scope="module", params=[("deepseek-r1", {}), ("deepseek-r1-0528", {}), ("deepseek-v3.1", {"thinking": {"type": "enabled"}}),
                                        ("deepseek-v3.2", {"chat_template_kwargs": {"enable_thinking": True}})],
                ids=lambda value: value[0])
def thinker(request, start, folder):
    """ask(**fields) -> the answer's JSON; a thought ends soon."""
    template, fields = request.param
    server = start(folder[0], *FLAGS, "--chat-template", template)

    def ask(bias=None, reply=False, **more):
        likely = {str(folder[1]["</think>"]): 6}
        if template == "deepseek-r1-0528":  # which begins by itself, and once
            likely[str(folder[1]["<think>"])] = 9
            more = {"presence_penalty": 2, "frequency_penalty": 2, **more}
        body = {"model": server.model, "messages": TALK, "max_tokens": 60, "temperature": 1, "seed": seed, "logit_bias": bias or likely,
                **fields, **more}
        got = server.post("/v1/chat/completions", body)
        assert got.status == 200, got
        return got if reply else got.json

    def thinks(text):
        return "</think>" in text and text.startswith("<think>") == (template == "deepseek-r1-0528")

    for seed in range(200):  # some begin otherwise
        if all(thinks(choice["message"]["content"]) for choice in ask(reasoning_format="none", n=2)["choices"]):
            break
    ask.ids, ask.template = folder[1], template
    yield ask
    assert server.becomes_idle() and server.stop() == 0, server.log


def test_apart(thinker):
    raw = thinker(reasoning_format="none")["choices"][0]["message"]
    assert set(raw) == {"role", "content"} and "</think>" in raw["content"]
    answer = thinker()
    message = answer["choices"][0]["message"]
    thought, _, content = raw["content"].partition("</think>")
    assert message["reasoning_content"] == thought.removeprefix("<think>").strip("\n") == message["reasoning"]
    assert message["content"] == content.lstrip("\n")
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < counted < answer["usage"]["completion_tokens"]


def test_streamed(thinker):
    whole = thinker(n=2)
    body = thinker(reply=True, n=2, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}).body
    chunks = parse_events(body)
    for choice in whole["choices"]:
        deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        kinds = ["reasoning_content" in delta for delta in deltas if delta.get("content") or "reasoning_content" in delta]
        assert kinds == sorted(kinds, reverse=True), "a thought after the answer"
        for key in ("reasoning_content", "content"):
            assert "".join(delta.get(key) or "" for delta in deltas) == choice["message"][key]
    assert chunks[-1]["usage"] == whole["usage"] | {key: chunks[-1]["usage"][key] for key in
                                                    ("prompt_tokens_details", "prompt_cache_hit_tokens", "prompt_cache_miss_tokens")}


def test_hidden(thinker):
    shown, hidden = thinker()["choices"][0]["message"], thinker(include_reasoning=False)["choices"][0]["message"]
    assert hidden == {"role": "assistant", "content": shown["content"]}
    body = thinker(reply=True, include_reasoning=False, stream=True).body
    assert b"reasoning" not in body.replace(b"reasoning_tokens", b"")


def test_all_thought(thinker):
    """One that does not come to an end has no content."""
    wanted = {"max_tokens": 12, "ignore_eos": True}
    bias = {str(thinker.ids["</think>"]): -100, str(thinker.ids["<think>"]): 100 if thinker.template == "deepseek-r1-0528" else -100}
    answer = thinker(bias=bias, **wanted)
    message = answer["choices"][0]["message"]
    assert message["content"] == "" and answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12
    assert answer["choices"][0]["finish_reason"] == "length"


def test_thoughts_of_earlier_answers_are_ignored(thinker):
    earlier = {"role": "assistant", "content": "fine"}
    counts = {thinker(messages=[*TALK, {**earlier, **more}, *TALK])["usage"]["prompt_tokens"] for more in
              ({}, {"reasoning_content": "a long thought"}, {"reasoning": "another"}, {"reasoning_content": None})}
    assert len(counts) == 1


def test_shape_behind_the_thought(thinker):
    message = thinker(guided_choice=["yes", "no"], max_tokens=500)["choices"][0]["message"]
    assert message["content"] in ("yes", "no") and "reasoning_content" in message


def test_without_thought(start, folder):
    """V3.1 that does not think, R1-0528 that does not begin to; a server told to leave thoughts where they are."""
    ids = folder[1]
    server = start(folder[0], *FLAGS, "--chat-template", "deepseek-v3.1")
    fields = {"model": server.model, "messages": TALK, "max_tokens": 20, "seed": 3}
    answer = server.post("/v1/chat/completions", fields).json
    assert set(answer["choices"][0]["message"]) == {"role", "content"} and answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert server.stop() == 0
    server = start(folder[0], *FLAGS, "--chat-template", "deepseek-r1-0528", "--reasoning-parser", "deepseek_r1", "--enable-auto-tool-choice",
                   "--tool-call-parser", "deepseek_v3")
    answer = server.post("/v1/chat/completions", {**fields, "logit_bias": {str(ids["<think>"]): -100}}).json
    assert answer["choices"][0]["message"]["content"] and "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert server.stop() == 0
    server = start(folder[0], *FLAGS, "--chat-template", "deepseek-r1", "--reasoning-format", "none")
    bias = {str(ids["</think>"]): 6}
    assert "</think>" in server.post("/v1/chat/completions", {**fields, "logit_bias": bias}).json["choices"][0]["message"]["content"]
    told = server.post("/v1/chat/completions", {**fields, "logit_bias": bias, "reasoning_format": "deepseek"}).json["choices"][0]["message"]
    assert told["reasoning_content"] and "</think>" not in told["reasoning_content"]
    wrong = server.post("/v1/chat/completions", {**fields, "reasoning_format": "maybe"})
    assert wrong.status == 400 and wrong.error["param"] == "reasoning_format"
    assert server.stop() == 0
