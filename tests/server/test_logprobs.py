"""logprobs, echo and scoring: shapes as OpenAI's, values as `moebius logits` computes them."""

import math

import numpy as np
import pytest

from serving import BOS, BOS_ID
from words import NO_END, PROMPT, letters, only

CLOSE = 2e-3  # the same kernels on the same model; chunks of the prompt may round differently in the bf16 cache


def best(row, n):
    """The n best ids: falling, ties to the lowest id."""
    return sorted(range(len(row)), key=lambda id: (-row[id], id))[:n]


def test_completion(server, engine):
    table = letters(engine)
    reply = server.complete(PROMPT, max_tokens=6, temperature=0, logit_bias=only(table.values()), logprobs=3)
    choice = reply["choices"][0]
    logprobs = choice["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert all(len(values) == 6 for values in logprobs.values())
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [logprobs["text_offset"][0] + i for i in range(6)]
    prompt = engine.prompt(PROMPT)
    ids = [table[token] for token in logprobs["tokens"]]
    rows = engine.logprobs(prompt + ids)[len(prompt) - 1:]
    for row, id, value, top in zip(rows, ids, logprobs["token_logprobs"], logprobs["top_logprobs"]):
        assert value == pytest.approx(row[id], abs=CLOSE)
        expected = {engine.token_name(other): row[other] for other in {*best(row, 3), id}}
        assert top == pytest.approx(expected, abs=CLOSE)  # the three best, and the chosen one wherever it ranks


def test_logprobs_are_before_bias(server, engine):
    """They tell what the model thinks, not what sampling made of it."""
    a = letters(engine)["a"]
    reply = server.complete(PROMPT, max_tokens=1, temperature=0, logit_bias=only([a]), logprobs=0)
    expected = engine.logprobs(engine.prompt(PROMPT))[-1][a]
    assert reply["choices"][0]["logprobs"]["token_logprobs"][0] == pytest.approx(expected, abs=CLOSE)
    assert expected < -1


def test_zero_logprobs(server):
    """Only the chosen token's."""
    logprobs = server.complete(PROMPT, max_tokens=4, temperature=0, logprobs=0)["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == 4
    assert all(len(top) <= 1 for top in logprobs["top_logprobs"] or [])


def test_most_logprobs(server):
    logprobs = server.complete(PROMPT, max_tokens=2, temperature=0, logprobs=20)["choices"][0]["logprobs"]
    for top in logprobs["top_logprobs"]:
        assert len(top) == 20
        assert sum(math.exp(value) for value in top.values()) <= 1 + 1e-6


def test_tokens_as_ids(server, engine):
    """vLLM's return_tokens_as_token_ids: what has no text of its own stays distinct."""
    fields = {"max_tokens": 3, "temperature": 0, "return_tokens_as_token_ids": True}
    a = letters(engine)["a"]
    logprobs = server.complete(PROMPT, logit_bias=only([a]), logprobs=2, **fields)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{a}"] * 3
    assert all(key.startswith("token_id:") for top in logprobs["top_logprobs"] for key in top)
    content = server.chat(PROMPT, logit_bias=only([a]), logprobs=True, **fields)["choices"][0]["logprobs"]["content"]
    assert [(e["token"], e["bytes"]) for e in content] == [(f"token_id:{a}", [97])] * 3


def test_echo(server):
    reply = server.complete(PROMPT, max_tokens=5, temperature=0, logit_bias=NO_END, echo=True)
    plain = server.complete(PROMPT, max_tokens=5, temperature=0, logit_bias=NO_END)
    assert reply["choices"][0]["text"] == PROMPT + plain["choices"][0]["text"]
    assert reply["usage"] == plain["usage"]


def test_echo_of_several(server):
    reply = server.complete(["the", "one two"], max_tokens=3, temperature=1, n=2, echo=True, seed=1)
    texts = [c["text"] for c in reply["choices"]]
    assert all(t.startswith("the") for t in texts[:2]) and all(t.startswith("one two") for t in texts[2:])


def test_echo_with_logprobs(server, engine):
    table = letters(engine)
    reply = server.complete(PROMPT, max_tokens=3, temperature=0, logit_bias=only(table.values()), echo=True, logprobs=2)
    choice = reply["choices"][0]
    logprobs, prompt = choice["logprobs"], engine.prompt(PROMPT)
    assert len(logprobs["tokens"]) == len(prompt) + 3
    check_scores(engine, logprobs, prompt + [table[t] for t in logprobs["tokens"][-3:]], 2)
    shown = [t for t in logprobs["tokens"] if t != BOS]
    assert "".join(shown) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"]):
        if token != BOS:
            assert choice["text"][offset:offset + len(token)] == token


def check_scores(engine, logprobs, ids, n_top):
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    rows = engine.logprobs(ids)
    for i in range(1, len(ids)):
        assert logprobs["token_logprobs"][i] == pytest.approx(rows[i - 1][ids[i]], abs=CLOSE), i
        top = logprobs["top_logprobs"][i]
        largest = max(top.values())
        assert largest == pytest.approx(rows[i - 1].max(), abs=CLOSE)
        assert len(top) <= n_top + 1


@pytest.mark.parametrize("as_ids", [False, True])
def test_scoring(server, engine, as_ids):
    """How evaluation harnesses ask for the probability of a text: no answer, echo and logprobs."""
    ids = engine.prompt(PROMPT)
    reply = server.complete(ids if as_ids else PROMPT, max_tokens=0, echo=True, logprobs=1, temperature=0)
    choice = reply["choices"][0]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 0 and reply["usage"]["prompt_tokens"] == len(ids)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    check_scores(engine, choice["logprobs"], ids, 1)


def test_scoring_of_several(server, engine):
    texts = ["the people", "one two three four", PROMPT * 12]  # the last is longer than a page of the cache
    reply = server.complete(texts, max_tokens=0, echo=True, logprobs=1)
    for text, choice in zip(texts, reply["choices"]):
        assert choice["text"] == text
        check_scores(engine, choice["logprobs"], engine.prompt(text), 1)


def test_scoring_through_chunks(server, engine):
    """A prompt that is computed in several steps, each row scored once."""
    ids = [BOS_ID] + [2 + i * 7 % 200 for i in range(1199)]
    reply = server.complete(ids, max_tokens=0, echo=True, logprobs=0)
    values = reply["choices"][0]["logprobs"]["token_logprobs"]
    rows = engine.logprobs(ids)
    expected = [rows[i - 1][ids[i]] for i in range(1, len(ids))]
    assert values[0] is None
    # bf16 cache, and other chunks than `logits` has: single values may differ a little
    assert np.abs(np.array(values[1:]) - expected).max() < 0.05
    assert abs(np.mean(values[1:]) - np.mean(expected)) < CLOSE


def test_nothing_to_do(server):
    """No answer and no echo: nothing would come back."""
    reply = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 0})
    assert reply.status == 400 and reply.error["param"] == "max_tokens"


