"""`moebius serve --root-path`: every path answers under it too, with the same keys, errors and shapes."""

import subprocess

import pytest

from serving import DEBUG_PROGRAM, FLAGS, HOST, PROGRAM

KEY = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def server(start, model):
    server = start(model, *FLAGS, "--root-path", "/models/tiny/", "--api-key", "sesame", program=DEBUG_PROGRAM)
    yield server
    assert server.stop() == 0


def test_both_ways(server):
    """Passed on, or taken off by a proxy."""
    assert f"serving tiny on http://{HOST}:{server.port}/models/tiny " in server.log
    for prefix in ("", "/models/tiny", "http://x/models/tiny"):
        for path, key, status in (("/v1/models", KEY, 200), ("/v1/models/tiny", KEY, 200), ("/v1/models", None, 401), ("/health", None, 200),
                                  ("/v1/nothing", KEY, 404)):
            assert server.get(prefix + path, key).status == status, prefix + path
        reply = server.post(prefix + "/v1/completions", {"prompt": "x", "max_tokens": 2}, KEY)
        assert reply.json["usage"]["completion_tokens"] == 2
        assert isinstance(server.post(prefix + "/api/nothing", {}, KEY).json["error"], str), "Ollama's errors are texts"
    for path in ("/models/tiny", "/models/tiny/"):
        assert server.get(path).status == 200


def test_page(server):
    """Its paths are relative, so it has to be below the prefix's "/": that is said by a relative path, too."""
    html = {"Accept": "text/html,*/*"}
    reply = server.get("/models/tiny", html)
    assert (reply.status, reply.headers["location"], reply.headers["vary"]) == (307, "./tiny/", "Accept")
    assert b"web/app.js" in server.get("/models/tiny/", html).body
    assert server.get("/models/tiny/web/app.js").status == 200


@pytest.mark.parametrize("prefix", ["/v1", "/api"])
def test_prefix_of_our_own(start, model, prefix):
    """One that begins as our own paths do takes none of them away."""
    server = start(model, *FLAGS, "--root-path", prefix)
    messages = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for path in ("/v1/messages", "/v1/chat/completions", prefix + "/v1/messages", prefix + "/v1/chat/completions"):
        assert server.post(path, messages).status == 200, path
    for path in ("/api/tags", prefix + "/api/tags", prefix + "/health", "/v1/models/tiny", prefix + "/v1/models/tiny"):
        assert server.get(path).status == 200, path
    assert server.get("/v1/nothing").status == 404
    assert server.stop() == 0


@pytest.mark.parametrize("path", ["/models/tinyv1/models", "/models/tiny/models/tiny/health", "/tiny/health", "/models/tiny//health"])
def test_other_paths(server, path):
    assert server.get(path, KEY).status == 404


def test_clients(server):
    with server.client(base_url=f"{server.url}/models/tiny/v1", api_key="sesame") as client:
        assert client.models.list().data[0].id == "tiny"
    done = subprocess.run([PROGRAM, "top", f"{server.url}/models/tiny", "--json", "--interval", "0.2", "--api-key", "sesame"],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done


@pytest.mark.parametrize("prefix", ["models", "/a\nb", "/a//b", "/a?b", "/a b", "/" + "x" * 256])
def test_no_path(model, prefix):
    done = subprocess.run([PROGRAM, "serve", str(model), "--port", "0", "--api-prefix", prefix], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "--root-path" in done.stderr, done
