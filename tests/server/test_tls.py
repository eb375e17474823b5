"""`moebius serve --ssl-certfile`: every answer by https, clients that never finish shaking hands, and files that do not go together."""

import ssl
import subprocess
import threading
import time

import httpx
import pytest

from serving import DEBUG_PROGRAM, FLAGS, HOST, PROGRAM, parse_events, post_bytes, wait_until

PATH = "/v1/completions"
SHORT = {"prompt": "the good people", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
LONG = {**SHORT, "max_tokens": 1500}
TIMEOUT_S = 1  # of the server: a request, and a hand shaken


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a certificate, its key (also encrypted, "sesame"), one whose time is over, and another's key."""
    folder = tmp_path_factory.mktemp("tls")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2, "-subj", "/CN=localhost",
            "-addext", f"subjectAltName=IP:{HOST}", "-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    openssl("pkcs8", "-topk8", "-in", folder / "key.pem", "-out", folder / "locked.pem", "-passout", "pass:sesame")
    openssl("x509", "-in", folder / "cert.pem", "-signkey", folder / "key.pem", "-days", -1, "-out", folder / "old.pem")
    openssl("genpkey", "-algorithm", "ed25519", "-out", folder / "other.pem")
    (folder / "words.pem").write_text("no PEM\n")
    (folder / "torn.pem").write_bytes((folder / "cert.pem").read_bytes() + (folder / "cert.pem").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def context(files):
    return ssl.create_default_context(cafile=files / "cert.pem")


def flags(files, key="key.pem", certificate="cert.pem"):
    return ["--ssl-certfile", files / certificate, "--ssl-keyfile", files / key]


@pytest.fixture(scope="module")
def shared(start, model, files, context):
    server = start(model, *FLAGS, *flags(files), "--request-timeout", TIMEOUT_S, tls=context, program=DEBUG_PROGRAM)
    yield server
    assert server.stop() == 0


@pytest.fixture
def server(shared):
    yield shared
    assert shared.becomes_idle(), "requests or pages were left behind"


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers(server, engine):
    """Whole, as a stream, several on one connection: the tokens that there are without TLS."""
    text = engine.text(engine.greedy(engine.prompt(SHORT["prompt"]), 3))
    with server.raw() as raw:
        assert raw.socket.version() == "TLSv1.3"
        raw.send(post_bytes(PATH, SHORT) + post_bytes(PATH, {**SHORT, "stream": True}) + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.reply().json["choices"][0]["text"] == text
        assert "".join(chunk["choices"][0]["text"] for chunk in parse_events(raw.reply().body)) == text
        assert "version" in raw.reply().json
    assert f"serving tiny on https://{HOST}:{server.port} " in server.log


def test_openai_client(server, context):
    with httpx.Client(verify=context) as http, server.client(http_client=http) as client:
        stream = client.completions.create(model=server.model, prompt="x", max_tokens=40, stream=True, extra_body={"ignore_eos": True})
        assert [choice.finish_reason for chunk in stream for choice in chunk.choices][-1] == "length"


def test_large_bodies(server):
    """One that is read whole, and one that is refused while its client still writes."""
    assert server.post(PATH, {**SHORT, "user": "y" * 10_000_000}).status == 200
    assert server.post(PATH, b" " * 40_000_000).status == 413


@pytest.mark.parametrize("stream", [True, False])
def test_gone_in_the_middle(server, stream):
    raw = server.raw()
    raw.send(post_bytes(PATH, {**LONG, "stream": stream}))
    assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == 1)
    raw.close()
    assert wait_until(lambda: server.metrics().idle(), 5)


def test_slow_reader(server):
    """What does not fit into the socket waits for its reader, and nobody else does."""
    with server.raw(receive_buffer=4096) as slow:
        slow.send(post_bytes(PATH, {**LONG, "stream": True, "logprobs": 20, "max_tokens": 300}))
        assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == 1)
        assert server.complete(**SHORT)["usage"]["completion_tokens"] == 3
        chunks = parse_events(slow.reply().body)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_drain(start, model, files, context):
    """SIGTERM lets a stream finish, and takes nothing new."""
    server = start(model, *FLAGS, *flags(files), tls=context, program=DEBUG_PROGRAM)
    with server.raw() as raw:
        raw.send(post_bytes(PATH, {**LONG, "stream": True}))
        _, headers = raw.head()
        events = raw.events(headers)
        next(events)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert wait_until(lambda: "shutting down" in server.log)
        assert server.post(PATH, SHORT).status == 503
        assert list(events)[-1] == b"data: [DONE]"
    stopper.join()
    assert server.process.returncode == 0


# --- hands that are not shaken ---------------------------------------------------------------------------------------


def until_closed(raw):
    """Reads what may come, an alert or nothing; False if the connection stays."""
    try:
        while raw.fill():
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_no_handshake(server):
    """Connections that never become one end in time, and stop nobody meanwhile: silent, half a hello, plain HTTP."""
    words = [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    raws = [server.raw(tls=None, timeout_s=TIMEOUT_S + 5) for _ in words]
    for raw, word in zip(raws, words):
        raw.send(word)
    assert server.get("/version").status == 200
    assert until_closed(raws[3]), "plain HTTP is seen at once"
    for raw in raws:
        assert until_closed(raw)
        raw.close()


def test_byte_by_byte_handshake(server):
    """Bytes that come one at a time do not keep it either."""
    with server.raw(tls=None) as raw, pytest.raises(OSError):
        raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        for _ in range(80):
            raw.send(b"x")
            time.sleep(0.1)


def test_client_that_does_not_trust(server):
    with pytest.raises(ssl.SSLError):
        server.raw(tls=ssl.create_default_context())
    assert server.get("/version").status == 200


@pytest.mark.parametrize("version, is_taken", [("-tls1_2", True), ("-tls1_1", False)])
def test_versions(server, version, is_taken):
    done = subprocess.run(["openssl", "s_client", "-connect", f"{HOST}:{server.port}", version, "-cipher", "ALL@SECLEVEL=0"],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert (done.returncode == 0) == is_taken, done


# --- files -----------------------------------------------------------------------------------------------------------


def refused(model, *words, env=None):
    done = subprocess.run([PROGRAM, "serve", str(model), "--host", HOST, "--port", "0", *map(str, words)], capture_output=True, text=True,
                          timeout=20, env=env)
    assert "loading" not in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("key, certificate, words", [
    ("none.pem", "cert.pem", ["--ssl-keyfile", "none.pem", "No such file"]),
    ("key.pem", "none.pem", ["--ssl-certfile", "none.pem", "No such file"]),
    ("words.pem", "cert.pem", ["--ssl-keyfile", "words.pem", "PEM"]),
    ("key.pem", "words.pem", ["--ssl-certfile", "words.pem", "PEM"]),
    ("cert.pem", "key.pem", ["--ssl-certfile", "key.pem", "expected a certificate"]),
    ("key.pem", "torn.pem", ["--ssl-certfile", "torn.pem", "damaged"]),
    ("other.pem", "cert.pem", ["--ssl-keyfile", "other.pem", "cert.pem", "not the key"]),
    ("locked.pem", "cert.pem", ["--ssl-keyfile", "locked.pem", "encrypted", "MOEBIUS_SSL_PASSWORD"]),
])
def test_wrong_files(model, files, key, certificate, words):
    """Before the model is read, with the file's name."""
    code, last = refused(model, *flags(files, key, certificate))
    assert code == 1, last
    for word in words:
        assert word in last, last


def test_half_of_the_flags(model, files):
    for given, missing in (("--ssl-certfile", "--ssl-keyfile"), ("--ssl-key-file", "--ssl-certfile")):
        code, last = refused(model, given, files / "key.pem")
        assert code == 2 and missing in last, last
    code, last = refused(model, *flags(files), "--ssl-ca-certs", "x")
    assert code == 1 and "--api-key" in last


def test_encrypted_key(start, model, files, context):
    """By llama.cpp's names; and a password that is another's."""
    words = ["--ssl-cert-file", files / "cert.pem", "--ssl-key-file", files / "locked.pem"]
    code, last = refused(model, *words, "--ssl-keyfile-password", "simsim")
    assert code == 1 and "the password does not decrypt it" in last, last
    server = start(model, *FLAGS, *words, env={"MOEBIUS_SSL_PASSWORD": "sesame"}, tls=context, program=DEBUG_PROGRAM)
    assert server.complete(**SHORT)["choices"]
    assert server.stop() == 0


def test_certificate_that_is_over(start, model, files):
    server = start(model, *FLAGS, *flags(files, certificate="old.pem"), tls=ssl._create_unverified_context())
    assert "old.pem: its time is over" in server.log
    assert server.stop() == 0


def test_top(server, files):
    """Trusts the certificate that it is told to, and no other."""
    command = [PROGRAM, "top", server.url, "--json", "--interval", "0.2"]
    done = subprocess.run([*command, "--cacert", files / "cert.pem"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and '"model": "tiny"' in done.stdout, done
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "certificate" in done.stderr, done
