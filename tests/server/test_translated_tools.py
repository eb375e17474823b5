"""Functions and thoughts in /v1/messages and /v1/responses: the same model, prompt and answer as a chat's, in other words."""

import json

import pytest

import tool_model
from serving import FLAGS, parse_named_events

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2.5]}},
          "required": ["city", "days"], "additionalProperties": False}
CHAT_TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "of a city", "parameters": SCHEMA}},
              {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}}]
CLAUDE_TOOLS = [{"name": "get_weather", "description": "of a city", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
                {"name": "stop", "type": "custom", "input_schema": {"type": "object", "properties": {}}}]
FLAT_TOOLS = [{"type": "function", "strict": None, **tool["function"]} for tool in CHAT_TOOLS]
FIELDS = {"temperature": 1, "seed": 3}
ASK = "how much rain in Rome?"
USER = [{"role": "user", "content": ASK}]


@pytest.fixture(scope="module", params=["deepseek-coder-v2", "deepseek-v3-0324", "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"])
def server(request, start, tmp_path_factory):
    """Each way to write calls, one of them as plain text."""
    folder = tmp_path_factory.mktemp("caller") / "tiny"
    marks = tool_model.make(folder)
    server = start(folder, *FLAGS, "--max-model-len", "4096", "--chat-template", request.param)  # V3.2 says much about functions
    server.marks, server.thinks, server.template = marks, request.param.startswith(("deepseek-v3.1", "deepseek-v3.2", "deepseek-v4")), request.param
    yield server
    assert server.becomes_idle()
    assert server.stop() == 0


def chat(server, messages=USER, **fields):
    reply = server.chat(messages, **{"max_tokens": 200, "tools": CHAT_TOOLS, "tool_choice": "required", **FIELDS, **fields})
    return reply["choices"][0]["message"], reply["choices"][0]["finish_reason"], reply["usage"]


def parse(arguments):
    """What the end cut off is no JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def calls_of(message):
    return [(call["function"]["name"], parse(call["function"]["arguments"])) for call in message["tool_calls"]]


def ask_claude(claude, server, messages=USER, max_tokens=200, fields=FIELDS, tools=CLAUDE_TOOLS, **options):
    return claude.messages.create(model=server.model, max_tokens=max_tokens, messages=messages, tools=tools, extra_body=fields,
                                  **{"tool_choice": {"type": "any"}, **options})


def ask_responses(client, server, input=USER, max_output_tokens=200, fields=FIELDS, tools=FLAT_TOOLS, **options):
    return client.responses.create(model=server.model, input=input, max_output_tokens=max_output_tokens, tools=tools,
                                   extra_body=fields, **{"tool_choice": "required", **options})


def uses_of(message):
    assert all(block.id for block in message.content if block.type == "tool_use")
    return [(block.name, block.input) for block in message.content if block.type == "tool_use"]


def function_calls_of(response):
    assert all(item.call_id for item in response.output if item.type == "function_call")
    return [(item.name, parse(item.arguments)) for item in response.output if item.type == "function_call"]


def prompt_tokens(usage):
    return usage.input_tokens + usage.cache_read_input_tokens


# --- one turn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [False, True])
def test_calls_of_claude(claude, server, one):
    expected, finish, usage = chat(server, parallel_tool_calls=not one)
    message = ask_claude(claude, server, tool_choice={"type": "any", "disable_parallel_tool_use": one})
    assert message.stop_reason == {"tool_calls": "tool_use", "length": "max_tokens"}[finish]
    assert not one or (finish == "tool_calls" and len(uses_of(message)) == 1)
    assert uses_of(message) == calls_of(expected) and prompt_tokens(message.usage) == usage["prompt_tokens"]
    count = claude.messages.count_tokens(model=server.model, messages=USER, tools=CLAUDE_TOOLS).input_tokens
    assert count == usage["prompt_tokens"]


@pytest.mark.parametrize("one", [False, True])
def test_calls_of_responses(client, server, one):
    expected, finish, usage = chat(server, parallel_tool_calls=not one)
    response = ask_responses(client, server, parallel_tool_calls=not one)
    assert response.status == {"tool_calls": "completed", "length": "incomplete"}[finish]
    assert response.parallel_tool_calls == (not one)
    assert function_calls_of(response) == calls_of(expected) and response.usage.input_tokens == usage["prompt_tokens"]
    assert [tool.name for tool in response.tools] == ["get_weather", "stop"]


def test_named_tool(claude, client, server):
    choice = {"type": "function", "function": {"name": "stop"}}
    expected = calls_of(chat(server, tool_choice=choice)[0])
    assert [name for name, _ in expected] == ["stop"]
    assert uses_of(ask_claude(claude, server, tool_choice={"type": "tool", "name": "stop"})) == expected
    assert function_calls_of(ask_responses(client, server, tool_choice={"type": "function", "name": "stop"})) == expected


def test_no_call(claude, client, server):
    """Tools that may not be called are not told of; those that may be, are, and text comes as text."""
    plain, _, usage = chat(server, tool_choice="none", max_tokens=9)
    message = ask_claude(claude, server, tool_choice={"type": "none"}, max_tokens=9)
    assert message.content[-1].text == plain["content"] and prompt_tokens(message.usage) == usage["prompt_tokens"]
    response = ask_responses(client, server, tool_choice="none", max_output_tokens=9)
    assert response.output_text == plain["content"]
    text, _, usage = chat(server, tool_choice="auto", max_tokens=9)
    message = ask_claude(claude, server, tool_choice={"type": "auto"}, max_tokens=9)
    assert message.content[-1].text == text["content"] and prompt_tokens(message.usage) == usage["prompt_tokens"]
    assert ask_responses(client, server, tool_choice="auto", max_output_tokens=9).output_text == text["content"]


def test_call_that_is_cut_off(claude, client, server):
    """The end came before the arguments did."""
    n = next(n for n in range(1, 100) if "tool_calls" in chat(server, max_tokens=n)[0]) + 1
    message = ask_claude(claude, server, max_tokens=n)
    assert message.stop_reason == "max_tokens" and message.content[-1].input == {}
    response = ask_responses(client, server, max_output_tokens=n)
    assert response.status == response.output[-1].status == "incomplete" and response.output[-1].type == "function_call"


# --- turn after turn -------------------------------------------------------------------------------------------------


def test_result_of_claude(claude, server):
    """What the answer was goes back as it came, with the result: the prompt is that of the chat that does the same."""
    first = ask_claude(claude, server)
    uses = [block for block in first.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": f"rain {i}"}]} for i, use in enumerate(uses)]
    talk = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = ask_claude(claude, server, talk, max_tokens=12, tool_choice={"type": "auto"})
    calls = [{"id": use.id, "type": "function", "function": {"name": use.name, "arguments": json.dumps(use.input)}} for use in uses]
    same = [*USER, {"role": "assistant", "content": None, "tool_calls": calls},
            *({"role": "tool", "tool_call_id": use.id, "content": f"rain {i}"} for i, use in enumerate(uses))]
    expected, _, usage = chat(server, same, max_tokens=12, tool_choice="auto")
    assert prompt_tokens(second.usage) == usage["prompt_tokens"] and second.content[-1].text == expected["content"]
    assert claude.messages.count_tokens(model=server.model, messages=talk, tools=CLAUDE_TOOLS).input_tokens == usage["prompt_tokens"]
    more = [*talk[:2], {"role": "user", "content": [*results, {"type": "text", "text": "and then?"}]}]
    third = ask_claude(claude, server, more, max_tokens=12, tool_choice={"type": "auto"})
    usage = chat(server, [*same, {"role": "user", "content": "and then?"}], max_tokens=1, tool_choice="auto")[2]
    assert prompt_tokens(third.usage) == usage["prompt_tokens"]


def test_result_of_responses(client, server):
    first = ask_responses(client, server)
    calls = [item for item in first.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": f"rain {i}"} for i, call in enumerate(calls)]
    second = ask_responses(client, server, [*USER, *first.output, *results], max_output_tokens=12, tool_choice="auto")
    same = [*USER, {"role": "assistant", "content": None, "tool_calls": [
                {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls]},
            *({"role": "tool", "tool_call_id": c.call_id, "content": f"rain {i}"} for i, c in enumerate(calls))]
    expected, _, usage = chat(server, same, max_tokens=12, tool_choice="auto")
    assert second.usage.input_tokens == usage["prompt_tokens"] and second.output_text == expected["content"]


def test_text_before_a_call(server):
    """An answer's text and its calls are one message of a chat, in either protocol."""
    call = {"id": "c1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    same = [*USER, {"role": "assistant", "content": "I stop", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "ok"}]
    expected = chat(server, same, max_tokens=1)[2]["prompt_tokens"]
    body = {"model": server.model, "tools": CLAUDE_TOOLS, "messages": [
        *USER, {"role": "assistant", "content": [{"type": "text", "text": "I stop"}, {"type": "tool_use", "id": "c1", "name": "stop", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "ok"}]}]}
    assert server.post("/v1/messages/count_tokens", body).json["input_tokens"] == expected
    body = {"model": server.model, "tools": FLAT_TOOLS, "max_output_tokens": 1, "input": [
        *USER, {"role": "assistant", "content": "I stop"}, {"type": "function_call", "call_id": "c1", "name": "stop", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]}]}
    assert server.post("/v1/responses", body).json["usage"]["input_tokens"] == expected


def test_tools_that_wait(server):
    """They are told of once a result has named them."""
    def count(messages, tools):
        body = {"model": server.model, "messages": messages, **({"tools": tools} if tools else {})}
        return server.post("/v1/messages/count_tokens", body).json["input_tokens"]

    waiting = [CLAUDE_TOOLS[1], {**CLAUDE_TOOLS[0], "defer_loading": True}]
    assert count(USER, waiting) == count(USER, CLAUDE_TOOLS[1:])
    assert count(USER, waiting[1:]) == count(USER, None)
    talk = [*USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "stop", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "tool_reference", "tool_name": "get_weather"}]}]}]
    named = [*talk[:2], {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "get_weather"}]}]
    assert count(talk, waiting) == count(named, [CLAUDE_TOOLS[1], CLAUDE_TOOLS[0]]) > count(named, waiting)


