"""`moebius top`: its figures are the server's, a terminal is left as it was found, and servers that are slow, gone, wrong or not
ours are told apart."""

import codecs
import fcntl
import os
import re
import select
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import PROGRAM, ROOT, TESTS, moebius, open_terminal, refused, succeed

sys.path.insert(0, str(TESTS / "server"))
from serving import Server, wait_until  # noqa: E402

MODEL = ROOT / "models" / "demo"
FLAGS = ["--max-model-len", "2048", "--threads", "1", "--draft-max", "4", "--expert-cache", "0.1"]
PROMPT = "# Adds two numbers and says so.\ndef add(a, b):\n    return a + b\n\n" * 8  # pages of 64 tokens are shared


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = Server(MODEL, *FLAGS, "--prefix-cache-dir", folder / "cache", folder=folder)
    yield server
    server.process.terminate()
    server.process.wait(20)


class Load:
    """Completions, one after the other, until it ends."""

    def __init__(self, server):
        self.server, self.done = server, threading.Event()

    def work(self):
        while not self.done.is_set():
            self.server.complete(PROMPT, max_tokens=60, temperature=0, ignore_eos=True)

    def __enter__(self):
        before = self.server.metrics().value("vllm:request_success_total")
        self.threads = [threading.Thread(target=self.work) for _ in range(2)]
        for thread in self.threads:
            thread.start()
        assert wait_until(lambda: self.server.metrics().value("vllm:request_success_total") > before + 2)
        return self

    def __exit__(self, *_):
        self.done.set()
        for thread in self.threads:
            thread.join()


# --- once ------------------------------------------------------------------------------------------------------------

TOTALS = {"vllm:prompt_tokens_total": ("tokens", "prompt"), "vllm:generation_tokens_total": ("tokens", "generated"),
          "vllm:prefix_cache_queries_total": ("prefix_cache", "asked_tokens"),
          "vllm:prefix_cache_hits_total": ("prefix_cache", "found_tokens"),
          "vllm:external_prefix_cache_queries_total": ("disk_cache", "asked_tokens"),
          "moebius:expert_cache_hits_total": ("experts", "hits"), "moebius:expert_cache_misses_total": ("experts", "misses"),
          "vllm:spec_decode_num_draft_tokens_total": ("drafts", "drafted"), "moebius:steps_total": ("steps", "n"),
          "vllm:spec_decode_num_accepted_tokens_total": ("drafts", "accepted")}


def test_figures_are_the_servers(server):
    """What is printed lies between what the server tells before and after; the rates are differences by the interval."""
    with Load(server):
        before = server.metrics()
        report = succeed("top", server.url, "--once", "--json", "--interval", "0.7").json
        after = server.metrics()
    assert (report["state"], report["server"], report["model"]) == ("ready", "moebius", server.model)
    assert 0.7 <= report["interval_s"] < 5 and 0 <= report["uptime_s"] < 600
    for name, (group, key) in TOTALS.items():
        figure = report[group][key]
        assert before.value(name) <= figure["total"] <= after.value(name), name
        assert 0 <= figure["per_s"] * report["interval_s"] <= figure["total"] - before.value(name) + 1e-3, name
        assert figure["total"] > 0, name
    for reason, figure in report["requests"]["finished"].items():
        name, labels = "vllm:request_success_total", {"finished_reason": reason}
        assert before.value(name, **labels) <= figure["total"] <= after.value(name, **labels)
    assert report["tokens"]["generated"]["per_s"] > 0
    for name in ("first_token", "between_tokens", "queue", "request"):
        times = report["times_s"][name]
        assert times["n"] > 0 and 0 <= times["p50"] <= times["p90"] <= times["p99"], name
    assert report["kv_cache"]["pages"] == after.value("moebius:kv_pages_total")
    assert 0 <= report["kv_cache"]["used"] <= 1 and 0 <= report["prefix_cache"]["found"] <= 1
    assert "ranks" not in report  # one process


def test_idle_totals_agree(server):
    assert server.becomes_idle()
    report = succeed("top", server.url, "--json", "--interval", "0.2").json
    metrics = server.metrics()
    for name, (group, key) in TOTALS.items():
        assert report[group][key] == {"total": metrics.value(name), "per_s": 0}, name
    assert report["requests"]["running"] == report["requests"]["waiting"] == report["kv_cache"]["used"] == 0
    assert report["times_s"]["first_token"] == {"n": 0, "p50": None, "p90": None, "p99": None}


def test_text_where_there_is_no_terminal(server):
    text = succeed("top", server.url.removeprefix("http://") + "/v1", "--interval", "0.2").text
    assert re.match(rf"moebius top  {server.url}/ +ready\nmodel +{server.model}   up \d+ ", text), text
    for word in ("0 running", "generated", "first token", "KV cache", "on disk", "experts found", "drafts right"):
        assert word in text, text
    assert text.isascii() and "\033" not in text and all(len(line) <= 80 for line in text.splitlines())


