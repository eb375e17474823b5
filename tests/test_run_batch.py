"""`moebius run-batch`: what it writes is what the server answers; and no answer is lost, whatever ends it."""

import array
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS / "server")]

import make_tiny_text_model
import st
from conftest import GOLDEN, PROGRAM, moebius, open_terminal, refused, succeed
from serving import FLAGS, Server, wait_until

FLAGS = [*FLAGS, "--no-enable-prefix-caching"]  # what is cached depends on who came first
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", folder)
    return folder


def request(custom_id, url=CHAT, **body):
    return {"custom_id": str(custom_id), "method": "POST", "url": url, "body": body}


def chat(custom_id, text="Say it.", **fields):
    return request(custom_id, messages=[{"role": "user", "content": text}], **{"max_tokens": 8, "temperature": 0, **fields})


def write(path, requests):
    """`requests`: objects, or lines as bytes."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in requests]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(path):
    """The answers; each line is checked to be one object of OpenAI's shape."""
    data = path.read_bytes() if isinstance(path, Path) else path
    assert data == b"" or data.endswith(b"\n")
    answers = [json.loads(line) for line in data.decode("utf-8").split("\n")[:-1]]
    for answer in answers:
        assert set(answer) == {"id", "custom_id", "response", "error"}, answer
        assert answer["id"].startswith("batch_req_"), answer
        assert (answer["response"] is None) != (answer["error"] is None), answer
        if answer["response"]:
            assert set(answer["response"]) == {"status_code", "request_id", "body"}, answer
        else:
            assert set(answer["error"]) == {"code", "message", "line"}, answer
    assert len({answer["id"] for answer in answers}) == len(answers)
    return answers


def ids(answers):
    return [answer["custom_id"] for answer in answers]


def statuses(answers):
    return [answer["response"] and answer["response"]["status_code"] for answer in answers]


@pytest.fixture
def files(tmp_path):
    return tmp_path / "requests.jsonl", tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"


def run(model, source, target, *flags, **options):
    return moebius("run-batch", model, "-i", source, "-o", target, *FLAGS, *flags, **options)


def run_well(model, source, target, *flags, **options):
    result = run(model, source, target, *flags, **options)
    assert result.code == 0 and "Sanitizer" not in result.err, str(result)
    return result


# --- what is answered ------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
USER = [{"role": "user", "content": "Say it."}]
SAMPLED = {"temperature": 0.9, "seed": 7}

EVERYTHING = [
    chat("chat"),
    chat("chat sampled", "Once upon a time", temperature=1, seed=3, n=3, logprobs=True, top_logprobs=2),
    chat("chat schema", response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}, max_tokens=40),
    chat("chat tool", tools=TOOLS, tool_choice="required", max_tokens=60, **SAMPLED),
    chat("chat \u2603 text", "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f600", stop=["e"]),
    request("completion", "/v1/completions", prompt="def add(", max_tokens=9, echo=True, logprobs=2, temperature=0),
    request("completion lists", "/completions", prompt=["one", [5, 6, 7]], n=2, max_tokens=5, **SAMPLED),
    request("completion hole", "/v1/completions", prompt="def add(", suffix="return c", max_tokens=5, temperature=0),
    request("responses", "/v1/responses", input="Say it.", max_output_tokens=16, temperature=0),
    request("messages", "/v1/messages", messages=USER, max_tokens=9, temperature=0),
    request("count", "/v1/messages/count_tokens", messages=USER),
    request("llama", "/completion", prompt="def add(", n_predict=6, seed=5),
    request("infill", "/infill", input_prefix="def add(", input_suffix="return c", n_predict=6, seed=5),
    request("ollama chat", "/api/chat", messages=USER, stream=False, options={"num_predict": 5, "temperature": 0}),
    request("ollama generate", "/api/generate", prompt="def", stream=False, options={"num_predict": 5, "temperature": 0}),
    request("tokenize", "/tokenize", content="of the"),
    request("detokenize", "/detokenize", tokens=[5, 6]),
    request("template", "/apply-template", messages=USER),
    request("too long", "/v1/completions", prompt=[5] * 4000, max_tokens=4),
    request("too long chat", messages=[{"role": "user", "content": "of the " * 4000}]),
    request("too long message", "/v1/messages", messages=[{"role": "user", "content": "of the " * 4000}], max_tokens=4),
    request("wrong field", temperature="hot", messages=USER),
    request("wrong field of Ollama", "/api/chat", messages=7),
    request("wrong model", "/v1/completions", model="gpt-4o", prompt="a"),
    request("17 digits", temperature=sys.float_info.max, messages=USER, max_tokens=4),
    request("no prompt", "/v1/completions"),
    request("nowhere", "/v1/nowhere", prompt="a"),
    request("nowhere of Ollama", "/api/nowhere", prompt="a"),
    {"custom_id": "method", "method": "GET", "url": CHAT, "body": {}},
]

