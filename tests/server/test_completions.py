"""POST /v1/completions: what goes in, what comes out, and that it is what the engine computes."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving import BOS, BOS_ID, EOS_ID, FIM_IDS, FIM_TEXT
from words import GREEDY, NO_END, PROMPT, letters, only


def text(reply, index=0):
    return reply["choices"][index]["text"]


# --- the reply -------------------------------------------------------------------------------------------------------


def test_reply(server, engine):
    reply = server.complete(PROMPT, max_tokens=5, **GREEDY)
    assert re.fullmatch(r"cmpl-\S+", reply["id"])
    assert reply["object"] == "text_completion" and reply["model"] == server.model
    assert isinstance(reply["created"], int) and abs(reply["created"] - time.time()) < 60
    (choice,) = reply["choices"]
    assert {"index", "text", "logprobs", "finish_reason"} <= set(choice)
    assert choice["index"] == 0 and choice["logprobs"] is None and choice["finish_reason"] == "length"
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(engine.prompt(PROMPT))
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_ids_differ(server):
    assert server.complete("a", max_tokens=1)["id"] != server.complete("a", max_tokens=1)["id"]


def test_openai_client(client, server):
    reply = client.completions.create(model=server.model, prompt=PROMPT, max_tokens=4, temperature=0, extra_body=GREEDY)
    assert reply.choices[0].text == text(server.complete(PROMPT, max_tokens=4, **GREEDY))
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 4


@pytest.mark.parametrize("path", ["/completions", "/beta/completions"])
def test_other_paths(server, path):
    reply = server.ask(path, {"prompt": PROMPT, "max_tokens": 4, **GREEDY})
    assert text(reply) == text(server.complete(PROMPT, max_tokens=4, **GREEDY))


# --- greedy is the engine's ------------------------------------------------------------------------------------------


def test_greedy_is_what_run_prints(server, engine):
    ran = engine.command("run", engine.model, "-p", PROMPT, "-n", 40, "--temperature", 0,
                         "--batch-invariant", "--threads", 2).decode()
    assert text(server.complete(PROMPT, max_tokens=40, temperature=0)) == ran.removesuffix("\n")


def test_greedy_is_what_logits_computes(server, engine):
    ids = engine.greedy(engine.prompt(PROMPT), 30)
    assert EOS_ID not in ids, "choose another prompt"
    reply = server.complete(PROMPT, max_tokens=30, temperature=0)
    assert text(reply) == engine.text(ids)


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}])
def test_narrow_sampling_is_greedy(server, fields):
    reply = server.complete(PROMPT, max_tokens=20, temperature=1.5, logit_bias=NO_END, seed=5, **fields)
    assert text(reply) == text(server.complete(PROMPT, max_tokens=20, **GREEDY))


def test_prompt_forms_are_equal(server, engine):
    ids = engine.prompt(PROMPT)
    expected = text(server.complete(PROMPT, max_tokens=8, **GREEDY))
    for prompt in ([PROMPT], ids, [ids]):
        reply = server.complete(prompt, max_tokens=8, **GREEDY)
        assert text(reply) == expected, prompt
        assert reply["usage"]["prompt_tokens"] == len(ids)


def test_token_ids_are_taken_as_they_are(server, engine):
    """No BOS is added to ids."""
    ids = engine.ids(PROMPT)
    reply = server.complete(ids, max_tokens=8, **GREEDY)
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert text(reply) == engine.text(engine.greedy(ids, 8), skip_special=False)


def test_one_bos(server):
    plain = server.complete(PROMPT, max_tokens=4, **GREEDY)
    with_bos = server.complete(BOS + PROMPT, max_tokens=4, **GREEDY)
    assert with_bos["usage"] == plain["usage"] and text(with_bos) == text(plain)


def test_empty_prompt_is_bos(server):
    reply = server.complete("", max_tokens=4, **GREEDY)
    assert reply["usage"]["prompt_tokens"] == 1
    assert text(reply) == text(server.complete([BOS_ID], max_tokens=4, **GREEDY))


# --- several prompts, several choices --------------------------------------------------------------------------------

PROMPTS = ["the", "one two three", PROMPT]


def test_list_of_prompts(server, engine):
    reply = server.complete(PROMPTS, max_tokens=8, **GREEDY)
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    alone = [text(server.complete(p, max_tokens=8, **GREEDY)) for p in PROMPTS]
    assert [c["text"] for c in reply["choices"]] == alone and len(set(alone)) == 3
    assert reply["usage"]["prompt_tokens"] == sum(len(engine.prompt(p)) for p in PROMPTS)
    assert reply["usage"]["completion_tokens"] == 24


def test_list_of_token_prompts(server, engine):
    reply = server.complete([engine.prompt(p) for p in PROMPTS], max_tokens=8, **GREEDY)
    assert [c["text"] for c in reply["choices"]] == [text(server.complete(p, max_tokens=8, **GREEDY)) for p in PROMPTS]


def test_order_is_prompt_then_n(server):
    fields = {"n": 2, "seed": 3, "max_tokens": 8, "temperature": 1, "logit_bias": NO_END}
    reply = server.complete(PROMPTS, **fields)
    assert [c["index"] for c in reply["choices"]] == list(range(6))
    for i, prompt in enumerate(PROMPTS):
        alone = server.complete(prompt, **fields)
        assert [c["text"] for c in reply["choices"][2 * i:2 * i + 2]] == [c["text"] for c in alone["choices"]]


def test_n_with_seed(server, engine):
    fields = {"n": 4, "seed": 7, "max_tokens": 16, "temperature": 1, "logit_bias": NO_END}
    first, again = (server.complete(PROMPT, **fields) for _ in range(2))
    texts = [c["text"] for c in first["choices"]]
    assert texts == [c["text"] for c in again["choices"]]
    assert len(set(texts)) == 4
    assert first["usage"]["completion_tokens"] == 64
    assert first["usage"]["prompt_tokens"] == len(engine.prompt(PROMPT))


def test_n_greedy_is_n_times_the_same(server):
    reply = server.complete(PROMPT, n=3, max_tokens=8, **GREEDY)
    assert len({c["text"] for c in reply["choices"]}) == 1


# --- seed ------------------------------------------------------------------------------------------------------------


def sampled(server, seed=None, max_tokens=24, **fields):
    more = {} if seed is None else {"seed": seed}
    return text(server.complete(PROMPT, max_tokens=max_tokens, temperature=1, logit_bias=NO_END, **more, **fields))


def test_seed(server):
    assert sampled(server, 1) == sampled(server, 1)
    assert sampled(server, 1) != sampled(server, 2)
    assert sampled(server, 0) != sampled(server)
    assert sampled(server) != sampled(server)


@pytest.mark.parametrize("seed", [0, 2**31, 2**53, 2**63 - 1])
def test_seed_range(server, seed):
    assert sampled(server, seed, max_tokens=4) == sampled(server, seed, max_tokens=4)


def test_seed_beside_seven_others(server):
    alone = sampled(server, 11, 60)
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(sampled, server, 100 + i, 100) for i in range(7)]
        beside = [pool.submit(sampled, server, 11, 60) for _ in range(1)]
        assert [f.result() for f in beside] == [alone]
        assert len({f.result() for f in others}) == 7


def test_defaults(server):
    """What is left out is what the documentation says: 16 tokens, one choice, temperature 1, nothing filtered."""
    plain = server.ask("/v1/completions", {"prompt": PROMPT, "seed": 9, "ignore_eos": True})
    assert plain["usage"]["completion_tokens"] == 16 and plain["choices"][0]["finish_reason"] == "length"
    said = {"max_tokens": 16, "n": 1, "best_of": 1, "temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0,
            "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "logit_bias": {}, "stop": [],
            "stop_token_ids": [], "echo": False, "logprobs": None, "stream": False, "suffix": None, "min_tokens": 0,
            "include_stop_str_in_output": False, "skip_special_tokens": True, "user": "someone"}
    assert text(server.complete(PROMPT, seed=9, ignore_eos=True, **said)) == text(plain)


def test_null_is_the_default(server):
    names = ["max_tokens", "n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "echo",
             "logprobs", "stream", "stream_options", "suffix", "user", "best_of"]
    nothing = server.complete(PROMPT, seed=9, ignore_eos=True, **dict.fromkeys(names))
    assert text(nothing) == text(server.complete(PROMPT, seed=9, ignore_eos=True))


def test_whole_numbers(server):
    """16.0 is an integer: some clients know no other numbers."""
    fields = {"max_tokens": 12, "seed": 5, "top_k": 40, "n": 2}
    said = server.complete(PROMPT, **fields)
    again = server.complete(PROMPT, **{name: float(value) for name, value in fields.items()})
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in said["choices"]]
    fields = {"max_tokens": 12, "temperature": 0}
    said = server.complete([0, 9, 8], stop_token_ids=[40, 41], **fields)
    assert server.complete([0.0, 9.0, 8], stop_token_ids=[40.0, 41.0], **fields)["choices"] == said["choices"]
    assert server.post("/detokenize", {"tokens": [9.0, 8.0]}).json == server.post("/detokenize", {"tokens": [9, 8]}).json


def test_top_p_of_nothing_is_greedy(server):
    greedy = server.complete(PROMPT, max_tokens=12, temperature=0)["choices"][0]["text"]
    assert server.complete(PROMPT, max_tokens=12, temperature=2, top_p=0, seed=1)["choices"][0]["text"] == greedy


def test_repeat_penalty_is_repetition_penalty(server):
    """llama.cpp's word for it, here too."""
    said, other, none = (server.complete(PROMPT, max_tokens=24, temperature=0, **fields)["choices"][0]["text"]
                         for fields in ({"repetition_penalty": 1.9}, {"repeat_penalty": 1.9}, {}))
    assert said == other != none


