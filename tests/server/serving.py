"""What the server's tests share: a served tiny model, plain HTTP and raw sockets, server-sent events, and the engine's own
answers (by `moebius tokenize`, `logits`, `run`) to compare with. Loopback only; nothing here waits without a limit."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
import tiny_tokenizer

PROGRAM = os.environ.get("MOEBIUS", str(TESTS.parent / "build" / "moebius"))
DEBUG_PROGRAM = os.environ.get("MOEBIUS_DEBUG_BIN", PROGRAM)  # the sanitizers' build, for what provokes crashes
os.environ.setdefault("MOEBIUS_NODES", "/nowhere")  # one memory node, however many there are: a line less at every start
GOLDEN = TESTS / "golden" / "data"
HOST = "127.0.0.1"

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
FIM_TEXT = [f"<\uff5cfim\u2581{name}\uff5c>" for name in ("begin", "hole", "end")]
BOS_ID, EOS_ID = 0, 1
FIM_IDS = [253, 254, 255]

# Small, so that queueing and full contexts are reached quickly.
MAX_MODEL_LEN, MAX_NUM_SEQS = 2048, 8
FLAGS = ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS), "--batch-invariant", "--threads", "2"]
ENGINE_FLAGS = ["--batch-invariant", "--threads", "2"]  # the same numbers from the command line


def wait_until(condition, timeout_s=10.0, step_s=0.005):
    """Whether `condition()` comes true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step_s)
    return bool(condition())


# --- HTTP ------------------------------------------------------------------------------------------------------------


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, {k.lower(): v for k, v in headers}, body

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))  # strict: the server must send valid UTF-8

    @property
    def error(self):
        """The error object; its shape is checked here for every error that a test meets."""
        assert self.headers["content-type"].startswith("application/json"), self
        body = self.json
        assert set(body) == {"error"}, body
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str) and error["message"], error
        assert isinstance(error["type"], str) and error["type"], error
        for key in ("param", "code"):
            assert error[key] is None or isinstance(error[key], str), error
        return error

    def __repr__(self):
        return f"HTTP {self.status} {self.headers} {self.body[:1500]!r}"


class Raw:
    """One connection, by TLS if `tls` is a context: sends any bytes, reads HTTP/1.1 strictly. A `port` that is no number is a Unix
    socket's path."""

    def __init__(self, port, timeout_s=20.0, receive_buffer=None, tls=None):
        is_tcp = isinstance(port, int)
        self.socket = socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect((HOST, port) if is_tcp else str(port))
        if is_tcp:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname=HOST)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """Closes with RST, as a killed process with unread data does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def fill(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def read_line(self):
        while b"\r\n" not in self.buffer:
            if not self.fill():
                raise EOFError(f"closed after {self.buffer!r}")
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def read_exactly(self, n):
        while len(self.buffer) < n:
            if not self.fill():
                raise EOFError(f"closed with {len(self.buffer)} of {n} bytes")
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def at_end(self):
        """Whether the server closed and left nothing unread."""
        try:
            return not self.buffer and not self.fill()
        except ConnectionResetError:
            return True

    def head(self):
        line = self.read_line().decode("ascii")
        found = re.fullmatch(r"HTTP/1\.[01] (\d\d\d)( .*)?", line)
        assert found, line
        headers = []
        while True:
            line = self.read_line().decode("latin-1")
            if not line:
                return int(found.group(1)), headers
            name, value = line.split(":", 1)
            assert re.fullmatch(r"[!-9;-~]+", name), line
            headers.append((name, value.strip()))

    def chunks(self):
        while True:
            size = self.read_line()
            assert re.fullmatch(rb"[0-9a-fA-F]+", size), size
            data = self.read_exactly(int(size, 16))
            assert self.read_exactly(2) == b"\r\n"
            if not data:
                return
            yield data

    def pieces(self, headers):
        """The body as it comes in, framed as the headers say."""
        fields = {k.lower(): v for k, v in headers}
        if "chunked" in fields.get("transfer-encoding", ""):
            yield from self.chunks()
        elif "content-length" in fields:
            yield self.read_exactly(int(fields["content-length"]))
        else:
            while self.buffer or self.fill():
                data, self.buffer = self.buffer, b""
                yield data

    def reply(self):
        status, headers = self.head()
        while status == 100:
            status, headers = self.head()
        return Reply(status, headers, b"".join(self.pieces(headers)))

    def events(self, headers):
        """Server-sent events as they come in: bytes of each frame, without the blank line."""
        held = b""
        for piece in self.pieces(headers):
            held += piece
            while b"\n\n" in held:
                frame, held = held.split(b"\n\n", 1)
                yield frame
        assert not held, held


def post_bytes(path, body, *more_headers):
    """A request as bytes, ready to send."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json", f"Content-Length: {len(body)}",
             *more_headers, "", ""]
    return "\r\n".join(lines).encode() + body


