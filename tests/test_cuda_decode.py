"""Decoding on the card without a GPU (tests/shim): tokens are picked there, and a step begins before the last one's tokens are
read. What comes out is what the host's sampler chooses in the plain order, and a card that fails is one message.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import conftest
import make_tiny_text_model
from conftest import moebius, succeed
from test_cuda import GPU, ON_CARD, SHIM, fake, shim  # noqa: F401 (a fixture)
from test_golden import Case

sys.path.insert(0, str(conftest.TESTS / "server"))
from serving import Server

HOST_CHOOSES = {"MOEBIUS_CUDA_PICKS": "0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decode") / "tiny"
    make_tiny_text_model.make(conftest.GOLDEN / "v2lite-tiny", folder)
    return folder


@pytest.fixture
def serve(folder, tmp_path):
    servers = []

    def start(*flags, env=None):
        program = conftest.PROGRAM if ON_CARD else str(SHIM / "moebius")
        servers.append(Server(folder, *GPU, "--max-num-seqs", 4, *flags, env=env, program=program, folder=tmp_path))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


def generate(folder, *flags, n=10, env=None, run=succeed):
    return run("run", folder, *GPU, "--prompt", "one two three", "--max-tokens", n, "--ignore-eos", "--json", *flags, env=env)


def text_of(result):
    return json.loads(result.out)["text"]


SAMPLING = [
    ["--temperature", 0],
    ["--temperature", 1, "--seed", 3],
    ["--temperature", 0.7, "--seed", 4, "--top-p", 0.8],
    ["--temperature", 1.5, "--seed", 5, "--top-k", 7, "--top-p", 0.9, "--min-p", 0.01],
    ["--temperature", 0.8, "--seed", 6, "--expert-device", "cpu"],
]


@pytest.mark.parametrize("flags", SAMPLING)
def test_picked_tokens_are_the_hosts(folder, flags):
    assert text_of(generate(folder, *flags)) == text_of(generate(folder, *flags, env=HOST_CHOOSES))


@pytest.mark.parametrize("flags", SAMPLING[:3])
def test_guessed_tokens_change_nothing(folder, flags):
    text = ["--prompt", "one two three one two three one two"]  # so that there is something to guess
    want = text_of(generate(folder, *flags, *text))
    for env in ({}, HOST_CHOOSES):
        assert text_of(generate(folder, *flags, *text, "--draft-max", 3, env=env)) == want


# --- several clients at once -------------------------------------------------------------------------------------------

REQUESTS = [
    {"temperature": 0, "max_tokens": 10, "ignore_eos": True},
    {"temperature": 0.9, "seed": 1, "max_tokens": 12},
    {"temperature": 1, "seed": 2, "top_p": 0.7, "max_tokens": 7},
    {"temperature": 0.6, "seed": 3, "top_k": 5, "n": 2, "max_tokens": 5},
    {"temperature": 1.2, "seed": 4, "min_p": 0.05, "max_tokens": 9, "ignore_eos": True},
    {"temperature": 0, "max_tokens": 16, "stop": ["way", "but"], "ignore_eos": True},
    {"temperature": 1, "seed": 6, "max_tokens": 1},
    {"temperature": 1, "seed": 5, "max_tokens": 6, "min_tokens": 3},
]
HOST_REQUESTS = [  # these want to see logits, or change them
    {"temperature": 0, "max_tokens": 4, "logprobs": 2},
    {"temperature": 1, "seed": 8, "max_tokens": 4, "repetition_penalty": 1.4},
    {"temperature": 0, "max_tokens": 4, "logit_bias": {"40": 100}},
]
PROMPTS = ["one two three", "the", "a longer prompt of some words " * 2]


def answers(server, requests):
    def ask(i):
        choices = server.complete(PROMPTS[i % len(PROMPTS)], **requests[i])["choices"]
        return [(c["text"], c["finish_reason"], c.get("stop_reason"), c["logprobs"]) for c in choices]

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, range(len(requests))))


def test_clients_beside_each_other(serve):
    """More requests than sequences that run: some wait, some leave early, prompts come between. Each gets what it gets alone from
    the host's sampler."""
    requests = REQUESTS + HOST_REQUESTS
    expected = answers(serve(env=HOST_CHOOSES), requests)
    server = serve()
    assert answers(server, requests) == expected
    assert answers(server, REQUESTS[:4]) == expected[:4]
    assert server.becomes_idle()


def test_cancelled_in_the_middle(serve):
    """A client that goes away leaves nothing behind, and the other's tokens are as before."""
    server = serve()
    body = {"model": server.model, "prompt": "the", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = server.complete("the", max_tokens=16, temperature=0, ignore_eos=True)["choices"][0]["text"]
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(lambda: server.complete("the", max_tokens=16, temperature=0, ignore_eos=True))
        with pytest.raises(TimeoutError):
            server.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}, timeout_s=0.2)
        assert other.result()["choices"][0]["text"] == alone
    assert server.becomes_idle()


# --- the order of things -----------------------------------------------------------------------------------------------


def calls(result, *kinds):
    """What the fake driver was asked for, in order: [(kind, number or blocks)]."""
    found = re.findall(r"^fake cuda: (\w+) (\d+)", result.err, re.M)
    return [(kind, int(number)) for kind, number in found if kind in kinds]