def test_stream_of_logprobs(server):
    fields = {"max_tokens": 8, "temperature": 0, "logprobs": 2, "logit_bias": NO_END}
    whole = server.complete(PROMPT, **fields)["choices"][0]["logprobs"]
    parts = {name: [] for name in whole}
    for chunk in server.complete(PROMPT, stream=True, **fields):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            parts[name] += values
    assert parts == whole


# --- chat ------------------------------------------------------------------------------------------------------------


def chat_rows(engine, reply, ids):
    """Log-probabilities of the rows that chose an answer's ids."""
    prompt = engine.ids(engine.command("render", engine.model, "--messages", "-", stdin=b'{"messages":'
                                       b'[{"role":"user","content":"hello"}]}').decode())
    assert reply["usage"]["prompt_tokens"] == len(prompt)
    return engine.logprobs(prompt + ids)[len(prompt) - 1:]


def test_chat(server, engine):
    table = letters(engine)
    reply = server.chat("hello", max_tokens=5, temperature=0, logit_bias=only(table.values()), logprobs=True, top_logprobs=4)
    choice = reply["choices"][0]
    entries = choice["logprobs"]["content"]
    assert [e["token"] for e in entries] == list(choice["message"]["content"]) and len(entries) == 5
    ids = [table[e["token"]] for e in entries]
    for row, id, entry in zip(chat_rows(engine, reply, ids), ids, entries):
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] == pytest.approx(row[id], abs=CLOSE)
        top = entry["top_logprobs"]
        assert [set(t) for t in top] == [{"token", "logprob", "bytes"}] * 4
        for t, other in zip(top, best(row, 4)):
            assert t["logprob"] == pytest.approx(row[other], abs=CLOSE)
            assert bytes(t["bytes"]) == engine.bytes_of(other)
            assert t["token"] == engine.bytes_of(other).decode("utf-8", "replace")


def test_chat_without_top(server):
    entries = server.chat("hello", max_tokens=3, temperature=0, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert len(entries) == 3 and all(e["top_logprobs"] == [] for e in entries)


def test_bytes_of_split_letters(server, engine):
    """Tokens that are parts of one letter: their bytes join to the text."""
    ids = engine.ids("\u20ac")
    reply = server.chat("hello", max_tokens=40, temperature=1, seed=6, logit_bias=only(ids), logprobs=True)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == 40 and all(len(e["bytes"]) == 1 for e in entries)
    joined = b"".join(bytes(e["bytes"]) for e in entries)
    assert joined.decode("utf-8", "replace") == reply["choices"][0]["message"]["content"]


def test_chat_stream(server):
    fields = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = server.chat("hello", **fields)["choices"][0]["logprobs"]["content"]
    chunks = server.chat("hello", stream=True, **fields)
    assert [e for c in chunks for e in (c["choices"][0]["logprobs"] or {}).get("content", [])] == whole


def test_by_the_client(client, server):
    reply = client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": "hello"}], max_tokens=2,
                                           logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert len(content) == 2 and len(content[0].top_logprobs) == 2
