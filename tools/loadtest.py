#!/usr/bin/env python3
"""Load on a server with the OpenAI API: how many tokens a second, how long to the first, how long between two.

    tools/loadtest.py http://127.0.0.1:8000
    tools/loadtest.py http://127.0.0.1:8000 --clients 1,4,8,16 --prompt-tokens 128 --max-tokens 128 --json
    tools/loadtest.py http://127.0.0.1:8000 --run MODEL -- --threads 2     compare with `moebius run` on the same model

For each number of clients, that many stream completions at once, one after the other, until --requests are answered.
Prompts are token ids, all of one length and all different; answers run to --max-tokens. Times are taken where the
client reads: ttft (time to first token) is from sending the request to its first piece of text; itl (inter-token
latency) is between the pieces of one stream, which are mostly one token each; tpot (time per output token) is from the
first piece to the last over the tokens between. Output t/s counts the answers' tokens, as the server's usage says, over
the wall time of the round.

If the server's /metrics tell the time inside steps and inside the forward pass, each round also shows them, and what is
left for the scheduler. With --run, one client's tpot is compared with that of `moebius run`, which has the same engine
and no server: what HTTP adds. Standard library only.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

REQUEST_TIMEOUT_S = 600


def percentile(values, share):
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 100) - 1))] if ordered else None


def summary(values_s):
    """Milliseconds."""
    return {f"p{share}": round(1000 * percentile(values_s, share), 3) if values_s else None for share in (50, 95, 99)}


# --- one request -----------------------------------------------------------------------------------------------------


async def read_head(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:] if line)}
    return status, headers


async def body_pieces(reader, headers):
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while data := await reader.read(65536):
            yield data


async def events(reader, headers):
    """(arrival, object) of each event of a stream."""
    held = b""
    async for piece in body_pieces(reader, headers):
        now = time.perf_counter()
        held += piece
        while b"\n\n" in held:
            frame, held = held.split(b"\n\n", 1)
            if frame.startswith(b"data: ") and frame != b"data: [DONE]":
                yield now, json.loads(frame[6:])


async def one_request(options, prompt, seed):
    """Streams one completion. Returns times of the pieces and the number of tokens."""
    url = options.address
    body = json.dumps({"model": options.model, "prompt": prompt, "max_tokens": options.max_tokens, "ignore_eos": True,
                       "temperature": 1, "seed": seed, "stream": True, "stream_options": {"include_usage": True}}).encode()
    lines = [f"POST {url.path}/v1/completions HTTP/1.1", f"Host: {url.hostname}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", "Connection: close"]
    if options.api_key:
        lines.append(f"Authorization: Bearer {options.api_key}")
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80, limit=1 << 22)
    try:
        start = time.perf_counter()
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        status, headers = await read_head(reader)
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {(await reader.read(2000)).decode(errors='replace')}")
        arrivals, tokens = [], None
        async for now, chunk in events(reader, headers):
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            if chunk["choices"]:
                arrivals.append(now)
        if tokens is None:
            raise RuntimeError("the stream ended without usage")
        return {"start": start, "arrivals": arrivals, "tokens": tokens}
    finally:
        writer.close()


# --- rounds ----------------------------------------------------------------------------------------------------------


async def run_round(options, clients, seeds):
    """`clients` workers share --requests requests."""
    todo = list(range(max(options.requests, clients)))
    done = []

    async def worker():
        while todo:
            todo.pop()
            seed = next(seeds)
            rng = random.Random(seed)
            prompt = [rng.randrange(options.lowest_id, options.highest_id) for _ in range(options.prompt_tokens)]
            done.append(await asyncio.wait_for(one_request(options, prompt, seed), REQUEST_TIMEOUT_S))

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(clients)))
    return time.perf_counter() - start, done


def gaps_of(request):
    """Seconds between pieces; the one after the last token only says why the answer ended."""
    pieces = request["arrivals"][:request["tokens"]]
    return [b - a for a, b in zip(pieces, pieces[1:])]


def per_token(request):
    """Mean seconds of a token after the first."""
    return (request["arrivals"][-1] - request["arrivals"][0]) / (request["tokens"] - 1)


def measure(options, clients, seeds):
    before = read_metrics(options)
    wall_s, requests = asyncio.run(run_round(options, clients, seeds))
    after = read_metrics(options)
    tokens = sum(r["tokens"] for r in requests)
    row = {
        "clients": clients, "requests": len(requests), "wall_s": round(wall_s, 3), "output_tokens": tokens,
        "output_tokens_per_s": round(tokens / wall_s, 1),
        "first_token_ms": summary([r["arrivals"][0] - r["start"] for r in requests if r["arrivals"]]),
        "inter_token_ms": summary([gap for r in requests for gap in gaps_of(r)]),
        "per_token_ms": summary([per_token(r) for r in requests if r["tokens"] > 1 and r["arrivals"]]),
    }
    row.update(step_times(before, after))
    return row


# --- the server's own clock ------------------------------------------------------------------------------------------

STEP_METRICS = {"steps": "moebius:steps_total", "step_s": "moebius:step_seconds_total", "forward_s": "moebius:forward_seconds_total"}


def get(options, path):
    request = urllib.request.Request(options.url + path)
    if options.api_key:
        request.add_header("Authorization", f"Bearer {options.api_key}")
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


def read_metrics(options):
    """Sums of the samples in STEP_METRICS; {} where the server has none."""
    try:
        text = get(options, "/metrics")
    except OSError:
        return {}
    found = {}
    for key, name in STEP_METRICS.items():
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M)
        if values:
            found[key] = sum(map(float, values))
    return found if len(found) == len(STEP_METRICS) else {}


def step_times(before, after):
    if not before or not after or after["steps"] == before["steps"]:
        return {}
    steps, step_s, forward_s = (after[key] - before[key] for key in STEP_METRICS)
    return {"steps": int(steps), "step_ms": round(1000 * step_s / steps, 4), "forward_ms": round(1000 * forward_s / steps, 4),
            "scheduler_percent": round(100 * (step_s - forward_s) / step_s, 2) if step_s > 0 else None}


# --- beside `run` ----------------------------------------------------------------------------------------------------


PAIRS = 9


def run_once(options):
    """Seconds a token of `moebius run`, on as many tokens, after the first."""
    command = [options.program, "run", options.run, "-p", "the " * options.prompt_tokens, "-n", str(options.max_tokens),
               "--ignore-eos", "--temperature", "1", "--json", *options.run_flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=REQUEST_TIMEOUT_S)
    if done.returncode:
        sys.exit(f"loadtest: {' '.join(command[:3])} failed: {done.stderr.strip()}")
    result = json.loads(done.stdout)
    return (result["total_s"] - result["first_token_s"]) / (result["completion_tokens"] - 1)


def compare(options, seeds):
    """`run` and one client in turns, so that both meet the same machine: medians, and the median of the ratios."""
    alone, served = [], []
    for _ in range(PAIRS):
        alone.append(run_once(options))
        _, (request,) = asyncio.run(run_round(argparse.Namespace(**{**vars(options), "requests": 1}), 1, seeds))
        served.append(per_token(request))
    ratios = [b / a for a, b in zip(alone, served)]
    return {"run_token_ms": round(1000 * percentile(alone, 50), 4), "served_token_ms": round(1000 * percentile(served, 50), 4),
            "overhead_percent": round(100 * (percentile(ratios, 50) - 1), 2), "pairs": PAIRS}


# --- output ----------------------------------------------------------------------------------------------------------

COLUMNS = [("clients", "clients"), ("out t/s", "output_tokens_per_s"), ("ttft p50", ("first_token_ms", "p50")),
           ("p95", ("first_token_ms", "p95")), ("p99", ("first_token_ms", "p99")), ("itl p50", ("inter_token_ms", "p50")),
           ("p95", ("inter_token_ms", "p95")), ("p99", ("inter_token_ms", "p99")), ("tpot p50", ("per_token_ms", "p50")),
           ("step ms", "step_ms"),
           ("forward ms", "forward_ms"), ("sched %", "scheduler_percent")]


def cell(row, key):
    value = row.get(key[0], {}).get(key[1]) if isinstance(key, tuple) else row.get(key)
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def print_table(report):
    table = [[title for title, _ in COLUMNS]] + [[cell(row, key) for _, key in COLUMNS] for row in report["rounds"]]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    print(f"{report['model']}: {report['prompt_tokens']} prompt tokens, {report['max_tokens']} answer tokens; times in ms")
    for line in table:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths)))
    if report.get("run"):
        run = report["run"]
        print(f"one token: {run['run_token_ms']} ms by run, {run['served_token_ms']} ms by one client over HTTP: "
              f"{run['overhead_percent']:+} % (medians of {run['pairs']} pairs)")


def split_at(word, words):
    at = words.index(word) if word in words else len(words)
    return words[:at], words[at + 1:]


def parse_arguments():
    parser = argparse.ArgumentParser(usage="%(prog)s URL [options] [-- FLAGS OF RUN]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="the server, http://HOST:PORT")
    parser.add_argument("--model", help="its name (default: the first of /v1/models)")
    parser.add_argument("--clients", default="1,4,8,16", help="rounds, by clients at once (default 1,4,8,16)")
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--requests", type=int, default=32, metavar="N", help="in each round; at least one a client")
    parser.add_argument("--ids", default="2:200", metavar="LOW:HIGH", help="token ids of the prompts (default 2:200)")
    parser.add_argument("--api-key")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--run", metavar="MODEL", help="also `moebius run MODEL` with the flags after --, and compare")
    parser.add_argument("--program", default=str(Path(__file__).resolve().parent.parent / "build" / "moebius"))
    arguments, run_flags = split_at("--", sys.argv[1:])
    options = parser.parse_args(arguments)
    options.run_flags = run_flags
    options.url = options.url.rstrip("/").removesuffix("/v1")
    options.address = urlsplit(options.url)
    options.lowest_id, options.highest_id = map(int, options.ids.split(":"))
    if options.address.scheme != "http" or not options.address.hostname:
        parser.error("URL must be http://HOST:PORT")
    if options.prompt_tokens < 1 or options.max_tokens < 2 or options.requests < 1:
        parser.error("--prompt-tokens and --requests must be at least 1, --max-tokens at least 2")
    return options


def main():
    options = parse_arguments()
    options.model = options.model or json.loads(get(options, "/v1/models"))["data"][0]["id"]
    seeds = iter(range(1, 1 << 31))
    asyncio.run(run_round(argparse.Namespace(**{**vars(options), "requests": 2}), 1, seeds))  # warm-up
    report = {"model": options.model, "prompt_tokens": options.prompt_tokens, "max_tokens": options.max_tokens,
              "rounds": [measure(options, int(n), seeds) for n in options.clients.split(",")]}
    if options.run:
        report["run"] = compare(options, seeds)
    print(json.dumps(report, indent=2)) if options.json else print_table(report)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError) as error:
        sys.exit(f"loadtest: {error}")