# --- a terminal ------------------------------------------------------------------------------------------------------

SEQUENCE = re.compile(r"\033\[([?0-9;]*)([A-Za-z])")
UNFINISHED = re.compile(r"(\033(\[[?0-9;]*)?)?\Z")


class Terminal:
    """`moebius top` on a pseudo-terminal, and what stands on its screen: just the sequences that top uses, others are errors."""

    def __init__(self, *arguments, rows=24, cols=80, env=None):
        self.master, self.slave = open_terminal()
        self.mode = termios.tcgetattr(self.slave)
        self.modes, self.held, self.raw = set(), "", b""
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.clear(rows, cols)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

        def take_terminal():
            """As a shell starts it: whoever started the tests may ignore signals."""
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen([PROGRAM, "top", *map(str, arguments)], stdin=self.slave, stdout=self.slave,
                                        stderr=subprocess.PIPE, preexec_fn=take_terminal,
                                        env={**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm", **(env or {})})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        os.close(self.master)
        os.close(self.slave)

    def clear(self, rows, cols):
        self.rows, self.cols, self.row, self.col = rows, cols, 0, 0
        self.cells = [[" "] * cols for _ in range(rows)]

    def resize(self, rows, cols):
        self.read(0)
        self.clear(rows, cols)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def control(self, arguments, letter):
        if letter == "H":
            self.row = self.col = 0
        elif letter == "K":
            self.cells[self.row][self.col:] = [" "] * (self.cols - self.col)
        elif letter == "J":
            first = 0 if arguments == "2" else self.row
            for row in range(first, self.rows):
                start = self.col if row == self.row and not arguments else 0
                self.cells[row][start:] = [" "] * (self.cols - start)
        elif arguments.startswith("?"):
            (self.modes.add if letter == "h" else self.modes.discard)(arguments)
        else:
            assert letter == "m", (arguments, letter)

    def put(self, text):
        for c in text:
            assert c >= " " or c in "\r\n", repr(text)
            if c == "\n":
                assert self.row + 1 < self.rows, "the screen scrolls"
                self.row += 1
            elif c == "\r":
                self.col = 0
            else:
                self.cells[self.row][self.col] = c
                self.col = min(self.col + 1, self.cols - 1)

    def read(self, timeout_s):
        while select.select([self.master], [], [], timeout_s)[0]:
            data = os.read(self.master, 65536)
            self.raw += data
            self.held += self.decoder.decode(data)
            end = UNFINISHED.search(self.held).start()
            whole, self.held, at = self.held[:end], self.held[end:], 0
            for found in SEQUENCE.finditer(whole):
                self.put(whole[at:found.start()])
                self.control(found.group(1), found.group(2))
                at = found.end()
            self.put(whole[at:])
            timeout_s = 0

    @property
    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.cells)

    def shows(self, pattern, timeout_s=15):
        def found():
            self.read(0.05)
            return re.search(pattern, self.text)

        assert wait_until(found, timeout_s), f"no {pattern!r} in:\n{self.text}\n{self.process.poll()}"
        return True

    def press(self, keys):
        os.write(self.master, keys)

    def ends(self, code):
        """It ends so, says nothing, and the terminal is as it was: mode, screen, cursor, ends of lines."""
        def ended():
            self.read(0.02)
            return self.process.poll() is not None

        assert wait_until(ended, 15), self.text
        self.read(0.1)
        assert self.process.returncode == code and self.process.stderr.read() == b""
        assert termios.tcgetattr(self.slave) == self.mode
        assert self.modes == {"?25", "?7"}  # shown, and on; the other screen is left
        assert self.raw.endswith(b"\033[?1049l")


@pytest.mark.parametrize("keys, code", [(b"q", 0), (b"\x03", 0), (b"\x1c", -signal.SIGQUIT)])
def test_keys_that_end_it(server, keys, code):
    with Terminal(server.url) as terminal:
        assert terminal.shows(rf"^moebius top  {server.url}/ +ready")
        assert terminal.modes == {"?1049"} and termios.tcgetattr(terminal.slave) != terminal.mode
        terminal.press(b"\033[Q" + b"x")  # neither an arrow key nor another letter does
        time.sleep(0.1)
        assert terminal.process.poll() is None
        terminal.press(keys)
        terminal.ends(code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT])
def test_signals_that_end_it(server, number):
    with Terminal(server.url) as terminal:
        assert terminal.shows("ready")
        terminal.process.send_signal(number)
        if number in (signal.SIGSEGV, signal.SIGABRT) and b"asan" in open(PROGRAM, "rb").read():
            pytest.skip("the sanitizer speaks of it")
        terminal.ends(-number)


