"""Ollama's API, as twinny, Void, Continue, Zed, VS Code, Open WebUI and scripts use it: POST /api/generate and /api/chat, and what
they ask about the server and its model. The `ollama` package asks as well as plain HTTP."""

import datetime
import json
import time

import jsonschema
import ollama
import pytest

import make_tiny_text_model
import tool_model
from serving import BOS, EOS_ID, FIM_IDS, FIM_TEXT, FLAGS, GOLDEN, MAX_MODEL_LEN, post_bytes, wait_until
from words import NO_END, PROMPT, letters, only

GREEDY = {"temperature": 0, "repeat_penalty": 1, "logit_bias": NO_END}
OPENAI_GREEDY = {"temperature": 0, "logit_bias": NO_END}
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the people"}]
METRICS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}
GENERATED = {"model", "created_at", "response", "done", "done_reason", *METRICS}
CHATTED = GENERATED - {"response"} | {"message"}


def check_time(text):
    assert text.endswith("Z") and datetime.datetime.fromisoformat(text).tzinfo, text


def ask(server, path, body):
    """A whole answer."""
    reply = server.post(path, {"model": server.model, "stream": False, **body})
    assert reply.status == 200 and reply.headers["content-type"].startswith("application/json"), reply
    answer = reply.json
    assert answer["done"] is True
    check_time(answer["created_at"])
    return answer


def generate(server, prompt, options=None, **fields):
    return ask(server, "/api/generate", {"prompt": prompt, "options": options or {}, **fields})


def chat(server, messages, options=None, **fields):
    return ask(server, "/api/chat", {"messages": messages, "options": options or {}, **fields})


def lines(server, path, body):
    """The objects of a stream: one a line, only the last is done."""
    reply = server.post(path, {"model": server.model, **body})
    assert reply.status == 200 and reply.headers["content-type"] == "application/x-ndjson", reply
    assert reply.body.endswith(b"\n")
    found = [json.loads(line) for line in reply.body.decode().removesuffix("\n").split("\n")]
    assert [piece["done"] for piece in found] == [False] * (len(found) - 1) + [True]
    for piece in found:
        check_time(piece["created_at"])
    return found


def refused(server, path, body, status=400, **options):
    reply = server.post(path, body, **options)
    return plain_error(reply, status)


def plain_error(reply, status):
    assert reply.status == status and reply.headers["content-type"].startswith("application/json"), reply
    assert set(reply.json) == {"error"} and isinstance(reply.json["error"], str) and reply.json["error"], reply
    return reply.json["error"]


# --- POST /api/generate ----------------------------------------------------------------------------------------------


def test_raw_prompt(server, engine):
    answer = generate(server, PROMPT, {"num_predict": 12, **GREEDY}, raw=True)
    expected = server.complete(PROMPT, max_tokens=12, **OPENAI_GREEDY)
    assert set(answer) == GENERATED and answer["model"] == server.model
    assert answer["response"] == expected["choices"][0]["text"]
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (len(engine.prompt(PROMPT)), 12)
    assert answer["done_reason"] == "length"
    assert answer["prompt_eval_duration"] > 0 and answer["eval_duration"] > 0 and answer["load_duration"] >= 0
    assert answer["total_duration"] >= answer["prompt_eval_duration"] + answer["eval_duration"]


def test_prompt_is_a_message(server):
    """Without raw the model's template is around it, and the system's message before it."""
    for system in ({}, {"system": "Be kind."}, {"system": ""}):
        answer = generate(server, "the people", {"num_predict": 12, **GREEDY}, **system)
        messages = [m for m in TALK if m["role"] == "user" or system.get("system")]
        expected = server.chat(messages, max_tokens=12, **OPENAI_GREEDY)
        assert set(answer) == GENERATED | {"context"}
        assert answer["response"] == expected["choices"][0]["message"]["content"]
        assert answer["prompt_eval_count"] == expected["usage"]["prompt_tokens"]


def test_model_without_a_template(start, tmp_path):
    """Ollama's template is the prompt then."""
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["chat_template"]
    path.write_text(json.dumps(content, ensure_ascii=False))
    server = start(tmp_path / "m", *FLAGS)
    first = generate(server, PROMPT, {"num_predict": 6, **GREEDY})
    assert first["response"] == server.complete(PROMPT, max_tokens=6, **OPENAI_GREEDY)["choices"][0]["text"]
    second = generate(server, " state", {"num_predict": 6, **GREEDY}, context=first["context"])
    assert second["prompt_eval_count"] > first["prompt_eval_count"] + 6 and second["context"][:len(first["context"])] == first["context"]
    assert "template" in refused(server, "/api/generate", {"prompt": "x", "system": "y"})
    refused(server, "/api/chat", {"messages": TALK})
    shown = server.post("/api/show", {"model": server.model}).json
    assert shown["template"].endswith("{{ else }}{{ .Prompt }}{{ .Response }}{{ end }}")
    assert "tokenizer.chat_template" not in shown["model_info"]
    assert server.stop() == 0