# --- server-sent events ----------------------------------------------------------------------------------------------


def parse_events(body):
    """The JSON objects of a whole SSE body; its framing is checked: `data: ...` and comments only, [DONE] last."""
    assert body.endswith(b"\n\n"), body[-200:]
    chunks, done = [], False
    for frame in body.decode("utf-8")[:-2].split("\n\n"):
        assert not done, f"after [DONE]: {frame!r}"
        assert "\n" not in frame and "\r" not in frame, frame
        if frame.startswith(":"):
            continue
        assert frame.startswith("data: "), frame
        data = frame.removeprefix("data: ")
        if data == "[DONE]":
            done = True
        else:
            chunks.append(json.loads(data))
    assert done, body[-200:]
    return chunks


def parse_named_events(body):
    """The objects of an SSE body whose events have names, each the same as its object's type; no [DONE]."""
    assert body.endswith(b"\n\n"), body[-200:]
    objects = []
    for frame in body.decode("utf-8")[:-2].split("\n\n"):
        if frame.startswith(":"):
            continue
        name, data = frame.split("\n")
        assert name.startswith("event: ") and data.startswith("data: "), frame
        objects.append(json.loads(data.removeprefix("data: ")))
        assert objects[-1]["type"] == name.removeprefix("event: "), frame
    return objects


def texts_of(chunks):
    """index -> text, from chunks of either endpoint."""
    texts = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


# --- metrics ---------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)')


def parse_labels(text):
    labels, at = {}, 0
    while at < len(text):
        found = LABEL.match(text, at)
        assert found, f"labels: {text!r}"
        assert found.group(1) not in labels, text
        labels[found.group(1)] = found.group(2)
        at = found.end()
    return labels


def family_of(name, families):
    for suffix in ("_bucket", "_sum", "_count"):
        base = name.removesuffix(suffix)
        if base != name and families.get(base) == "histogram":
            return base
    return name


