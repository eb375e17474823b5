"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, by its own client and byte by byte."""

import re

import anthropic
import pytest

from serving import EOS_ID, MAX_MODEL_LEN, parse_named_events
from words import CHAT_TALK, GREEDY, chat_text, letters, only

TALK = [
    {"role": "user", "content": "how much time?"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "three"}]},
    {"role": "user", "content": [{"type": "text", "text": "years", "cache_control": {"type": "ephemeral"}},
                                 {"type": "text", "text": "or days?"}]},
]


def create(claude, server, messages="hello", max_tokens=8, fields=GREEDY, **options):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return claude.messages.create(model=server.model, max_tokens=max_tokens, messages=messages, extra_body=fields, **options)


def post(server, body, path="/v1/messages", **headers):
    return server.post(path, {"model": server.model, **body}, headers)


def text_of(message):
    (block,) = message.content
    assert block.type == "text"
    return block.text


def test_message(claude, server):
    message = create(claude, server)
    assert re.fullmatch(r"msg_\w+", message.id)
    assert (message.type, message.role, message.model) == ("message", "assistant", server.model)
    assert message.stop_reason == "max_tokens" and message.stop_sequence is None
    assert text_of(message) == chat_text(server, "hello", max_tokens=8, **GREEDY)
    assert message.usage.output_tokens == 8 and message.usage.cache_creation_input_tokens == 0


@pytest.mark.parametrize("system", ["be good", [{"type": "text", "text": "be good", "cache_control": {"type": "ephemeral"}}]])
def test_same_as_a_chat(claude, server, system):
    """Blocks, instructions and thoughts become the chat that says the same; the cache is told of."""
    message = create(claude, server, TALK, max_tokens=12, system=system, metadata={"user_id": "u"})
    chat = server.chat(CHAT_TALK, max_tokens=12, **GREEDY)
    assert text_of(message) == chat["choices"][0]["message"]["content"]
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]


def test_cache_is_counted(claude, server):
    talk = "the good people of the world " * 40
    first, second = (create(claude, server, talk) for _ in range(2))
    assert second.usage.cache_read_input_tokens > 0 and text_of(first) == text_of(second)
    assert (second.usage.input_tokens + second.usage.cache_read_input_tokens
            == first.usage.input_tokens + first.usage.cache_read_input_tokens)


def test_bookkeeping_is_left_out(claude, server):
    """A line with a number that changes every time would hide all that comes after it from the cache."""
    for line in ("x-anthropic-billing-header: cc_version=1; cch=12345;", "x-anthropic-billing-header: cch=9;"):
        message = create(claude, server, TALK, max_tokens=12, system=[{"type": "text", "text": line}, {"type": "text", "text": "be good"}])
        assert text_of(message) == chat_text(server, CHAT_TALK, max_tokens=12, **GREEDY)
    message = create(claude, server, system=[{"type": "text", "text": line}])
    assert text_of(message) == chat_text(server, "hello", max_tokens=8, **GREEDY)


def test_bookkeeping_in_a_result_is_kept(server):
    """Only instructions have such lines; what a tool found in a file is the tool's."""
    def count(text):
        blocks = [{"type": "text", "text": line} for line in text]
        talk = [{"role": "user", "content": "look"}, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": blocks}]}]
        return post(server, {"messages": talk}, "/v1/messages/count_tokens").json["input_tokens"]

    assert count(["x-anthropic-billing-header: cch=9;", "more"]) == count(["y-anthropic-billing-header: cch=9;", "more"])


def test_max_tokens_is_this_apis(server):
    """A chat's newer name for it says nothing here."""
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "max_completion_tokens": 9, **GREEDY}
    assert post(server, body).json["usage"]["output_tokens"] == 3


def test_what_one_side_says_in_a_row(claude, server):
    """It is one turn; instructions that come late are said where they stand, not moved to the front."""
    late = [{"role": "system", "content": "be good"}, *TALK, {"role": "user", "content": "or weeks?"}, {"role": "system", "content": "think"}]
    same = [*CHAT_TALK[:-1], {"role": "user", "content": CHAT_TALK[-1]["content"] + "\nor weeks?\nthink"}]
    assert text_of(create(claude, server, late)) == chat_text(server, same, max_tokens=8, **GREEDY)


