"""Fixtures of the server's tests. See serving.py for what they hand out."""

import os
import sys
from pathlib import Path

import anthropic
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import make_tiny_text_model
from serving import FLAGS, GOLDEN, Engine, Server


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with v2lite-tiny and a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", folder)
    return folder


@pytest.fixture
def slow_model(model, tmp_path):
    """The same, but the tokenizer is a pipe: loading waits until somebody writes it."""
    folder = tmp_path / "slow"
    folder.mkdir()
    for path in model.iterdir():
        if path.name != "tokenizer.json":
            (folder / path.name).symlink_to(path)
    os.mkfifo(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def engine(model, tmp_path_factory):
    return Engine(model, tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """start(model, *flags) -> a ready Server; whatever a test leaves running is stopped at the end."""
    folder, started = tmp_path_factory.mktemp("servers"), []

    def start_server(model, *flags, **options):
        server = Server(model, *flags, folder=folder, **options)
        started.append(server)
        return server

    yield start_server
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def shared_server(start, model):
    server = start(model, *FLAGS)
    yield server
    assert server.becomes_idle(), "requests or pages were left behind"
    assert server.stop() == 0


@pytest.fixture
def server(shared_server):
    """The server that most tests share. Each test finds it alive and leaves it idle: nothing running, no page taken."""
    assert shared_server.process.poll() is None, shared_server.log[-3000:]
    yield shared_server
    assert shared_server.process.poll() is None, shared_server.log[-3000:]
    assert shared_server.becomes_idle(), "requests or pages were left behind"


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def cold(start, model):
    """A server that computes every prompt."""
    server = start(model, *FLAGS, "--no-enable-prefix-caching")
    yield server
    assert server.stop() == 0
