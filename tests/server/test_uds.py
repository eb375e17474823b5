"""`moebius serve --uds PATH`: a Unix socket in place of a port, and what may lie at its path."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import httpx
import pytest

from serving import DEBUG_PROGRAM, FLAGS, PROGRAM, parse_events, post_bytes, wait_until

PATH = "/v1/completions"
SHORT = {"prompt": "the good people", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
LONG = {**SHORT, "max_tokens": 1500}


@pytest.fixture
def folder():
    """One with a short name: a socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="uds-"))
    yield folder
    shutil.rmtree(folder)


def refused(model, *words):
    done = subprocess.run([PROGRAM, "serve", str(model), *map(str, words)], capture_output=True, text=True, timeout=20)
    assert "loading" not in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_answers(start, model, engine, folder):
    """Whole, as a stream, by the openai client and by top; the file is its user's alone, and gone at the end."""
    path = folder / "moebius.sock"
    server = start(model, *FLAGS, uds=path, program=DEBUG_PROGRAM)
    assert f"serving tiny on unix:{path} " in server.log
    assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    text = engine.text(engine.greedy(engine.prompt(SHORT["prompt"]), 3))
    with server.raw() as raw:
        raw.send(post_bytes(PATH, SHORT) + post_bytes(PATH, {**SHORT, "stream": True}))
        assert raw.reply().json["choices"][0]["text"] == text
        assert "".join(chunk["choices"][0]["text"] for chunk in parse_events(raw.reply().body)) == text
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
        with server.client(base_url="http://localhost/v1", http_client=http) as client:
            assert client.completions.create(model="tiny", prompt="x", max_tokens=2).usage.completion_tokens == 2
    done = subprocess.run([PROGRAM, "top", f"unix:{path}", "--json", "--interval", "0.2"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and f"unix:{path}" in done.stdout, done
    assert server.stop() == 0
    assert not path.exists()


def test_clients(start, model, folder):
    """Those that go away are noticed; the limit for one address is not theirs, as they have none."""
    server = start(model, *FLAGS, "--max-connections", 40, uds=folder / "s", program=DEBUG_PROGRAM)
    for stream in (True, False):
        raw = server.raw()
        raw.send(post_bytes(PATH, {**LONG, "stream": stream}))
        assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == 1)
        raw.close()
        assert wait_until(lambda: server.metrics().idle(), 5)
    raws = [server.raw() for _ in range(28)]  # three quarters of 40 may be idle
    for _ in range(2):
        for raw in raws:
            raw.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.reply().status == 200
    for raw in raws:
        raw.close()
    assert server.stop() == 0


def test_what_lies_there(start, model, folder):
    """A dead server's socket is replaced; a living one's, or a file, is not."""
    path = folder / "s"
    first = start(model, *FLAGS, uds=path)
    code, last = refused(model, "--uds", path)
    assert code == 1 and f"{path}: another server listens there" in last, last
    assert first.complete(**SHORT)["choices"]
    first.process.kill()
    first.process.wait()
    assert path.exists()
    second = start(model, *FLAGS, uds=path)
    assert second.complete(**SHORT)["choices"]
    path.unlink()
    path.write_text("somebody's")
    assert second.stop() == 0
    assert path.read_text() == "somebody's"
    code, last = refused(model, "--uds", path)
    assert code == 1 and "found a file" in last and path.read_text() == "somebody's", last


@pytest.mark.parametrize("signals", [1, 2])
def test_removed_however_it_ends(start, model, slow_model, folder, signals):
    """While it loads, and by a second signal while answers run."""
    path = folder / "s"
    server = start(slow_model if signals == 1 else model, *FLAGS, uds=path, wait=signals == 2)
    if signals == 2:
        raw = server.raw()
        raw.send(post_bytes(PATH, {**LONG, "n": 8}))
        assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == 8)
        server.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: "shutting down" in server.log)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == signals - 1
    assert not path.exists()


def test_wrong_places(model, folder):
    for words, code, said in (
            (["--uds", folder / "none" / "s"], 1, "No such file"),
            (["--uds", folder / ("x" * 120)], 2, "107 bytes"),
            (["--uds", ""], 2, "1 to 107 bytes"),
            (["--uds", folder / "s", "--port", 80], 2, "--port"),
            (["--uds", folder / "s", "--host", "0.0.0.0"], 2, "--host"),
            (["--uds", folder / "s", "--host", folder / "a.sock"], 2, "--host"),
            (["--host", folder / "a.sock", "--max-connections-per-address", 4], 2, "--max-connections-per-address"),
            (["--uds", folder / "s", "--ssl-certfile", "c", "--ssl-keyfile", "k"], 2, "--ssl-certfile")):
        found, last = refused(model, *words)
        assert found == code and said in last, last
    assert not os.listdir(folder)


def test_llama_cpp_writes_it_as_a_host(model, folder):
    """--host PATH.sock: an end with that name is no machine."""
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        code, last = refused(model, "--host", path)
    assert code == 1 and f"{path}: another server listens there" in last, last
