"""V3.2, V4 and V4.1: arguments that are bare text, thoughts that go back in with the calls they led to, the shape of an answer in the prompt. The
weights are random: calls are forced, and their text is whatever comes."""

import json

import pytest
import tool_model
from serving import FLAGS, parse_events

TALK = [{"role": "user", "content": "hello"}]
WRITE = {"type": "object", "properties": {"text": {"type": "string"}, "times": {"type": "integer", "minimum": 1, "maximum": 9}},
         "required": ["text", "times"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "write", "parameters": WRITE}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "write", "arguments": json.dumps({"text": 'a "b"\n', "times": 2})}}
THINKING = {"chat_template_kwargs": {"thinking": True}}
V3_2, V4, V4_1 = "deepseek-v3.2", "deepseek-v4-0731", "deepseek-v4.1"
SPELLING = {V3_2: ("function_calls", ""), V4: ("tool_calls", ""), V4_1: ("calls", " ")}  # the block's name, what is behind the mark


@pytest.fixture(scope="module", params=[(form, mark) for form in SPELLING for mark in ("marked", "spelled")], ids="-".join)
def server(request, start, tmp_path_factory):
    """With the mark as a token, and by a tokenizer without it."""
    form, mark = request.param
    folder = tmp_path_factory.mktemp("dsml") / "tiny"
    ids = tool_model.make(folder, without=[tool_model.DSML] if mark == "spelled" else [])
    server = start(folder, *FLAGS, "--max-model-len", "4096", "--chat-template", form, "--tool-call-parser", "deepseek_v32",
                   "--reasoning-parser", "deepseek_v3")
    server.form, server.is_v4 = form, form != V3_2
    tokens = server.post("/tokenize", {"prompt": "</", "add_special_tokens": False}).json["tokens"]
    server.ids, server.likely = ids, {str(token): 7 for token in [*tokens, ids.get(tool_model.DSML, tokens[0])]}
    yield server
    assert server.becomes_idle() and server.stop() == 0, server.log


def ask(server, reply=False, **fields):
    got = server.post("/v1/chat/completions", {"model": server.model, "messages": TALK, "tools": TOOLS, "tool_choice": "required", "temperature": 1,
                                               "max_tokens": 800, "parallel_tool_calls": False, "logit_bias": server.likely, **fields})
    assert got.status == 200, got
    return got if reply else got.json["choices"][0]


def prompt_of(server, messages, **fields):
    reply = server.post("/apply-template", {"messages": messages, **fields})
    assert reply.status == 200, reply
    return reply.json["prompt"]


def test_bare_text(server):
    """Text comes as it is, quotes and new lines too, and out as JSON; streamed it says the same."""
    n_whole = 0
    for seed in range(6):
        fields = {"seed": seed, "max_tokens": 500}
        choice = ask(server, **fields)
        assert choice["message"]["content"] is None
        function = choice["message"]["tool_calls"][0]["function"] if choice["message"].get("tool_calls") else {"arguments": ""}
        streamed = ""
        for chunk in parse_events(ask(server, reply=True, stream=True, **fields).body):
            for call in chunk["choices"][0]["delta"].get("tool_calls", []) if chunk["choices"] else []:
                streamed += call["function"]["arguments"]
        assert streamed == function["arguments"]
        if choice["finish_reason"] == "tool_calls":
            n_whole += 1
            arguments = json.loads(function["arguments"])
            assert list(arguments) == ["text", "times"] and 1 <= arguments["times"] <= 9 and tool_model.DSML not in arguments["text"]
    assert n_whole > 0 or tool_model.DSML not in server.ids  # else its end is many letters, which no bias spells in order


def test_thinks_and_calls(server):
    """The thought ends, then the call must come."""
    bias = {**server.likely, str(server.ids["</think>"]): 5}
    for kwargs in ({"thinking": True}, {"enable_thinking": True}):
        message = ask(server, seed=1, chat_template_kwargs=kwargs, logit_bias=bias, tool_choice={"type": "function", "function": {"name": "write"}})["message"]
        assert "reasoning_content" in message and message["tool_calls"][0]["function"]["name"] == "write" and not message["content"]
    assert "reasoning_content" not in ask(server, seed=1, chat_template_kwargs={"enable_thinking": False})["message"]


