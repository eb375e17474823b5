"""llama.cpp's own endpoints, as llama.vim, llama.vscode, Tabby and scripts use them: POST /completion and /infill, GET /props and
/slots, POST /apply-template."""

import json
import random
import time

import pytest

from serving import (BOS, BOS_ID, EOS, EOS_ID, FIM_IDS, FIM_TEXT, FLAGS, GOLDEN, MAX_MODEL_LEN, MAX_NUM_SEQS, post_bytes,
                     wait_until)
from words import GREEDY, NO_END, PROMPT, letters, only

import make_tiny_text_model

HOLE = {"input_prefix": "the good\n", "input_suffix": "\nof the world", "prompt": "    people "}
PAGE = 64
KEYS = {"index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted", "tokens_evaluated", "generation_settings",
        "prompt", "has_new_line", "truncated", "stop_type", "stopping_word", "tokens_cached", "timings"}
TIMINGS = {"cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n", "predicted_ms",
           "predicted_per_token_ms", "predicted_per_second"}

# What llama.vim sends, and llama.vscode but for response_fields.
EDITOR = {"n_predict": 24, "n_indent": 0, "top_k": 40, "top_p": 0.99, "stream": False, "samplers": ["top_k", "top_p", "infill"],
          "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1000}


def ask(server, path, body):
    reply = server.post(path, body)
    assert reply.status == 200, reply
    return reply.json


def complete(server, prompt, **fields):
    return ask(server, "/completion", {"prompt": prompt, **fields})


def infill(server, **fields):
    return ask(server, "/infill", {**HOLE, **fields})


def frames(body):
    """The objects of a stream as Tabby reads it: each frame is JSON with `content` and `stop`; nothing comes after the last."""
    assert body.endswith(b"\n\n")
    found = []
    for frame in body.decode("utf-8")[:-2].split("\n\n"):
        assert frame.startswith("data: ") and "\n" not in frame, frame
        found.append(json.loads(frame.removeprefix("data: ")))
        assert isinstance(found[-1]["content"], str) and isinstance(found[-1]["stop"], bool), frame
    assert [f["stop"] for f in found] == [False] * (len(found) - 1) + [True]
    return found


def stream(server, path, body):
    reply = server.post(path, {**body, "stream": True})
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream"), reply
    return frames(reply.body)


def refused(server, path, body, status=400):
    reply = server.post(path, body)
    assert reply.status == status, (body, reply)
    return reply.error


# --- POST /completion ------------------------------------------------------------------------------------------------


def test_completion(server, engine):
    reply = complete(server, PROMPT, n_predict=12, **GREEDY)
    expected = server.complete(PROMPT, max_tokens=12, **GREEDY)
    n_prompt = len(engine.prompt(PROMPT))
    assert set(reply) == KEYS
    assert reply["content"] == expected["choices"][0]["text"]
    assert reply["stop"] is True and reply["stop_type"] == "limit" and reply["stopping_word"] == "" and not reply["truncated"]
    assert reply["tokens"] == [] and reply["index"] == 0 and reply["model"] == server.model
    assert (reply["tokens_predicted"], reply["tokens_evaluated"], reply["tokens_cached"]) == (12, n_prompt, 0)
    assert reply["prompt"] == BOS + PROMPT
    assert reply["has_new_line"] == ("\n" in reply["content"])
    timings = reply["timings"]
    assert set(timings) == TIMINGS
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, n_prompt, 12)
    assert timings["prompt_ms"] > 0 and timings["predicted_ms"] > 0
    assert timings["predicted_per_second"] == pytest.approx(12e3 / timings["predicted_ms"])
    assert timings["prompt_per_token_ms"] == pytest.approx(timings["prompt_ms"] / n_prompt)


def test_stop_types(server, engine):
    letter = letters(engine)
    eos = complete(server, "x", n_predict=5, temperature=0, logit_bias=only([EOS_ID]))
    assert (eos["stop_type"], eos["stopping_word"], eos["content"], eos["tokens_predicted"]) == ("eos", "", "", 1)
    word = complete(server, "x", n_predict=5, temperature=0, logit_bias=only([letter["a"]]), stop=["zz", "aaa"])
    assert (word["stop_type"], word["stopping_word"], word["content"]) == ("word", "aaa", "")
    special = complete(server, "x", n_predict=5, temperature=0, logit_bias=only([FIM_IDS[0]]), stop=[FIM_TEXT[0]])
    assert (special["stop_type"], special["stopping_word"]) == ("word", FIM_TEXT[0])


