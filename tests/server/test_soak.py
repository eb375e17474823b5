"""Many clients at once, some of which vanish, and the end of a server. With MOEBIUS_DEBUG_BIN (the sanitizers' build) what
is provoked here is also looked at from inside; its leak check runs when the server ends."""

import asyncio
import json
import random
import re
import signal
import threading
import time

import pytest

from serving import DEBUG_PROGRAM, FLAGS, HOST, PROGRAM, parse_events, post_bytes, wait_until
from words import PROMPT

CLIENTS, SECONDS = 32, 5
PATH = "/v1/completions"


@pytest.fixture
def own(start, model):
    server = start(model, *FLAGS, program=DEBUG_PROGRAM, env={"ASAN_OPTIONS": "detect_leaks=1"})
    yield server
    if server.process.poll() is None:
        server.stop(60)


def body(rng):
    fields = {"prompt": PROMPT[:rng.randrange(1, len(PROMPT))] * rng.randrange(1, 12), "max_tokens": rng.randrange(1, 120),
              "temperature": 1, "seed": rng.randrange(1000), "stream": rng.random() < 0.8}
    if rng.random() < 0.2:
        fields |= {"n": 3, "logprobs": 5}
    if rng.random() < 0.2:
        fields |= {"stop": ["e", "th"], "echo": True}
    if rng.random() < 0.1:
        fields["suffix"] = "of the world"
        fields.pop("echo", None)
    if fields["stream"] and rng.random() < 0.3:
        fields["stream_options"] = {"include_usage": True}
    return fields


async def client(port, rng, until, tally):
    """Asks again and again; leaves in the middle of a third of its requests, in several ways."""
    while time.monotonic() < until:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port), 30)
        try:
            fields = body(rng)
            data = post_bytes(PATH, fields, "Connection: close")
            way = rng.choice(["stay", "stay", "stay", "stay", "cut", "leave", "wait", "reset"])
            writer.write(data[:rng.randrange(len(data))] if way == "cut" else data)
            await asyncio.wait_for(writer.drain(), 30)
            if way == "stay":
                reply = await asyncio.wait_for(reader.read(-1), 60)
                check(reply, fields)
                tally["whole"] += 1
            else:
                if way != "leave":
                    try:
                        await asyncio.wait_for(reader.read(rng.randrange(1, 4000)), rng.random() * 0.2)
                    except asyncio.TimeoutError:
                        pass
                if way == "reset":
                    writer.transport.abort()
                tally["left"] += 1
        finally:
            writer.close()


def unchunk(data):
    out = b""
    while True:
        size, data = data.split(b"\r\n", 1)
        n = int(size, 16)
        if n == 0:
            return out
        out, data = out + data[:n], data[n + 2:]


def check(reply, fields):
    head, rest = reply.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200"), reply[:500]
    if b"chunked" in head.lower():
        rest = unchunk(rest)
    if not fields["stream"]:
        answer = json.loads(rest)
        assert len(answer["choices"]) == fields.get("n", 1)
        return
    chunks = parse_events(rest)
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]]
    assert sorted(ends) == list(range(fields.get("n", 1)))


