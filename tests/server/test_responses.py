"""POST /v1/responses: OpenAI's Responses API, by its own client and event by event."""

import json
import re

import openai
import pytest
from pydantic import BaseModel

from serving import EOS_ID, MAX_MODEL_LEN, parse_named_events
from words import CHAT_TALK, GREEDY, chat_text, only

TALK = [
    {"role": "user", "content": "how much time?"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "three", "annotations": []}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "years"}, {"type": "input_text", "text": "or days?"}]},
]


def create(client, server, input="hello", max_output_tokens=8, fields=GREEDY, **options):
    return client.responses.create(model=server.model, input=input, max_output_tokens=max_output_tokens, extra_body=fields,
                                   **options)


def post(server, body):
    return server.post("/v1/responses", {"model": server.model, **body})


def test_response(client, server):
    response = create(client, server, metadata={"a": "b"}, user="u", store=True, reasoning={"effort": "low", "summary": "auto"},
                      truncation="auto", include=["reasoning.encrypted_content"])
    assert re.fullmatch(r"resp_\w+", response.id) and response.object == "response"
    assert response.model == server.model and response.error is None and response.metadata == {"a": "b"}
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert (response.temperature, response.max_output_tokens, response.store) == (0, 8, False)
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "incomplete") and item.id.startswith("msg_")
    assert response.output_text == chat_text(server, "hello", max_tokens=8, **GREEDY)
    assert response.usage.output_tokens == 8 and response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.usage.total_tokens == response.usage.input_tokens + 8


def test_same_as_a_chat(client, server):
    response = create(client, server, TALK, max_output_tokens=12, instructions="be good")
    chat = server.chat(CHAT_TALK, max_tokens=12, **GREEDY)
    assert response.output_text == chat["choices"][0]["message"]["content"]
    assert response.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert response.instructions == "be good"
    again = create(client, server, TALK, max_output_tokens=12, instructions="be good")
    assert 0 <= again.usage.input_tokens_details.cached_tokens <= again.usage.input_tokens


def test_what_one_side_says_in_a_row(client, server):
    """It is one turn; instructions that come late are said where they stand, not moved to the front."""
    late = [{"role": "developer", "content": "be good"}, *TALK, {"role": "user", "content": "or weeks?"}, {"role": "developer", "content": "think"}]
    same = [*CHAT_TALK[:-1], {"role": "user", "content": CHAT_TALK[-1]["content"] + "\nor weeks?\nthink"}]
    assert create(client, server, late).output_text == chat_text(server, same, max_tokens=8, **GREEDY)


def test_its_own_output_as_input(client, server):
    first = create(client, server)
    second = create(client, server, [{"role": "user", "content": "hello"}, *first.output, {"role": "user", "content": "go on"}])
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "go on"}]
    assert second.output_text == chat_text(server, chat, max_tokens=8, **GREEDY)


def test_completed(client, server):
    response = create(client, server, fields={"temperature": 0, "logit_bias": only([EOS_ID])})
    assert response.status == "completed" and response.incomplete_details is None and response.output_text == ""
    assert response.output[0].status == "completed"


def test_more_than_fits(client, server):
    response = create(client, server, "a" * 1900, max_output_tokens=32000)
    assert response.status == "incomplete" and response.usage.total_tokens == MAX_MODEL_LEN


# --- shapes of text --------------------------------------------------------------------------------------------------


class Answer(BaseModel):
    name: str
    n: int


SCHEMA = {"type": "object", "properties": {"name": {"enum": ["a", "b"]}, "n": {"enum": [1, 2]}}, "required": ["name", "n"],
          "additionalProperties": False}


def test_schema(client, server):
    text = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    response = create(client, server, max_output_tokens=100, text=text, fields={"temperature": 1, "seed": 3})
    assert response.status == "completed"
    answer = Answer.model_validate_json(response.output_text)
    assert answer.name in "ab" and answer.n in (1, 2)
    assert response.text.format.type == "json_schema"


def test_json_object(client, server):
    fields = {"temperature": 1, "seed": 4}
    response = create(client, server, max_output_tokens=60, text={"format": {"type": "json_object"}}, fields=fields)
    assert response.output_text.startswith("{")
    assert response.output_text == chat_text(server, "hello", max_tokens=60, response_format={"type": "json_object"}, **fields)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_stream_is_the_same(client, server):
    plain = create(client, server, TALK, instructions="be good")
    with client.responses.stream(model=server.model, input=TALK, instructions="be good", max_output_tokens=8,
                                 extra_body=GREEDY) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == plain.output_text and len(deltas) > 1
    last = events[-1]
    assert last.type == "response.incomplete" and last.response.output_text == plain.output_text
    assert last.response.usage.output_tokens == plain.usage.output_tokens
    with client.responses.stream(model=server.model, input="hello", extra_body={"temperature": 0, "logit_bias": only([EOS_ID])}) as stream:
        assert stream.get_final_response().status == "completed"