def test_unknown_fields_are_ignored(server):
    fields = {"max_tokens": 4, **GREEDY}
    assert text(server.complete(PROMPT, no_such_field={"x": [1]}, **fields)) == text(server.complete(PROMPT, **fields))


# --- bias and penalties ----------------------------------------------------------------------------------------------


def test_logit_bias_forces_and_bans(server, engine):
    a = letters(engine)["a"]
    assert text(server.complete(PROMPT, max_tokens=6, temperature=1, logit_bias=only([a]))) == "aaaaaa"
    free = engine.greedy(engine.prompt(PROMPT), 1)[0]
    banned = server.complete(PROMPT, max_tokens=1, temperature=0, logit_bias={str(free): -100})
    order = np.argsort(-engine.logits(engine.prompt(PROMPT))[-1])
    assert order[0] == free
    assert text(banned) == engine.text([order[1]])


@pytest.mark.parametrize("name, value", [
    ("presence_penalty", 2), ("frequency_penalty", 0.75), ("repetition_penalty", 1.8)])
def test_penalties(server, engine, name, value):
    """Greedy with a penalty, worked out beside it: presence and frequency count the answer, repetition the prompt too."""
    prompt = engine.prompt("abab")
    bias = np.zeros(512)
    for id in letters(engine, "abcdefgh").values():
        bias[id] = 8  # a few likely letters, so that tokens come again and again
    ids = []
    for _ in range(10):
        value_of = engine.logits([*prompt, *ids])[-1].astype(np.float64) + bias
        seen = set(ids) | (set(prompt) if name == "repetition_penalty" else set())
        for id in seen:
            if name == "repetition_penalty":
                value_of[id] = value_of[id] / value if value_of[id] > 0 else value_of[id] * value
            else:
                value_of[id] -= value if name == "presence_penalty" else value * ids.count(id)
        ids.append(int(np.argmax(value_of)))
    fields = {"max_tokens": 10, "temperature": 0, "ignore_eos": True, "logit_bias": only(np.flatnonzero(bias), 8)}
    penalised = text(server.complete("abab", **fields, **{name: value}))
    assert penalised == engine.text(ids)
    assert penalised != text(server.complete("abab", **fields))