def test_32_clients_with_random_disconnects(own):
    tally = {"whole": 0, "left": 0}

    async def crowd():
        until = time.monotonic() + SECONDS
        await asyncio.gather(*(client(own.port, random.Random(1000 + i), until, tally) for i in range(CLIENTS)))

    asyncio.run(asyncio.wait_for(crowd(), SECONDS + 120))
    assert own.process.poll() is None, own.log[-5000:]
    assert tally["whole"] >= CLIENTS and tally["left"] >= CLIENTS, tally
    assert own.becomes_idle(20), "requests or pages were left behind"
    assert own.complete("the", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    assert own.becomes_idle()
    assert own.stop(60) == 0


def test_more_work_than_places(start, model):
    """Twice as many sequences as may run: every answer comes whole, and is the one it is alone."""
    server = start(model, "--max-model-len", "512", "--max-num-seqs", "8", "--batch-invariant", "--threads", "2",
                   program=DEBUG_PROGRAM)
    fields = {"max_tokens": 300, "temperature": 1, "ignore_eos": True}
    alone = [server.complete(PROMPT, seed=i, **fields)["choices"][0]["text"] for i in range(2)]
    together = server.complete([PROMPT] * 16, n=1, seed=0, **fields)
    assert together["usage"]["completion_tokens"] == 16 * 300
    texts = [c["text"] for c in together["choices"]]
    assert texts == [alone[0]] * 16 and alone[0] != alone[1]
    assert server.becomes_idle()
    assert server.stop(60) == 0


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP])
def test_signal_lets_answers_end(own, sig):
    """Running answers end whole, new ones are refused, the exit status is 0; also when the terminal goes away."""
    results = {}

    def ask(name, stream):
        with own.raw(timeout_s=60) as raw:
            raw.send(post_bytes(PATH, {"prompt": PROMPT, "max_tokens": 600, "ignore_eos": True, "stream": stream}))
            results[name] = raw.reply()

    threads = [threading.Thread(target=ask, args=(f"{stream} {i}", stream)) for stream in (True, False) for i in range(2)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: own.metrics().value("vllm:num_requests_running") == 4)
    idle = own.raw()
    own.process.send_signal(sig)
    time.sleep(0.1)
    if sig == signal.SIGHUP:  # from the terminal, and from its shell
        own.process.send_signal(sig)
    refused = False
    try:
        with own.raw(timeout_s=5) as late:
            late.send(post_bytes(PATH, {"prompt": "x", "max_tokens": 1}))
            refused = late.reply().status == 503
    except (OSError, EOFError):
        refused = True
    assert refused, "a new request was taken after the signal"
    for thread in threads:
        thread.join(60)
    for name, reply in results.items():
        assert reply.status == 200, (name, reply)
        if name.startswith("True"):
            assert parse_events(reply.body)[-1]["choices"][0]["finish_reason"] == "length"
        else:
            assert reply.json["usage"]["completion_tokens"] == 600
    assert len(results) == 4
    assert own.process.wait(20) == 0, own.log[-3000:]
    idle.close()
    assert not re.search("Sanitizer|runtime error", own.log), own.log[-5000:]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_ends_at_once(own, sig):
    connections = [own.raw() for _ in range(3)]  # kept alive by their clients
    connections[0].send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connections[0].reply().status == 200
    start = time.monotonic()
    own.process.send_signal(sig)
    assert own.process.wait(10) == 0, own.log[-3000:]
    assert time.monotonic() - start < 5
    for connection in connections:
        connection.close()


def test_sighup_is_ignored_if_it_was(start, model, tmp_path):
    """`nohup moebius serve` outlives its terminal."""
    program = tmp_path / "ignoring"
    program.write_text(f"#!/bin/sh\ntrap '' HUP\nexec '{DEBUG_PROGRAM}' \"$@\"\n")
    program.chmod(0o755)
    server = start(model, *FLAGS, program=program)
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert server.complete("the", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    assert server.stop(60) == 0


def test_sigterm_while_a_reader_is_slow(own):
    """A client that reads nothing does not keep the server alive for ever."""
    slow = own.raw(receive_buffer=4096)
    slow.send(post_bytes(PATH, {"prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": True, "logprobs": 20}))
    assert wait_until(lambda: own.metrics().value("vllm:num_requests_running") == 1)
    own.process.send_signal(signal.SIGTERM)
    try:
        assert own.process.wait(45) == 0
    finally:
        slow.close()


@pytest.mark.parametrize("path", [PATH, "/tokenize"])
def test_gone_while_the_request_is_read(own, path):
    """Long bodies are parsed one after the other on their own thread: clients that vanish meanwhile leave nothing behind
    that a shutdown would wait for."""
    clients = [own.raw() for _ in range(9)]
    clients[0].send(post_bytes(path, {"prompt": "x" * 3_000_000, "max_tokens": 1}))  # the others wait for this one
    time.sleep(0.1)
    for raw in clients[1:]:
        raw.send(post_bytes(path, {"prompt": "x" * 40_000, "max_tokens": 1}))
    time.sleep(0.1)  # all that was sent is read
    for raw in clients:
        raw.reset()
    assert own.complete("the", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    assert own.becomes_idle()
    assert own.stop(30) == 0


def test_sigterm_while_long_requests_come_in(start, model):
    """Requests that are on their way to the other thread when the signal comes are waited for, or refused."""
    data = post_bytes(PATH, {"prompt": "x", "max_tokens": 1, "other": "y" * 40_000})

    def ask_on(server, statuses):
        try:
            with server.raw(timeout_s=20) as raw:
                while not statuses or statuses[-1] == 200:
                    raw.send(data)
                    statuses.append(raw.reply().status)
        except (OSError, EOFError):
            pass  # closed between two requests

    for _ in range(4):
        server = start(model, *FLAGS, program=DEBUG_PROGRAM)
        statuses = [[] for _ in range(6)]
        threads = [threading.Thread(target=ask_on, args=(server, list_)) for list_ in statuses]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: all(statuses))
        assert server.stop(30) == 0
        for thread in threads:
            thread.join(30)
        assert {status for list_ in statuses for status in list_} <= {200, 503}


def test_sigterm_while_loading(start, model, slow_model):
    """Nothing is ready yet, and the server still ends when it is told to."""
    server = start(slow_model, wait=False, program=PROGRAM)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    if server.process.poll() is None:  # it may wait for the file it is reading, but not longer
        (slow_model / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    assert server.process.wait(10) in (0, -signal.SIGTERM)
