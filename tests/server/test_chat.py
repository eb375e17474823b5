"""POST /v1/chat/completions: the model's own template, the reply, and what messages may be."""

import json
import re
import time

import pytest

from serving import BOS, EOS, EOS_ID, FIM_TEXT, FLAGS
from words import GREEDY, letters, only

TALK = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "how much time?"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "years?"},
]


def render(engine, messages):
    request = json.dumps({"messages": messages}).encode()
    return engine.command("render", engine.model, "--messages", "-", stdin=request).decode()


def content(reply, index=0):
    return reply["choices"][index]["message"]["content"]


def test_reply(server):
    reply = server.chat("hello", max_tokens=5, **GREEDY)
    assert re.fullmatch(r"chatcmpl-\S+", reply["id"])
    assert reply["object"] == "chat.completion" and reply["model"] == server.model
    assert isinstance(reply["created"], int) and abs(reply["created"] - time.time()) < 60
    assert isinstance(reply["system_fingerprint"], str) and reply["system_fingerprint"]
    (choice,) = reply["choices"]
    assert {"index", "message", "logprobs", "finish_reason"} <= set(choice)
    assert choice["index"] == 0 and choice["logprobs"] is None and choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant" and isinstance(choice["message"]["content"], str)
    assert reply["usage"]["completion_tokens"] == 5
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + 5


@pytest.mark.parametrize("messages", [TALK[1:2], TALK[:2], TALK[1:], TALK])
def test_prompt_is_the_template(server, engine, messages):
    ids = engine.ids(render(engine, messages))
    reply = server.chat(messages, max_tokens=12, **GREEDY)
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert content(reply) == server.complete(ids, max_tokens=12, **GREEDY)["choices"][0]["text"]


def test_template_bytes(engine):
    assert render(engine, TALK) == f"{BOS}be good\n\nUser: how much time?\n\nAssistant: three{EOS}User: years?\n\nAssistant:"


@pytest.mark.parametrize("special", [BOS, EOS, *FIM_TEXT])
def test_users_cannot_write_special_tokens(server, engine, special):
    reply = server.chat(special, max_tokens=1, **GREEDY)
    spelled = len(engine.ids(special, special=False))
    assert spelled > 5
    assert reply["usage"]["prompt_tokens"] >= server.chat("", max_tokens=1, **GREEDY)["usage"]["prompt_tokens"] + spelled - 2


def test_content_parts(server):
    """Parts are lines, as vLLM joins them."""
    parts = [{"type": "text", "text": "how much"}, {"type": "text", "text": "time?"}]
    reply = server.chat([{"role": "user", "content": parts}], max_tokens=4, **GREEDY)
    whole = server.chat("how much\ntime?", max_tokens=4, **GREEDY)
    assert content(reply) == content(whole) and reply["usage"] == whole["usage"]


@pytest.mark.parametrize("mark, fields", [
    ({"prefix": True}, {}), ({}, {"continue_final_message": True, "add_generation_prompt": False})])
def test_continuing_a_message(server, engine, mark, fields):
    """The last message is an answer's beginning: DeepSeek's mark, or vLLM's fields."""
    ids = engine.ids(render(engine, TALK[:3]))
    assert engine.text(ids, skip_special=False).endswith("three" + EOS + "Assistant:")
    begun = engine.ids(f"{BOS}be good\n\nUser: how much time?\n\nAssistant: three")
    reply = server.chat([*TALK[:2], {**TALK[2], **mark}], max_tokens=8, **fields, **GREEDY)
    assert reply["usage"]["prompt_tokens"] == len(begun)
    assert content(reply) == server.complete(begun, max_tokens=8, **GREEDY)["choices"][0]["text"]


def test_harmless_fields_of_messages(server):
    reply = server.chat([{"role": "user", "content": "hello", "name": "someone", "other": 1}], max_tokens=4, **GREEDY)
    assert content(reply) == content(server.chat("hello", max_tokens=4, **GREEDY))


@pytest.mark.parametrize("path", ["/chat/completions", "/beta/chat/completions"])
def test_other_paths(server, path):
    reply = server.ask(path, {"messages": TALK, "max_tokens": 4, **GREEDY})
    assert content(reply) == content(server.chat(TALK, max_tokens=4, **GREEDY))


def test_openai_client(client, server):
    reply = client.chat.completions.create(model=server.model, messages=TALK, max_completion_tokens=6, temperature=0,
                                           extra_body=GREEDY)
    assert reply.choices[0].message.content == content(server.chat(TALK, max_tokens=6, **GREEDY))
    assert reply.choices[0].message.role == "assistant" and reply.usage.completion_tokens == 6


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(server, name):
    assert server.chat("hello", **{name: 3}, **GREEDY)["usage"]["completion_tokens"] == 3


def test_default_is_the_rest_of_the_context(server):
    """Without max_tokens an answer goes on until it ends, or the context does."""
    long = "a" * 1900
    reply = server.chat(long, temperature=0, ignore_eos=True)
    assert reply["usage"]["total_tokens"] == 2048 and reply["choices"][0]["finish_reason"] == "length"