def test_namespaces(client, server):
    """A function in one is called space::name in the chat, and answers by both."""
    tools = [FLAT_TOOLS[1], {"type": "namespace", "name": "sky", "description": "above", "tools": [FLAT_TOOLS[0]]}]
    about = "above\n" + CHAT_TOOLS[0]["function"].get("description", "")
    same = [CHAT_TOOLS[1], {"type": "function", "function": {**CHAT_TOOLS[0]["function"], "name": "sky::get_weather", "description": about}}]
    choice = {"type": "function", "name": "sky::get_weather"}
    expected, _, usage = chat(server, tools=same, tool_choice={"type": "function", "function": {"name": "sky::get_weather"}})
    response = ask_responses(client, server, tools=tools, tool_choice=choice)
    call = next(item for item in response.output if item.type == "function_call")
    assert (call.namespace, call.name) == ("sky", "get_weather") and response.usage.input_tokens == usage["prompt_tokens"]
    assert parse(call.arguments) == calls_of(expected)[0][1]
    body = {"model": server.model, "input": USER, "tools": tools, "tool_choice": choice, "stream": True, **FIELDS}
    events = parse_named_events(server.post("/v1/responses", body).body)
    (done,) = (e["item"] for e in events if e["type"] == "response.output_item.done" and e["item"]["type"] == "function_call")
    assert (done["namespace"], done["name"], done["arguments"]) == ("sky", "get_weather", call.arguments)
    talk = [*USER, call, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = ask_responses(client, server, talk, tools=tools, tool_choice="auto", max_output_tokens=1)
    calls = [{"id": "c", "type": "function", "function": {"name": "sky::get_weather", "arguments": call.arguments}}]
    same_talk = [*USER, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "tool_call_id": "c", "content": "rain"}]
    assert second.usage.input_tokens == chat(server, same_talk, tools=same, tool_choice="auto", max_tokens=1)[2]["prompt_tokens"]