def test_until_the_context_is_full(server):
    prompt = [BOS_ID] + random.Random(1).choices(range(40, 190), k=MAX_MODEL_LEN - 30)
    for n_predict in (-1, -2, 5000):
        reply = complete(server, prompt, n_predict=n_predict, ignore_eos=True, temperature=0)
        assert reply["tokens_predicted"] == 29 and reply["truncated"] and reply["stop_type"] == "limit"
    reply = complete(server, prompt, n_predict=29, ignore_eos=True, temperature=0)
    assert reply["tokens_predicted"] == 29 and not reply["truncated"]
    error = refused(server, "/completion", {"prompt": prompt + [5] * 100})
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"


def test_prompt_of_tokens(server, engine):
    text = complete(server, PROMPT, n_predict=8, **GREEDY)
    ids = complete(server, engine.prompt(PROMPT), n_predict=8, **GREEDY)
    assert ids["content"] == text["content"] and ids["prompt"] == text["prompt"]


def test_several_prompts(server):
    replies = complete(server, [PROMPT, "state"], n_predict=6, n_cmpl=2, **GREEDY)
    assert [r["index"] for r in replies] == [0, 1, 2, 3]
    alone = [complete(server, prompt, n_predict=6, **GREEDY)["content"] for prompt in (PROMPT, "state")]
    assert [r["content"] for r in replies] == [alone[0]] * 2 + [alone[1]] * 2
    assert complete(server, [PROMPT], n_predict=6, **GREEDY)["content"] == alone[0]


def test_tokens_and_probabilities(server, engine):
    reply = complete(server, PROMPT, n_predict=6, n_probs=3, return_tokens=True, **GREEDY)
    assert engine.text(reply["tokens"]) == reply["content"] and len(reply["tokens"]) == 6
    listed = server.complete(PROMPT, max_tokens=6, logprobs=3, **GREEDY)["choices"][0]["logprobs"]
    probabilities = reply["completion_probabilities"]
    assert [p["id"] for p in probabilities] == reply["tokens"]
    assert [p["logprob"] for p in probabilities] == pytest.approx(listed["token_logprobs"])
    for entry in probabilities:
        assert len(entry["top_logprobs"]) == 3
        for top in [entry, *entry["top_logprobs"]]:
            assert bytes(top["bytes"]) == engine.bytes_of(top["id"])
            assert top["token"] == engine.bytes_of(top["id"]).decode(errors="replace")


def test_stream(server):
    body = {"prompt": PROMPT, "n_predict": 30, "seed": 5, "logit_bias": NO_END}
    whole = ask(server, "/completion", {**body, "return_tokens": True})
    pieces = stream(server, "/completion", body)
    assert "".join(p["content"] for p in pieces) == whole["content"]
    assert sum((p["tokens"] for p in pieces), []) == whole["tokens"]
    last = pieces[-1]
    assert last["content"] == "" and set(last) == KEYS
    assert (last["tokens_predicted"], last["stop_type"]) == (30, "limit") and last["timings"]["predicted_n"] == 30
    assert all(set(p) == {"index", "content", "tokens", "id_slot", "stop", "tokens_predicted", "tokens_evaluated"}
               for p in pieces[:-1])
    assert len(pieces) > 5


def test_stream_ends_with_a_stop(server, engine):
    letter = letters(engine)["a"]
    pieces = stream(server, "/completion", {"prompt": "x", "n_predict": 9, "temperature": 0, "logit_bias": only([letter]),
                                            "stop": "aaaa", "timings_per_token": True, "n_probs": 1})
    assert [p["content"] for p in pieces] == [""] and pieces[0]["stopping_word"] == "aaaa"
    pieces = stream(server, "/completion", {"prompt": "x", "n_predict": 3, "temperature": 0, "logit_bias": only([letter]),
                                            "timings_per_token": True, "n_probs": 1})
    assert [p["content"] for p in pieces] == ["a", "a", "a", ""]
    assert [p["timings"]["predicted_n"] for p in pieces] == [1, 2, 3, 3]
    assert [[e["id"] for e in p["completion_probabilities"]] for p in pieces[:3]] == [[letter]] * 3