CHANGING = {"id", "created", "created_at", "completed_at", "item_id", "call_id", "timings", "id_slot"}


def settled(value):
    """Without what differs whenever one asks: ids and times."""
    if isinstance(value, list):
        return [settled(item) for item in value]
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items() if key not in CHANGING and not key.endswith("_duration")}
    return value


def test_the_servers_bodies(model, files, tmp_path):
    source, target, partial = files
    run_well(model, write(source, EVERYTHING), target)
    answers = read(target)
    assert ids(answers) == [r["custom_id"] for r in EVERYTHING] and not partial.exists()
    server = Server(model, *FLAGS, folder=tmp_path)
    try:
        for wanted, answer in zip(EVERYTHING, answers):
            reply = server.request(wanted["method"], wanted["url"], json.dumps(wanted["body"]))
            found = answer["response"]
            assert (found["status_code"], settled(found["body"])) == (reply.status, settled(reply.json)), wanted
            assert found["body"].keys() == reply.json.keys(), wanted
    finally:
        assert server.stop() == 0
    good = {answer["custom_id"] for answer in answers if answer["response"]["status_code"] == 200}
    assert good == {r["custom_id"] for r in EVERYTHING[:18]}


def test_streams(model, files):
    """Refused where they are asked for; Ollama's requests, which stream unless they say no, say nothing here."""
    source, target, _ = files
    write(source, [chat("a", stream=True), request("b", "/api/chat", messages=USER, stream=True),
                   request("c", "/api/chat", messages=USER, options={"num_predict": 3}), chat("d", stream=False),
                   request("e", "/v1/responses", input="a", stream=True)])
    run_well(model, source, target)
    answers = read(target)
    assert statuses(answers) == [400, 400, 200, 200, 400]
    assert answers[0]["response"]["body"]["error"]["param"] == "stream"
    assert isinstance(answers[1]["response"]["body"]["error"], str)  # in Ollama's words
    assert answers[2]["response"]["body"]["message"]["content"]


def test_paths_of_a_server_alone(model, files):
    source, target, _ = files
    write(source, [chat("a"), request("b", "/api/show", model="x"), {**request("c", "/v1/models"), "method": "GET"}])
    run_well(model, source, target)
    answers = read(target)
    assert statuses(answers) == [200, 404, 404]
    assert "a batch does not" in answers[1]["response"]["body"]["error"]