def test_namespaces_in_a_chat(server):
    """DeepSeek's way to say so, beside a function or in it: the same as the whole name."""
    plain = CHAT_TOOLS[0]["function"]
    whole = {"type": "function", "function": {**plain, "name": "sky::get_weather"}}
    named = {"type": "function", "function": {"name": "get_weather"}, "namespace": "sky"}
    expected, _, usage = chat(server, tools=[whole], tool_choice={"type": "function", "function": {"name": "sky::get_weather"}})
    assert expected["tool_calls"][0]["function"]["name"] == "sky::get_weather"
    ways = [{"type": "function", "namespace": "sky", "function": plain}, {"type": "function", "function": {**plain, "namespace": {"name": "sky"}}},
            {**whole, "namespace": "sky"}]
    for tool in ways:
        for choice in (named, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}):
            message, _, used = chat(server, tools=[tool], tool_choice=choice, parallel_tool_calls=False)
            assert calls_of(message)[0] == calls_of(expected)[0] and used["prompt_tokens"] == usage["prompt_tokens"]
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    prompts = {server.post("/apply-template", {"messages": [*USER, {"role": "assistant", "tool_calls": [one]}], "tools": tools}).json["prompt"]
               for tools in ([way] for way in ways) for one in ({**call, "namespace": "sky"}, {**call, "function": {**call["function"], "namespace": "sky"}},
                                                               {**call, "function": {**call["function"], "name": "sky::get_weather"}})}
    assert len(prompts) == 1 and prompts.pop().count("sky::get_weather") == 2
    for tool, word in (({**whole, "namespace": "sea"}, "not in the namespace"), ({**ways[0], "namespace": "a::b"}, "::"), ({**ways[0], "namespace": 3}, "namespace")):
        reply = server.post("/v1/chat/completions", {"model": server.model, "messages": USER, "tools": [tool]})
        assert reply.status == 400 and word in reply.error["message"] and reply.error["param"] == "tools", reply


