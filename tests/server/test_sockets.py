"""HTTP as bytes on a socket: what proxies, slow lines and rude clients do. Every case ends in a clean answer or a closed
connection, and leaves nothing running."""

import json
import socket
import threading
import time

import pytest

from serving import parse_events, post_bytes, wait_until
from words import GREEDY, PROMPT

SHORT = {"prompt": PROMPT, "max_tokens": 3, **GREEDY}
LONG = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": True}
PATH = "/v1/completions"
CHUNKED = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def running(server):
    return server.metrics().value("vllm:num_requests_running")


# --- connections -----------------------------------------------------------------------------------------------------


def test_keep_alive(server):
    with server.raw() as raw:
        for i in range(20):
            raw.send(post_bytes(PATH, SHORT))
            assert raw.reply().status == 200, i
        for _ in range(3):  # streams end with the chunk of no bytes, and the connection goes on
            raw.send(post_bytes(PATH, {**SHORT, "stream": True}))
            assert len(parse_events(raw.reply().body)) >= 3
        raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.reply().status == 200


def test_pipelining(server):
    """Several requests in one write are answered in order."""
    with server.raw() as raw:
        bodies = [{**SHORT, "max_tokens": n} for n in (4, 1, 3, 2)]
        raw.send(b"".join(post_bytes(PATH, body) for body in bodies) + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        for body in bodies:
            assert raw.reply().json["usage"]["completion_tokens"] == body["max_tokens"]
        assert "version" in raw.reply().json


def test_pipelining_behind_a_stream(server):
    with server.raw() as raw:
        raw.send(post_bytes(PATH, {**SHORT, "stream": True, "max_tokens": 30}) + post_bytes(PATH, SHORT))
        assert len(parse_events(raw.reply().body)) > 10
        assert raw.reply().json["usage"]["completion_tokens"] == 3


def test_connection_close(server):
    with server.raw() as raw:
        raw.send(post_bytes(PATH, SHORT, "Connection: close"))
        assert raw.reply().status == 200 and raw.at_end()


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0(server, stream):
    """An old client gets no chunks, and the end of the answer is the end of the connection."""
    with server.raw() as raw:
        raw.send(post_bytes(PATH, {**SHORT, "stream": stream}).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        reply = raw.reply()
        assert reply.status == 200 and "transfer-encoding" not in reply.headers
        assert parse_events(reply.body) if stream else reply.json["choices"]
        assert raw.at_end()


# --- bodies ----------------------------------------------------------------------------------------------------------


def chunked(body, size):
    parts = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_chunked_body(server, size):
    with server.raw() as raw:
        for _ in range(2):
            raw.send(CHUNKED + chunked(json.dumps(SHORT).encode(), size))
            assert raw.reply().json["usage"]["completion_tokens"] == 3


def test_expect_100_continue(server):
    body = json.dumps(SHORT).encode()
    with server.raw() as raw:
        raw.send(post_bytes(PATH, SHORT, "Expect: 100-continue")[:-len(body)])
        status, _ = raw.head()
        assert status == 100
        raw.send(body)
        assert raw.reply().status == 200


def test_ten_megabytes(server):
    """A body of 10 MB is read whole, and its prompt is far over the context: that is what the answer says."""
    for body in ({"prompt": "the good people " * 655360}, {"prompt": "x" * 10_000_000},
                 {"prompt": "x", "max_tokens": 1, "other": "y" * 10_000_000}):
        start = time.monotonic()
        reply = server.post(PATH, body)
        if "other" in body:
            assert reply.status == 200, reply
        else:
            assert reply.status == 400 and reply.error["code"] == "context_length_exceeded", reply
        assert time.monotonic() - start < 10


def test_body_a_little_over_the_limit(server):
    """A client that sends it all before it reads gets the answer, not a broken pipe."""
    for body in (b'{"prompt": "' + b"x" * 40_000_000 + b'"}', iter([b" " * 8_000_000] * 5)):
        reply = server.request("POST", PATH, body, {"Content-Type": "application/json"})
        assert reply.status == 413, reply
        assert "33554432" in reply.error["message"]


def test_body_far_over_the_limit(server):
    """Refused by its length alone, before it is read."""
    with server.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n".encode() + b'{"prompt": "')
        reply = raw.reply()
        assert reply.status == 413, reply
        assert reply.error["message"]


def test_endless_chunked_body(server):
    """Without a length the limit holds too: the connection ends, with 413 or without."""
    piece = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
    with server.raw() as raw:
        raw.send(CHUNKED)
        with pytest.raises(ConnectionError):  # closed on us, as it should
            for _ in range(400):
                raw.send(piece)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999999999", "5, 6"])
def test_bad_content_length(server, length):
    with server.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{}}".encode())
        try:
            status, _ = raw.head()
            assert 400 <= status < 500
        except (EOFError, ConnectionResetError):
            pass  # closing without a word is fine too


@pytest.mark.parametrize("headers", [
    ["Content-Length: 2", "Content-Length: 6"], ["Content-Length: 6", "Content-Length: 2"],
    ["Content-Length: 2", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 2"],
    ["transfer-encoding: chunked", "Transfer-Encoding: identity"], ["Content-Length : 2"], ["Transfer-Encoding\t: chunked"],
    ["Transfer-Encoding: gzip"], ["Transfer-Encoding: gzip, chunked"], ["Transfer-Encoding: identity"],
], ids=" + ".join)
def test_two_ways_to_see_the_end(server, headers):
    """A proxy in front may have chosen the other one, so what follows is never read as a request."""
    with server.raw() as raw:
        head = "\r\n".join([f"POST {PATH} HTTP/1.1", "Host: x", *headers, "", ""]).encode()
        raw.send(head + b"0\r\n\r\n{}GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = raw.reply()
        assert reply.status == 400 and reply.error["message"], reply
        assert reply.headers["connection"] == "close"
        assert raw.at_end()


@pytest.mark.parametrize("target,status", [("http://x/version", 200), ("HTTP://x:80/v1/nothing", 404), ("http://x", 200)])
def test_target_with_a_host(server, target, status):
    """As clients ask a proxy, and as servers have to take it."""
    with server.raw() as raw:
        raw.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert raw.reply().status == status


@pytest.mark.parametrize("size", [b"zz", b"-1", b"ffffffffffffffffffff"])
def test_bad_chunk_size(server, size):
    with server.raw() as raw:
        raw.send(CHUNKED + size + b"\r\nx\r\n0\r\n\r\n")
        try:
            status, _ = raw.head()
            assert 400 <= status < 500
        except (EOFError, ConnectionResetError):
            pass


def test_large_headers(server):
    with server.raw() as raw:
        try:
            fields = b"".join(b"X-%d: %b\r\n" % (i, b"y" * 1000) for i in range(2000))
            raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
            status, _ = raw.head()
            assert status in (400, 413, 431)
        except (EOFError, OSError):
            pass


@pytest.mark.parametrize("junk", [
    b"\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200, b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET " + b"a" * 100000],
    ids=["blank", "zeros", "TLS", "no path", "HTTP 9", "HTTP 2", "long path"])
def test_junk(server, junk):
    with server.raw(timeout_s=0.5) as raw:
        try:
            raw.send(junk)
            raw.socket.shutdown(socket.SHUT_WR)
            while raw.fill():
                pass
        except OSError:
            pass
    assert server.get("/health").status == 200


@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
def test_truncated_request(server, part):
    """A client that dies while it asks."""
    for end in ("close", "reset", "half"):
        data = post_bytes(PATH, {**SHORT, "user": "x" * 2000})
        raw = server.raw()
        raw.send(data[:int(len(data) * part)])
        if end == "half":
            raw.socket.shutdown(socket.SHUT_WR)
            raw.socket.settimeout(0.5)
            try:
                while raw.fill():
                    pass
            except OSError:
                pass
        raw.reset() if end == "reset" else raw.close()
    assert server.get("/health").status == 200


# --- slow ones -------------------------------------------------------------------------------------------------------


def test_byte_by_byte(server):
    data = post_bytes(PATH, SHORT)
    with server.raw() as raw:
        for i in range(len(data)):
            raw.send(data[i:i + 1])
        assert raw.reply().json["usage"]["completion_tokens"] == 3


def test_slow_writers_stop_nobody(server):
    """Fifty connections in the middle of their headers or bodies; others are served at once."""
    data = post_bytes(PATH, SHORT)
    slow = [server.raw() for _ in range(50)]
    try:
        for i, raw in enumerate(slow):
            raw.send(data[:10 + i * (len(data) - 20) // 50])
        start = time.monotonic()
        assert server.complete(**SHORT)["usage"]["completion_tokens"] == 3
        assert time.monotonic() - start < 5
        for i, raw in enumerate(slow):
            raw.send(data[10 + i * (len(data) - 20) // 50:])
        for raw in slow:
            assert raw.reply().status == 200
    finally:
        for raw in slow:
            raw.close()


@pytest.mark.parametrize("path, body", [
    ("/tokenize", json.dumps({"prompt": "hello world " * 300_000}).encode()),
    ("/detokenize", b'{"tokens":[' + b"5," * 4_000_000 + b"5]}"),
], ids=["tokenize", "detokenize"])
def test_long_texts_stop_nobody(server, path, body):
    """While megabytes are turned into tokens or back, others are answered."""
    times = {}

    def ask():
        start = time.monotonic()
        times["status"] = server.post(path, body).status
        times["all"] = time.monotonic() - start

    thread = threading.Thread(target=ask)
    thread.start()
    worst = 0
    while thread.is_alive():
        start = time.monotonic()
        assert server.get("/health").status == 200
        worst = max(worst, time.monotonic() - start)
        time.sleep(0.01)
    thread.join()
    assert times["status"] == 200
    assert worst < times["all"] / 3, (worst, times)


def test_slow_reader(server):
    """A client that does not read must hold up nobody; what it asked for is there when it does."""
    fields = {**LONG, "max_tokens": 1200, "seed": 3, "logprobs": 20}
    with server.raw(receive_buffer=4096) as slow:
        slow.send(post_bytes(PATH, fields))
        assert wait_until(lambda: running(server) == 1)
        start = time.monotonic()
        assert server.complete(**SHORT)["usage"]["completion_tokens"] == 3
        assert time.monotonic() - start < 5
        assert wait_until(lambda: running(server) == 0, 30), "the answer waits for its reader and holds its pages"
        chunks = parse_events(slow.reply().body)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert sum(len((c["choices"][0]["logprobs"] or {"tokens": []})["tokens"]) for c in chunks) == 1200


# --- clients that go away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False])
def test_gone_in_the_middle(server, way, stream):
    """Its work ends within a step or so, and its pages are free: nobody pays for a closed editor."""
    for n in (1, 2):
        raw = server.raw()
        raw.send(post_bytes(PATH, {**LONG, "stream": stream, "n": n}))
        if stream:
            _, headers = raw.head()
            events = raw.events(headers)
            for _ in range(3):
                next(events)
        else:
            assert wait_until(lambda n=n: running(server) == n)
        getattr(raw, way)()
        start = time.monotonic()
        assert wait_until(lambda: server.metrics().idle(), 5, step_s=0.001)
        assert time.monotonic() - start < 1.0, "it went on for its full length"


def test_gone_is_counted_as_aborted(server):
    """The tokens that were made count; the request is no success."""
    before = server.metrics()
    raw = server.raw()
    raw.send(post_bytes(PATH, LONG))
    assert wait_until(lambda: running(server) == 1)
    raw.close()
    assert server.becomes_idle(5)
    after = server.metrics()
    for reason in ("stop", "length"):
        name = "vllm:request_success_total"
        assert after.value(name, finished_reason=reason) == before.value(name, finished_reason=reason)


def test_gone_while_waiting(server):
    """A request that never ran: gone from the queue when its client is."""
    streams = [server.raw() for _ in range(8)]
    try:
        for raw in streams:
            raw.send(post_bytes(PATH, LONG))
        assert wait_until(lambda: running(server) == 8)
        for stream in (True, False):
            waiting = server.raw()
            waiting.send(post_bytes(PATH, {**LONG, "stream": stream}))
            assert wait_until(lambda: server.metrics().value("vllm:num_requests_waiting") == 1)
            waiting.close()
            assert wait_until(lambda: server.metrics().value("vllm:num_requests_waiting") == 0, 2)
            assert running(server) == 8
    finally:
        for raw in streams:
            raw.close()


def test_half_close(server):
    """A client that has said all it wants to say still reads its stream."""
    with server.raw() as raw:
        raw.send(post_bytes(PATH, {**SHORT, "stream": True, "max_tokens": 40}))
        raw.socket.shutdown(socket.SHUT_WR)
        reply = raw.reply()
        assert reply.status == 200
        assert parse_events(reply.body)[-1]["choices"][0]["finish_reason"] == "length"


def test_half_close_without_a_stream(server):
    """Here nothing can be sent to find out whether somebody still listens: it may count as gone, but never hang."""
    with server.raw(timeout_s=10) as raw:
        raw.send(post_bytes(PATH, {**SHORT, "max_tokens": 400, "ignore_eos": True}))
        raw.socket.shutdown(socket.SHUT_WR)
        try:
            assert raw.reply().json["usage"]["completion_tokens"] == 400
        except (EOFError, ConnectionResetError):
            pass


def test_half_close_then_gone(server):
    """Half-closed first, and then it is gone: found out when there is something to write."""
    raw = server.raw()
    raw.send(post_bytes(PATH, LONG))
    raw.socket.shutdown(socket.SHUT_WR)
    _, headers = raw.head()
    next(raw.events(headers))
    raw.reset()
    assert server.becomes_idle(5)


def test_many_connections(server):
    """More than any sensible client opens, idle; then one that works."""
    idle = [server.raw() for _ in range(200)]
    try:
        assert server.get("/health").status == 200
        idle[100].send(post_bytes(PATH, SHORT))
        assert idle[100].reply().status == 200
    finally:
        for raw in idle:
            raw.close()