BAD_LINES = [
    (b"not JSON", "invalid_json", None),
    (b'{"custom_id": "cut", "url": "/v1/chat', "invalid_json", None),
    (b"[1, 2]", "invalid_json", None),
    (b'{"custom_id": "bytes \xff\xfe", "url": "/v1/completions", "body": {}}', "invalid_json", None),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json", None),
    (b'{"url": "/v1/completions", "body": {"prompt": "a"}}', "missing_custom_id", None),
    (b'{"custom_id": 5, "url": "/v1/completions", "body": {"prompt": "a"}}', "missing_custom_id", None),
    (b'{"custom_id": "", "url": "/v1/completions", "body": {"prompt": "a"}}', "missing_custom_id", None),
    (b'{"custom_id": "no url", "body": {"prompt": "a"}}', "missing_url", "no url"),
    (b'{"custom_id": "no body", "url": "/v1/completions"}', "missing_body", "no body"),
    (b'{"custom_id": "text", "url": "/v1/completions", "body": "a"}', "missing_body", "text"),
    (b'{"custom_id": "method", "method": 1, "url": "/v1/completions", "body": {}}', "invalid_method", "method"),
    (b"not JSON", "invalid_json", None),  # once more: each has its own answer
]


def test_bad_lines(model, files):
    """They get an error each, with their number, and stop nothing. Blank lines, CRLF and a mark at the start are fine."""
    source, target, _ = files
    good = json.dumps(chat("first")).encode()
    lines = [b"\xef\xbb\xbf" + good + b"\r", b"", b"  \t ", b"\r", *(line for line, _, _ in BAD_LINES),
             json.dumps(chat("last")).encode() + b"\r"]
    write(source, lines)
    source.write_bytes(source.read_bytes().rstrip(b"\n"))  # nor needs the last line an end
    result = run_well(model, source, target)
    answers = read(target)
    assert (answers[0]["custom_id"], answers[-1]["custom_id"]) == ("first", "last")
    assert statuses(answers) == [200, *[None] * len(BAD_LINES), 200]
    for number, (answer, (_, code, custom_id)) in enumerate(zip(answers[1:-1], BAD_LINES, strict=True), 5):
        error = answer["error"]
        assert (error["code"], error["line"], answer["custom_id"]) == (code, number, custom_id)
        assert error["message"].startswith(f"line {number}: ")
    assert f"{len(BAD_LINES)} errors" in result.err and "line 5" in result.err


def test_a_line_too_long(model, files):
    source, target, _ = files
    write(source, [chat("a"), b'{"custom_id": "long", "body": "' + b"x" * (33 << 20) + b'"}', chat("b")])
    run_well(model, source, target)
    answers = read(target)
    assert statuses(answers) == [200, None, 200] and answers[1]["error"]["code"] == "line_too_long"
    assert answers[1]["error"]["line"] == 2


@pytest.mark.parametrize("lines, words", [
    ([chat("a"), chat("b"), chat("a", "Another.")], ['"a"', "line 3", "line 1"]),
    ([], ["no request"]),
    ([b"", b"  "], ["no request"]),
    ([b"hello", b"you"], ["no request", "line 1"]),
])
def test_files_that_are_refused(model, files, lines, words):
    """Before anything is loaded or written."""
    source, target, partial = files
    refused(run(model, write(source, lines), target), source, *words)
    assert not target.exists() and not partial.exists()


def test_arguments_that_are_refused(model, files, tmp_path):
    source, target, partial = files
    write(source, [chat("a")])
    refused(run(model, tmp_path / "none", target), "none")
    refused(run(model, tmp_path, target), "folder")
    refused(run(model, source, tmp_path), "folder")
    refused(run(model, source, tmp_path / "no" / "folder"), "no/folder")
    refused(moebius("run-batch", model, "-i", source), "-o")
    refused(moebius("run-batch", model, "-o", target), "-i")
    refused(moebius("run-batch", "-i", source, "-o", target), "MODEL")
    refused(run(model, source, "-", "--json"), "--json")
    refused(run(model, source, target, "--port", "8000"), "--port")
    refused(run(model, source, source, "--overwrite"), "replace the requests")
    refused(run(tmp_path / "no model", source, target), "no model")
    assert not target.exists() and not partial.exists()


