"""Errors: the status, OpenAI's error object with the field's name, and what the official client makes of them."""

import json
import time

import openai
import pytest

from serving import BOS_ID, post_bytes, wait_until
from words import PROMPT


def refused(server, fields, status=400, path="/v1/completions"):
    body = {"model": server.model, "prompt": "x", "max_tokens": 1, **fields}
    reply = server.post(path, {name: value for name, value in body.items() if value is not ...})
    assert reply.status == status, reply
    return reply.error


WRONG_TYPES = {
    "model": [5, [], {}], "prompt": [5, {}, True, None, [[]], ["x", 5], [1.5], [True], [None], [["x"]]],
    "max_tokens": ["16", 1.5, [], True], "n": ["1", 1.5, {}], "temperature": ["0", [], True], "top_p": ["1"],
    "top_k": ["1", 1.5], "repeat_penalty": ["1"], "min_p": ["0"], "presence_penalty": ["0"], "frequency_penalty": [{}], "repetition_penalty": ["1"],
    "seed": ["1", 1.5, []], "logit_bias": [5, [], "x", {"1": "x"}], "stop": [5, {}, [5], ["x", None]],
    "stop_token_ids": [5, ["x"], "x", [1.5]], "logprobs": ["1", 1.5], "echo": ["yes", 1], "stream": ["yes", 1],
    "suffix": [5, []], "ignore_eos": ["yes"], "min_tokens": ["1"], "include_stop_str_in_output": [1],
    "skip_special_tokens": ["no"], "best_of": ["1"],
}
OUT_OF_RANGE = {
    "max_tokens": [-1, 2**40, 1e30], "n": [0, -1, 10**6], "temperature": [-0.1, 1e6], "top_p": [-0.1, -1, 1.1],
    "top_k": [-2], "min_p": [-0.1, 1.1], "presence_penalty": [-2.1, 2.1], "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1], "repeat_penalty": [0, -1, 101, 5e18], "logprobs": [-1, 21], "min_tokens": [-1],
    "logit_bias": [{"1": 101}, {"1": -101}, {"512": 1}, {"-1": 1}, {"x": 1}, {"": 1}, {"1.5": 1}, {"99999999999999999999": 1}],
    "stop": [[""], ""], "stop_token_ids": [[512], [-1]], "best_of": [2],
    "prompt": [[], [512], [-1], [[1], [512]], [2**40], ["x"] * 5000],
}


@pytest.mark.parametrize("name", sorted(set(WRONG_TYPES) | set(OUT_OF_RANGE)))
def test_wrong_values(server, name):
    for value in WRONG_TYPES.get(name, []) + OUT_OF_RANGE.get(name, []):
        error = refused(server, {name: value})
        assert error["param"] == name, (value, error)
        assert error["type"] == "invalid_request_error", error
        assert name in error["message"], error


def test_missing_prompt(server):
    assert refused(server, {"prompt": ...})["param"] == "prompt"


@pytest.mark.parametrize("fields", [{"prompt": [1, 2]}, {"prompt": [[1, 2]]}, {"echo": True}])
def test_suffix_goes_with_one_text(server, fields):
    assert refused(server, {"suffix": "y", **fields})["param"] in ("suffix", "echo", "prompt")


def test_best_of_n_is_n(server):
    assert len(server.complete("x", n=2, best_of=2, max_tokens=1)["choices"]) == 2
    assert refused(server, {"n": 2, "best_of": 3})["param"] == "best_of"


@pytest.mark.parametrize("path, body", [("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": [
    {"role": "user", "content": "x"}]})])
def test_unknown_model(server, path, body):
    reply = server.post(path, {**body, "model": "no-such-model"})
    assert reply.status == 404, reply
    error = reply.error
    assert error["code"] == "model_not_found" and error["type"] in ("not_found_error", "invalid_request_error")
    assert "no-such-model" in error["message"] and error["param"] in ("model", None)


def test_unknown_model_path(server):
    reply = server.get("/v1/models/no-such-model")
    assert reply.status == 404 and reply.error["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v2/completions", "/v1/completions/x", "/v1//completions",
                                  "/v1%00", "/..%2f..%2fetc%2fpasswd", "/metrics/x"])