@pytest.mark.parametrize("prefix", ["the good\n    people", ""])
def test_suffix(server, engine, prefix):
    """Filled by token ids; with raw as well, which Void sends."""
    suffix = f"\nof {FIM_TEXT[1]} the world"
    expected = server.complete(prefix, suffix=suffix, max_tokens=16, **OPENAI_GREEDY)
    for more in ({}, {"raw": True}, {"system": "You write code."}):
        answer = generate(server, prefix, {"num_predict": 16, **GREEDY}, suffix=suffix, **more)
        assert set(answer) == GENERATED
        assert answer["response"] == expected["choices"][0]["text"]
        assert answer["prompt_eval_count"] == len(engine.fim(prefix, suffix))


def test_marks_in_the_prompt(server, engine):
    """twinny writes the hole's marks itself and does not say raw; they are tokens, and no template is put around them."""
    answer = generate(server, f"{FIM_TEXT[0]}# a.py\nthe good{FIM_TEXT[1]} world{FIM_TEXT[2]}", {"num_predict": 8, **GREEDY})
    expected = server.complete("# a.py\nthe good", suffix=" world", max_tokens=8, **OPENAI_GREEDY)
    assert answer["response"] == expected["choices"][0]["text"]
    assert answer["prompt_eval_count"] == len(engine.fim("# a.py\nthe good", " world"))


@pytest.mark.parametrize("id", [EOS_ID, *FIM_IDS])
def test_a_hole_s_end(server, id):
    answer = generate(server, "x", {"num_predict": 9, "temperature": 0, "logit_bias": only([id])}, suffix="y")
    assert (answer["done_reason"], answer["response"], answer["eval_count"]) == ("stop", "", 1)


def test_stream(server):
    body = {"prompt": PROMPT, "options": {"num_predict": 30, "seed": 5, "logit_bias": NO_END}}
    whole = ask(server, "/api/generate", body)
    pieces = lines(server, "/api/generate", body)
    assert len(pieces) > 5
    assert "".join(piece["response"] for piece in pieces) == whole["response"]
    assert all(set(piece) == {"model", "created_at", "response", "done"} for piece in pieces[:-1])
    last = pieces[-1]
    assert set(last) == GENERATED | {"context"} and last["response"] == "" and last["context"] == whole["context"]
    assert (last["eval_count"], last["done_reason"]) == (30, "length")
    assert lines(server, "/api/generate", {**body, "stream": True})[-1]["context"] == whole["context"]


def test_stop(server, engine):
    letter = letters(engine)["a"]
    for stop in ("aaaa", ["zz", "aaaa"]):
        answer = generate(server, "x", {"num_predict": 9, "temperature": 0, "logit_bias": only([letter]), "stop": stop})
        assert (answer["done_reason"], answer["response"], answer["eval_count"]) == ("stop", "", 4)
    answer = generate(server, "x", {"num_predict": 3, "temperature": 0, "logit_bias": only([letter]), "stop": []})
    assert (answer["done_reason"], answer["response"]) == ("length", "aaa")
    answer = generate(server, "x", {"temperature": 0, "logit_bias": only([EOS_ID])})
    assert (answer["done_reason"], answer["response"], answer["eval_count"]) == ("stop", "", 1)