def test_the_requests_are_never_written_to(model, files):
    """Not by the name of what is kept either, nor by way of standard input or output."""
    source, target, partial = files
    write(partial, [chat("a"), chat("b")])
    whole = partial.read_bytes().rstrip(b"\n")  # what goes on would cut its last line off
    partial.write_bytes(whole)
    refused(run(model, partial, target), partial, "replace the requests")
    for words, streams in (("-", target), {"stdin": partial.open("rb")}), ((partial, "-"), {"stdout": partial.open("ab")}):
        done = subprocess.run([PROGRAM, "run-batch", model, "-i", words[0], "-o", words[1], *FLAGS], timeout=60,
                              stderr=subprocess.PIPE, **{"stdin": subprocess.DEVNULL, **streams})
        assert done.returncode == 2 and b"replace the requests" in done.stderr, done
    assert partial.read_bytes() == whole and not target.exists()


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_output_that_is_there(model, files):
    source, target, partial = files
    write(source, [chat("a")])
    target.write_text("precious\n")
    refused(run(model, source, target), target, "--overwrite")
    assert target.read_text() == "precious\n" and not partial.exists()
    run_well(model, source, target, "--overwrite")
    assert ids(read(target)) == ["a"]


def test_a_link(model, files, tmp_path):
    source, target, _ = files
    write(source, [chat("a")])
    (tmp_path / "real").write_text("old\n")
    target.symlink_to("real")
    run_well(model, source, target, "--overwrite")
    assert target.is_symlink() and ids(read(tmp_path / "real")) == ["a"]


def test_a_link_to_nothing(model, files):
    source, target, partial = files
    write(source, [chat("a")])
    target.symlink_to("nothing")
    refused(run(model, source, target), target, "link")
    assert target.is_symlink() and not partial.exists()


def test_closed_streams(model, files):
    """Their numbers are not those of files that are opened then: what is said would be written there."""
    source, target, _ = files
    write(source, [chat("a"), chat("b", temperature="hot")])
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", PROGRAM, "run-batch", model, "-i", source, "-o", target,
                           *FLAGS], timeout=60)
    assert done.returncode == 0 and statuses(read(target)) == [200, 400]


def test_a_pipe_that_does_not_block(model, files):
    """As programs leave their end of it: an answer waits for its reader."""
    source, _, _ = files
    write(source, [chat(i) for i in range(60)])
    end, pipe = os.pipe()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(pipe, False)
    process = subprocess.Popen([PROGRAM, "run-batch", model, "-i", source, "-o", "-", *FLAGS], stdout=pipe,
                               stderr=subprocess.PIPE)
    os.close(pipe)
    waiting = array.array("i", [0])
    wait_until(lambda: fcntl.ioctl(end, termios.FIONREAD, waiting) or waiting[0] > 3000, 60)
    with open(end, "rb") as file:
        answers = read(file.read())
    assert process.wait(60) == 0, process.stderr.read()
    assert statuses(answers) == [200] * 60


def test_standard_input_and_output(model, files):
    source, _, _ = files
    requests = [chat(i) for i in range(30)] + [b"wrong"]
    result = run_well(model, "-", "-", stdin=write(source, requests).read_bytes())
    answers = read(result.out)
    assert sorted(ids(answers), key=str) == sorted([*map(str, range(30)), None], key=str)
    assert statuses(answers).count(200) == 30
    assert result.err.splitlines()[-2].startswith("31 requests: 30 answered, 1 errors")


def test_pipes(model, files, tmp_path):
    """As `-i <(...)` and `-o >(...)` give them."""
    source, _, _ = files
    write(source, [chat(i) for i in range(5)])
    pipes = tmp_path / "in", tmp_path / "out"
    for pipe in pipes:
        os.mkfifo(pipe)
    feed = subprocess.Popen(["cp", source, pipes[0]])
    drain = subprocess.Popen(["cat", pipes[1]], stdout=subprocess.PIPE)
    run_well(model, *pipes)
    assert sorted(ids(read(drain.communicate(timeout=20)[0]))) == list("01234") and feed.wait(20) == 0