class Metrics:
    """Prometheus text 0.0.4, read strictly: # HELP and # TYPE before the samples, each family in one block, no sample
    twice, histograms cumulative with +Inf equal to _count."""

    def __init__(self, text):
        self.families, self.samples = {}, {}
        assert text.endswith("\n")
        current, helped, closed = None, set(), set()
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                assert name not in helped, line
                helped.add(name)
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert kind in ("counter", "gauge", "histogram") and name not in self.families, line
                self.families[name] = kind
            elif line and not line.startswith("#"):
                found = SAMPLE.fullmatch(line)
                assert found, line
                name, labels = found.group(1), parse_labels(found.group(2) or "")
                family = family_of(name, self.families)
                assert family in self.families and family in helped, f"no HELP and TYPE before {line!r}"
                if family != current:
                    assert family not in closed, f"{family} is in two blocks"
                    closed.add(current)
                    current = family
                key = (name, tuple(sorted(labels.items())))
                assert key not in self.samples, line
                self.samples[key] = float(found.group(3))
        self.check_histograms()

    def check_histograms(self):
        for family in (f for f, kind in self.families.items() if kind == "histogram"):
            series = {}
            for (name, labels), value in self.samples.items():
                if name == family + "_bucket":
                    rest = tuple(label for label in labels if label[0] != "le")
                    series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
            assert series, f"{family} has no buckets"
            for labels, buckets in series.items():
                bounds, counts = zip(*buckets)
                assert list(bounds) == sorted(set(bounds)) and bounds[-1] == float("inf"), family
                assert list(counts) == sorted(counts), family
                assert counts[-1] == self.samples[family + "_count", labels], family
                assert (family + "_sum", labels) in self.samples, family

    def value(self, name, **labels):
        """The sum of the samples that have these labels; an absent one is an error."""
        found = [v for (n, have), v in self.samples.items() if n == name and labels.items() <= dict(have).items()]
        assert found, f"no sample {name} {labels}"
        return sum(found)

    def idle(self):
        """Nothing runs or waits, and every page of the cache is free."""
        return (self.value("vllm:num_requests_running") == 0 and self.value("vllm:num_requests_waiting") == 0
                and self.value("vllm:kv_cache_usage_perc") == 0
                and self.value("moebius:kv_pages_free") == self.value("moebius:kv_pages_total") > 0)


# --- the server ------------------------------------------------------------------------------------------------------


def hear_hangups():
    """Tests may be run under nohup, and what a program ignores, those that it starts ignore too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Server:
    def __init__(self, model, *flags, env=None, program=PROGRAM, folder, wait=True, tls=None, uds=None):
        """`model` may be None: then a flag names it. `tls`: the context to ask it with, if it answers by https. `uds`: the path of a Unix
        socket, in place of a port."""
        self.tls = tls
        self.log_path = Path(folder) / f"serve-{time.monotonic_ns()}.log"
        place = ["--uds", str(uds)] if uds else ["--host", HOST, "--port", "0"]
        with open(self.log_path, "wb") as log:
            command = [program, "serve", *([str(model)] if model else []), *place, *map(str, flags)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **(env or {})}, preexec_fn=hear_hangups)
        try:
            self.port = self.find_port() or uds
            if wait:
                self.wait_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://{HOST}:{self.port}"

    def find_port(self):
        def listening():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            return re.search(r"https?://127\.0\.0\.1:(\d+)|listening on unix:", self.log)

        assert wait_until(listening, 20), f"no address was printed:\n{self.log}"
        return int(listening().group(1) or 0)

    def wait_ready(self):
        def ready():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            try:
                return self.get("/health").status == 200
            except ConnectionRefusedError:
                return False

        assert wait_until(ready, 30), self.log

    def connect(self, timeout_s):
        if not isinstance(self.port, int):
            return UnixConnection(self.port, timeout_s)
        if self.tls:
            return http.client.HTTPSConnection(HOST, self.port, timeout=timeout_s, context=self.tls)
        return http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)

    def request(self, method, path, body=None, headers=None, timeout_s=60):
        connection = self.connect(timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return Reply(reply.status, reply.getheaders(), reply.read())
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})

    def complete(self, prompt, **fields):
        """A completion that must succeed; a stream gives its list of chunks."""
        return self.ask("/v1/completions", {"prompt": prompt, **fields})

    def chat(self, messages, **fields):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.ask("/v1/chat/completions", {"messages": messages, **fields})

    def ask(self, path, body):
        reply = self.post(path, {"model": self.model, **body})
        assert reply.status == 200, reply
        if body.get("stream"):
            assert reply.headers["content-type"].split(";")[0] == "text/event-stream", reply
            return parse_events(reply.body)
        assert reply.headers["content-type"].split(";")[0] == "application/json", reply
        return reply.json

    @property
    def model(self):
        if not hasattr(self, "model_id"):
            self.model_id = self.get("/v1/models").json["data"][0]["id"]
        return self.model_id

    def metrics(self):
        reply = self.get("/metrics")
        assert reply.status == 200, reply
        return Metrics(reply.body.decode())

    def becomes_idle(self, timeout_s=10):
        return wait_until(lambda: self.metrics().idle(), timeout_s)

    def raw(self, **options):
        return Raw(self.port, **{"tls": self.tls, **options})

    def client(self, **options):
        import openai
        return openai.OpenAI(**{"base_url": self.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **options})

    def stop(self, timeout_s=30):
        """SIGTERM; the exit status. A sanitizer's report fails the test that used the server."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still there {timeout_s} s after SIGTERM:\n{self.log[-3000:]}") from None
        assert not re.search(r"Sanitizer|runtime error", self.log), self.log[-6000:]
        return code


