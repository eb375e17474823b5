"""Prompts of whole pages of the cache, and what an answer tells about them."""

import random

from words import GREEDY as ANY_LENGTH

PAGE, N = 64, 660
GREEDY = {**ANY_LENGTH, "max_tokens": 12, "logprobs": 3}


def prompt_of(seed, n=N):
    """Token ids that no other test sends."""
    return random.Random(seed).choices(range(40, 190), k=n)


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def answer(reply):
    return reply["choices"][0]["text"], reply["choices"][0]["logprobs"]
