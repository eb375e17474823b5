"""Prompts that begin alike share the cache: nothing but the time and the count of cached tokens tells."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import make_tiny_text_model
from pages import GREEDY, PAGE, answer, cached, prompt_of
from serving import FLAGS, GOLDEN
from words import letters, only


@pytest.mark.parametrize("n, expected", [(PAGE - 1, 0), (PAGE, 0), (PAGE + 1, PAGE), (3 * PAGE, 2 * PAGE),
                                         (3 * PAGE + 5, 3 * PAGE)])
def test_second_time(server, cold, n, expected):
    prompt = prompt_of(n, n)
    first, second, plain = (s.complete(prompt, **GREEDY) for s in (server, server, cold))
    assert (cached(first), cached(second), cached(plain)) == (0, expected, 0)
    assert answer(first) == answer(second) == answer(plain)


def test_common_beginning(server, cold):
    begin = prompt_of(1000, 2 * PAGE + 10)
    server.complete(begin + prompt_of(1001, 50), **GREEDY)
    other = begin + prompt_of(1002, 70)
    reply = server.complete(other, **GREEDY)
    assert cached(reply) == 2 * PAGE
    assert answer(reply) == answer(cold.complete(other, **GREEDY))


def test_same_tokens_after_another_beginning(server, cold):
    rest = prompt_of(1100, 3 * PAGE)
    server.complete(prompt_of(1101, PAGE) + rest, **GREEDY)
    other = prompt_of(1102, PAGE) + rest
    reply = server.complete(other, **GREEDY)
    assert cached(reply) == 0
    assert answer(reply) == answer(cold.complete(other, **GREEDY))


def test_answers_are_found_too(server, engine):
    """The next turn of a talk begins with the answer to the last one."""
    prompt, letter = prompt_of(1200, PAGE), letters(engine)["a"]
    reply = server.complete(prompt, max_tokens=PAGE + 1, logit_bias=only([letter]))
    assert reply["choices"][0]["text"] == "a" * (PAGE + 1)
    turn = server.complete(prompt + [letter] * (PAGE + 1) + prompt_of(1201, 9), **GREEDY)
    assert cached(turn) == 2 * PAGE


def test_scored_prompts_are_computed(server):
    prompt = prompt_of(1300, 2 * PAGE)
    fields = GREEDY | {"echo": True, "max_tokens": 1}
    first, second = server.complete(prompt, **fields), server.complete(prompt, **fields)
    assert cached(first) == cached(second) == 0
    assert answer(first) == answer(second)


def test_at_the_same_time(server, cold):
    begin = prompt_of(1400, 2 * PAGE)
    prompts = [begin + prompt_of(1401 + i, 20 + i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda p: server.complete(p, **GREEDY), prompts))
    assert [answer(r) for r in together] == [answer(cold.complete(p, **GREEDY)) for p in prompts]
    assert all(cached(r) in (0, PAGE, 2 * PAGE) for r in together)


def test_salt(server):
    """Who gives the same salt shares the cache; a salt that is no text is an error, not a promise that is not kept."""
    prompt = prompt_of(1600, 2 * PAGE + 1)
    found = [cached(server.complete(prompt, **GREEDY, cache_salt=salt)) for salt in ("a", "b", None, "a", "b", None)]
    assert found == [0, 0, 0] + [2 * PAGE] * 3
    for salt in ("", 7, ["a"]):
        reply = server.post("/v1/completions", {"model": server.model, "prompt": prompt, "max_tokens": 1, "cache_salt": salt})
        assert reply.status == 400 and "cache_salt" in reply.json["error"]["message"], reply


def test_metrics(server):
    prompt = prompt_of(1500, 2 * PAGE + 1)
    names = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total"
    counts = []
    for _ in range(3):
        metrics = server.metrics()
        counts.append([metrics.value(name) for name in names])
        server.complete(prompt, **GREEDY)
    steps = [[b - a for a, b in zip(*pair)] for pair in zip(counts, counts[1:])]
    assert steps == [[2 * PAGE, 0, 2 * PAGE + 1], [2 * PAGE, 2 * PAGE, 2 * PAGE + 1]]


def test_index_keys_are_shared_too(start, tmp_path_factory):
    """V3.2: what its indexer chooses from lies in the pages, too."""
    folder = tmp_path_factory.mktemp("sparse") / "tiny"
    make_tiny_text_model.make(GOLDEN / "v32-tiny", folder)
    server = start(folder, *FLAGS)
    prompt = prompt_of(1500, 3 * PAGE + 5)
    first, second = (server.complete(prompt, **GREEDY) for _ in range(2))
    assert (cached(first), cached(second)) == (0, 3 * PAGE)
    assert answer(first) == answer(second)
    assert server.stop() == 0