def test_thoughts_come_back(server):
    """Those behind the last question stand in the prompt, whatever the API calls them; earlier ones where V4 has functions, else not."""
    block, gap = SPELLING[server.form]
    answer = ("<｜User｜><tool_result>done</tool_result><｜Assistant｜><think>" if server.is_v4 else
              "\n\n<function_results>\n<result>done</result>\n</function_results>\n\n<think>")
    result = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
    talk = [*TALK, {"role": "assistant", "content": "Well.", "tool_calls": [CALL], "reasoning_content": "hm, why"}, result]
    prompt = prompt_of(server, talk, tools=TOOLS, **THINKING)
    calls = (f'<｜DSML｜{block}>\n<｜DSML｜invoke name="write">\n<｜DSML｜parameter name="text" string="true">a "b"\n</｜DSML｜parameter>\n'
             f'<｜DSML｜parameter name="times" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜{block}>')
    calls = calls.replace(tool_model.DSML, tool_model.DSML + gap)
    assert prompt.endswith(f"hello<｜Assistant｜><think>hm, why</think>Well.\n\n{calls}<｜end▁of▁sentence｜>{answer}")
    assert ("hm, why" in prompt_of(server, [*talk, *TALK], tools=TOOLS, **THINKING)) == server.is_v4
    assert "hm, why" not in prompt_of(server, [*talk, *TALK], **THINKING)
    assert "hm, why" not in prompt_of(server, talk, tools=TOOLS)
    n = server.post("/tokenize", {"messages": talk, "tools": TOOLS, **THINKING}).json["count"]
    use = {"type": "tool_use", "id": "call_1", "name": "write", "input": json.loads(CALL["function"]["arguments"])}
    claude = {"model": server.model, "max_tokens": 1, "thinking": {"type": "adaptive"}, "tools": [{"name": "write", "input_schema": WRITE}],
              "messages": [*TALK, {"role": "assistant", "content": [
                  {"type": "thinking", "thinking": "hm, ", "signature": ""}, {"type": "thinking", "thinking": "why"}, {"type": "redacted_thinking", "data": "x"},
                  {"type": "text", "text": "Well."}, use]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "done"}]}]}
    assert server.post("/v1/messages/count_tokens", claude).json["input_tokens"] == n
    function_call = {"type": "function_call", "call_id": "call_1", **CALL["function"]}
    responses = {"model": server.model, "max_output_tokens": 1, "reasoning": {"effort": "low"}, "tools": [{"type": "function", "name": "write", "parameters": WRITE}],
                 "input": [*TALK, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm, why"}]},
                           {"role": "assistant", "content": "Well."}, function_call, {"type": "function_call_output", "call_id": "call_1", "output": "done"}]}
    assert server.post("/v1/responses/input_tokens", responses).json["input_tokens"] == n
    ollama = {"model": server.model, "stream": False, "think": True, "tools": TOOLS, "options": {"num_predict": 1}, "messages": [
        *TALK, {"role": "assistant", "content": "Well.", "thinking": "hm, why", "tool_calls": [{"function": {"name": "write", "arguments": use["input"]}}]},
        {"role": "tool", "content": "done"}]}
    assert server.post("/api/chat", ollama).json["prompt_eval_count"] == n


def test_thought_without_an_answer(server):
    """A thought alone is no message; it goes to no other side's."""
    n = server.post("/v1/messages/count_tokens", {"model": server.model, "messages": [*TALK, *TALK]}).json["input_tokens"]
    body = {"model": server.model, "messages": [*TALK, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}, *TALK]}
    assert server.post("/v1/messages/count_tokens", body).json["input_tokens"] == n


