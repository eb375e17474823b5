"""What the server tells of itself: /metrics, /health, /version, /v1/models."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving import FLAGS, MAX_MODEL_LEN, MAX_NUM_SEQS, post_bytes, wait_until
from words import NO_END, PROMPT, only

GAUGES = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
LLAMA = {"llamacpp:prompt_tokens_total": "counter", "llamacpp:prompt_seconds_total": "counter",
         "llamacpp:tokens_predicted_total": "counter", "llamacpp:tokens_predicted_seconds_total": "counter",
         "llamacpp:prompt_tokens_seconds": "gauge", "llamacpp:predicted_tokens_seconds": "gauge",
         "llamacpp:kv_cache_usage_ratio": "gauge", "llamacpp:kv_cache_tokens": "gauge", "llamacpp:requests_processing": "gauge",
         "llamacpp:requests_deferred": "gauge", "llamacpp:n_decode_total": "counter"}
COUNTERS = ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total",
            "vllm:num_preemptions_total"]
HISTOGRAMS = ["vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds"]


def test_format(server):
    reply = server.get("/metrics")
    assert reply.status == 200 and re.match(r"text/plain; *version=0\.0\.4", reply.headers["content-type"])
    metrics = server.metrics()
    for names, kind in ((GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")):
        for name in names:
            assert metrics.families.get(name, metrics.families.get(name.removesuffix("_total"))) == kind, name
    for (name, labels) in metrics.samples:
        if name.startswith("vllm:"):
            assert dict(labels)["model_name"] == server.model, name


def test_counters_are_the_sum_of_usage(server):
    """Over every kind of request: plain, list, n, streamed, chat, scored, ended by a stop."""
    before = server.metrics()
    usages, finished = [], {"stop": 0, "length": 0}

    def count(reply):
        usages.append(reply["usage"])
        for choice in reply["choices"]:
            finished[choice["finish_reason"]] += 1

    for i in range(8):
        count(server.complete(PROMPT, max_tokens=i, seed=i, echo=True))
        count(server.chat("hello", max_tokens=1 + i, seed=i))
    count(server.complete(["the", "a", "one"], max_tokens=5, temperature=0))
    count(server.complete("x", max_tokens=30, temperature=0, logit_bias=only([5]), stop="###", n=2))
    count(server.complete("x", max_tokens=5, temperature=0, logit_bias=only([1])))
    chunks = server.complete(PROMPT, stream=True, stream_options={"include_usage": True}, max_tokens=9, logit_bias=NO_END)
    count({"usage": chunks[-1]["usage"], "choices": [chunks[-2]["choices"][0]]})
    after = server.metrics()

    def rise(name, **labels):
        return after.value(name, **labels) - before.value(name, **labels)

    # the n choices of one prompt count its tokens once in usage; computed they are as often as they are
    assert rise("vllm:generation_tokens_total") == sum(u["completion_tokens"] for u in usages)
    least = sum(u["prompt_tokens"] for u in usages)
    assert least <= rise("vllm:prompt_tokens_total") <= least + 2
    for reason, n in finished.items():
        assert rise("vllm:request_success_total", finished_reason=reason) == n
    answers = sum(finished.values()) - 1  # one asked for no token, so it had no first
    assert rise("vllm:time_to_first_token_seconds_count") == answers
    assert rise("vllm:inter_token_latency_seconds_count") == rise("vllm:generation_tokens_total") - answers
    assert rise("vllm:e2e_request_latency_seconds_count") == answers + 1
    assert rise("vllm:e2e_request_latency_seconds_sum") > 0


def test_times_and_sizes(server):
    """What the parts of a request took, and llama.cpp's names for it."""
    before = server.metrics()
    replies = [server.post("/completion", {"prompt": PROMPT + " made" * i, "n_predict": 5 + i, "ignore_eos": True}).json
               for i in range(4)]
    rows = sum(r["timings"]["prompt_n"] + r["tokens_predicted"] - 1 for r in replies)
    name = "vllm:iteration_tokens_total_sum"  # a step is counted when its answers are out already
    assert wait_until(lambda: server.metrics().value(name) - before.value(name) == rows)
    after = server.metrics()

    def rise(name):
        return after.value(name) - before.value(name)

    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "inference_time_seconds", "prompt_tokens",
                 "generation_tokens", "params_max_tokens"):
        assert rise(f"vllm:request_{name}_count") == 4, name
    assert rise("vllm:request_prompt_tokens_sum") == sum(r["tokens_evaluated"] for r in replies)
    assert rise("vllm:request_generation_tokens_sum") == rise("vllm:request_params_max_tokens_sum") == 5 + 6 + 7 + 8
    assert rise("vllm:iteration_tokens_total_count") == rise("llamacpp:n_decode_total")
    parts = rise("vllm:request_prefill_time_seconds_sum") + rise("vllm:request_decode_time_seconds_sum")
    assert rise("vllm:request_inference_time_seconds_sum") == pytest.approx(parts, abs=1e-4)
    total = rise("vllm:request_inference_time_seconds_sum") + rise("vllm:request_queue_time_seconds_sum")
    assert rise("vllm:e2e_request_latency_seconds_sum") == pytest.approx(total, abs=1e-4)

    assert rise("llamacpp:prompt_tokens_total") == sum(r["timings"]["prompt_n"] for r in replies)
    assert rise("llamacpp:tokens_predicted_total") == sum(r["tokens_predicted"] for r in replies)
    assert 1e3 * rise("llamacpp:prompt_seconds_total") == pytest.approx(sum(r["timings"]["prompt_ms"] for r in replies), abs=0.1)
    assert 1e3 * rise("llamacpp:tokens_predicted_seconds_total") == pytest.approx(
        sum(r["timings"]["predicted_ms"] for r in replies), abs=0.1)
    pages = int(after.value("moebius:kv_pages_total"))
    assert after.value("vllm:cache_config_info", block_size="64", num_gpu_blocks=str(pages)) == 1
    for name, kind in LLAMA.items():
        assert after.families[name] == kind