def test_name_like_a_namespace(client, server):
    """A function whose own name has colons, beside a namespace that is called like its beginning."""
    own = {**FLAT_TOOLS[1], "name": "sky::stop"}
    tools = [{"type": "namespace", "name": "sky", "tools": [FLAT_TOOLS[0]]}, own]
    response = ask_responses(client, server, tools=tools, tool_choice={"type": "function", "name": "sky::stop"})
    call = next(item for item in response.output if item.type == "function_call")
    assert call.name == "sky::stop" and getattr(call, "namespace", None) is None


@pytest.mark.parametrize("number", [48.85661234567, 0.12345678901234568])
def test_numbers_keep_their_digits(claude, server, number):
    """Arguments that are told as JSON say what the model wrote, whole and in a stream, and back in the conversation."""
    schema = {"type": "object", "properties": {"at": {"enum": [number]}}, "required": ["at"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "go", "parameters": schema}}]
    written = json.loads(chat(server, tools=tools)[0]["tool_calls"][0]["function"]["arguments"])
    assert written == {"at": number}
    use = {"type": "tool_use", "id": "1", "name": "go", "input": written}
    n = server.post("/v1/messages/count_tokens", {"messages": [*USER, {"role": "assistant", "content": [use]}], "max_tokens": 1}).json["input_tokens"]
    for arguments in (json.dumps(written), written):
        call = {"id": "1", "type": "function", "function": {"name": "go", "arguments": arguments}}
        assert server.post("/tokenize", {"messages": [*USER, {"role": "assistant", "tool_calls": [call]}]}).json["count"] == n
    assert uses_of(ask_claude(claude, server, tools=[{"name": "go", "input_schema": schema}]))[0] == ("go", written)
    options = {"num_predict": 200, "temperature": 1, "logit_bias": {str(server.marks["<｜tool▁calls▁begin｜>"]): 100}}
    for stream in (False, True):
        reply = server.post("/api/chat", {"messages": USER, "tools": tools, "stream": stream, "options": options}).body
        calls = [call for line in reply.splitlines() for call in json.loads(line)["message"].get("tool_calls", [])]
        assert all(call["function"]["arguments"] == written for call in calls)
        assert calls or server.template.startswith(("deepseek-coder-v2", "deepseek-v3.2", "deepseek-v4"))  # no call begins with a token that a bias could name