def test_answer_that_was_begun(claude, server):
    talk = [TALK[0], {"role": "assistant", "content": "three"}]
    message = create(claude, server, talk)
    assert text_of(message) == chat_text(server, [talk[0], {**talk[1], "prefix": True}], max_tokens=8, **GREEDY)


def test_stop_reasons(claude, server, engine):
    fields = {"temperature": 1, "seed": 8, "logit_bias": only(letters(engine).values())}
    whole = text_of(create(claude, server, max_tokens=40, fields=fields))
    stopped = create(claude, server, max_tokens=40, fields=fields, stop_sequences=["zz", whole[12:15]])
    assert text_of(stopped) == whole[:whole.index(whole[12:15])]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", whole[12:15])
    ended = create(claude, server, fields={"temperature": 0, "logit_bias": only([EOS_ID])})
    assert (ended.stop_reason, ended.stop_sequence, text_of(ended)) == ("end_turn", None, "")


def test_more_than_fits(claude, server):
    """max_tokens is the most: clients ask for more than a small context has."""
    message = create(claude, server, "a" * 1900, max_tokens=32000)
    usage = message.usage
    assert message.stop_reason == "model_context_window_exceeded"
    assert usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens == MAX_MODEL_LEN


# --- streams ---------------------------------------------------------------------------------------------------------


def test_stream_is_the_same(claude, server):
    plain = create(claude, server, TALK, system="be good")
    with claude.messages.stream(model=server.model, max_tokens=8, messages=TALK, system="be good", extra_body=GREEDY) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert "".join(pieces) == text_of(streamed) == text_of(plain) and len(pieces) > 1
    assert (streamed.stop_reason, streamed.stop_sequence) == (plain.stop_reason, plain.stop_sequence)
    assert streamed.usage.output_tokens == plain.usage.output_tokens
    assert (streamed.usage.input_tokens + streamed.usage.cache_read_input_tokens
            == plain.usage.input_tokens + plain.usage.cache_read_input_tokens)


def test_events(server):
    reply = post(server, {"max_tokens": 5, "messages": TALK[:1], "stream": True, **GREEDY})
    assert reply.headers["content-type"] == "text/event-stream"
    events = parse_named_events(reply.body)
    kinds = [event["type"] for event in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == ["message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
                     "message_delta", "message_stop"]
    message = events[0]["message"]
    assert message["content"] == [] and message["stop_reason"] is None and message["usage"]["input_tokens"] > 0
    assert events[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert all(set(e["delta"]) == {"type", "text"} and e["delta"]["type"] == "text_delta" for e in events[2:2 + deltas])
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 5


def test_stop_sequence_in_a_stream(claude, server, engine):
    fields = {"temperature": 1, "seed": 8, "logit_bias": only(letters(engine).values())}
    whole = text_of(create(claude, server, max_tokens=40, fields=fields))
    with claude.messages.stream(model=server.model, max_tokens=40, stop_sequences=[whole[12:15]], extra_body=fields,
                                messages=[{"role": "user", "content": "hello"}]) as stream:
        message = stream.get_final_message()
    assert text_of(message) == whole[:whole.index(whole[12:15])] and message.stop_sequence == whole[12:15]


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"messages": TALK}, {"messages": TALK, "system": "be good"}, {"messages": TALK[:1]}])
def test_count_tokens(claude, server, options):
    count = claude.messages.count_tokens(model=server.model, **options).input_tokens
    usage = create(claude, server, options["messages"], **{k: v for k, v in options.items() if k != "messages"}).usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens > 0


def test_count_what_does_not_fit(claude, server):
    messages = [{"role": "user", "content": "a" * 3 * MAX_MODEL_LEN}]
    assert claude.messages.count_tokens(model=server.model, messages=messages).input_tokens > MAX_MODEL_LEN
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(claude, server, messages)
    message = caught.value.body["error"]["message"]  # clients look for these words
    assert re.fullmatch(rf"prompt is too long: \d+ tokens > {MAX_MODEL_LEN - 1} maximum", message)