def test_format_is_told(server):
    schema = {"type": "object", "properties": {"n": {"type": "number", "maximum": 0.5}}, "required": ["n"]}
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}
    told = f"## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{json.dumps(schema)}<｜User｜>hello"
    assert told in prompt_of(server, TALK, **fields)
    assert "Response Format" not in prompt_of(server, TALK, response_format={"type": "json_object"})


def test_what_the_module_alone_takes_from_messages(server):
    """DeepSeek's module for V4 reads these fields of a message; no API has them there, so they are no part of the prompt."""
    schema = {"type": "object", "properties": {"nowhere": {"type": "null"}}}
    fields = {"response_format": schema, "tools": TOOLS, "task": "query"}
    for role in ("system", "developer", "user"):
        talk = [{"role": role, "content": "Be brief."}, *TALK]
        plain = prompt_of(server, talk)
        assert prompt_of(server, [{**talk[0], **fields}, {**talk[1], **fields}]) == plain, role
        n = server.post("/tokenize", {"messages": talk}).json["count"]
        assert server.post("/tokenize", {"messages": [{**talk[0], **fields}, {**talk[1], **fields}]}).json["count"] == n


def test_effort(server):
    """Every API has a word for how much to think; only V4's prompt says it, and not where nothing is to be thought."""
    levels = {word: prompt_of(server, TALK, reasoning_effort=word) for word in ("none", "low", "medium", "high", "xhigh", "max")}
    assert levels["none"].endswith("</think>") and all(levels[word].endswith("<think>") for word in levels if word != "none")
    said = {word: prompt.partition("Reasoning Effort: ")[2].partition(" ")[0] for word, prompt in levels.items()}
    low, high, most = {V3_2: ("", "", ""), V4: ("", "Absolute", "Beyond"), V4_1: ("50", "75", "100")}[server.form]
    assert said == {"none": "", "low": low, "medium": high, "high": high, "xhigh": high, "max": most}
    assert prompt_of(server, TALK, chat_template_kwargs={"reasoning_effort": "max"}) == levels["max"]
    assert prompt_of(server, TALK, thinking={"type": "enabled"}, reasoning_effort="max") == levels["max"]
    assert prompt_of(server, TALK, thinking={"type": "disabled"}, reasoning_effort="max") == levels["none"]
    n = {word: server.post("/tokenize", {"messages": TALK, "reasoning_effort": word}).json["count"] for word in levels}
    for word in ("low", "medium", "max"):
        chat = server.post("/v1/chat/completions", {"model": server.model, "messages": TALK, "max_tokens": 1, "reasoning_effort": word}).json
        assert chat["usage"]["prompt_tokens"] == n[word]
        claude = {"model": server.model, "messages": TALK, "output_config": {"effort": word}}
        count = server.post("/v1/messages/count_tokens", {**claude, "thinking": {"type": "adaptive"}}).json["input_tokens"]
        assert count == n[word] and server.post("/v1/messages/count_tokens", claude).json["input_tokens"] == n["none"]
        assert server.post("/v1/responses/input_tokens", {"model": server.model, "input": TALK, "reasoning": {"effort": word}}).json["input_tokens"] == n[word]
        ollama = {"model": server.model, "stream": False, "think": word, "options": {"num_predict": 1}, "messages": TALK}
        assert server.post("/api/chat", ollama).json["prompt_eval_count"] == n[word]
    for wrong in ("huge", 101, 0, True, 1.5) if server.is_v4 else ():
        reply = server.post("/v1/chat/completions", {"model": server.model, "messages": TALK, "reasoning_effort": wrong})
        assert reply.status == 400 and "reasoning_effort" in reply.error["message"], reply