def test_until_the_context_is_full(server, engine):
    """No limit is num_predict's default; num_ctx changes nothing; a longer prompt is an error and never cut."""
    prompt = "x\n" * (MAX_MODEL_LEN // 2)
    prompt = prompt[:2 * (len(prompt) // 2 * (MAX_MODEL_LEN - 30) // len(engine.prompt(prompt)))]
    n = len(engine.prompt(prompt))
    assert MAX_MODEL_LEN - 40 < n < MAX_MODEL_LEN
    for options in ({}, {"num_predict": -1}, {"num_predict": -2}, {"num_predict": 0}, {"num_predict": 5000, "num_ctx": 64}):
        answer = generate(server, prompt, {"temperature": 0, "ignore_eos": True, **options}, raw=True)
        assert (answer["prompt_eval_count"], answer["eval_count"]) == (n, MAX_MODEL_LEN - n) and answer["done_reason"] == "length"
    for options in ({}, {"num_ctx": 10**6}):
        assert str(MAX_MODEL_LEN) in refused(server, "/api/generate", {"prompt": prompt * 2, "raw": True, "options": options})


def test_seeds(server):
    def response(**options):
        return generate(server, PROMPT, {"num_predict": 20, "temperature": 1.5, **options})["response"]

    assert response(seed=3) == response(seed=3) != response(seed=4)
    assert response(seed=0) == response(seed=0) != response()
    assert response(seed=-1) != response(seed=-1)


def test_defaults(server):
    """They are Ollama's, not those of the other endpoints."""
    ours = generate(server, PROMPT, {"num_predict": 30, "seed": 11, "logit_bias": NO_END, "repeat_last_n": -1}, raw=True)
    fields = {"max_tokens": 30, "seed": 11, "logit_bias": NO_END}
    named = server.complete(PROMPT, temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.1, **fields)
    assert ours["response"] == named["choices"][0]["text"] != server.complete(PROMPT, **fields)["choices"][0]["text"]


def test_sampling_is_the_other_endpoint_s(server):
    fields = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "min_p": 0.01, "presence_penalty": 0.3, "frequency_penalty": 0.1, "seed": 11}
    options = {"num_predict": 30.0, "repeat_penalty": 1.3, "repeat_last_n": -1, **fields, "top_k": 30.0, "num_ctx": 2048.0}
    ours = generate(server, PROMPT, options, raw=True)["response"]
    assert ours == server.complete(PROMPT, max_tokens=30, repetition_penalty=1.3, **fields)["choices"][0]["text"]


@pytest.mark.parametrize("last_n", [1, 2, 3, 5, 64, -1, 0, None])
def test_repeat_last_n(server, engine, last_n):
    """Three letters, of which the best that was not said lately comes next."""
    bias = {"a": 100, "b": 80, "c": 60}
    ids = letters(engine, "abc")
    options = {"num_predict": 12, "temperature": 0, "repeat_penalty": 2, "logit_bias": {str(ids[x]): bias[x] for x in bias}}
    if last_n is not None:
        options["repeat_last_n"] = last_n
    n = {None: 64, -1: 10**6}.get(last_n, last_n)
    said = ""
    for _ in range(12):
        lately = said[max(0, len(said) - n):]
        said += max(bias, key=lambda x: bias[x] / (2 if x in lately else 1))
    assert generate(server, "x", options, raw=True)["response"] == said


def test_context(server, engine):
    """The next prompt goes on where the last answer ended, as if all had been a chat."""
    options = {"num_predict": 8, "temperature": 0, "repeat_penalty": 1}
    first = generate(server, "the people", {**options, "logit_bias": NO_END}, system="Be kind.")
    prompt = server.post("/tokenize", {"messages": TALK}).json["tokens"]
    answered = engine.text(first["context"][len(prompt):])
    assert first["context"][:len(prompt)] == prompt and answered == first["response"]
    second = generate(server, "of state", {**options, "logit_bias": NO_END}, context=first["context"])
    user = engine.ids("User: of state\n\nAssistant:")
    assert second["context"][:second["prompt_eval_count"]] == [*first["context"], EOS_ID, *user]
    ended = generate(server, "the people", {"temperature": 0, "logit_bias": only([EOS_ID])})
    assert ended["context"][-1] == EOS_ID != ended["context"][-2]
    again = generate(server, "of state", {"num_predict": 1, **GREEDY}, context=ended["context"])
    assert again["context"][:-1] == [*ended["context"], *user]


# Some clients ask for the model first, or to forget it.
@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"stream": True}, {"keep_alive": 0}, {"keep_alive": "10m", "stream": False}])
def test_load(server, body):
    reply = server.post("/api/generate", {"model": server.model, **body})
    assert reply.status == 200 and reply.headers["content-type"].startswith("application/json")
    answer = reply.json
    check_time(answer.pop("created_at"))
    assert answer == {"model": server.model, "response": "", "done": True, "done_reason": "load"}
    for messages in ({}, {"messages": []}):
        answer = server.post("/api/chat", {"model": server.model, **body, **messages}).json
        del answer["created_at"]
        assert answer == {"model": server.model, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}


PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
          "required": ["name", "age"], "additionalProperties": False}


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_format(server, path):
    for seed in range(4):
        for format, schema in ((PERSON, PERSON), ("json", {"type": "object"})):
            options = {"temperature": 1, "seed": seed, "num_predict": 400, "repeat_penalty": 1}
            prompt = {"prompt": "who?"} if path == "/api/generate" else {"messages": TALK}
            body = {**prompt, "format": format, "options": options}
            answer = ask(server, path, body)
            text = answer["response"] if "response" in answer else answer["message"]["content"]
            assert text.lstrip().startswith("{")
            if format == PERSON or answer["done_reason"] == "stop":
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            if seed == 0:
                pieces = lines(server, path, body)
                assert "".join(p["response"] if "response" in p else p["message"]["content"] for p in pieces) == text
    assert generate(server, PROMPT, {"num_predict": 3, **GREEDY}, format="", raw=True)["eval_count"] == 3


# --- POST /api/chat --------------------------------------------------------------------------------------------------


def test_chat(server):
    answer = chat(server, TALK, {"num_predict": 12, **GREEDY})
    expected = server.chat(TALK, max_tokens=12, **OPENAI_GREEDY)
    assert set(answer) == CHATTED
    assert answer["message"] == {"role": "assistant", "content": expected["choices"][0]["message"]["content"]}
    assert answer["prompt_eval_count"] == expected["usage"]["prompt_tokens"] and answer["eval_count"] == 12
    assert answer["done_reason"] == "length"


def test_chat_streams(server):
    body = {"messages": TALK, "options": {"num_predict": 30, "seed": 5, "temperature": 1, "logit_bias": NO_END}}
    whole, pieces = ask(server, "/api/chat", body), lines(server, "/api/chat", body)
    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]
    assert all(set(piece) == {"model", "created_at", "message", "done"} for piece in pieces[:-1])
    assert all(piece["message"]["role"] == "assistant" for piece in pieces) and pieces[-1]["message"]["content"] == ""
    assert set(pieces[-1]) == CHATTED and len(pieces) > 5


def test_an_answer_that_was_begun(server):
    """An assistant's message that is last is continued."""
    messages = [*TALK, {"role": "assistant", "content": "So"}]
    answer = chat(server, messages, {"num_predict": 6, **GREEDY})
    expected = server.chat(messages, max_tokens=6, continue_final_message=True, add_generation_prompt=False, **OPENAI_GREEDY)
    assert answer["message"]["content"] == expected["choices"][0]["message"]["content"]
    assert answer["prompt_eval_count"] == expected["usage"]["prompt_tokens"]


def test_messages_as_clients_write_them(server):
    """Fields without a value, thoughts that are history, and no content at all."""
    messages = [{"role": "user", "content": "a", "images": None}, {"role": "assistant", "content": None, "tool_calls": None},
                {"role": "assistant", "content": "b", "thinking": "hm", "tool_calls": [], "images": []}, {"role": "user"}]
    answer = chat(server, messages, {"num_predict": 1}, tools=[], think=None, format=None, keep_alive=-1)
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "assistant", "content": "b"},
             {"role": "user", "content": ""}]
    assert answer["prompt_eval_count"] == server.chat(plain, max_tokens=1)["usage"]["prompt_tokens"]
    assert chat(server, TALK, {"num_predict": 1}, think=False)["eval_count"] == 1


def test_logprobs(server):
    fields = {"logprobs": True, "top_logprobs": 2}
    expected = server.chat(TALK, max_tokens=5, **fields, **OPENAI_GREEDY)["choices"][0]["logprobs"]["content"]
    assert chat(server, TALK, {"num_predict": 5, **GREEDY}, **fields)["logprobs"] == expected
    pieces = lines(server, "/api/chat", {"messages": TALK, "options": {"num_predict": 5, **GREEDY}, **fields})
    assert sum((piece.get("logprobs", []) for piece in pieces), []) == expected
    raw = generate(server, PROMPT, {"num_predict": 4, **GREEDY}, raw=True, logprobs=True)["logprobs"]
    assert len(raw) == 4 and all(entry["top_logprobs"] == [] for entry in raw)
    assert "logprobs" not in generate(server, PROMPT, {"num_predict": 1}, raw=True, top_logprobs=3)


# --- thoughts and functions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(start, tmp_path_factory):
    """(V3.1, R1, mark -> id): the tiny model with their marks and templates."""
    folder = tmp_path_factory.mktemp("thinker") / "m"
    ids = tool_model.make(folder)
    servers = [start(folder, *FLAGS, "--chat-template", name) for name in ("deepseek-v3.1", "deepseek-r1")]
    yield *servers, ids
    for server in servers:
        assert server.becomes_idle() and server.stop() == 0