# --- where it ends ---------------------------------------------------------------------------------------------------


def lettered(engine, **fields):
    return {"max_tokens": 60, "temperature": 1, "seed": 4, "logit_bias": only(letters(engine).values()), **fields}


def test_stop_across_tokens(server, engine):
    """A stop string of three tokens: text before it, without it."""
    whole = text(server.complete(PROMPT, **lettered(engine)))
    assert len(whole) == 60
    stop = whole[20:23]
    reply = server.complete(PROMPT, **lettered(engine, stop=stop))
    choice = reply["choices"][0]
    end = whole.index(stop)
    assert choice["text"] == whole[:end]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
    assert reply["usage"]["completion_tokens"] == end + 3


def test_stop_is_kept_if_asked(server, engine):
    whole = text(server.complete(PROMPT, **lettered(engine)))
    stop = whole[20:23]
    reply = server.complete(PROMPT, **lettered(engine, stop=[stop], include_stop_str_in_output=True))
    assert text(reply) == whole[:whole.index(stop) + 3]


def test_first_stop_wins(server, engine):
    whole = text(server.complete(PROMPT, **lettered(engine)))
    stops = [whole[40:44], "never", whole[10:13], whole[25:29]]
    reply = server.complete(PROMPT, **lettered(engine, stop=stops))
    assert text(reply) == whole[:min(whole.index(s) for s in stops if s in whole)]
    assert reply["choices"][0]["stop_reason"] in stops