def test_order(model, files):
    """OUT is in the order of the requests, whichever ends first. If the last step fails, only that is done again."""
    source, target, partial = files
    write(source, [chat(i, max_tokens=1 if i % 2 else 120, ignore_eos=True) for i in range(30)])
    run_well(model, source, target)
    first = read(target)
    assert ids(first) == [str(i) for i in range(30)]
    result = run_well(model, source, "-")
    assert ids(read(result.out)) != ids(first)  # they end in another order
    assert sorted(ids(read(result.out))) == sorted(ids(first))
    (target.parent / f"{partial.name}.ordered").mkdir()  # as good as a full disk
    result = run(model, source, target, "--overwrite")
    assert result.code == 1 and "every answer is in" in result.err and read(target) == first, str(result)
    assert sorted(ids(read(partial))) == sorted(ids(first))
    (target.parent / f"{partial.name}.ordered").rmdir()
    assert run_well(model, source, target, "--overwrite", "--json").json["kept"] == 30
    assert ids(read(target)) == ids(first) and not partial.exists()


def test_full_devices(model, files):
    source, target, _ = files
    write(source, [chat(i) for i in range(20)])
    refused(run(model, source, "/dev/full"), "/dev/full", "No space left")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, "run-batch", str(model), "-i", source, "-o", "-", *FLAGS], stdout=full,
                              stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1 and b"standard output: cannot write" in done.stderr, done


