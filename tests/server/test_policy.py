"""Flags of `moebius serve` about every request: the chat template's variables, logprobs, usage; what a request says goes before them."""

import json
import subprocess

import pytest

from serving import DEBUG_PROGRAM, FLAGS, HOST, PROGRAM, refuses_to_start

ASK = {"messages": [{"role": "user", "content": "hello"}]}


def prompt(server, **fields):
    reply = server.post("/apply-template", {**ASK, **fields})
    assert reply.status == 200, reply
    return reply.json["prompt"]


@pytest.fixture(scope="module")
def plain(start, model):
    server = start(model, *FLAGS, "--chat-template", "deepseek-v4")
    yield server
    assert server.stop() == 0


THINKS = {"thinking": True}
EFFORT = {"thinking": True, "reasoning_effort": "max"}


@pytest.mark.parametrize("flags, same_as", [
    (["--default-chat-template-kwargs", '{"thinking": true}'], THINKS),
    (["--chat-template-kwargs", '{"enable_thinking": true, "tools": 5}'], THINKS),
    (["--chat-template-kwargs", '{"reasoning_effort": "max"}'], EFFORT),
    (["--reasoning", "on", "--reasoning-effort", "max"], EFFORT),
    (["--reasoning", "off", "--chat-template-kwargs", '{"thinking": true}'], {"thinking": False}),
    (["--reasoning-budget", "0"], {"thinking": False}),
    (["--reasoning-budget", "-1", "--reasoning", "auto"], {}),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_template_variables(start, model, plain, flags, same_as):
    """As if each request had said it, in whatever API; and only where it has not."""
    server = start(model, *FLAGS, "--chat-template", "deepseek-v4", *flags, program=DEBUG_PROGRAM)
    assert prompt(server) == prompt(plain, chat_template_kwargs=same_as)
    for said in ({"chat_template_kwargs": {"thinking": False}}, {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"},
                 {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "high"}}):
        assert prompt(server, **said).split("hello")[1] == prompt(plain, **said).split("hello")[1]
    count = {"model": "tiny", "messages": ASK["messages"]}
    asked = plain.post("/tokenize", {**ASK, "chat_template_kwargs": same_as}).json["count"]
    assert server.post("/v1/messages/count_tokens", count).json["input_tokens"] == asked
    assert server.chat("hello", max_tokens=1)["usage"]["prompt_tokens"] == asked
    assert server.stop() == 0


def test_the_variables_change_something(plain):
    assert len({prompt(plain), prompt(plain, chat_template_kwargs=THINKS), prompt(plain, chat_template_kwargs=EFFORT)}) == 3


def test_logprobs_and_usage(start, model):
    server = start(model, *FLAGS, "--max-logprobs", 3, "--return-tokens-as-token-ids", "--enable-force-include-usage",
                   "--enable-prompt-tokens-details", program=DEBUG_PROGRAM)
    chat = {**ASK, "max_tokens": 1, "logprobs": True}
    for path, body, field in (("/v1/chat/completions", chat, "top_logprobs"), ("/v1/completions", {"prompt": "x", "max_tokens": 1}, "logprobs"),
                              ("/completion", {"prompt": "x", "n_predict": 1}, "n_probs")):
        assert server.post(path, {**body, field: 3}).status == 200
        reply = server.post(path, {**body, field: 4})
        assert reply.status == 400 and reply.error["param"] == field and "3" in reply.error["message"], reply
    logprobs = server.complete("x", max_tokens=2, logprobs=1)["choices"][0]["logprobs"]
    assert all(token.startswith("token_id:") for token in logprobs["tokens"])
    said = server.complete("x", max_tokens=2, logprobs=1, return_tokens_as_token_ids=False)["choices"][0]["logprobs"]
    assert not any(token.startswith("token_id:") for token in said["tokens"])
    for more in ({}, {"stream_options": {"include_usage": False}}):
        chunks = server.complete("x", max_tokens=2, stream=True, **more)
        assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert server.complete("x", max_tokens=2)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert server.stop() == 0


@pytest.mark.parametrize("flags, words", [
    (["--default-chat-template-kwargs", "[]"], ["--default-chat-template-kwargs", "an object"]),
    (["--default-chat-template-kwargs", "{"], ["--default-chat-template-kwargs"]),
    (["--max-logprobs", "21"], ["--max-logprobs", "20"]),
    (["--reasoning-budget", "100"], ["--reasoning-budget", "not cut"]),
    (["--reasoning-budget", "0", "--reasoning", "on"], ["--reasoning-budget", "exclude"]),
], ids=" ".join)
def test_wrong_values(model, flags, words):
    refuses_to_start(model, flags, words)


def test_what_the_template_does_not_take(model, tmp_path):
    """Said at the start: every chat would be refused."""
    requests = tmp_path / "in.jsonl"
    requests.write_text(json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}))
    for words in (["serve", "--host", HOST, "--port", "0"], ["run-batch", "-i", requests, "-o", tmp_path / "out.jsonl"]):
        done = subprocess.run([PROGRAM, *words, "--model", model, "--chat-template", "deepseek-v4", "--reasoning-effort", "utmost"],
                              capture_output=True, text=True, timeout=20)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and "--reasoning-effort" in last and '"ultra"' in last, done


def test_run_batch(model, tmp_path):
    """The same there, and in the answers' ids."""
    requests, ids = tmp_path / "in.jsonl", set()
    requests.write_text(json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {**ASK, "max_tokens": 1}}))
    lengths = []
    for i, flags in enumerate((["--reasoning", "on"], ["--chat-template-kwargs", '{"thinking": true}'], [])):
        answers = tmp_path / f"{i}.jsonl"
        done = subprocess.run([PROGRAM, "run-batch", str(model), "-i", requests, "-o", answers, "--chat-template", "deepseek-v4", *FLAGS, *flags],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done
        answer = json.loads(answers.read_text())
        ids.add(answer["id"])
        lengths.append(answer["response"]["body"]["usage"]["prompt_tokens"])
    assert len(ids) == 2 and lengths[0] == lengths[1] != lengths[2]