def test_unknown_path(server, path):
    for reply in (server.get(path), server.post(path, {})):
        assert reply.status == 404, reply
        assert reply.error["type"] in ("not_found_error", "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_embeddings(server, path):
    """404, which clients do not try again as they do 5xx, and what is missing is said."""
    reply = server.post(path, {"model": server.model, "input": "x", "encoding_format": "base64"})
    assert reply.status == 404 and "embeddings" in reply.error["message"] and server.model in reply.error["message"], reply


@pytest.mark.parametrize("method, path", [
    ("GET", "/v1/completions"), ("GET", "/v1/chat/completions"), ("DELETE", "/v1/completions"), ("PUT", "/v1/completions"),
    ("POST", "/v1/models"), ("POST", "/health"), ("POST", "/metrics"), ("DELETE", "/health")])
def test_wrong_method(server, method, path):
    reply = server.request(method, path, b"{}" if method in ("POST", "PUT") else None)
    assert reply.status == 405, reply
    reply.error
    assert reply.headers["allow"], "405 has to say what is allowed"


def test_query_strings_do_no_harm(server):
    assert server.get("/health?x=1").status == 200
    reply = server.post("/v1/completions?api-version=1", {"model": server.model, "prompt": "x", "max_tokens": 1})
    assert reply.status == 200


BAD_BODIES = {
    "empty": b"", "blank": b"  \n", "cut": b'{"prompt": "x"', "no json": b"prompt=x", "array": b'[{"prompt": "x"}]',
    "string": b'"x"', "null": b"null", "trailing": b'{"prompt": "x"} x', "two": b'{"prompt": "x"}{"prompt": "y"}',
    "single quotes": b"{'prompt': 'x'}", "comment": b'{"prompt": "x" /* hello */}',
    "nan": b'{"prompt": "x", "temperature": NaN}',
    "infinite": b'{"prompt": "x", "temperature": 1e999}', "control": b'{"prompt": "a\nb"}', "nul": b'{"prompt": "x"}\0',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}', "cut UTF-8": b'{"prompt": "\xe2\x82"}', "overlong": b'{"prompt": "\xc0\xaf"}',
    "surrogate bytes": b'{"prompt": "\xed\xa0\x80"}', "beyond unicode": b'{"prompt": "\xf4\x90\x80\x80"}',
    "high surrogate": rb'{"prompt": "\ud800"}', "low surrogate": rb'{"prompt": "x\udc00y"}',
    "reversed": rb'{"prompt": "\udc00\ud800"}',
    "surrogate key": rb'{"prompt": "x", "\ud800": 1}', "half escape": rb'{"prompt": "\u12"}',
    "deep array": b'{"prompt": "x", "y": ' + b"[" * 10000 + b"]" * 10000 + b"}",
    "deep object": b'{"prompt": "x", "y": ' + b'{"a":' * 10000 + b"1" + b"}" * 10001,
    "deep and cut": b"[" * 10000, "very deep": b"[" * 1000000, "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bad_bodies(server, path):
    """Each a clean 400, on one connection that stays usable."""
    with server.raw() as raw:
        for name, body in BAD_BODIES.items():
            raw.send(post_bytes(path, body))
            reply = raw.reply()
            assert reply.status == 400, (name, reply)
            assert reply.error["type"] == "invalid_request_error", (name, reply)


def test_empty_model_name(server):
    """Editors send one when nobody chose: it stands for the one model there is."""
    assert server.ask("/v1/completions", {"model": "", "prompt": "x", "max_tokens": 1})["model"] == server.model


@pytest.mark.parametrize("names, shown", [("*", "tiny"), ("mine,*", "mine")])
def test_any_model_name(start, model, names, shown):
    server = start(model, "--max-model-len", 512, "--served-model-name", names)
    assert [m["id"] for m in server.get("/v1/models").json["data"]] == [shown]
    for name in ("gpt-4", shown, "*"):
        assert server.ask("/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1})["model"] == shown
    for path in ("/v1/completions", "/api/generate"):  # Ollama's streams repeat it in every line
        assert server.post(path, {"model": "m" * 1000, "prompt": "x"}).status == 404
    assert server.stop() == 0


def test_what_is_json_too(server):
    body = rb'{"prompt": "\ud83d\ude00", "echo": true, "max_tokens": 1}'
    for mark in (b"", b"\xef\xbb\xbf"):  # that of UTF-8, as some programs write it
        reply = server.post("/v1/completions", mark + body)
        assert reply.status == 200 and reply.json["choices"][0]["text"].startswith("\U0001f600")


def test_nul_in_a_prompt(server, engine):
    """JSON can say it, so a prompt can hold it."""
    reply = server.complete("a\0b", max_tokens=1, echo=True)
    assert reply["choices"][0]["text"].startswith("a\0b")
    assert reply["usage"]["prompt_tokens"] == len(engine.prompt("a\0b"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 50])
def test_context_length_exceeded(server, stream, max_tokens):
    """The numbers that one needs to make it fit."""
    error = refused(server, {"prompt": [BOS_ID] * 2100, "max_tokens": max_tokens, "stream": stream, "echo": True})
    assert error["code"] == "context_length_exceeded" and error["type"] == "invalid_request_error"
    assert error["param"] in ("prompt", "messages", "max_tokens")
    for number in {2048, 2100, max_tokens} - {0, 1}:
        assert str(number) in error["message"], error


def test_context_length_exceeded_in_chat(server):
    reply = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 3000}], "max_tokens": 77})
    assert reply.status == 400 and reply.error["code"] == "context_length_exceeded"
    assert "2048" in reply.error["message"] and "77" in reply.error["message"], reply