def limit_file_size():
    """As a full disk: no file grows beyond this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_a_full_disk(model, files):
    """Nothing torn is left, and the same command goes on when there is room again."""
    source, target, partial = files
    write(source, [chat(i) for i in range(20)])
    done = subprocess.run([PROGRAM, "run-batch", str(model), "-i", source, "-o", target, *FLAGS], capture_output=True,
                          preexec_fn=limit_file_size, timeout=60)
    assert done.returncode == 1 and b"answers.jsonl.partial: cannot write" in done.stderr, done
    assert b"the same command again goes on" in done.stderr, done
    kept = partial.read_bytes().splitlines()
    assert 0 < len(kept) < 20 and len(read(partial)) == len(kept) and not target.exists()
    result = run_well(model, source, target)
    assert f"{len(kept)} of 20" in result.err
    assert ids(read(target)) == [str(i) for i in range(20)]
    assert set(kept) <= set(target.read_bytes().splitlines())


# --- ended in the middle ---------------------------------------------------------------------------------------------

LONG = [chat(i, f"Number {i}", max_tokens=150 + i, ignore_eos=True) for i in range(40)]


def start(model, source, target, *flags):
    signals = {signal.SIGINT, signal.SIGTERM}
    return subprocess.Popen([PROGRAM, "run-batch", str(model), "-i", source, "-o", target, *FLAGS, *flags],
                            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                            preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in signals])


def end_in_the_middle(process, partial, number):
    """Sends the signal once some answers are there. Returns their lines, what stderr said, and the exit status."""
    assert wait_until(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 3, 60), process.stderr.read()
    process.send_signal(number)
    error = process.communicate(timeout=60)[1].decode()
    assert "Sanitizer" not in error, error
    lines = partial.read_bytes().split(b"\n")[:-1]
    assert 3 <= len(lines) < len(LONG)
    return lines, error, process.returncode


def test_killed(model, files, tmp_path):
    """Answers that are there stay as they are; a torn line is made again; all others come. The result is that of one run."""
    source, target, partial = files
    write(source, LONG)
    lines, _, code = end_in_the_middle(start(model, source, target), partial, signal.SIGKILL)
    assert code == -signal.SIGKILL and not target.exists()
    with open(partial, "ab") as file:
        file.write(lines[0][:len(lines[0]) // 2])
    result = run_well(model, source, target)
    assert f"{len(lines)} of {len(LONG)} requests are answered already" in result.err
    assert set(lines) <= set(target.read_bytes().split(b"\n")) and not partial.exists()
    answers = read(target)
    assert ids(answers) == [r["custom_id"] for r in LONG]
    assert statuses(answers) == [200] * len(LONG)
    whole = tmp_path / "whole.jsonl"
    run_well(model, source, whole)
    assert settled(answers) == settled(read(whole))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(model, files, number):
    source, target, partial = files
    write(source, LONG)
    lines, error, code = end_in_the_middle(start(model, source, target), partial, number)
    assert code == 128 + number, error
    assert f"{len(lines)} of {len(LONG)} answers are in {partial}: the same command again goes on" in error
    assert statuses(read(partial)) == [200] * len(lines) and not target.exists()
    run_well(model, source, target)
    assert ids(read(target)) == [r["custom_id"] for r in LONG] and set(lines) <= set(target.read_bytes().split(b"\n"))


def test_one_at_a_time(model, files):
    source, target, partial = files
    write(source, [chat("a")])
    with open(partial, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run(model, source, target), partial, "another process")
        assert partial.exists()
    run_well(model, source, target)


def interrupted(source, target, partial, model, requests):
    """A partial file that holds the answers to all requests."""
    run_well(model, write(source, requests), target)
    target.rename(partial)
    return partial.read_bytes().splitlines(keepends=True)


def test_what_is_kept(model, files):
    """An answer is kept for the very request that it answers; one that says that the engine failed is not."""
    source, target, partial = files
    bad = b'{"custom_id": "bad", "url": "/v1/chat/completions"}'
    lines = interrupted(source, target, partial, model, [chat("a"), chat("b"), chat("c"), chat("gone"), bad])
    assert len(lines) == 5
    lines[1] = lines[1].replace(b'"status_code":200', b'"status_code":500')
    partial.write_bytes(b"".join([lines[4], lines[2], b"\0\0\0\n", b"{}\n", b"\n", lines[1], lines[3], lines[0]]))
    write(source, [chat("new"), chat("a", "Changed."), chat("b"), chat("c"), bad])
    result = run_well(model, source, target, "--json")
    assert "2 of 5 requests are answered already" in result.err and "6 lines are left out" in result.err
    assert (result.json["kept"], result.json["errors"], result.json["answered"]) == (2, 1, 4)
    answers = target.read_bytes().splitlines(keepends=True)
    assert ids(read(target)) == ["new", "a", "b", "c", "bad"] and statuses(read(target)) == [200, 200, 200, 200, None]
    assert (answers[3], answers[4]) == (lines[2], lines[4])
    assert lines[0] not in answers and lines[1] not in answers


def test_another_model(model, files, tmp_path):
    """Its answers are not taken for this one's."""
    source, target, partial = files
    interrupted(source, target, partial, model, [chat("a")])
    other = tmp_path / "other"
    make_tiny_text_model.make(GOLDEN / "v2-tiny", other)
    result = run_well(other, source, target)
    assert "1 lines are left out" in result.err
    assert read(target)[0]["response"]["body"]["model"] == "other"


# --- an engine that fails --------------------------------------------------------------------------------------------

POISON = 511


@pytest.fixture(scope="session")
def poisoned(model, tmp_path_factory):
    """A NaN in one token's embedding."""
    folder = tmp_path_factory.mktemp("poisoned") / "tiny"
    shutil.copytree(model, folder)
    file = st.File(folder / "model.safetensors")
    rows = np.frombuffer(file.bytes_of("model.embed_tokens.weight"), "<u2").reshape(512, -1).copy()
    rows[POISON] = 0x7FC0
    file.put("model.embed_tokens.weight", rows.tobytes())
    file.write(folder / "model.safetensors")
    return folder


def poison(custom_id):
    return request(custom_id, "/v1/completions", prompt=[0, POISON], max_tokens=4)