# --- errors ----------------------------------------------------------------------------------------------------------


def error_of(reply):
    body = reply.json
    assert set(body) == {"type", "error"} and body["type"] == "error", body
    assert set(body["error"]) == {"type", "message"} and body["error"]["message"], body
    return body["error"]


USER = [{"role": "user", "content": "x"}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize("fields, word", [
    ({"max_tokens": None}, "max_tokens"), ({"max_tokens": "5"}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
    ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": "x"}, "messages"), ({"messages": [1]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role"), ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "user", "content": []}]}, "content"), ({"messages": [{"role": "user", "content": [1]}]}, "block"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "document"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": {}}]}]}, "tool_use"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": [IMAGE]}]}]}, "image"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "i"}]}]}, "tool_use"),
    ({"system": 5}, "system"), ({"system": [IMAGE]}, "image"), ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop"), ({"thinking": {"type": "sometimes"}}, "thinking"), ({"thinking": 1}, "thinking"),
    ({"stream": 1}, "stream"), ({"temperature": "x"}, "temperature"), ({"n": 2}, "n must"), ({"metadata": 1}, "metadata"),
    ({"tools": {}}, "tools"), ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    ({"tools": [{"name": "f"}]}, "input_schema"), ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"), ({"output_config": {"format": {"type": "yaml"}}}, "output_config"),
], ids=str)
def test_refused(server, fields, word):
    body = {"max_tokens": 1, "messages": USER, **fields}
    reply = post(server, {k: v for k, v in body.items() if v is not None})
    assert reply.status == 400, reply
    error = error_of(reply)
    assert error["type"] == "invalid_request_error" and word in error["message"], error


def test_error_shapes(server):
    reply = server.post("/v1/messages", b"no json")
    assert reply.status == 400 and error_of(reply)["type"] == "invalid_request_error"
    reply = server.post("/v1/messages", {"model": "no such model", "max_tokens": 1, "messages": USER})
    assert reply.status == 404 and error_of(reply)["type"] == "not_found_error"
    reply = server.get("/v1/messages")
    assert reply.status == 405 and error_of(reply)["message"]
    reply = server.get("/v1/messages/batches")
    assert reply.status == 404 and error_of(reply)["type"] == "not_found_error"
    assert "error" in server.get("/v1/messages_of_others").error["type"]  # and not in this shape


def test_client_errors(claude, server):
    with pytest.raises(anthropic.BadRequestError):
        create(claude, server, max_tokens=0)
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=server.model, max_tokens=1, messages=[{"role": "user", "content": [IMAGE]}])
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude-nothing", max_tokens=1, messages=USER)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.count_tokens(model="claude-nothing", messages=USER)


def test_keys(start, model):
    """x-api-key is as good as Authorization, and as strict."""
    server = start(model, "--max-model-len", 512, "--api-key", "sk-good")
    body = {"max_tokens": 1, "messages": USER, "model": server_name(server)}
    for headers in ({}, {"x-api-key": "sk-goo"}, {"x-api-key": "sk-good2"}, {"x-api-key": ""}, {"x-api-key": "Bearer sk-good"}):
        reply = server.post("/v1/messages", body, headers)
        assert reply.status == 401 and error_of(reply)["type"] == "authentication_error", (headers, reply)
    for headers in ({"x-api-key": "sk-good"}, {"Authorization": "Bearer sk-good"}):
        assert server.post("/v1/messages", body, {**headers, "anthropic-version": "2023-06-01"}).status == 200
    for options in ({"api_key": "sk-good"}, {"auth_token": "sk-good"}):
        with anthropic.Anthropic(base_url=server.url, max_retries=0, **options) as client:
            assert client.messages.create(**body).usage.output_tokens == 1
    with anthropic.Anthropic(base_url=server.url, max_retries=0, api_key="sk-bad") as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**body)
    assert server.stop() == 0


def server_name(server):
    return server.get("/v1/models", {"x-api-key": "sk-good"}).json["data"][0]["id"]