def test_many_stops(server, engine):
    """16, as DeepSeek's own service takes, and more."""
    whole = text(server.complete(PROMPT, **lettered(engine)))
    for n in (16, 40):
        stops = [f"not there {i}" for i in range(n - 1)] + [whole[30:34]]
        assert text(server.complete(PROMPT, **lettered(engine, stop=stops))) == whole[:whole.index(stops[-1])]


def test_half_a_stop_at_the_end_comes_out(server, engine):
    """Text that might have become a stop string is given out when the answer ends."""
    whole = text(server.complete(PROMPT, **lettered(engine)))
    reply = server.complete(PROMPT, **lettered(engine, stop=[whole[-3:] + "?"]))
    assert text(reply) == whole and reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["stop_reason"] is None


def test_stop_slashes(server, engine):
    """Continue sends "//" for DeepSeek."""
    bias = {**only(letters(engine, "ab").values(), 94), **only(engine.ids("/"))}
    fields = {"max_tokens": 60, "temperature": 1.5, "seed": 3, "logit_bias": bias}
    whole = text(server.complete(PROMPT, **fields))
    assert "//" in whole, "choose another seed"
    reply = server.complete(PROMPT, **fields, stop=[*FIM_TEXT, "//"])
    assert text(reply) == whole[:whole.index("//")] and reply["choices"][0]["stop_reason"] == "//"


def test_stop_of_more_than_ascii(server, engine):
    """A stop string whose one letter is three tokens."""
    ids = engine.ids("\u20ac")
    assert len(ids) == 3
    prompt = [BOS_ID, *ids[:2]]
    reply = server.complete(prompt, max_tokens=9, temperature=0, logit_bias=only(ids), stop="\u20ac\u20ac\u20ac\u20ac")
    assert reply["choices"][0]["finish_reason"] == "length"  # nothing wrong can be built from the halves
    assert "\u20ac\u20ac\u20ac\u20ac" not in text(reply)


def test_eos(server):
    reply = server.complete(PROMPT, max_tokens=8, temperature=0, logit_bias=only([EOS_ID]))
    choice = reply["choices"][0]
    assert choice["text"] == "" and choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == 1


def test_ignore_eos(server):
    reply = server.complete(PROMPT, max_tokens=8, temperature=0, logit_bias=only([EOS_ID]), ignore_eos=True)
    assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 8
    assert text(reply) == ""  # special tokens are no text


def test_min_tokens(server, engine):
    a = letters(engine)["a"]
    bias = {str(EOS_ID): 100, str(a): 50}
    reply = server.complete(PROMPT, max_tokens=20, temperature=0, logit_bias=bias, min_tokens=5)
    assert text(reply) == "aaaaa" and reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == 6


def test_stop_token_ids(server, engine):
    table = letters(engine)
    whole = text(server.complete(PROMPT, **lettered(engine)))
    reply = server.complete(PROMPT, **lettered(engine, stop_token_ids=[table["c"]]))
    assert text(reply) == whole[:whole.index("c")]
    assert reply["choices"][0]["finish_reason"] == "stop" and reply["choices"][0]["stop_reason"] == table["c"]