# --- whole requests --------------------------------------------------------------------------------------------------

READ = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["file_path"], "additionalProperties": False,
        "properties": {"file_path": {"type": "string", "description": "an absolute path", "minLength": 1},
                       "url": {"type": "string", "format": "uri"}, "pages": {"type": "string", "pattern": "^[0-9-]+$"},
                       "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991, "default": 10},
                       "env": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}},
                       "todos": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"status": {"enum": ["a", "b"]}}}},
                       "either": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}


def test_allowed_tools(server, client):
    """In the words of responses: names beside the type, and the mode beside them."""
    both = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "stop"}}]}}
    flat = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "stop"}]}
    expected, _, usage = chat(server, tool_choice=both)
    assert {call["function"]["name"] for call in expected["tool_calls"]} == {"stop"}
    response = ask_responses(client, server, tool_choice=flat)
    assert function_calls_of(response) == calls_of(expected) and response.usage.input_tokens == usage["prompt_tokens"]
    assert response.to_dict()["tool_choice"] == flat
    for choice in ({}, {"mode": "any"}, {"tools": []}, {"tools": 5}, {"tools": [{"type": "mcp", "server_label": "x"}]},
                   {"tools": [{"type": "function", "name": "go"}]}, {"tools": [{"type": "function", "name": 7}]}):
        body = {"model": server.model, "input": "x", "tools": FLAT_TOOLS, "tool_choice": {**flat, "tools": [], **choice}}
        reply = server.post("/v1/responses", body)
        assert reply.status == 400 and reply.error["param"] == "tool_choice", (choice, reply)


def test_input_tokens_with_tools(server, client):
    """Counted is what would be computed."""
    fields = {"model": server.model, "input": USER, "tools": FLAT_TOOLS, "instructions": "be good", "tool_choice": "required"}
    counted = client.responses.input_tokens.count(**fields)
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == client.responses.create(max_output_tokens=1, **fields).usage.input_tokens > 100