def test_marks_as_people_type_them(server):
    """They are text, and whoever runs the server reads of it once, not with every request."""
    for _ in range(3):
        assert server.complete("<|end_of_sentence|>", max_tokens=1)["usage"]["prompt_tokens"] > 2
    assert server.log.count("ASCII look-alike") == 1


def test_far_too_long(server):
    """All of it would be encoded in seconds, while other long requests wait: it is counted no further than says enough."""
    most, text = 4 * 2048 + 65536, "a" * 400_000
    for path, body, param in (("completions", {"prompt": text}, "prompt"), ("completions", {"prompt": [BOS_ID] * 80000}, "prompt"),
                              ("responses", {"input": text}, "input"), ("chat/completions", {"messages": [{"role": "user", "content": text}]}, "messages")):
        error = server.post(f"/v1/{path}", {**body, "max_tokens": 1}).error
        assert error["code"] == "context_length_exceeded" and error["param"] == param, error
        assert f"length is 2048 tokens. However, your prompt has more than {most} tokens" in error["message"]
    claude = server.post("/v1/messages", {"messages": [{"role": "user", "content": text}], "max_tokens": 1}).json["error"]
    assert claude["message"] == f"prompt is too long: more than {most} tokens > 2047 maximum"
    count = server.post("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": text}]}).json
    assert count["input_tokens"] > 400_000


def test_one_bad_prompt_stops_all(server):
    """Nothing has been computed when a list holds a prompt that cannot be."""
    before = server.metrics().value("vllm:prompt_tokens_total")
    assert refused(server, {"prompt": [[BOS_ID], [BOS_ID] * 3000]})["code"] == "context_length_exceeded"
    assert server.metrics().value("vllm:prompt_tokens_total") == before


# --- the official client ---------------------------------------------------------------------------------------------


def test_client_bad_request(client, server):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt="x", temperature=-1)
    error = caught.value
    assert error.status_code == 400 and error.param == "temperature" and error.type == "invalid_request_error"
    assert "temperature" in error.message


def test_client_context(client, server):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt=PROMPT * 1000)
    assert caught.value.code == "context_length_exceeded"


def test_client_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="no-such-model", prompt="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_client_error_before_a_stream(client, server):
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=server.model, prompt="x", n=0, stream=True)


# --- keys ------------------------------------------------------------------------------------------------------------

KEY = "sk-moebius-0123456789"


def key_in_flag(tmp_path):
    return ["--api-key", KEY], {}


def key_in_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return ["--api-key-file", path], {}


def key_in_environment(tmp_path):
    return [], {"MOEBIUS_API_KEY": KEY}


@pytest.mark.parametrize("source", [key_in_flag, key_in_file, key_in_environment])
def test_key(start, model, tmp_path, source):
    flags, env = source(tmp_path)
    server = start(model, "--max-model-len", 512, *flags, env=env)
    body = {"prompt": "x", "max_tokens": 1}
    wrong = [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer x{KEY[1:]}", f"Basic {KEY}", KEY,
             f"Bearer {KEY.upper()}", "Bearer " + "x" * 3000]
    for value in wrong:
        headers = {} if value is None else {"Authorization": value}
        for reply in (server.post("/v1/completions", body, headers), server.post("/v1/chat/completions", b"no json", headers),
                      server.get("/v1/models", headers), server.post("/completions", body, headers)):
            assert reply.status == 401, (value, reply)
            assert reply.error["code"] == "invalid_api_key" and reply.error["type"] == "authentication_error"
            assert KEY not in reply.error["message"]
    for value in (f"Bearer {KEY}", f"bearer {KEY}"):
        assert server.post("/v1/completions", body, {"Authorization": value}).status == 200
    assert server.get("/health").status == 200
    with server.client(api_key=KEY) as client:
        assert client.models.list().data
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert KEY not in server.log
    assert server.stop() == 0