def in_turn(*ids):
    """Each of these tokens once, in this order: none of them is in the prompt."""
    return {"num_predict": len(ids), "temperature": 0, "repeat_penalty": 2, "repeat_last_n": -1,
            "logit_bias": {str(id): 100 - 8 * i for i, id in enumerate(ids)}}


def test_thinking(thinker, engine):
    """V3.1 thinks when it is asked to; its thought is not the content, streamed or not."""
    v3, _, marks = thinker
    letter = letters(engine, "qwz")
    options = in_turn(letter["q"], letter["w"], marks["</think>"], letter["z"])
    for think in (True, "high"):
        body = {"messages": TALK, "options": options, "think": think}
        assert ask(v3, "/api/chat", body)["message"] == {"role": "assistant", "content": "z", "thinking": "qw"}
        pieces = [piece["message"] for piece in lines(v3, "/api/chat", body)]
        assert [(p.get("thinking", ""), p["content"]) for p in pieces] == [("q", ""), ("w", ""), ("", "z"), ("", "")]
        answer = generate(v3, "the people", options, think=think, system="Be kind.")
        assert (answer["thinking"], answer["response"]) == ("qw", "z")
        pieces = lines(v3, "/api/generate", {"prompt": "x", "options": options, "think": think})
        assert [(p.get("thinking", ""), p["response"]) for p in pieces] == [("q", ""), ("w", ""), ("", "z"), ("", "")]
    for think in (None, False):
        answer = chat(v3, TALK, in_turn(letter["q"], letter["w"]), think=think)
        assert answer["message"] == {"role": "assistant", "content": "qw"}
    assert server_thinks(v3)


def server_thinks(server):
    return "thinking" in server.post("/api/show", {"model": server.model}).json["capabilities"]


def test_a_model_that_always_thinks(thinker, engine):
    """R1 cannot be told not to: then its thought is left out."""
    _, r1, marks = thinker
    letter = letters(engine, "qw")
    options = in_turn(letter["q"], marks["</think>"], letter["w"])
    for think, message in ((None, {"content": "w", "thinking": "q"}), (True, {"content": "w", "thinking": "q"}), (False, {"content": "w"})):
        assert chat(r1, TALK, options, think=think)["message"] == {"role": "assistant", **message}
        pieces = [p["message"] for p in lines(r1, "/api/chat", {"messages": TALK, "options": options, "think": think})]
        assert "".join(p["content"] for p in pieces) == "w" and "".join(p.get("thinking", "") for p in pieces) == message.get("thinking", "")
    assert server_thinks(r1)


WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a day.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "day": {"type": "integer", "minimum": 1, "maximum": 31}},
    "required": ["city", "day"], "additionalProperties": False}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome", "day": 2}}}]}


def check_calls(calls):
    assert calls
    for i, call in enumerate(calls):
        assert set(call) == {"id", "function"} and call["function"]["index"] == i and call["function"]["name"] == "get_weather"
        jsonschema.validate(call["function"]["arguments"], WEATHER["function"]["parameters"])


@pytest.mark.parametrize("which", ["coder", "v3.1", "r1"])
def test_tools(server, thinker, which):
    """A call has its arguments as an object, and comes in one piece."""
    server = {"coder": server, "v3.1": thinker[0], "r1": thinker[1]}[which]
    for seed in range(4):
        body = {"messages": TALK, "tools": [WEATHER], "tool_choice": "required",
                "options": {"temperature": 1, "seed": seed, "num_predict": 600, "repeat_penalty": 1}}
        answer = ask(server, "/api/chat", body)
        if answer["done_reason"] == "length":
            continue
        calls = answer["message"]["tool_calls"]
        check_calls(calls)
        pieces = [piece["message"] for piece in lines(server, "/api/chat", body)]
        strip = lambda calls: [call["function"] for call in calls]  # ids are new ones
        assert strip(sum((p.get("tool_calls", []) for p in pieces), [])) == strip(calls)
        for key in ("content", "thinking"):
            assert "".join(p.get(key, "") for p in pieces) == answer["message"].get(key, "")
        break
    else:
        raise AssertionError("no call was made")
    cut = ask(server, "/api/chat", {**body, "options": {**body["options"], "num_predict": answer["eval_count"] - 35}})
    assert cut["done_reason"] == "length" and len(cut["message"].get("tool_calls", [])) < len(calls)
    assert "tools" in server.post("/api/show", {"model": server.model}).json["capabilities"]