def test_an_answer_that_fails(poisoned, files):
    """It is an answer like others; in a second run it gets another chance."""
    source, target, partial = files
    interrupted(source, target, partial, poisoned, [chat("a"), poison("b"), chat("c")])
    assert statuses(read(partial)) == [200, 500, 200]
    result = run_well(poisoned, source, target)
    assert "2 of 3 requests are answered already" in result.err
    assert statuses(read(target)) == [200, 500, 200]


def test_nothing_but_failures(poisoned, files):
    """A card that is gone answers everything at once: the rest of the file is not wasted on it."""
    source, target, partial = files
    write(source, [chat("a"), *[poison(i) for i in range(60)], chat("z")])
    result = run(poisoned, source, target)
    assert result.code == 1 and "the engine cannot go on: " in result.err and "layer" in result.err, str(result)
    assert "the same command again" in result.err and not target.exists()
    assert 0 < len(read(partial)) < 20


# --- how it is told --------------------------------------------------------------------------------------------------


def test_summary(model, files):
    source, target, _ = files
    write(source, [chat("a", max_tokens=5, ignore_eos=True), chat("b", "Other.", n=2, max_tokens=4, ignore_eos=True),
                   request("c", "/v1/nowhere")])
    result = run_well(model, source, target, "--json")
    usage = [answer["response"]["body"]["usage"] for answer in read(target)[:2]]
    found = result.json
    assert (found["requests"], found["answered"], found["errors"], found["kept"]) == (3, 2, 1, 0)
    assert found["prompt_tokens"] == sum(u["prompt_tokens"] for u in usage)
    assert found["generated_tokens"] == sum(u["completion_tokens"] for u in usage) == 13
    assert found["seconds"] > 0 and found["first_error"].startswith("c: ")
    assert result.err == ""  # no terminal, no line
    result = run(model, source, target, "--overwrite", "--fail")
    assert result.code == 1 and len(read(target)) == 3
    assert result.err.startswith("3 requests: 2 answered, 1 errors; "), str(result)


def test_custom_ids_steer_no_terminal(model, files):
    source, target, _ = files
    write(source, [request("\x1b[31mred\x07", "/v1/\x1b]0;title\x07"), chat("b")])
    for flags in [], ["--json"]:
        result = run_well(model, source, target, "--overwrite", *flags)
        assert not {"\x1b", "\x07"} & set(result.err), repr(result.err)
        assert flags or "?[31mred?: there is nothing at " in result.err
    assert result.json["first_error"].startswith("?[31mred?: ")
    assert read(target)[0]["custom_id"] == "\x1b[31mred\x07"


def test_shared_beginnings(model, files):
    """In the file's order, what requests begin with is computed once."""
    source, target, _ = files
    text = "of the time " * 300
    write(source, [chat(i, text + str(i), max_tokens=2) for i in range(24)])
    result = succeed("run-batch", model, "-i", source, "-o", target, *FLAGS[:-1], "--json", "--max-num-seqs", "4",
                     "--max-num-batched-tokens", "64")
    assert result.json["cached_tokens"] > 0.8 * result.json["prompt_tokens"], str(result)
    assert sum(a["response"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"] for a in read(target)) \
        == result.json["cached_tokens"]


def test_progress(model, files):
    """A line on a terminal, wiped at the end."""
    source, target, _ = files
    write(source, LONG)
    main, side = open_terminal()
    process = subprocess.Popen([PROGRAM, "run-batch", str(model), "-i", source, "-o", target, *FLAGS], stderr=side,
                               stdin=subprocess.DEVNULL)
    os.close(side)
    text = b""
    try:
        while True:
            text += os.read(main, 4096)
    except OSError:  # the other side is closed
        pass
    os.close(main)
    assert process.wait(60) == 0
    assert b" of 40 requests, " in text and b"answer tokens/s" in text and b"left" in text, text
    assert text.split(b"\r\x1b[K")[-1].startswith(b"40 requests: 40 answered"), text