def strip(response):
    """Without what differs from one answer to the next."""
    gone = ("id", "created_at", "item_id")
    if isinstance(response, dict):
        return {k: strip(v) for k, v in response.items() if k not in gone}
    return [strip(v) for v in response] if isinstance(response, list) else response


def test_events(server):
    body = {"input": "hello", "max_output_tokens": 5, **GREEDY}
    reply = post(server, {**body, "stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    events = parse_named_events(reply.body)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
                     "output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[2]["item"]["status"] == "in_progress" and events[2]["item"]["content"] == []
    text = "".join(event["delta"] for event in events if "delta" in event)
    assert events[-4]["text"] == events[-3]["part"]["text"] == text
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    ids = {event["item_id"] for event in events if "item_id" in event}
    assert ids == {events[2]["item"]["id"]} == {events[-2]["item"]["id"]}
    plain = post(server, body).json
    plain["usage"]["input_tokens_details"] = events[-1]["response"]["usage"]["input_tokens_details"]
    assert strip(plain) == strip(events[-1]["response"])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, param, word", [
    ({"input": None}, "input", "input"), ({"input": []}, "input", "empty"), ({"input": 5}, "input", "integer"), ({"input": [5]}, "input", "input[0]"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input", "wizard"), ({"input": [{"role": "user"}]}, "input", "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "input_image"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input", "text"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "item_reference"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input", "call_id"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input", "call_id"),
    ({"instructions": 5}, "instructions", "string"), ({"max_output_tokens": 0}, "max_output_tokens", "from 1"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "not kept"), ({"conversation": "x"}, "conversation", "not kept"),
    ({"background": True}, "background", "not kept"), ({"prompt": {"id": "x"}}, "prompt", "stored"), ({"store": 1}, "store", "true"),
    ({"tools": [{"type": "web_search"}]}, "tools", "web_search"), ({"tools": [{"type": "function"}]}, "tools", "name"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "c"}]}]}, "tools", "custom"),
    ({"tools": [{"type": "namespace", "tools": []}]}, "tools", "name"), ({"tools": [{"type": "namespace", "name": "n", "tools": 1}]}, "tools", "tools"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice", "tool_choice"), ({"text": {"format": {"type": "xml"}}}, "text", "json_schema"),
    ({"top_logprobs": 3}, "top_logprobs", "top_logprobs"), ({"include": ["message.output_text.logprobs"]}, "include", "logprobs"),
    ({"metadata": 1}, "metadata", "object"), ({"stream": "x"}, "stream", "stream"), ({"temperature": -1}, "temperature", "temperature"),
], ids=str)
def test_refused(server, fields, param, word):
    body = {"input": "x", "max_output_tokens": 1, **fields}
    reply = post(server, {k: v for k, v in body.items() if v is not None})
    assert reply.status == 400, reply
    error = reply.error
    assert error["type"] == "invalid_request_error" and error["param"] == param and word in error["message"], error


@pytest.mark.parametrize("path", ["/v1/responses/input_tokens", "/responses/input_tokens"])
def test_input_tokens(server, path):
    body = {"model": server.model, "input": TALK, "instructions": "be good"}
    reply = server.post(path, body)
    expected = post(server, {**body, "max_output_tokens": 1}).json["usage"]["input_tokens"]
    assert reply.status == 200 and reply.json == {"object": "response.input_tokens", "input_tokens": expected}, reply
    long = server.post(path, {"input": "a" * 3 * MAX_MODEL_LEN})  # more than would be taken: that is why one asks
    assert long.status == 200 and long.json["input_tokens"] > MAX_MODEL_LEN
    for wrong, status in (({}, 400), ({"input": 5}, 400), ({"input": "x", "model": "none such"}, 404)):
        reply = server.post(path, wrong)
        assert reply.status == status and reply.error["message"], reply
    assert server.get(path).status == 405


def test_client_errors(client, server):
    with pytest.raises(openai.BadRequestError):
        create(client, server, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, server, "a" * 3 * MAX_MODEL_LEN)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "input"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="no such model", input="x")
    response = create(client, server)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(response.id)