# --- the engine's own answers ----------------------------------------------------------------------------------------


def refuses_to_start(model, flags, words):
    """With these flags the program ends before anything is loaded, and its last line has these words."""
    done = subprocess.run([PROGRAM, "serve", str(model), "--host", HOST, "--port", "0", *flags], capture_output=True, text=True, timeout=20)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode in (1, 2) and "loading" not in done.stderr, done
    for word in words:
        assert word in last, last


class Engine:
    """The same model through the other commands."""

    def __init__(self, model, folder):
        self.model, self.folder, self.known = str(model), Path(folder), {}

    def command(self, *arguments, stdin=b""):
        done = subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, timeout=60)
        assert done.returncode == 0, done
        return done.stdout

    def ids(self, text, special=True):
        """Ids of the text, without BOS."""
        line = json.dumps({"text": text, "special": special}) + "\n"
        return json.loads(self.command("tokenize", self.model, stdin=line.encode()))["ids"]

    def prompt(self, text):
        return [BOS_ID, *self.ids(text)]

    def text(self, ids, skip_special=True):
        line = json.dumps({"ids": [int(i) for i in ids], "skip_special_tokens": skip_special}) + "\n"
        return json.loads(self.command("detokenize", self.model, stdin=line.encode()))["text"]

    def bytes_of(self, id):
        """What a token stands for, from tokenizer.json itself."""
        if not hasattr(self, "table"):
            content = json.loads((Path(self.model) / "tokenizer.json").read_text())
            byte = {letter: value for value, letter in tiny_tokenizer.byte_letters().items()}
            self.table = {i: bytes(byte[c] for c in word) for word, i in content["model"]["vocab"].items() if len(word) < 15}
            self.table |= {added["id"]: added["content"].encode() for added in content["added_tokens"]}
        return self.table[int(id)]

    def token_name(self, id):
        """A token as completions' logprobs show it: its text, or its bytes if they are no whole text."""
        raw = self.bytes_of(id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def fim(self, prefix, suffix):
        return [BOS_ID, FIM_IDS[0], *self.ids(prefix, special=False), FIM_IDS[1], *self.ids(suffix, special=False), FIM_IDS[2]]

    def logits(self, ids):
        """[n][vocab] of every position."""
        ids = [int(i) for i in ids]
        if tuple(ids) not in self.known:
            out = self.folder / "logits.f32"
            self.command("logits", self.model, "--ids", ",".join(map(str, ids)), "--all", "--out", out, *ENGINE_FLAGS)
            self.known[tuple(ids)] = np.fromfile(out, "<f4").reshape(len(ids), -1)
        return self.known[tuple(ids)]

    def logprobs(self, ids):
        logits = self.logits(ids).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def greedy(self, ids, n):
        """n ids, by `logits --greedy`."""
        out = self.command("logits", self.model, "--ids", ",".join(map(str, ids)), "--greedy", n, "--out",
                           self.folder / "greedy.f32", *ENGINE_FLAGS)
        return json.loads(out)
