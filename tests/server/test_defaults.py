"""What the server gives requests that say nothing: llama-server's sampling flags and vLLM's --override-generation-config, over the
model's own settings and under the request's."""

import json
import shutil
import subprocess

import pytest

from serving import DEBUG_PROGRAM, FLAGS, MAX_MODEL_LEN, PROGRAM, refuses_to_start

PROMPT = "the good people"
SAMPLED = {"prompt": PROMPT, "seed": 5, "max_tokens": 12, "ignore_eos": True}


def settings(server):
    return server.get("/props").json["default_generation_settings"]["params"]


@pytest.fixture(scope="module")
def greedy(start, model):
    server = start(model, *FLAGS, "--temp", 0, "-n", 12, program=DEBUG_PROGRAM)
    yield server
    assert server.stop() == 0


def test_every_api(greedy, engine, server):
    """The likeliest tokens, unless a request says otherwise."""
    ids = engine.prompt(PROMPT)
    text = engine.text(engine.greedy(ids, 12))
    for _ in range(2):
        assert greedy.complete(PROMPT, ignore_eos=True)["choices"][0]["text"] == text
    assert greedy.ask("/completion", {"prompt": PROMPT, "ignore_eos": True})["content"] == text
    body = {"model": "tiny", "prompt": PROMPT, "raw": True, "stream": False, "options": {"repeat_penalty": 1}}
    assert text.startswith(greedy.post("/api/generate", body).json["response"])
    asked = {**SAMPLED, "temperature": 1}
    assert greedy.complete(**asked)["choices"] == server.complete(**asked)["choices"]
    assert server.complete(**asked)["choices"][0]["text"] != text


def test_most_tokens(greedy):
    """Also what an answer gets that says nothing, and no error where the context holds less."""
    chat = {"messages": "Say it.", "ignore_eos": True}
    assert greedy.chat(**chat)["usage"]["completion_tokens"] == 12
    assert greedy.chat(**chat, max_tokens=500)["usage"]["completion_tokens"] == 12
    assert greedy.chat(**chat, max_completion_tokens=5)["usage"]["completion_tokens"] == 5
    assert greedy.complete(PROMPT, ignore_eos=True)["usage"]["completion_tokens"] == 12
    assert greedy.ask("/completion", {"prompt": PROMPT, "n_predict": 40, "ignore_eos": True})["tokens_predicted"] == 12
    assert greedy.ask("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 99})["usage"]["output_tokens"] <= 12
    prompt = [7] * (MAX_MODEL_LEN - 5)
    assert greedy.complete(prompt, ignore_eos=True)["usage"]["completion_tokens"] == 5


def test_props(greedy, start, model, tmp_path):
    """A flag goes before vLLM's JSON, and that before the model's file; of what nobody says llama.cpp's own defaults are left."""
    shown = settings(greedy)
    assert (shown["temperature"], shown["n_predict"], shown["top_k"]) == (0, 12, 40)
    folder = tmp_path / "tiny"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "top_p": 0.75, "min_p": 0.125, "top_k": 9}))
    words = {"top_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": -0.5, "top_k": -1, "max_new_tokens": 99}
    flags = ["--override-generation-config", json.dumps(words), "--presence-penalty", 0.5, "--frequency-penalty", "0.75"]
    for more, own in ((["--repeat-penalty", 1.25], (0.25, 0.125)), (["--generation-config", "vllm"], (0.8, 0.05))):
        server = start(folder, *FLAGS, *flags, *more)
        shown = settings(server)
        assert (shown["temperature"], round(shown["min_p"], 6)) == pytest.approx(own, rel=1e-6)
        assert (shown["top_p"], shown["top_k"], shown["n_predict"]) == (0.5, 0, 99)
        assert (shown["presence_penalty"], shown["frequency_penalty"]) == (0.5, 0.75)
        assert shown["repeat_penalty"] == (1.25 if more[0] == "--repeat-penalty" else 1.5)
        assert server.stop() == 0


def test_no_limit(start, model):
    """llama.cpp's -1, over a limit in vLLM's words."""
    server = start(model, *FLAGS, "--override-generation-config", '{"do_sample": false, "max_new_tokens": 3}', "-n", -1)
    shown = settings(server)
    assert (shown["temperature"], shown["n_predict"]) == (0, -1)
    assert server.complete(PROMPT, max_tokens=20, ignore_eos=True)["usage"]["completion_tokens"] == 20
    assert server.stop() == 0


@pytest.mark.parametrize("flags, words", [
    (["--temp", "-1"], ["--temp", "0 to 100"]),
    (["-n", "0"], ["--n-predict", "-1"]),
    (["--override-generation-config", "{"], ["--override-generation-config"]),
    (["--override-generation-config", "[]"], ["--override-generation-config", "an object"]),
    (["--override-generation-config", '{"temperature": "hot"}'], ["temperature", "a number"]),
    (["--override-generation-config", '{"top_p": 2}'], ["top_p", "2"]),
    (["--override-generation-config", '{"max_new_tokens": 0}'], ["max_new_tokens", "1"]),
    (["--override-generation-config", '{"eos_token_id": 5}'], ["eos_token_id", "not supported"]),
], ids=" ".join)
def test_wrong_values(model, flags, words):
    refuses_to_start(model, flags, words)


def test_run_batch(model, tmp_path):
    """The same flags; and an answer that was made with other ones is not kept."""
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": PROMPT, "seed": 3, "ignore_eos": True}
    requests.write_text(json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")

    def run(*flags):
        """The answer's id and text, from a folder where the one before was cut off at its end."""
        if answers.exists():
            answers.rename(tmp_path / "out.jsonl.partial")
        done = subprocess.run([PROGRAM, "run-batch", str(model), "-i", requests, "-o", answers, *FLAGS, *flags], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 0, done
        answer = json.loads(answers.read_text())
        return answer["id"], answer["response"]["body"]["choices"][0]["text"], "answered already" in done.stderr

    plain, warm, cold = run(), run("--temp", "0.9"), run("--temp", "0", "-n", "3")
    assert len({plain[0], warm[0], cold[0]}) == 3 and len({plain[1], warm[1], cold[1]}) == 3
    assert not warm[2] and not cold[2]
    assert run("--override-generation-config", '{"max_new_tokens": 3, "temperature": 0}') == (*cold[:2], True)
    assert run() == (*plain[:2], False)