def test_stop_and_go_on(server):
    """Ctrl-Z gives the terminal back for a while."""
    with Terminal(server.url) as terminal:
        assert terminal.shows("ready")
        terminal.press(b"\x1a")
        state = f"/proc/{terminal.process.pid}/stat"
        assert wait_until(lambda: open(state).read().rsplit(")", 1)[1].split()[0] == "T")
        terminal.read(0.1)
        assert terminal.modes == {"?25", "?7"} and termios.tcgetattr(terminal.slave) == terminal.mode
        terminal.process.send_signal(signal.SIGCONT)
        assert wait_until(lambda: terminal.read(0.05) or terminal.modes == {"?1049"})
        terminal.press(b"q")
        terminal.ends(0)


def test_load_and_resize(server):
    with Load(server), Terminal(server.url, "--interval", "0.2") as terminal:
        assert terminal.shows(r"  generated +[1-9][0-9.,]* +[1-9].*[▁-█]")
        assert terminal.shows(r"  between tokens +[0-9]")
        assert terminal.shows(r"q quits   every 0.2 s")
        terminal.resize(6, 40)
        assert terminal.shows(r"\A[^\n]*ready[^\n]*\nmodel")
        assert wait_until(lambda: terminal.read(0.05) or "q quits" not in terminal.text)
        terminal.resize(40, 130)
        assert terminal.shows(r"q quits")
        assert terminal.shows(r"(?m)^moebius top.{100,}ready( \d+ s)?$")
        terminal.press(b"q")
        terminal.ends(0)


def test_ascii_where_the_locale_is_not_utf8(server):
    with Terminal(server.url, "--interval", "0.2", env={"LC_ALL": "C"}) as terminal:
        assert terminal.shows(r"KV cache +[.#]{20}")
        assert terminal.text.isascii()