def test_what_tabby_sends(server):
    body = {"seed": 7, "prompt": f"{FIM_TEXT[0]}the {FIM_TEXT[1]} world{FIM_TEXT[2]}", "n_predict": 16, "temperature": 0.1,
            "stream": True, "penalty_last_n": 0, "presence_penalty": 0.0}
    reply = server.post("/completion", body)
    assert reply.status == 200, reply
    assert frames(reply.body)[-1]["tokens_evaluated"] > 4
    assert server.post("/completion", {**body, "stream": False}).json["content"] == "".join(
        f["content"] for f in frames(reply.body))


def test_response_fields(server):
    wanted = ["content", "timings/prompt_n", "generation_settings/n_predict", "truncated", "no/such", "no", "content/x", ""]
    reply = complete(server, PROMPT, n_predict=3, response_fields=wanted, **GREEDY)
    assert set(reply) == {"content", "timings/prompt_n", "generation_settings/n_predict", "truncated"}
    assert reply["generation_settings/n_predict"] == 3
    assert complete(server, PROMPT, n_predict=3, response_fields=["prompt"], **GREEDY) == {"prompt": BOS + PROMPT}
    assert set(complete(server, PROMPT, n_predict=3, response_fields=[])) == KEYS


def test_seeds(server):
    def content(**fields):
        return complete(server, PROMPT, n_predict=20, temperature=1.5, **fields)["content"]

    assert content(seed=3) == content(seed=3) != content(seed=4)
    assert content(seed=-1) != content(seed=-1)
    assert content(seed=2**32 - 1) != content(seed=2**32 - 1)
    settings = complete(server, PROMPT, n_predict=20, temperature=1.5)
    assert content(seed=settings["generation_settings"]["seed"]) == settings["content"]


def test_bias_as_a_list(server, engine):
    letter = letters(engine)
    assert complete(server, "x", n_predict=3, temperature=0, logit_bias=[[letter["a"], 100]])["content"] == "aaa"
    bias = [[letter["a"], 100], [letter["b"], 99], [letter["a"], False]]
    assert complete(server, "x", n_predict=3, temperature=0, logit_bias=bias)["content"] == "bbb"


DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1, "presence_penalty": 0,
            "frequency_penalty": 0}