def test_effort_in_numbers(server):
    """V4.1's, beside the messages or among the template's variables; of the others V4 has words only."""
    reply = server.post("/apply-template", {"messages": TALK, "reasoning_effort": 37})
    if server.form == V4_1:
        whole = "<｜System｜>Reasoning Effort: 37 (range 1-100, the higher the value, the more thorough the reasoning)\n\n<｜User｜>hello<｜Assistant｜><think>"
        assert reply.json["prompt"].endswith(whole)
        for fields in ({"chat_template_kwargs": {"reasoning_effort": 37}}, {"thinking": {"type": "enabled"}, "reasoning_effort": 37}):
            assert prompt_of(server, TALK, **fields) == reply.json["prompt"]
        assert "Effort: 75 " in prompt_of(server, TALK, **THINKING)
        wrong = server.post("/apply-template", {"messages": TALK, "reasoning_effort": 37.5})
        assert wrong.status == 400 and "from 1 to 100" in wrong.error["message"]
        off = prompt_of(server, TALK, thinking={"type": "disabled"}, reasoning_effort=37)
        assert off == prompt_of(server, TALK) and "System" not in off
    elif server.form == V4:
        assert reply.status == 400 and "reasoning_effort" in reply.error["message"]
    else:
        assert reply.json["prompt"] == prompt_of(server, TALK, **THINKING)


def test_late_instructions(server):
    """What the system says later stands there in V4.1, and is to be answered; V4 has it said first."""
    talk = [{"role": "system", "content": "one"}, *TALK, {"role": "assistant", "content": "a"}, {"role": "developer", "content": "two"}]
    prompt = prompt_of(server, talk)
    if server.form == V4_1:
        assert prompt.endswith("<｜System｜>one<｜User｜>hello<｜Assistant｜></think>a<｜end▁of▁sentence｜><｜System｜>two<｜Assistant｜></think>")
    elif server.form == V4:
        assert prompt.endswith("one\n\ntwo<｜User｜>hello<｜Assistant｜></think>a<｜end▁of▁sentence｜><｜Assistant｜></think>")
    # by the other APIs the user says it, where the system has no place of its own
    same = talk if server.form == V4_1 else [*talk[:-1], {"role": "user", "content": "two"}]
    n = server.post("/tokenize", {"messages": same}).json["count"]
    claude = {"model": server.model, "system": "one", "messages": [*talk[1:-1], {"role": "system", "content": "two"}]}
    assert server.post("/v1/messages/count_tokens", claude).json["input_tokens"] == n
    codex = {"model": server.model, "instructions": "one", "input": talk[1:]}
    assert server.post("/v1/responses/input_tokens", codex).json["input_tokens"] == n


def test_what_only_the_format_has(server):
    """A reminder is a role of V4's, and parts are paragraphs there; a task, which its API does not have, changes nothing."""
    talk = [{"role": "latest_reminder", "content": "23 November"}, {**TALK[0], "task": "query", "tools": TOOLS}]
    reply = server.post("/apply-template", {"messages": talk})
    if server.is_v4:
        assert reply.json["prompt"].endswith("<｜latest_reminder｜>23 November<｜User｜>hello<｜Assistant｜></think>")
    else:
        assert reply.status == 400 and "latest_reminder" in reply.error["message"]
    assert prompt_of(server, talk[1:]) == prompt_of(server, TALK)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ("a\n\nb<" if server.is_v4 else "a\nb<") in prompt_of(server, parts)


@pytest.mark.parametrize("arguments", ["[1]", "{", "7", ""])
def test_bad_arguments(server, arguments):
    call = {**CALL, "function": {"name": "write", "arguments": arguments}}
    reply = server.post("/v1/chat/completions", {"model": server.model, "messages": [*TALK, {"role": "assistant", "tool_calls": [call]}]})
    assert reply.status == 400 and "messages[1]: expected the \"function.arguments\"" in reply.error["message"], reply


def test_go_on(server):
    """An answer that is continued follows what its question opened."""
    last = {"role": "assistant", "content": "Well, ", "prefix": True}
    n = server.post("/tokenize", {"messages": TALK}).json["count"]
    answer = server.post("/v1/chat/completions", {"model": server.model, "messages": [*TALK, last], "max_tokens": 1}).json
    words = server.post("/tokenize", {"prompt": "Well, ", "add_special_tokens": False}).json["count"]
    assert answer["usage"]["prompt_tokens"] == n + words