def test_refused_requests_count_nothing(server):
    before = server.metrics()
    assert server.post("/v1/completions", {"prompt": "x", "n": 0}).status == 400
    after = server.metrics()
    for name in ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total"):
        assert after.value(name) == before.value(name)


def test_running_and_waiting(server):
    """Two more streams than may run: they wait, and run when there is room. The cache fills and empties."""
    body = {"model": server.model, "prompt": PROMPT, "stream": True, "max_tokens": 1800, "ignore_eos": True, "temperature": 1}
    assert server.becomes_idle()
    streams = [server.raw() for _ in range(MAX_NUM_SEQS + 2)]
    try:
        for stream in streams:
            stream.send(post_bytes("/v1/completions", body))

        def crowded():
            metrics = server.metrics()
            return (metrics.value("vllm:num_requests_running") == MAX_NUM_SEQS
                    and metrics.value("vllm:num_requests_waiting") == 2
                    and 0 < metrics.value("vllm:kv_cache_usage_perc") <= 1)

        assert wait_until(crowded)
        for stream in streams[:2]:
            stream.close()
        assert wait_until(lambda: server.metrics().value("vllm:num_requests_waiting") == 0)
        assert server.metrics().value("vllm:num_requests_running") == MAX_NUM_SEQS
    finally:
        for stream in streams:
            stream.close()
    assert server.becomes_idle()


def test_nobody_starves(server):
    """Short questions get their answers while long streams fill the server: within a queue's time, not at its end."""
    body = {"model": server.model, "prompt": PROMPT, "stream": True, "max_tokens": 1500, "ignore_eos": True}
    streams = [server.raw() for _ in range(MAX_NUM_SEQS - 1)]
    try:
        for stream in streams:
            stream.send(post_bytes("/v1/completions", body))
        assert wait_until(lambda: server.metrics().value("vllm:num_requests_running") == MAX_NUM_SEQS - 1)
        before = server.metrics().value("vllm:generation_tokens_total")
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda i: server.complete("x", max_tokens=4, seed=i), range(12)))
        assert all(r["usage"]["completion_tokens"] <= 4 for r in replies)
        after = server.metrics()
        assert after.value("vllm:num_requests_running") == MAX_NUM_SEQS - 1, "the streams should still run"
        assert after.value("vllm:generation_tokens_total") > before + 48, "the streams stood still"
    finally:
        for stream in streams:
            stream.close()


def test_long_prompt_does_not_stop_others(server, engine):
    """A prompt goes in by chunks, with the running streams' tokens between them."""
    body = {"model": server.model, "prompt": PROMPT, "stream": True, "max_tokens": 1500, "ignore_eos": True}
    with server.raw() as stream:
        stream.send(post_bytes("/v1/completions", body))
        _, headers = stream.head()
        events = stream.events(headers)
        next(events)
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(server.complete, [0] + engine.ids("a") * 2000, max_tokens=1)
            n = 0
            while not long.done() and n < 1400:
                next(events)
                n += 1
            assert long.result()["usage"]["prompt_tokens"] == 2001
        assert n >= 2, "the stream had to wait for the whole prompt"


# --- health, version, models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health(server, path):
    assert server.get(path).status == 200


def test_health_while_loading(start, model, slow_model):
    """The tokenizer is a pipe, so loading waits until this test writes it: 503 before, 200 after."""
    server = start(slow_model, "--max-model-len", 512, wait=False)
    reply = server.get("/health")
    assert reply.status == 503, reply
    reply = server.post("/v1/completions", {"prompt": "x"})
    assert reply.status == 503 and reply.error["type"] == "server_error", reply
    (slow_model / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    server.wait_ready()
    assert server.complete("x", max_tokens=1)["usage"]["completion_tokens"] == 1
    assert server.stop() == 0


def test_version(server, engine):
    said = server.get("/version").json
    assert said["version"] in engine.command("--version").decode() and said["version"]


def test_models(server, engine, client):
    listed = server.get("/v1/models").json
    assert listed["object"] == "list"
    entry = listed["data"][0]
    assert entry["object"] == "model" and entry["owned_by"] and abs(entry["created"] - time.time()) < 3600
    assert entry["max_model_len"] == MAX_MODEL_LEN
    assert entry["fim"] is True
    assert entry["hash"] == json.loads(engine.command("info", engine.model, "--json"))["hash"]
    assert {"root", "parent", "permission"} <= set(entry)
    assert server.get(f"/v1/models/{entry['id']}").json == entry
    assert [m.id for m in client.models.list()] == [entry["id"]]
    assert client.models.retrieve(entry["id"]).id == entry["id"]


def test_names(start, model):
    """--served-model-name: the first is the name, all are accepted; with slashes too."""
    server = start(model, *FLAGS, "--served-model-name", "org/coder")
    assert server.model == "org/coder"
    reply = server.complete("x", max_tokens=1)
    assert reply["model"] == "org/coder"
    assert server.get("/v1/models/org/coder").status == 200
    assert server.post("/v1/completions", {"model": "tiny", "prompt": "x"}).status == 404
    assert server.metrics().value("vllm:num_requests_running", model_name="org/coder") == 0
    assert server.stop() == 0
