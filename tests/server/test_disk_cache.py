"""The prefix cache on disk: a server that starts again, whatever ended the last one, finds what that one computed, and answers
as if it had computed it."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pages import GREEDY, N, PAGE, answer, cached, prompt_of
from serving import DEBUG_PROGRAM, FLAGS, PROGRAM, wait_until

LONG_S = 300  # for what a busy machine does when it has time
CACHED = N // PAGE * PAGE


def files(server):
    return server.metrics().value("moebius:disk_cache_files")


def pages_in(folder):
    return sorted(folder.glob("*.page"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "made" / "by the server"


@pytest.mark.parametrize("kv", ["bf16", "fp8", "f32"])
def test_restart(start, model, folder, kv):
    """Computed, from memory, from disk: the same answer, bit by bit."""
    flags = [*FLAGS, "--kv-cache-dtype", kv, "--prefix-cache-dir", folder]
    prompt, replies = prompt_of(1), []
    for _ in range(2):
        server = start(model, *flags)
        replies += [server.complete(prompt, **GREEDY) for _ in range(2)]
        assert server.stop() == 0
    assert [cached(r) for r in replies] == [0, CACHED, CACHED, CACHED]
    assert all(answer(r) == answer(replies[0]) for r in replies)
    plain = start(model, *FLAGS, "--kv-cache-dtype", kv)
    assert answer(plain.complete(prompt, **GREEDY)) == answer(replies[0])
    assert plain.stop() == 0


def test_killed(start, model, folder, cold):
    """kill -9 in the middle of an answer: what had been written by then is found, also the answer's beginning."""
    prompt = prompt_of(2)
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    server.complete(prompt, **GREEDY)
    assert wait_until(lambda: files(server) >= CACHED // PAGE, LONG_S)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: pytest.raises(Exception, server.complete, prompt_of(3, 1500), **GREEDY))
        time.sleep(0.05)
        server.process.kill()
    server.process.wait()
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    reply = server.complete(prompt, **GREEDY)
    assert cached(reply) == CACHED
    assert answer(reply) == answer(cold.complete(prompt, **GREEDY))
    half = server.complete(prompt_of(3, 1500), **GREEDY)
    assert cached(half) % PAGE == 0
    assert answer(half) == answer(cold.complete(prompt_of(3, 1500), **GREEDY))
    metrics = server.metrics()
    assert metrics.value("moebius:disk_cache_refused_total") == 0
    assert not list(folder.glob("*.tmp"))
    assert server.stop() == 0


def test_memory_too_small(start, model, folder, cold):
    """Conversations that do not fit into memory together come back from disk, and only what is not there is computed."""
    flags = ["--max-model-len", "1024", "--max-num-seqs", "1", "--batch-invariant", "--threads", "2"]
    server = start(model, *flags, "--prefix-cache-dir", folder)
    prompts = [prompt_of(10 + i) for i in range(4)]
    first = []
    for prompt in prompts:
        first.append(server.complete(prompt, **GREEDY))
        assert wait_until(lambda: files(server) == len(first) * CACHED // PAGE, LONG_S)
    assert [cached(r) for r in first] == [0] * 4
    expected = [answer(cold.complete(p, **GREEDY)) for p in prompts]
    assert [answer(r) for r in first] == expected

    def all_come_back():
        """Where reading is quicker, as it is but for a moment in which somebody else has the machine."""
        again = [server.complete(p, **GREEDY) for p in prompts]
        assert [answer(r) for r in again] == expected
        return all(cached(r) == CACHED for r in again)

    assert wait_until(all_come_back, LONG_S)
    metrics = server.metrics()
    found, queried, read = (metrics.value(name) for name in (
        "vllm:external_prefix_cache_hits_total", "vllm:external_prefix_cache_queries_total",
        "moebius:disk_cache_read_bytes_total"))
    assert 0 < found <= metrics.value("vllm:prefix_cache_hits_total") and found < queried
    assert read / found == metrics.value("moebius:disk_cache_written_bytes_total") / files(server) / PAGE
    assert server.becomes_idle() and server.stop() == 0


def test_other_settings_find_nothing(start, model, folder):
    prompt = prompt_of(20)
    for flags in ([], ["--kv-cache-dtype", "fp8"], ["--compute", "f32"],
                  ["--quantization", "int8" + 100 * ",routed=int4"]):  # however long what is said of them is
        server = start(model, *FLAGS, "--prefix-cache-dir", folder, *flags)
        assert cached(server.complete(prompt, **GREEDY)) == 0, flags
        assert server.stop() == 0
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    assert cached(server.complete(prompt, **GREEDY)) == CACHED
    for salt in ("a", "b", "a"):
        reply = server.complete(prompt, **GREEDY, cache_salt=salt)
    assert cached(reply) == CACHED
    assert server.stop() == 0
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    assert [cached(server.complete(prompt, **GREEDY, cache_salt=salt)) for salt in ("c", "a")] == [0, CACHED]
    assert server.stop() == 0


def test_cache_prompt_false_leaves_no_file(start, model, folder):
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    reply = server.post("/completion", {"prompt": prompt_of(25), "n_predict": 4, "cache_prompt": False})
    assert reply.status == 200, reply
    assert server.stop() == 0
    assert not pages_in(folder)


def test_damaged_files(start, model, folder, cold):
    """Bytes changed here and there, by the sanitizers' build: a line each, the file is gone, and the answer is the same."""
    prompt = prompt_of(30)
    server = start(model, *FLAGS, "--prefix-cache-dir", folder, program=DEBUG_PROGRAM)
    server.complete(prompt, **GREEDY)
    assert server.stop() == 0
    whole = {path: path.read_bytes() for path in pages_in(folder)}
    by_depth = sorted(whole, key=lambda path: path.name.split("-")[1])
    for damage, expected in (
            (lambda data: data[:1000], "it has 1000 bytes"),
            (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "checksum"),
            (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "header's checksum"),
            (lambda data: whole[by_depth[2]], "another page")):
        for path, data in whole.items():
            path.write_bytes(data)
        by_depth[5].write_bytes(damage(whole[by_depth[5]]))
        server = start(model, *FLAGS, "--prefix-cache-dir", folder, program=DEBUG_PROGRAM)
        reply = server.complete(prompt, **GREEDY)
        assert cached(reply) == 5 * PAGE
        assert answer(reply) == answer(cold.complete(prompt, **GREEDY))
        assert server.metrics().value("moebius:disk_cache_refused_total") == 1
        assert server.log.count("removed from the prefix cache") == 1 and expected in server.log
        assert server.stop() == 0
        assert by_depth[5].read_bytes() == whole[by_depth[5]]  # computed again, and written again


def test_another_build(start, model, folder):
    """Its kernels may add in another order: what one build has written is not there for the next."""
    if DEBUG_PROGRAM == PROGRAM:
        pytest.skip("left out: there is no other build; `make test` has one")
    prompt, before = prompt_of(31), 0
    for program in (PROGRAM, DEBUG_PROGRAM):
        server = start(model, *FLAGS, "--prefix-cache-dir", folder, program=program)
        assert cached(server.complete(prompt, **GREEDY)) == 0
        assert server.stop() == 0
        assert len(pages_in(folder)) >= before + CACHED // PAGE
        before = len(pages_in(folder))


def test_limit(start, model, folder):
    """Two prompts, room for one and a half: the one used last stays whole."""
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    server.complete(prompt_of(40), **GREEDY)
    assert wait_until(lambda: files(server) == CACHED // PAGE, LONG_S)
    page_bytes = server.metrics().value("moebius:disk_cache_bytes") / files(server)
    assert server.stop() == 0
    limit = page_bytes * 15
    server = start(model, *FLAGS, "--prefix-cache-dir", folder, "--prefix-cache-disk", max(limit / (1 << 30), 0.001))
    n = int(server.metrics().value("moebius:disk_cache_limit_bytes") // page_bytes // (CACHED // PAGE)) + 2
    for i in range(n):
        server.complete(prompt_of(41 + i), **GREEDY)
    assert server.stop() == 0
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    metrics = server.metrics()
    assert 0 < metrics.value("moebius:disk_cache_bytes") <= max(limit, 0.001 * (1 << 30))
    assert cached(server.complete(prompt_of(41 + n - 1), **GREEDY)) == CACHED
    assert cached(server.complete(prompt_of(40), **GREEDY)) < CACHED
    assert server.stop() == 0


def test_two_servers(start, model, folder):
    prompts = [prompt_of(50 + i) for i in range(6)]
    servers = [start(model, *FLAGS, "--prefix-cache-dir", folder) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda i: servers[i % 2].complete(prompts[i // 2], **GREEDY), range(12)))
    assert all(answer(a) == answer(b) for a, b in zip(replies[::2], replies[1::2]))
    assert [server.stop() for server in servers] == [0, 0]
    assert len(pages_in(folder)) == 6 * CACHED // PAGE and len(list(folder.iterdir())) == 6 * CACHED // PAGE


def test_folder_that_cannot_be_used(start, model, tmp_path):
    """One line says why; the server goes on."""
    path = tmp_path / "file"
    path.write_text("")
    server = start(model, *FLAGS, "--prefix-cache-dir", path)
    assert server.log.count("--prefix-cache-dir") == 1 and "Not a directory; going on without it" in server.log
    prompt = prompt_of(60)
    assert [cached(server.complete(prompt, **GREEDY)) for _ in range(2)] == [0, CACHED]
    assert "disk_cache" not in server.get("/metrics").body.decode()
    assert server.stop() == 0


def test_folder_that_others_may_write_to(start, model, folder):
    folder.mkdir(parents=True, mode=0o700)
    folder.chmod(0o777)
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    assert server.log.count("others may write to this folder") == 1
    assert server.stop() == 0


def test_folder_goes_away(start, model, folder):
    """In the middle of its life: a line, and no harm."""
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    server.complete(prompt_of(70), **GREEDY)
    assert wait_until(lambda: files(server) == CACHED // PAGE, LONG_S)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    replies = [server.complete(prompt_of(71), **GREEDY) for _ in range(2)]
    assert [cached(r) for r in replies] == [0, CACHED]
    assert wait_until(lambda: server.log.count("no pages are added to the prefix cache until that changes") == 1, LONG_S)
    assert server.stop() == 0


def test_choices_and_grammars(start, model, folder, cold):
    """Choices of one request read the same pages, with a grammar that begins behind them, and all but the first share them."""
    request = {"prompt": prompt_of(80), "n": 3, "temperature": 1, "seed": 5, "max_tokens": 8, "structured_outputs": {"regex": "[a-z ]{8,}"}}
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    server.complete(request["prompt"], **GREEDY)
    assert server.stop() == 0
    server = start(model, *FLAGS, "--prefix-cache-dir", folder)
    reply = server.complete(**request)
    assert cached(reply) >= CACHED
    assert [c["text"] for c in reply["choices"]] == [c["text"] for c in cold.complete(**request)["choices"]]
    assert server.becomes_idle() and server.stop() == 0


def test_flags(model):
    def refused(*flags):
        done = subprocess.run([PROGRAM, "serve", str(model), *flags], capture_output=True, timeout=60)
        assert done.returncode == 2, done
        return done.stderr.decode()

    assert "exclude each other" in refused("--prefix-cache-dir", "x", "--no-enable-prefix-caching")
    assert "--prefix-cache-disk" in refused("--prefix-cache-disk", "0")
    help_text = subprocess.run([PROGRAM, "serve", "--help"], capture_output=True).stdout.decode()
    assert "--prefix-cache-dir" in help_text and "--prefix-cache-disk" in help_text
