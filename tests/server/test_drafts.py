"""Guessed tokens (--draft-max): more of them a step, the very same answers."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import HERE
from serving import FLAGS

DEMO = HERE.parents[1] / "models" / "demo"
CODE = "".join(f"    parser.add_argument('--{name}', type=int, default=0)\n" for name in ("width", "height", "depth", "size"))
REQUESTS = [
    {"prompt": CODE, "max_tokens": 60, "temperature": 0, "logprobs": 3},
    {"prompt": CODE, "max_tokens": 60, "temperature": 0.8, "seed": 3},
    {"prompt": CODE, "max_tokens": 40, "temperature": 1.2, "top_p": 0.9, "seed": 4, "n": 3},
    {"prompt": CODE, "max_tokens": 50, "temperature": 0, "presence_penalty": 1, "repetition_penalty": 1.1, "logit_bias": {"10": -1}},
    {"prompt": CODE + CODE, "max_tokens": 80, "temperature": 0.3, "seed": 5, "stop": ["default=0)\n    parser"]},
    {"prompt": "def area(self):\n", "suffix": "\n" + CODE, "max_tokens": 24, "temperature": 0},
    {"prompt": CODE, "max_tokens": 1, "temperature": 0},
    {"prompt": CODE, "max_tokens": 2, "temperature": 0, "min_tokens": 2},
]


@pytest.fixture(scope="module")
def servers(start):
    flags = [*FLAGS, "--max-model-len", 1024]
    both = start(DEMO, *flags), start(DEMO, *flags, "--draft-max", 8)
    yield both
    for server in both:
        assert server.becomes_idle() and server.stop() == 0


def answers(server, requests):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda request: server.post("/v1/completions", request).json, requests))
    return [[(c["text"], c["finish_reason"], c["logprobs"]) for c in reply["choices"]] for reply in replies]


def guesses(server):
    metrics = server.metrics()
    return [metrics.value(f"vllm:spec_decode_num_{name}_total") for name in ("draft_tokens", "accepted_tokens")]


def test_same_answers_alone_and_together(servers):
    plain, drafting = servers
    want = [answers(plain, [request])[0] for request in REQUESTS]
    assert [answers(drafting, [request])[0] for request in REQUESTS] == want
    assert answers(drafting, REQUESTS * 2) == want * 2
    guessed, right = guesses(drafting)
    assert guessed > right > 100
    assert guesses(plain) == [0, 0]


def test_vllm_spelling(start):
    server = start(DEMO, *FLAGS, "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}')
    answers(server, REQUESTS[:1])
    assert guesses(server)[1] > 0
    assert server.stop() == 0