def test_without_a_key_any_is_fine(server):
    for value in ("Bearer x", "Basic eDp5", "anything"):
        assert server.get("/v1/models", {"Authorization": value}).status == 200


def test_errors_are_utf8(server):
    """What the client sent may come back in a message; it must not break it."""
    for name in ("\u20ac" * 500, "a\"b\\c\n", "\U0001f600" * 300):
        reply = server.post("/v1/completions", {"model": name, "prompt": "x"})
        assert reply.status == 404
        json.dumps(reply.error, ensure_ascii=False).encode("utf-8")


def test_full_queue(start, model):
    """More than may wait: 429 at once, with a time to come back; what waits is not harmed."""
    server = start(model, "--max-model-len", 2048, "--max-num-seqs", 1, "--max-queue", 2, "--threads", 2)
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    streams = [server.raw() for _ in range(3)]
    streams[0].send(post_bytes("/v1/completions", body))
    assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == 1)
    for raw in streams[1:]:
        raw.send(post_bytes("/v1/completions", body))
    assert wait_until(lambda: server.metrics().value("vllm:num_requests_waiting") == 2)
    reply = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert reply.status == 429 and reply.error["type"] == "rate_limit_error", reply
    assert int(reply.headers["retry-after"]) > 0
    with server.client() as client, pytest.raises(openai.RateLimitError):
        client.completions.create(model=server.model, prompt="x", n=2)
    assert server.metrics().value("vllm:num_requests_waiting") == 2
    streams[0].close()
    assert wait_until(lambda: server.metrics().value("vllm:num_requests_waiting") == 1)
    for raw in streams[1:]:
        raw.close()
    assert server.becomes_idle()
    assert server.complete("x", max_tokens=1)["usage"]["completion_tokens"] == 1
    assert server.stop() == 0


def test_more_choices_than_may_wait(start, model):
    """Every choice takes a place of its own: what could never fit is a mistake, what does not fit now may come again."""
    server = start(model, "--max-model-len", 2048, "--max-num-seqs", 2, "--max-queue", 4, "--threads", 2)
    short = {"max_tokens": 1, "ignore_eos": True}
    assert len(server.complete("x", n=6, **short)["choices"]) == 6
    assert len(server.complete(["x"] * 3, n=2, **short)["choices"]) == 6
    assert refused(server, {"n": 7})["param"] == "n"
    assert refused(server, {"prompt": ["x"] * 7})["param"] == "prompt"
    assert refused(server, {"prompt": ["x"] * 4, "n": 2})["param"] == "n"
    with server.raw() as raw:
        raw.send(post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 1900, "ignore_eos": True, "stream": True}))
        assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == 1)
        assert refused(server, {"n": 6}, status=429)["type"] == "rate_limit_error"
        assert len(server.complete("x", n=5, **short)["choices"]) == 5
    assert server.becomes_idle()
    assert server.stop() == 0


# --- how much of a thing ---------------------------------------------------------------------------------------------


def test_size_of_stops(server):
    """Each choice has a copy and looks for all of them at every token."""
    kibibyte = "q" * 1024
    assert server.complete("x", max_tokens=2, stop=[kibibyte] * 8, n=8)["usage"]["completion_tokens"]
    for stop in (kibibyte + "q", ["\u00e9" * 513], [kibibyte] * 8 + ["q"], ["q" * 65] * 127):
        error = refused(server, {"stop": stop})
        assert error["param"] == "stop" and "bytes" in error["message"], error


def test_many_stop_token_ids(server):
    """The same few, many times, cost nothing; a list without end is refused."""
    start = time.monotonic()
    ids = list(range(300, 512)) + [511] * 99_000
    assert server.complete("x", max_tokens=1, stop_token_ids=ids)["usage"]["completion_tokens"] == 1
    assert time.monotonic() - start < 3
    assert refused(server, {"stop_token_ids": [5] * 100_001})["param"] == "stop_token_ids"


def test_large_logit_bias(server):
    error = refused(server, {"logit_bias": {f"{i:06}": 1 for i in range(4097)}})
    assert error["param"] == "logit_bias" and "4096" in error["message"], error