@pytest.mark.skipif(ON_CARD, reason="reads the fake driver's log")
def test_a_step_begins_before_the_last_one_is_read(folder):
    kinds = [kind for kind, _ in calls(generate(folder, env=fake(log=1)), "graph", "event")]
    last = len(kinds) - 1 - kinds[::-1].index("graph")
    assert kinds[last:] == ["graph", "event", "event"]  # the two steps that are at work in the end
    assert kinds.count("graph") == 8  # ten tokens: the prompt's step, an eager one, and one that is recorded
    kinds = [kind for kind, _ in calls(generate(folder, env={**fake(log=1), **HOST_CHOOSES}), "graph", "event", "pick")]
    assert kinds[-2:] == ["graph", "event"] and "pick" not in kinds


@pytest.mark.skipif(ON_CARD, reason="needs a driver that fails")
def test_failures_of_a_step_ahead(folder):
    """The launch of a step whose predecessor has not been read; recorded steps; the wait for the one or the other."""
    good = calls(generate(folder, env=fake(log=1)), "launch", "embed", "graph", "event", "copy")
    second = [i for i, (kind, _) in enumerate(good) if kind == "embed"][1]
    launch = good[second - 1][1]
    assert good[second - 1][0] == "launch"
    events = [number for kind, number in good if kind == "event"]
    copies = [number for kind, number in good if kind == "copy"]
    failures = [{"launch": launch}, {"launch": launch + 5}, {"graph": 1}, {"graph": 4}, {"event": events[-1]},
                {"event": events[-2]}, {"event": events[-9]}, {"copy": copies[-3]}, {"copy": copies[-1]}]
    for failure in failures:
        result = generate(folder, env=fake(leaks=1, **failure), run=moebius)
        assert result.code == 1 and "unspecified launch failure" in result.err and "GPU 0" in result.err, f"{failure} {result}"
        assert "not given back" not in result.err, f"{failure} {result}"


@pytest.mark.skipif(ON_CARD, reason="needs a driver that fails")
def test_server_says_503_when_the_card_is_lost(folder, serve):
    """A failing card ends the requests at hand and the later ones; none hangs."""
    events = [number for _, number in calls(generate(folder, env=fake(log=1)), "event")]
    server = serve(env=fake(event=events[-6]))
    with ThreadPoolExecutor(3) as pool:
        body = {"model": server.model, "prompt": "one two", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        for answer in pool.map(lambda _: server.post("/v1/completions", body), range(6)):
            assert answer.status == 503, answer
            assert b"unspecified launch failure" in answer.body, answer
    assert server.becomes_idle()


# --- fewer kernels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8"])
def test_last_blocks_absorb(name, tmp_path):
    """Up to eight rows, the last blocks of the projections do what else is a launch of its own: the same bits, a launch less in
    each layer. With queries of low rank two launches have such blocks."""
    case = Case(name, "p17")
    flags = [*GPU, "--chunk", 5]
    seen = {}
    for fold in ("0", "1"):
        env = {"MOEBIUS_CUDA_FOLD": fold, "MOEBIUS_CUDA_PREFETCH": fold, "MOEBIUS_CUDA_GRAPHS": "0"}
        result = succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens)), "--all", "--out", tmp_path / fold,
                         *flags, env={**fake(log=1), **env})
        seen[fold] = ((tmp_path / fold).read_bytes(), len(calls(result, "launch")))
    layers = json.loads((case.folder / "config.json").read_text())["num_hidden_layers"]
    assert seen["0"][0] == seen["1"][0]
    assert ON_CARD or seen["0"][1] - seen["1"][1] == 4 * layers


@pytest.mark.parametrize("name", ["v2lite-tiny", "v3-tiny-fp8"])
def test_routing_joins_the_experts(name, tmp_path):
    """Up to eight rows, routing and the experts' first products are one launch, in which blocks wait for the choice: the same bits, a
    launch less in each layer of experts."""
    case = Case(name, "p17")
    config = json.loads((case.folder / "config.json").read_text())
    seen = {}
    for join in ("0", "1"):
        result = succeed("logits", case.folder, "--ids", ",".join(map(str, case.tokens)), "--all", "--out", tmp_path / join,
                         *GPU, "--chunk", 5, env={**fake(log=1), "MOEBIUS_CUDA_JOIN": join, "MOEBIUS_CUDA_GRAPHS": "0"})
        seen[join] = ((tmp_path / join).read_bytes(), len(calls(result, "launch")))
    layers = config["num_hidden_layers"] - config["first_k_dense_replace"]
    assert seen["0"][0] == seen["1"][0]
    assert ON_CARD or seen["0"][1] - seen["1"][1] == 4 * layers


def test_prefix_cache_on_disk(serve, tmp_path):
    """Pages from the card to a file and back: a server that starts again answers as if it had computed them, with a step ahead at
    work beside the copies too."""
    flags = ["--batch-invariant", "--prefix-cache-dir", tmp_path / "pages"]
    prompt = [40 + i * 7 % 150 for i in range(150)]
    request = {"prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    seen = []
    for _ in range(2):
        server = serve(*flags)
        with ThreadPoolExecutor(2) as pool:
            other = pool.submit(server.complete, [50, 60], temperature=0, max_tokens=30, ignore_eos=True)
            reply = server.complete(**request)
            seen.append((reply["choices"][0]["text"], other.result()["choices"][0]["text"]))
        assert server.stop() == 0
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 128
    assert seen[0] == seen[1]
