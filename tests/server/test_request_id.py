"""x-request-id: on every answer, the client's own if it is fit to be sent back."""

import re

import pytest

from serving import FLAGS, post_bytes

OURS = re.compile("req_[0-9a-f]{32}")
TALK = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def test_every_answer_has_one(server):
    body = {"prompt": "x", "max_tokens": 1}
    replies = [server.get("/health"), server.get("/metrics"), server.get("/nothing"), server.get("/v1/completions"),
               server.request("HEAD", "/v1/models"), server.post("/v1/completions", body),
               server.post("/v1/completions", {**body, "stream": True}), server.post("/v1/completions", {"prompt": 5}),
               server.post("/v1/chat/completions", b"{"), server.post("/v1/embeddings", {}),
               server.post("/tokenize", {"prompt": "x"}), server.post("/v1/messages", TALK), server.post("/api/chat", TALK),
               server.post("/v1/responses", {"input": "x", "max_output_tokens": 1})]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(OURS.fullmatch(id) for id in ids) and len(set(ids)) == len(ids), ids


@pytest.mark.parametrize("id", ["a", "0b7c1c4e-36b8-4a3c-9a61-3c5f2a1d8f11", "!~{}%s\\\"", "x" * 128])
def test_the_clients_own(server, id):
    for fields in ({}, {"stream": True}, {"max_tokens": "x"}):
        reply = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1, **fields}, {"X-Request-Id": id})
        assert reply.headers["x-request-id"] == id, reply


@pytest.mark.parametrize("id", [b"", b" ", b"x" * 129, b"a b", b"a\tb", b"a\x7fb", b"a\x01b", b"\xc3\xa9", b"\xff", b"x" * 20000])
def test_what_is_not_sent_back(server, id):
    with server.raw() as raw:
        raw.send(post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 1}).replace(b"Host:", b"X-Request-ID: " + id + b"\r\nHost:", 1))
        reply = raw.reply()
        assert reply.status == 200 and OURS.fullmatch(reply.headers["x-request-id"]), reply


def test_each_request_of_a_connection(server):
    with server.raw() as raw:
        for id in ("one", "two", None):
            raw.send(post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 1}, *[f"x-request-id: {id}"] * bool(id)))
            reply = raw.reply()
            assert reply.headers["x-request-id"] == id or (not id and OURS.fullmatch(reply.headers["x-request-id"]))


def test_errors_before_a_model_or_a_key(start, model):
    server = start(model, *FLAGS, "--api-key", "sesame")
    for path in ("/v1/embeddings", "/tokenizer_info", "/v1/responses/input_tokens", "/responses/input_tokens"):
        reply = server.request("GET" if path == "/tokenizer_info" else "POST", path, headers={"x-request-id": "mine"})
        assert reply.status == 401 and reply.headers["x-request-id"] == "mine", (path, reply)
        assert "template" not in reply.body.decode()
    assert server.stop() == 0