def test_stop_string_that_is_a_special_token(server):
    """Editors send special tokens as stop strings; such a token has no text, so its id must be matched."""
    reply = server.complete(PROMPT, max_tokens=8, temperature=0, logit_bias=only([BOS_ID]), stop=[*FIM_TEXT, BOS])
    assert reply["choices"][0]["finish_reason"] == "stop" and reply["usage"]["completion_tokens"] == 1
    assert text(reply) == ""


def test_full_context(server, engine):
    """An answer that reaches the end of the context ends with `length`; nothing is lost or overrun."""
    prompt = [BOS_ID] + engine.ids("a") * 2030
    reply = server.complete(prompt, max_tokens=17, temperature=0, ignore_eos=True)
    assert reply["usage"]["total_tokens"] == 2048 and reply["choices"][0]["finish_reason"] == "length"


def test_half_letters_never_come_out(server, engine):
    """The bytes of e-acute and the euro sign in any order: a stream says exactly what the whole reply says."""
    ids = sorted({*engine.ids("\u00e9"), *engine.ids("\u20ac"), *engine.ids("\U0001f600")})
    fields = {"max_tokens": 80, "temperature": 1, "logit_bias": only(ids)}
    for seed in range(3):
        whole = text(server.complete(PROMPT, seed=seed, **fields))
        chunks = server.complete(PROMPT, seed=seed, stream=True, **fields)
        assert "".join(c["choices"][0]["text"] for c in chunks) == whole
        assert whole.replace("\ufffd", ""), "choose seeds that make a letter"


# --- fill in the middle ----------------------------------------------------------------------------------------------

FIM = ("the people ", " of the world")


def test_suffix_is_fim_by_ids(server, engine):
    ids = engine.fim(*FIM)
    filled = server.complete(FIM[0], suffix=FIM[1], max_tokens=20, **GREEDY)
    assert filled["usage"]["prompt_tokens"] == len(ids)
    assert text(filled) == text(server.complete(ids, max_tokens=20, **GREEDY))
    assert text(filled) != text(server.complete(FIM[0], max_tokens=20, **GREEDY))


def test_suffix_holds_no_special_tokens(server, engine):
    """Code that happens to spell a special token stays code."""
    ids = engine.fim("a" + FIM_TEXT[1], "b" + BOS)
    filled = server.complete("a" + FIM_TEXT[1], suffix="b" + BOS, max_tokens=4, **GREEDY)
    assert filled["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("suffix", ["", None])
def test_empty_suffix_is_none(server, suffix):
    reply = server.complete(PROMPT, suffix=suffix, max_tokens=8, **GREEDY)
    plain = server.complete(PROMPT, max_tokens=8, **GREEDY)
    assert text(reply) == text(plain) and reply["usage"] == plain["usage"]


def test_special_tokens_in_a_prompt(server, engine):
    """The template that editors fill themselves: the exact tokens in a prompt's text are their ids."""
    prompt = FIM_TEXT[0] + FIM[0] + FIM_TEXT[1] + FIM[1] + FIM_TEXT[2]
    reply = server.complete(prompt, max_tokens=20, **GREEDY)
    assert reply["usage"]["prompt_tokens"] == len(engine.fim(*FIM))
    assert text(reply) == text(server.complete(FIM[0], suffix=FIM[1], max_tokens=20, **GREEDY))


@pytest.mark.parametrize("id", [EOS_ID, *FIM_IDS])
def test_fim_stops(server, id):
    """After a suffix, eos and the three tokens end the answer, and are not in it."""
    reply = server.complete(FIM[0], suffix=FIM[1], max_tokens=8, temperature=0, logit_bias=only([id]))
    assert reply["choices"][0]["finish_reason"] == "stop" and text(reply) == ""
    assert reply["usage"]["completion_tokens"] == 1


def test_suffix_by_the_client(client, server, engine):
    reply = client.completions.create(model=server.model, prompt=FIM[0], suffix=FIM[1], max_tokens=4, temperature=0)
    assert reply.usage.prompt_tokens == len(engine.fim(*FIM))