def test_eos_ends(server):
    reply = server.chat("hello", temperature=0, logit_bias=only([EOS_ID]))
    assert content(reply) == "" and reply["choices"][0]["finish_reason"] == "stop"


def test_stop(server, engine):
    fields = {"max_tokens": 40, "temperature": 1, "seed": 8, "logit_bias": only(letters(engine).values())}
    whole = content(server.chat("hello", **fields))
    reply = server.chat("hello", stop=[whole[12:15]], **fields)
    assert content(reply) == whole[:whole.index(whole[12:15])]
    assert reply["choices"][0]["finish_reason"] == "stop" and reply["choices"][0]["stop_reason"] == whole[12:15]


def test_n_with_seed(server):
    fields = {"n": 3, "seed": 5, "max_tokens": 12, "temperature": 1}
    first, again = (server.chat("hello", **fields) for _ in range(2))
    texts = [content(first, i) for i in range(3)]
    assert texts == [content(again, i) for i in range(3)] and len(set(texts)) == 3
    assert [c["index"] for c in first["choices"]] == [0, 1, 2]


def test_plain_response_format(server):
    assert server.chat("hello", max_tokens=2, response_format={"type": "text"})["usage"]["completion_tokens"] == 2


def test_no_tools_wanted(server):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert server.chat("hello", max_tokens=2, tools=[tool], tool_choice="none")["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("messages", [
    [], "hello", {}, [1], [{}], [{"content": "x"}], [{"role": "user"}], [{"role": "wizard", "content": "x"}],
    [{"role": 1, "content": "x"}], [{"role": "user", "content": 5}], [{"role": "user", "content": [1]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
], ids=lambda m: json.dumps(m)[:40])
def test_wrong_messages(server, messages):
    reply = server.post("/v1/chat/completions", {"model": server.model, "messages": messages, "max_tokens": 1})
    assert reply.status == 400, reply
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"].startswith("messages"), reply


def test_answers_that_said_nothing(server):
    """An assistant's message may have no content, null, or a refusal in its place."""
    def n_prompt(**answer):
        messages = [TALK[-1], {"role": "assistant", **answer}, TALK[-1]]
        return server.chat(messages, max_tokens=1)["usage"]["prompt_tokens"]

    assert n_prompt() == n_prompt(content=None)
    refusal = [{"type": "refusal", "refusal": "no, I will not"}]
    assert n_prompt(content=refusal) == n_prompt(content="no, I will not") > n_prompt()


@pytest.mark.parametrize("fields, param", [
    ({"top_logprobs": 3}, "top_logprobs"),  # without logprobs
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"response_format": {"type": "no such type"}}, "response_format"),
    ({"response_format": 5}, "response_format"),
])
def test_wrong_fields(server, fields, param):
    reply = server.post("/v1/chat/completions", {"model": server.model, "messages": TALK, **fields})
    assert reply.status == 400 and reply.error["param"] == param, reply
    assert reply.error["type"] == "invalid_request_error"


def test_model_without_a_template(start, model, tmp_path):
    """Chat names the flag that helps; completions work; and the flag helps."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    server = start(folder, "--max-model-len", 512)
    reply = server.post("/v1/chat/completions", {"model": server.model, "messages": TALK})
    assert reply.status == 400 and "--chat-template" in reply.error["message"], reply
    assert server.complete("the", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert server.stop() == 0
    server = start(folder, "--max-model-len", 512, "--chat-template", "deepseek-coder-v2")
    assert server.chat("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert server.stop() == 0


def test_thinking(start, model):
    """DeepSeek's own field stands for the template's variable, which goes first."""
    server = start(model, *FLAGS, "--chat-template", "deepseek-v3.1")

    def n_prompt(**fields):
        return server.chat("the people", max_tokens=1, **fields)["usage"]["prompt_tokens"]

    on, off = (n_prompt(chat_template_kwargs={"thinking": value}) for value in (True, False))
    assert on == off - 1  # <think> or </think>, letter by letter in this tokenizer
    assert n_prompt(thinking={"type": "enabled"}) == on
    assert n_prompt(thinking={"type": "disabled"}) == n_prompt(thinking={}) == n_prompt() == off
    assert n_prompt(thinking={"type": "enabled"}, chat_template_kwargs={"thinking": False}) == off
    assert n_prompt(thinking={"type": "enabled"}, chat_template_kwargs={"other": 1}) == on
    assert n_prompt(reasoning_effort="low") == n_prompt(reasoning_effort="xhigh") == on
    assert n_prompt(reasoning_effort="none") == n_prompt(reasoning_effort="minimal") == n_prompt(reasoning_effort=None) == off
    assert n_prompt(reasoning_effort="low", thinking={"type": "disabled"}) == off
    assert n_prompt(reasoning_effort="none", chat_template_kwargs={"thinking": True}) == on
    for bad in ("enabled", 1, {"type": "much"}, {"type": 1}):
        reply = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "thinking": bad})
        assert reply.status == 400 and reply.error["param"] in ("thinking", "type"), reply
    assert server.stop() == 0