def test_what_functions_returned(server, thinker):
    """The history that Ollama's clients keep is the prompt that OpenAI's make."""
    result = {"content": "sunny", "role": "tool"}
    theirs = [{"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {
        "name": "get_weather", "arguments": '{"city": "Rome", "day": 2}'}}]}, {**result, "tool_call_id": "call_1"}]
    for server in (server, thinker[0]):
        ours = chat(server, [*TALK, CALL, {**result, "tool_name": "get_weather"}], {"num_predict": 1}, tools=[WEATHER])
        assert ours["prompt_eval_count"] == server.chat([*TALK, *theirs], max_tokens=1, tools=[WEATHER])["usage"]["prompt_tokens"]
    assert "tool" in refused(server, "/api/chat", {"messages": [{"role": "tool", "content": "x"}]})


# --- what is wrong ---------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "num_predict": ["5", 1.5, True], "temperature": ["hot", -1, 101], "top_k": ["x", -2, 1.5], "top_p": [-1, 2], "min_p": [-1, "x"],
    "repeat_penalty": ["x", 0, 101], "repeat_last_n": [-2, "x"], "presence_penalty": [3], "frequency_penalty": ["x"],
    "seed": ["x", 1.5], "stop": [5, [5], [""], ["x"] * 200], "num_ctx": ["big", 1.5], "num_gpu": ["all"], "use_mmap": [1],
    "mirostat": [1, 2, "x"], "typical_p": [0.5], "tfs_z": [0.5], "logit_bias": [5],
}
BAD = {
    "options": [5, [], "x"], "stream": ["yes", 1], "keep_alive": [True, [], {}], "format": [5, "xml", ["json"], {"type": "no type"}],
    "think": [5, "much", []], "images": [["aGk="], "aGk="], "logprobs": [1], "model": [5],
}
BAD_GENERATE = {"prompt": [5, ["x"], [1, 2], {}], "suffix": [5, []], "system": [5], "raw": ["x", 1], "context": ["x", [-1], [10**6], ["x"]],
                "template": ["{{ .Prompt }}", 5], "tools": [[{"type": "function"}]]}
BAD_CHAT = {"messages": [5, "x", [5], [{"content": "x"}], [{"role": "nobody", "content": "x"}], [{"role": "user", "content": 5}],
                         [{"role": "user", "content": "x", "images": ["aGk="]}]],
            "tools": ["x", [5], [{"type": "function"}], [WEATHER, WEATHER]]}


@pytest.mark.parametrize("path, body, bad", [("/api/generate", {"prompt": PROMPT}, BAD_GENERATE), ("/api/chat", {"messages": TALK}, BAD_CHAT)],
                         ids=["generate", "chat"])
def test_bad_fields(server, path, body, bad):
    with server.raw() as raw:
        cases = [{key: value} for key, values in {**BAD, **bad}.items() for value in values]
        cases += [{"options": {key: value}} for key, values in BAD_OPTIONS.items() for value in values]
        for case in cases:
            raw.send(post_bytes(path, {**body, **case}))
            error = plain_error(raw.reply(), 400)
            key = next(iter(case["options"])) if isinstance(case.get("options"), dict) else next(iter(case))
            assert key in error or (key == "repeat_penalty" and "repetition" in error), (case, error)


def test_what_cannot_be_combined(server):
    for body in ({"raw": True, "system": "y"}, {"raw": True, "context": [5]}, {"suffix": "y", "context": [5]}, {"raw": True, "think": True},
                 {"think": True}, {"think": "high", "system": "y"}):
        refused(server, "/api/generate", {"prompt": "x", **body})
    assert "thinking" in refused(server, "/api/chat", {"messages": TALK, "think": True})


def test_body_that_is_none(server):
    for path in ("/api/generate", "/api/chat", "/api/show", "/api/pull"):
        for body in (b"", b"{", b"[]", b'{"model": "\xff"}'):
            refused(server, path, body)
    refused(server, "/api/show", {"model": "x" * 100000}, 413)


