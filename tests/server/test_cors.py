"""Web pages: which may read the server's answers, as a browser asks."""

import pytest

from serving import FLAGS, post_bytes

PAGE = "http://localhost:3000"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"}


@pytest.fixture(scope="module")
def server(start, model):
    server = start(model, *FLAGS, "--allowed-origins", f'["{PAGE}", "https://editor.example"]', "--api-key", "sesame")
    yield server
    assert server.stop() == 0


def test_preflight(server):
    """A browser asks before it brings the key, even for a path that does not exist."""
    for path in ("/v1/chat/completions", "/infill", "/nothing"):
        reply = server.request("OPTIONS", path, headers={"Origin": PAGE, **ASKS})
        assert reply.status == 204 and reply.body == b"", reply
        assert reply.headers["access-control-allow-origin"] == PAGE and reply.headers["vary"] == "Origin"
        assert reply.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"  # all that there are routes for
        assert reply.headers["access-control-allow-headers"] == ASKS["Access-Control-Request-Headers"]


def test_replies(server):
    """Answers, streams and errors alike: a page may read why it failed."""
    key = {"Authorization": "Bearer sesame"}
    for origin in (PAGE, "https://editor.example"):
        for stream in (False, True):
            reply = server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": stream}, {"Origin": origin, **key})
            assert reply.status == 200 and reply.headers["access-control-allow-origin"] == origin
        reply = server.post("/v1/completions", {"prompt": "x"}, {"Origin": origin})
        assert reply.status == 401 and reply.headers["access-control-allow-origin"] == origin
        assert reply.headers["access-control-expose-headers"] == "x-request-id, Retry-After"
        assert "access-control-allow-methods" not in reply.headers


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "null", "", PAGE + "/", PAGE + ".evil.example"])
def test_other_pages(server, origin):
    reply = server.request("OPTIONS", "/infill", headers={"Origin": origin, **ASKS})
    assert reply.status == 405 and "access-control-allow-origin" not in reply.headers
    reply = server.get("/health", {"Origin": origin})
    assert reply.status == 200 and "access-control-allow-origin" not in reply.headers


def test_an_ordinary_options(server):
    assert server.request("OPTIONS", "/infill").status == 405
    assert server.request("OPTIONS", "/infill", headers={"Origin": PAGE}).status == 405


def test_all_pages(start, model):
    server = start(model, *FLAGS, "--cors-origins", "*")
    reply = server.request("OPTIONS", "/infill", headers={"Origin": "null", **ASKS})
    assert reply.status == 204 and reply.headers["access-control-allow-origin"] == "*"
    with server.raw() as raw:  # the connection goes on
        for _ in range(2):
            raw.send(b"OPTIONS /infill HTTP/1.1\r\nHost: x\r\nOrigin: y\r\nAccess-Control-Request-Method: POST\r\n\r\n")
            assert raw.head()[0] == 204
        raw.send(post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 1}))
        assert raw.reply().status == 200
    assert server.stop() == 0


def test_off(start, model):
    server = start(model, *FLAGS)
    assert server.request("OPTIONS", "/infill", headers={"Origin": PAGE, **ASKS}).status == 405
    assert "access-control-allow-origin" not in server.get("/health", {"Origin": PAGE}).headers
    assert server.stop() == 0