def test_keys_from_nowhere(server):
    """Standard input is no terminal: signals still end it."""
    with Terminal(server.url) as terminal:
        terminal.process.kill()
        terminal.process.wait()
        terminal.read(0.1)
        terminal.process.stderr.close()
        terminal.modes, terminal.raw = set(), b""
        termios.tcsetattr(terminal.slave, termios.TCSANOW, terminal.mode)
        terminal.process = subprocess.Popen([PROGRAM, "top", server.url], stdin=subprocess.DEVNULL, stdout=terminal.slave,
                                            stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C", "TERM": "xterm"})
        assert terminal.shows("ready")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.ends(-signal.SIGTERM)


def test_a_server_that_goes_and_comes_back(tmp_path):
    first = Server(MODEL, *FLAGS, folder=tmp_path)
    first.complete("def f(", max_tokens=4)
    with Terminal(first.url, "--interval", "0.2") as terminal:
        assert terminal.shows(r"\A.*ready")
        first.process.kill()
        first.process.wait()
        assert terminal.shows(r"\A.*gone")
        assert terminal.shows(r"(?m)^trying on, figures as of \d+ s ago: cannot connect: Connection refused$")
        second = subprocess.Popen([PROGRAM, "serve", MODEL, "--host", "127.0.0.1", "--port", str(first.port), *FLAGS],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert terminal.shows(r"\A.*ready", 30)
            assert terminal.shows(r"started anew 1 x")
            terminal.press(b"q")
            terminal.ends(0)
        finally:
            second.kill()
            second.wait()


# --- servers of all kinds --------------------------------------------------------------------------------------------


class Fake:
    """Answers /metrics with what `reply(handler, count)` writes."""

    def __init__(self, reply):
        fake = self
        self.headers, self.n = None, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake.headers, fake.path = self.headers, self.path
                fake.n += 1
                try:
                    reply(self, fake.n)
                except OSError:
                    pass  # top does not stay for everything

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def send(handler, status, body):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Location", "http://127.0.0.1:9/")
    handler.end_headers()
    handler.wfile.write(body)


def answers(status, body=b""):
    return Fake(lambda handler, n: send(handler, status, body))


VLLM = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/name"} 2.0
vllm:num_requests_waiting{engine="0",model_name="org/name"} NaN
this line is no sample
vllm:prompt_tokens_total{engine="0",model_name="org/name"} %d.0
vllm:prompt_tokens_created{engine="0",model_name="org/name"} 1.7e+09
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="org/name"} %d.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="org/name"} %d.0
"""


def test_vllm():
    with Fake(lambda handler, n: send(handler, 200, VLLM % (100 * n, 2 * n, 2 * n))) as fake:
        report = succeed("top", fake.url + "/", "--once", "--json", "--interval", "0.2", "--api-key", "secret").json
        assert fake.path == "/metrics" and fake.headers["Authorization"] == "Bearer secret"
        text = succeed("top", fake.url, "--once", "--interval", "0.2", env={"MOEBIUS_API_KEY": "other"}).text
        assert fake.headers["Authorization"] == "Bearer other"
    assert (report["server"], report["model"], report["requests"]) == ("vllm", "org/name", {"running": 2})
    assert report["tokens"]["prompt"]["total"] == 200
    assert report["tokens"]["prompt"]["per_s"] == pytest.approx(100 / report["interval_s"])
    assert report["times_s"]["first_token"] == {"n": 2, "p50": 0.25, "p90": 0.45, "p99": 0.495}
    assert not {"kv_cache", "experts", "drafts", "ranks", "steps", "uptime_s"} & set(report)
    assert "org/name   (vLLM)" in text and "2 running" in text and "waiting" not in text


@pytest.mark.parametrize("status, body, words", [
    (401, b"", ["refused", "--api-key"]), (403, b"", ["refused", "--api-key"]), (404, b"", ["foreign", "no /metrics"]), (501, b"", ["foreign", "--metrics"]),
    (500, b"", ["failed", "500"]), (302, b"", ["failed", "302"]),
    (200, b"go_goroutines 8\n", ["foreign", "neither of Moebius nor of vLLM"]), (200, b"", ["foreign"]),
    (200, bytes(range(256)) * 40, ["foreign"]), (200, b"vllm:x 1\n" * (1 << 20), ["failed", "8 MiB"])],
    ids=range(10))
def test_answers_that_tell_nothing(status, body, words):
    with answers(status, body) as fake:
        message = refused(moebius("top", fake.url, "--once", "--interval", "0.2"), fake.url, *words)
        assert message.isprintable()


def test_loading():
    """Moebius tells of no pages yet; llama.cpp and what stands before servers answer 503."""
    with answers(200, b"moebius:kv_pages_total 0\nvllm:num_requests_running 0\n") as fake:
        assert succeed("top", fake.url, "--json", "--interval", "0.2").json["state"] == "loading"
    with answers(503) as fake:
        assert succeed("top", fake.url, "--json").json == {"url": fake.url + "/", "state": "loading"}
        assert "503" in succeed("top", fake.url).text


def test_a_slow_server():
    """It is said, keys work meanwhile, and figures come when they come."""
    release = threading.Event()

    def reply(handler, n):
        if n == 2:
            release.wait(20)
        send(handler, 200, VLLM % (100 * n, n, n))

    with Fake(reply) as fake, Terminal(fake.url, "--interval", "0.2") as terminal:
        assert terminal.shows(r"\A.*slow")
        assert terminal.shows(r"trying on, figures as of \d+ s ago: no answer yet")
        release.set()
        assert terminal.shows(r"\A.*ready")
        assert terminal.shows(r"malformed lines in the answer: 1")
        release.clear()
        fake.n = 1
        assert wait_until(lambda: terminal.read(0.02) or fake.n == 2)
        start = time.monotonic()
        terminal.press(b"q")
        terminal.ends(0)
        assert time.monotonic() - start < 3  # it does not wait for the answer
        release.set()


def test_https(tmp_path):
    """With a certificate that is trusted, and only then."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                    "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    with answers(200, VLLM % (1, 1, 1)) as fake:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        fake.http.socket = context.wrap_socket(fake.http.socket, server_side=True)
        url = fake.url.replace("http:", "https:")
        trusted = {"CURL_CA_BUNDLE": str(cert)}
        assert succeed("top", url, "--json", "--interval", "0.2", env=trusted).json["model"] == "org/name"
        refused(moebius("top", url, "--json"), url, "failed", "certificate")


def test_a_terminal_that_cannot_be_drawn_on(server):
    with Terminal(server.url, "--interval", "0.2", env={"TERM": "dumb"}) as terminal:
        assert terminal.shows("KV cache")
        assert terminal.process.wait(10) == 0 and b"\033" not in terminal.raw


def test_counters_that_go_back():
    with Fake(lambda handler, n: send(handler, 200, VLLM % (1000 // n, 5, 5))) as fake:
        report = succeed("top", fake.url, "--json", "--interval", "0.2").json
        assert report["tokens"]["prompt"] == {"total": 500, "per_s": None} and report["interval_s"] is None


@pytest.mark.parametrize("arguments, words", [
    (["ftp://x"], ["ftp://x", "http://"]), (["http://"], ["address"]), (["--interval", "0.1"], ["--interval", "0.2"]),
    (["http://127.0.0.1:9", "--once"], ["gone", "http://127.0.0.1:9/"]), (["a", "b"], ["b"]),
    (["http://x", "--api-key", "a\nb"], ["key"])])
def test_refused(arguments, words):
    refused(moebius("top", *arguments), *words)