def test_all_that_a_coding_tool_sends(server):
    """Fields that ask for nothing here, schemas with words that no grammar keeps, and a first turn of several blocks."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {"model": server.model, "max_tokens": 32000, "temperature": 1, "stream": True, "ignore_eos": False, "stop_sequences": ["e"],
            "metadata": {"user_id": "user_1_account__session_2"}, "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "system": [{"type": "text", "text": "You write code.", **cached}, {"type": "text", "text": "In this folder.", **cached}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "<system-reminder>be brief</system-reminder>"},
                                                      {"type": "text", "text": "list the files", **cached}]}],
            "tools": [{"name": "Read", "description": "reads", "input_schema": READ, "eager_input_streaming": True, **cached}],
            "tool_choice": {"type": "auto"}}
    reply = server.post("/v1/messages?beta=true", body, {"anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14"})
    assert reply.status == 200 and parse_named_events(reply.body)[-1] == {"type": "message_stop"}, reply
    counted = {k: body[k] for k in ("model", "system", "messages", "tools", "tool_choice", "thinking")}
    assert server.post("/v1/messages/count_tokens?beta=true", counted).json["input_tokens"] > 100
    text = [{"type": "input_text", "text": "list the files"}]
    body = {"model": server.model, "instructions": "You write code.", "stream": True, "store": False, "tool_choice": "auto",
            "input": [{"type": "message", "role": "developer", "content": text}, {"type": "message", "role": "user", "content": text}],
            "tools": [{"type": "function", "name": "exec_command", "description": "runs", "strict": False, "parameters": READ}],
            "parallel_tool_calls": False, "reasoning": None, "include": [], "service_tier": None, "prompt_cache_key": "k",
            "text": {"verbosity": "low"}, "client_metadata": {"a": "b"}, "stop": "e"}
    reply = server.post("/v1/responses", body, {"accept": "text/event-stream"})
    assert reply.status == 200 and parse_named_events(reply.body)[-1]["type"] == "response.completed", reply


# --- streams ---------------------------------------------------------------------------------------------------------


def test_stream_of_claude(claude, server):
    plain = ask_claude(claude, server)
    with claude.messages.stream(model=server.model, max_tokens=200, messages=USER, tools=CLAUDE_TOOLS, tool_choice={"type": "any"},
                                extra_body=FIELDS) as stream:
        streamed = stream.get_final_message()
    assert uses_of(streamed) == uses_of(plain) and streamed.stop_reason == plain.stop_reason
    body = {"model": server.model, "max_tokens": 200, "messages": USER, "tools": CLAUDE_TOOLS, "tool_choice": {"type": "any"}, "stream": True}
    events = parse_named_events(server.post("/v1/messages", {**body, **FIELDS}).body)
    starts = [e for e in events if e["type"] == "content_block_start" and e["content_block"]["type"] == "tool_use"]
    assert [s["content_block"]["name"] for s in starts] == [name for name, _ in uses_of(plain)]
    assert all(s["content_block"]["input"] == {} for s in starts)
    for start, (_, arguments) in zip(starts, uses_of(plain)):
        deltas = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta" and e["index"] == start["index"]]
        assert parse("".join(deltas)) == arguments
    stops = [e["index"] for e in events if e["type"] == "content_block_stop"]
    assert stops == sorted(stops) == [e["index"] for e in events if e["type"] == "content_block_start"]


def test_stream_of_responses(client, server):
    plain = ask_responses(client, server)
    with client.responses.stream(model=server.model, input=USER, tools=FLAT_TOOLS, tool_choice="required", max_output_tokens=200,
                                 extra_body=FIELDS) as stream:
        events = list(stream)
    last = events[-1].response
    assert function_calls_of(last) == function_calls_of(plain) and [i.status for i in last.output] == [i.status for i in plain.output]
    for item in (e.item for e in events if e.type == "response.output_item.done" and e.item.type == "function_call"):
        mine = [e for e in events if getattr(e, "item_id", None) == item.id]
        deltas = [e.delta for e in mine if e.type == "response.function_call_arguments.delta"]
        (done,) = (e for e in mine if e.type == "response.function_call_arguments.done")
        assert "".join(deltas) == done.arguments == item.arguments


# --- thoughts --------------------------------------------------------------------------------------------------------


def test_thoughts(claude, client, server):
    """Thoughts come first, in blocks and items of their own, then the calls; and go back without harm."""
    if not server.thinks:
        message = ask_claude(claude, server, thinking={"type": "disabled"})
        assert [block.type for block in message.content if block.type == "thinking"] == []
        return
    fields = {**FIELDS, "logit_bias": {str(server.marks["</think>"]): 4}}
    expected, _, usage = chat(server, thinking={"type": "enabled"}, max_tokens=1200, **fields)
    assert expected["reasoning_content"]
    n_thought = usage["completion_tokens_details"]["reasoning_tokens"]
    on = {"type": "enabled", "budget_tokens": 1024}
    message = ask_claude(claude, server, thinking=on, fields=fields, max_tokens=1200)
    assert message.content[0].type == "thinking" and message.content[0].thinking == expected["reasoning_content"]
    assert uses_of(message) == calls_of(expected) and message.usage.output_tokens_details.thinking_tokens == n_thought > 0
    with claude.messages.stream(model=server.model, max_tokens=1200, messages=USER, tools=CLAUDE_TOOLS, tool_choice={"type": "any"},
                                thinking=on, extra_body=fields) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == [block.type for block in message.content]
    assert streamed.content[0].thinking == expected["reasoning_content"]
    response = ask_responses(client, server, reasoning={"effort": "high"}, fields=fields, max_output_tokens=1200)
    assert response.output[0].type == "reasoning" and response.output[0].content[0].text == expected["reasoning_content"]
    assert function_calls_of(response) == calls_of(expected) and response.usage.output_tokens_details.reasoning_tokens == n_thought
    with client.responses.stream(model=server.model, input=USER, tools=FLAT_TOOLS, tool_choice="required", reasoning={"effort": "high"},
                                 extra_body=fields) as stream:
        events = list(stream)
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == expected["reasoning_content"]
    talk = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": block.id} for block in message.content if block.type == "tool_use"]}]
    assert ask_claude(claude, server, talk, thinking=on, max_tokens=1).usage.output_tokens == 1