def test_names(server):
    """With the tag that Ollama's clients add, and without; the answer calls the model as it was called."""
    for name in (server.model, server.model + ":latest", "", None):
        answer = server.post("/api/generate", {"model": name, "prompt": "x", "stream": False, "options": {"num_predict": 1}}).json
        assert answer["model"] == (name or server.model)
        assert server.post("/api/show", {"model": name}).status == 200
        assert server.post("/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1}).status == 200
    for name in ("gpt-4", server.model + ":7b", server.model[:-1], ":latest"):
        for path in ("/api/generate", "/api/chat", "/api/show", "/api/pull"):
            assert name in refused(server, path, {"model": name, "prompt": "x", "messages": TALK}, 404)


def test_errors_of_paths(server):
    assert "/api/nothing" in plain_error(server.get("/api/nothing"), 404)
    for method, path, allow in (("GET", "/api/chat", "POST"), ("POST", "/api/tags", "GET, HEAD"), ("POST", "/api/delete", "DELETE"),
                                ("DELETE", "/api/ps", "GET, HEAD")):
        reply = server.request(method, path)
        plain_error(reply, 405)
        assert reply.headers["allow"] == allow
    assert server.get("/nothing").error["code"] == "not_found"


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("path, body", [("/api/generate", {"prompt": PROMPT}), ("/api/chat", {"messages": TALK})], ids=["generate", "chat"])
def test_gone(server, path, body, streams):
    """An editor drops its question with every key: the work ends at once."""
    raw = server.raw()
    raw.send(post_bytes(path, {**body, "options": {"ignore_eos": True}, "stream": streams}))
    assert wait_until(lambda: server.metrics().value("llamacpp:requests_processing") == 1)
    raw.close()
    start = time.monotonic()
    assert wait_until(lambda: server.metrics().idle(), 5, step_s=0.001)
    assert time.monotonic() - start < 1.0


# --- what the server is ----------------------------------------------------------------------------------------------


def check_details(details):
    assert set(details) == {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}
    assert (details["family"], details["families"], details["format"]) == ("deepseek2", ["deepseek2"], "safetensors")
    assert (details["parameter_size"], details["quantization_level"]) == ("1.3M", "BF16")


def test_tags_and_ps(server):
    served = server.get("/v1/models").json["data"][0]
    for path, more in (("/api/tags", {"modified_at"}), ("/api/ps", {"expires_at", "size_vram", "context_length"})):
        models = server.get(path).json["models"]
        assert len(models) == 1 and set(models[0]) == {"name", "model", "size", "digest", "details", *more}
        assert models[0]["name"] == models[0]["model"] == server.model + ":latest"
        assert models[0]["digest"] == served["hash"] and models[0]["size"] > 10**6
        check_details(models[0]["details"])
        check_time(models[0].get("modified_at") or models[0]["expires_at"])
    assert models[0]["context_length"] == MAX_MODEL_LEN and models[0]["size_vram"] == 0


@pytest.mark.parametrize("key", ["model", "name"])
def test_show(server, key):
    shown = server.post("/api/show", {key: server.model, "verbose": False}).json
    assert set(shown) == {"modelfile", "parameters", "template", "details", "model_info", "capabilities", "modified_at"}
    assert shown["capabilities"] == ["completion", "insert", "tools"]
    check_details(shown["details"])
    info = shown["model_info"]
    assert info["general.architecture"] == "deepseek2" and info["general.basename"] == server.model
    assert info["deepseek2.context_length"] == MAX_MODEL_LEN
    assert info["tokenizer.chat_template"] == make_tiny_text_model.CHAT_TEMPLATE
    # Continue looks for .Suffix, and for num_ctx line by line
    assert shown["template"] == ("{{ if .Suffix }}" + FIM_TEXT[0] + "{{ .Prompt }}" + FIM_TEXT[1] + "{{ .Suffix }}" + FIM_TEXT[2]
                                 + "{{ else }}" + BOS + "{{ .System }}\n\nUser: {{ .Prompt }}\n\nAssistant:{{ .Response }}{{ end }}")
    assert [line.split() for line in shown["parameters"].split("\n")] == [["num_ctx", str(MAX_MODEL_LEN)]]


def test_names_with_a_tag(start, model):
    server = start(model, *FLAGS, "--served-model-name", "coder:16b", "--served-model-name", "deepseek/lite")
    assert [m["name"] for m in server.get("/api/tags").json["models"]] == ["coder:16b", "deepseek/lite:latest"]
    for name in ("coder:16b", "deepseek/lite", "deepseek/lite:latest"):
        assert server.post("/api/show", {"model": name}).json["model_info"]["general.basename"] == name.split(":")[0]
    refused(server, "/api/show", {"model": "coder"}, 404)
    assert server.stop() == 0


def test_server_itself(server):
    version = server.get("/api/version").json
    assert [int(part) for part in version["version"].split(".")] >= [0, 6, 4]  # what VS Code asks for
    assert version["moebius"] == server.get("/version").json["version"]
    reply = server.get("/")
    assert reply.body == b"Ollama is running" and reply.headers["content-type"].startswith("text/plain")
    reply = server.request("HEAD", "/")
    assert reply.status == 200 and reply.body == b""


def test_pull(server):
    reply = server.post("/api/pull", {"model": server.model})
    assert reply.headers["content-type"] == "application/x-ndjson" and reply.body == b'{"status":"success"}\n'
    assert server.post("/api/pull", {"name": server.model + ":latest", "stream": False}).json == {"status": "success"}
    for method, path in (("POST", "/api/create"), ("POST", "/api/copy"), ("POST", "/api/push"), ("DELETE", "/api/delete"),
                         ("POST", "/api/embed"), ("POST", "/api/embeddings")):
        assert path in plain_error(server.request(method, path, json.dumps({"model": server.model})), 501)


def test_keys(start, model):
    """As everywhere: what tells of the model or takes its time needs the key. Web pages need a leave, too."""
    server = start(model, *FLAGS, "--api-key", "sesame", "--allowed-origins", '["http://page"]')
    key = {"Authorization": "Bearer sesame"}
    for path in ("/api/tags", "/api/ps"):
        plain_error(server.get(path), 401)
        assert server.get(path, key).status == 200
    for path in ("/api/generate", "/api/chat", "/api/show", "/api/pull", "/api/embed"):
        refused(server, path, {}, 401)
    assert server.get("/").status == server.get("/api/version").status == 200
    reply = server.post("/api/generate", {"prompt": "x", "options": {"num_predict": 1}}, {**key, "Origin": "http://page"})
    assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "http://page"
    client = ollama.Client(host=server.url, headers=key)
    assert client.generate(model=model.name, prompt="x", options={"num_predict": 1}).done
    assert server.stop() == 0


# --- the package -----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(server):
    return ollama.Client(host=server.url, timeout=60)


def test_package_generates(server, package):
    options = ollama.Options(temperature=0, num_predict=10, repeat_penalty=1.0, num_ctx=4096)
    expected = server.complete(PROMPT, max_tokens=10, temperature=0)["choices"][0]["text"]
    answer = package.generate(model=server.model, prompt=PROMPT, raw=True, options=options)
    assert answer.response == expected and answer.done and answer.eval_count <= 10
    pieces = list(package.generate(model=server.model, prompt=PROMPT, raw=True, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == expected and pieces[-1].done_reason == answer.done_reason
    hole = package.generate(model=server.model, prompt="the ", suffix=" world", options=options)
    assert hole.response == server.complete("the ", suffix=" world", max_tokens=10, temperature=0)["choices"][0]["text"]
    assert package.generate(model=server.model).done_reason == "load"


def test_package_chats(server, package):
    options = {"temperature": 1, "seed": 3, "num_predict": 300, "repeat_penalty": 1}
    answer = package.chat(model=server.model, messages=TALK, format=PERSON, options=options)
    jsonschema.validate(json.loads(answer.message.content), PERSON)
    pieces = package.chat(model=server.model, messages=[ollama.Message(**m) for m in TALK], format=PERSON, options=options, stream=True)
    assert "".join(piece.message.content for piece in pieces) == answer.message.content

    def get_weather(city: str, day: int) -> str:
        """The weather of a day."""

    messages = [*TALK, ollama.Message(**CALL), ollama.Message(role="tool", content="sunny", tool_name="get_weather"), TALK[1]]
    assert package.chat(model=server.model, messages=messages, tools=[get_weather], options={"num_predict": 2}).eval_count <= 2


def test_package_asks_about_the_model(server, package):
    assert [m.model for m in package.list().models] == [server.model + ":latest"]
    running = package.ps().models[0]
    assert running.context_length == MAX_MODEL_LEN and running.expires_at > datetime.datetime.now(datetime.timezone.utc)
    shown = package.show(server.model)
    assert shown.capabilities == ["completion", "insert", "tools"] and shown.modelinfo["general.architecture"] == "deepseek2"
    assert package.pull(server.model).status == "success"
    assert [p.status for p in package.pull(server.model, stream=True)] == ["success"]
    for call in (lambda: package.embed(model=server.model, input="x"), lambda: package.delete(server.model),
                 lambda: package.copy(server.model, "x"), lambda: package.create("x", from_=server.model), lambda: package.push("x")):
        with pytest.raises(ollama.ResponseError) as raised:
            call()
        assert raised.value.status_code == 501
    with pytest.raises(ollama.ResponseError, match="gpt-4") as raised:
        package.chat(model="gpt-4", messages=TALK)
    assert raised.value.status_code == 404