SAMPLERS = [
    ({}, {}),
    ({"samplers": ["dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]}, {}),
    ({"samplers": "edkypmxt", "repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
    ({"samplers": []}, {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}),
    ({"samplers": ["top_k", "top_p", "infill"], "top_p": 0.99, "temperature": 0.5},
     {"temperature": 0, "top_p": 0.99, "min_p": 0}),
    ({"samplers": ["infill", "temperature"], "temperature": 0.5}, {"temperature": 0.5, "top_k": 0, "top_p": 1, "min_p": 0}),
    ({"samplers": ["top_k"], "presence_penalty": 1}, {"temperature": 1, "top_p": 1, "min_p": 0}),
    ({"repeat_penalty": 1.2, "presence_penalty": 0.5}, {"repeat_penalty": 1.2, "presence_penalty": 0.5}),
    ({"repeat_penalty": 1.2, "presence_penalty": 0.5, "repeat_last_n": 0}, {}),
    ({"temperature": -1}, {"temperature": 0}),
]


@pytest.mark.parametrize("fields, changed", SAMPLERS)
def test_sampling(server, fields, changed):
    settings = complete(server, PROMPT, n_predict=1, **fields)["generation_settings"]
    for key, value in {**DEFAULTS, **changed}.items():
        assert settings[key] == pytest.approx(value), key


def test_sampling_is_the_other_endpoint_s(server):
    """The same numbers by their other names give the same text."""
    fields = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "presence_penalty": 0.3, "seed": 11}
    ours = complete(server, PROMPT, n_predict=30, repeat_penalty=1.3, **fields)["content"]
    assert ours == server.complete(PROMPT, max_tokens=30, repetition_penalty=1.3, **fields)["choices"][0]["text"]


def test_cache_prompt(server):
    prompt = random.Random(2).choices(range(40, 190), k=2 * PAGE + 1)
    counts = [complete(server, prompt, n_predict=2, cache_prompt=cache)["tokens_cached"] for cache in (True, True, False, True)]
    assert counts == [0, 2 * PAGE, 0, 2 * PAGE]


# --- POST /infill ----------------------------------------------------------------------------------------------------


def test_infill(server, engine):
    reply = infill(server, n_predict=16, **GREEDY)
    prefix = HOLE["input_prefix"] + HOLE["prompt"]
    expected = server.complete(prefix, suffix=HOLE["input_suffix"], max_tokens=16, **GREEDY)
    assert set(reply) == KEYS
    assert reply["content"] == expected["choices"][0]["text"]
    assert reply["tokens_evaluated"] == expected["usage"]["prompt_tokens"] == len(engine.fim(prefix, HOLE["input_suffix"]))
    assert reply["prompt"] == BOS + FIM_TEXT[0] + prefix + FIM_TEXT[1] + HOLE["input_suffix"] + FIM_TEXT[2]
    pieces = stream(server, "/infill", {**HOLE, "n_predict": 16, **GREEDY})
    assert "".join(p["content"] for p in pieces) == reply["content"]


def test_other_files(server):
    extra = [{"filename": "lib/a.py", "text": "import os"}, {"text": "x = 1\n", "time": 5}, {"filename": "", "text": ""}]
    reply = infill(server, input_extra=extra, n_predict=4, **GREEDY)
    files = "#lib/a.py\nimport os\n" + "x = 1\n"
    assert reply["prompt"] == (BOS + FIM_TEXT[0] + files + HOLE["input_prefix"] + HOLE["prompt"] + FIM_TEXT[1]
                               + HOLE["input_suffix"] + FIM_TEXT[2])
    assert not reply["truncated"]


def test_specials_are_text(server, engine):
    """Nothing that stands in a file can become a special token."""
    evil = {"input_prefix": FIM_TEXT[1], "input_suffix": EOS, "prompt": BOS,
            "input_extra": [{"filename": FIM_TEXT[2], "text": FIM_TEXT[0]}]}
    reply = ask(server, "/infill", {**evil, "n_predict": 1, **GREEDY})
    text = [f"#{FIM_TEXT[2]}\n{FIM_TEXT[0]}\n", FIM_TEXT[1] + BOS]
    n = sum(len(engine.ids(part, special=False)) for part in (*text, EOS))
    assert reply["tokens_evaluated"] == n + 4


@pytest.mark.parametrize("id", [EOS_ID, *FIM_IDS])
def test_infill_stops(server, id):
    reply = infill(server, n_predict=8, temperature=0, logit_bias=only([id]))
    assert (reply["stop_type"], reply["content"], reply["tokens_predicted"]) == ("eos", "", 1)


def test_warm_up(server):
    """llama.vscode sends other files alone while nobody types; the question that follows finds them computed."""
    extra = [{"filename": f"f{i}.py", "text": "the people of state " * 15 + str(i)} for i in range(4)]
    warm = {**EDITOR, "input_extra": extra, "input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": [],
            "t_max_predict_ms": 1}
    reply = ask(server, "/infill", warm)
    assert (reply["content"], reply["tokens_predicted"], reply["tokens_cached"]) == ("", 0, 0)
    assert reply["timings"]["prompt_n"] == reply["tokens_evaluated"] > 3 * PAGE and reply["timings"]["prompt_ms"] > 0
    assert reply["timings"]["predicted_per_second"] == 0
    before = server.metrics().value("vllm:prompt_tokens_total")
    reply = infill(server, **EDITOR, input_extra=extra)
    assert reply["tokens_cached"] >= 3 * PAGE
    assert reply["timings"]["cache_n"] == reply["tokens_cached"]
    assert reply["timings"]["prompt_n"] == reply["tokens_evaluated"] - reply["tokens_cached"]
    assert server.metrics().value("vllm:prompt_tokens_total") - before == reply["tokens_evaluated"]
    assert stream(server, "/infill", warm)[0]["tokens_predicted"] == 0


def cut_to_indent(text, least):
    """The rule of n_indent in our words: the lines after the first, up to one that begins with fewer blanks."""
    first, *rest = text.split("\n")
    out = first
    for i, line in enumerate(rest):
        blanks = len(line) - len(line.lstrip(" \t"))
        is_last = i == len(rest) - 1
        if blanks < least and not (is_last and blanks == len(line)):
            return out + "\n" + line[:blanks]
        out += "\n" + line
    return out


@pytest.mark.parametrize("least", [1, 2, 4])
def test_indentation(server, engine, least):
    (line,), (blank,) = engine.ids("\n"), engine.ids(" ")
    bias = {str(line): 97, str(blank): 99, str(letters(engine)["a"]): 97}
    n_cut = 0
    for seed in range(6):
        fields = {"n_predict": 40, "seed": seed, "logit_bias": bias, "samplers": []}
        free, bound = infill(server, **fields), infill(server, **fields, n_indent=least)
        assert bound["content"] == cut_to_indent(free["content"], least)
        streamed = stream(server, "/infill", {**HOLE, **fields, "n_indent": least})
        assert "".join(p["content"] for p in streamed) == bound["content"]
        if bound["content"] != free["content"]:
            n_cut += 1
            assert bound["stop_type"] == "limit" and bound["tokens_predicted"] < 40 and bound["has_new_line"]
    assert n_cut > 0


def test_time_limit(server, engine):
    """Late is late once a line has ended, and not before."""
    (line,) = engine.ids("\n")
    a = letters(engine)["a"]
    fields = {"n_predict": 1800, "seed": 1, "samplers": [], "t_max_predict_ms": 20}
    lines = infill(server, **fields, logit_bias=only([line, a]))
    assert lines["stop_type"] == "limit" and lines["tokens_predicted"] < 1800 and lines["has_new_line"]
    assert lines["timings"]["predicted_ms"] > 20
    one_line = infill(server, **{**fields, "n_predict": 400}, logit_bias=only([a]))
    assert one_line["tokens_predicted"] == 400 and one_line["timings"]["predicted_ms"] > 20


def words(n, seed=0):
    return "".join(random.Random(seed).choices("abcdefgh", k=n))


def test_truncation(server):
    """A file longer than the context: what is near the cursor stays, three to one."""
    prefix, suffix = words(6000, 1), words(6000, 2)
    reply = infill(server, **EDITOR, input_prefix=prefix, input_suffix=suffix)
    assert reply["truncated"] is True
    before, after = reply["prompt"].removeprefix(BOS + FIM_TEXT[0]).removesuffix(FIM_TEXT[2]).split(FIM_TEXT[1])
    assert (prefix + HOLE["prompt"]).endswith(before) and suffix.startswith(after)
    assert MAX_MODEL_LEN - 200 < reply["tokens_evaluated"] <= MAX_MODEL_LEN - EDITOR["n_predict"]
    assert 2.5 < len(before) / len(after) < 3.2
    reply = infill(server, **EDITOR, input_prefix="", input_suffix=suffix)  # what one needs less, the other gets
    assert reply["truncated"] and reply["tokens_evaluated"] == MAX_MODEL_LEN - EDITOR["n_predict"]
    assert HOLE["prompt"] + FIM_TEXT[1] in reply["prompt"]
    reply = infill(server, **EDITOR, input_prefix=prefix * 20, input_suffix=suffix * 20)  # too long for the I/O thread
    long_before, long_after = reply["prompt"].removeprefix(BOS + FIM_TEXT[0]).removesuffix(FIM_TEXT[2]).split(FIM_TEXT[1])
    assert abs(len(long_before) - len(before)) < 200 and (prefix + HOLE["prompt"]).endswith(long_before) and long_after == after
    reply = infill(server, **{**EDITOR, "n_predict": -1}, input_prefix=prefix, input_suffix="")
    assert reply["truncated"] and reply["tokens_evaluated"] + reply["tokens_predicted"] <= MAX_MODEL_LEN


def test_truncation_of_other_files(server):
    """They get half at most and lose the oldest; the file at hand goes first."""
    extra = [{"filename": f"{i}.py", "text": words(400, i)} for i in range(10)]
    reply = infill(server, **EDITOR, input_extra=extra)
    assert reply["truncated"] and "#9.py\n" + words(400, 9) in reply["prompt"] and "#0.py" not in reply["prompt"]
    assert MAX_MODEL_LEN / 2 - 200 < reply["tokens_evaluated"] < MAX_MODEL_LEN / 2 + 40
    reply = infill(server, **EDITOR, input_extra=extra, input_prefix=words(6000, 1))
    assert reply["truncated"] and ".py" not in reply["prompt"]
    warm = infill(server, **{**EDITOR, "n_predict": 0}, input_extra=[*extra, {"text": "new"}], input_prefix="", input_suffix="",
                  prompt="")
    reply = infill(server, **EDITOR, input_extra=[*extra, {"text": "new"}])
    assert warm["truncated"] and reply["tokens_cached"] >= MAX_MODEL_LEN / 2 - 200 - PAGE  # cut alike


def test_typing_in_a_long_file(server):
    """Key stroke for key stroke: though the front is cut, nearly all of it is found in the cache."""
    prefix, suffix = words(5000, 5), words(300, 6)
    cached = []
    for i in range(12):
        reply = infill(server, **EDITOR, input_prefix=prefix, input_suffix=suffix, prompt=words(i, 7))
        assert reply["truncated"]
        cached.append(reply["tokens_cached"])
    assert cached[0] == 0 and sum(n > 1000 for n in cached) >= 10, cached


def test_what_llama_vim_sends(server):
    body = {**HOLE, **EDITOR, "input_extra": [{"text": "x", "time": [1, 2], "filename": "a.c"}], "n_indent": 4,
            "response_fields": ["content", "truncated", "tokens_cached", *(f"timings/{key}" for key in TIMINGS - {"cache_n"})]}
    reply = ask(server, "/infill", body)
    assert set(reply) == set(body["response_fields"])
    assert reply == {**ask(server, "/infill", body), **{key: reply[key] for key in reply if key.startswith("timings/")}}


def test_model_without_holes(start, tmp_path):
    """Its tokenizer has no tokens for them: said, not guessed."""
    make_tiny_text_model.make(GOLDEN / "v2lite-tiny", tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["content"] = token["content"].replace("fim", "fin")
    path.write_text(json.dumps(content, ensure_ascii=False))
    server = start(tmp_path / "m", *FLAGS)
    error = refused(server, "/infill", {**HOLE, "n_predict": 1}, 501)
    assert error["code"] == "not_supported"
    assert complete(server, PROMPT, n_predict=2)["content"] is not None
    assert server.stop() == 0


# --- bad fields ------------------------------------------------------------------------------------------------------

BAD = {
    "n_predict": ["5", 1.5, True], "n_probs": [-1, 21, "x"], "temperature": ["hot", 101], "top_k": ["x", -2], "top_p": [-1, 2],
    "min_p": [-1], "repeat_penalty": ["x", 0, 101], "repeat_last_n": [-2, "x"], "presence_penalty": [3], "seed": ["x", 1.5],
    "stop": [5, [5], [""], ["x"] * 200, "y" * 2000], "stream": ["yes"], "cache_prompt": [1], "return_tokens": [1],
    "timings_per_token": ["x"], "id_slot": [-2, "x"], "n_indent": [-1, "x", 1.5], "t_max_predict_ms": ["x", -2, 1e12],
    "t_max_prompt_ms": ["x"], "samplers": [5, {}, ["top_k"] * 100], "response_fields": ["content", [5], ["x"] * 100],
    "logit_bias": [5, {"x": 1}, [5], [[5]], [[5, 200]], [[5, True]], [["a", 1]], [[-1, 1]]], "n_cmpl": [0, 1000, "x"], "model": [5], "cache_salt": [5],
    "dry_multiplier": [0.8, "x"], "xtc_probability": [0.5], "mirostat": [2], "typical_p": [0.5], "dynatemp_range": [0.5],
    "lora": [[{"id": 0, "scale": 1}], "x"], "grammar": ["root ::= x"], "json_schema": [{"type": "no type"}, "{"],
}
BAD_HOLES = {
    "input_prefix": [None, 5, ["x"]], "input_suffix": [None, 5, {}], "prompt": [5, ["x"], [1, 2]],
    "input_extra": ["x", {}, [5], [{}], [{"filename": "x"}], [{"text": 5}], [{"text": "x", "filename": 5}],
                    [{"text": "x"}] * 2000],
}


@pytest.mark.parametrize("path", ["/completion", "/infill"])
def test_bad_fields(server, path):
    with server.raw() as raw:
        for key, values in {**BAD, **(BAD_HOLES if path == "/infill" else {"prompt": [None, 5, {}, [], [[]], [{}]]})}.items():
            for value in values:
                body = {**(HOLE if path == "/infill" else {"prompt": PROMPT}), key: value}
                raw.send(post_bytes(path, body))
                reply = raw.reply()
                assert reply.status == 400, (key, value, reply)
                assert reply.error["param"] == key, (key, value, reply)


def test_unknown_model(server):
    for path, body in (("/completion", {"prompt": "x"}), ("/infill", HOLE)):
        assert refused(server, path, {**body, "model": "gpt-4"}, 404)["code"] == "model_not_found"


def test_neutral_values_are_fine(server):
    """What llama.cpp's own page sends by default."""
    neutral = {"dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1, "xtc_probability": 0,
               "xtc_threshold": 0.1, "typical_p": 1, "dynatemp_range": 0, "dynatemp_exponent": 1, "mirostat": 0, "lora": [],
               "repeat_last_n": 64, "grammar": "", "json_schema": None, "id_slot": -1, "min_keep": 0, "n_keep": 0, "top_n_sigma": -1}
    assert complete(server, PROMPT, n_predict=1, **neutral)["tokens_predicted"] <= 1


# --- clients that go away --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("path, body", [("/completion", {"prompt": PROMPT}), ("/infill", HOLE)], ids=["completion", "infill"])
def test_gone(server, path, body, streams):
    """An editor drops its question with every key: the work ends at once."""
    raw = server.raw()
    raw.send(post_bytes(path, {**body, "n_predict": 1900, "ignore_eos": True, "stream": streams}))
    assert wait_until(lambda: server.metrics().value("llamacpp:requests_processing") == 1)
    raw.close()
    start = time.monotonic()
    assert wait_until(lambda: server.metrics().idle(), 5, step_s=0.001)
    assert time.monotonic() - start < 1.0


# --- what the server is ----------------------------------------------------------------------------------------------


def test_props(server):
    props = server.get("/props").json
    assert props["total_slots"] == MAX_NUM_SEQS and props["n_ctx"] == MAX_MODEL_LEN
    assert props["model_path"] == server.model and "/" not in props["model_path"]
    assert props["chat_template"] == make_tiny_text_model.CHAT_TEMPLATE
    assert (props["bos_token"], props["eos_token"]) == (BOS, EOS)
    assert props["build_info"].startswith("moebius-")
    defaults = props["default_generation_settings"]
    assert defaults["n_ctx"] == MAX_MODEL_LEN
    shown = complete(server, PROMPT, n_predict=1)["generation_settings"]
    assert set(defaults["params"]) == set(shown)
    for key in DEFAULTS:
        assert defaults["params"][key] == shown[key]


def test_slots(server):
    slots = server.get("/slots").json
    assert [s["id"] for s in slots] == list(range(MAX_NUM_SEQS))
    assert all(s["n_ctx"] == MAX_MODEL_LEN and s["is_processing"] is False for s in slots)
    body = {"prompt": PROMPT, "n_predict": 1900, "ignore_eos": True, "stream": True}
    streams = [server.raw() for _ in range(MAX_NUM_SEQS)]
    try:
        for raw in streams[:3]:
            raw.send(post_bytes("/completion", body))
        assert wait_until(lambda: sum(s["is_processing"] for s in server.get("/slots").json) == 3)
        assert server.get("/slots?fail_on_no_slot=1").status == 200
        for raw in streams[3:]:
            raw.send(post_bytes("/completion", body))
        assert wait_until(lambda: server.get("/slots?fail_on_no_slot=1").status == 503)
        assert server.get("/slots").status == 200
    finally:
        for raw in streams:
            raw.close()


def test_apply_template(server):
    """The text gives, as a prompt, what the chat gives."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the people"}]
    prompt = ask(server, "/apply-template", {"messages": messages})["prompt"]
    assert prompt == BOS + "Be kind.\n\nUser: the people\n\nAssistant:"
    chat = server.chat(messages, max_tokens=8, **GREEDY)
    reply = complete(server, prompt, n_predict=8, **GREEDY)
    assert reply["content"] == chat["choices"][0]["message"]["content"]
    assert reply["tokens_evaluated"] == chat["usage"]["prompt_tokens"]
    for bad in ({}, {"messages": []}, {"messages": "x"}, {"messages": [{"role": "user"}]}, {"messages": [5]}):
        assert refused(server, "/apply-template", bad)["param"] == "messages"


def test_keys(start, model):
    """What tells of the server or takes its time needs the key; whether it lives does not."""
    server = start(model, *FLAGS, "--api-key", "sesame")
    key = {"Authorization": "Bearer sesame"}
    for path in ("/props", "/slots"):
        assert server.get(path).status == 401 and server.get(path, key).status == 200
    for path, body in (("/infill", HOLE), ("/completion", {"prompt": "x"}), ("/apply-template", {"messages": []})):
        assert server.post(path, body).status == 401
    assert server.post("/infill", {**HOLE, "n_predict": 1}, key).status == 200
    assert server.get("/v1/health").status == 200
    assert server.stop() == 0


def test_openai_answers_tell_times_when_asked(server):
    for ask_it in (lambda **f: server.complete(PROMPT, max_tokens=4, **f), lambda **f: server.chat("x", max_tokens=4, **f)):
        assert "timings" not in ask_it()
        reply = ask_it(timings_per_token=True)
        assert set(reply["timings"]) == TIMINGS
        assert reply["timings"]["predicted_n"] == reply["usage"]["completion_tokens"]
        chunks = ask_it(timings_per_token=True, stream=True)
        assert all(set(c["timings"]) == TIMINGS for c in chunks)


def test_connections_of_one_address(start, model):
    """One address that has many at work leaves room for others; it is told at once, and gets in again when it closes some."""
    server = start(model, *FLAGS, "--max-connections", 40, "--max-connections-per-address", 12)
    body = {"prompt": PROMPT, "n_predict": 1900, "ignore_eos": True, "stream": True}
    busy = []

    def gets_in():
        raw = server.raw()
        raw.send(post_bytes("/completion", body))
        try:
            assert raw.head()[0] == 200
        except (EOFError, ConnectionError):
            raw.close()
            return False
        busy.append(raw)
        return True

    try:
        for _ in range(8):  # they have their first token
            assert gets_in()
        for _ in range(4):  # these wait
            busy.append(server.raw())
            busy[-1].send(post_bytes("/completion", body))
        assert wait_until(lambda: not gets_in() or busy.pop().close())
    finally:
        for raw in busy:
            raw.close()
    assert wait_until(lambda: gets_in(), 5)
    busy[-1].close()
    assert server.stop() == 0


def test_idle_connections_starve_nobody(start, model):
    """The one that was idle longest makes room; one whose answer is on its way does not, however old."""
    server = start(model, *FLAGS, "--max-connections", 160)  # 80 for an address, 60 before idle ones go
    busy, idle = server.raw(), []
    try:
        busy.send(post_bytes("/completion", {"prompt": PROMPT, "n_predict": 1900, "ignore_eos": True, "stream": True}))
        assert busy.head()[0] == 200
        for i in range(300):
            idle.append(server.raw())
            if i % 10 == 0:
                assert server.get("/version").status == 200, i
        assert idle[0].at_end()
        idle[-1].send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[-1].reply().status == 200
        pieces = b"".join(busy.pieces([("Transfer-Encoding", "chunked")]))
        assert frames(pieces)[-1]["tokens_predicted"] == 1900
    finally:
        for raw in [busy, *idle]:
            raw.close()
    assert server.stop() == 0


def test_more_tokens_than_can_be_told(server):
    """A list of millions takes gigabytes on its way, and so does the text of as many long tokens."""
    text = server.post("/tokenize", {"prompt": "\n" * (1 << 22), "add_special_tokens": True})
    assert text.status == 400 and "has 4194305" in text.error["message"]
    ids = server.post("/detokenize", {"tokens": [EOS_ID] * 2000000})
    assert ids.status == 400 and ids.error["param"] == "tokens" and "bytes" in ids.error["message"]


def test_tokenizer_info(server, model):
    """vLLM's GET /tokenizer_info: with /tokenize it is all that a measuring program needs of a tokenizer."""
    info, config = server.get("/tokenizer_info").json, json.loads((model / "tokenizer_config.json").read_text())
    assert set(info) == {"bos_token", "eos_token", "add_bos_token", "chat_template", "model_max_length"}
    assert (info["bos_token"], info["eos_token"]) == (BOS, EOS) and info["model_max_length"] == MAX_MODEL_LEN
    assert info["chat_template"] == config["chat_template"] and info["add_bos_token"] == config["add_bos_token"]
    ids = server.post("/tokenize", {"prompt": info["bos_token"], "add_special_tokens": False}).json["tokens"]
    assert ids == [BOS_ID]
