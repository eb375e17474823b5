"""A file of requests that is answered by `moebius run-batch`, killed again and again, until every line has its answer."""

import json
import signal
import subprocess
import time
from pathlib import Path

import answers

JSON = {"content-type": "application/json"}


def write(path, pool, copies):
    """Every request of the pool that has an answer, some times over; custom_id is its place, twice."""
    lines = []
    for copy in range(copies):
        for at, item in enumerate(pool):
            if item.path in answers.READERS:
                body = answers.body_of(item, False)
                lines.append(json.dumps({"custom_id": f"{at}-{copy}", "method": "POST", "url": item.path, "body": body}))
    path.write_text("\n".join(lines) + "\n")
    return [json.loads(line)["custom_id"] for line in lines]


def run(command, log, rng, kills, bound_s):
    """Runs it until it ends by itself, `kills` times killed before. Yields what is wrong."""
    for i in range(kills + 1):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            code = process.wait(rng.uniform(0.1, 8) if i < kills else bound_s)
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]) if i < kills else signal.SIGKILL)
            code = process.wait(bound_s)
            if i == kills:
                yield f"run-batch did not end in {bound_s} s"
        if code == 0:
            return
        if i == kills or code not in (1, 143, -signal.SIGKILL, -signal.SIGTERM):
            yield f"run-batch ended with {code}"


def judge(path, pool, ids):
    """Faults of a whole file of answers."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    if [answer["custom_id"] for answer in found] != ids:
        yield f"{len(found)} answers, not those to the {len(ids)} requests in their order"
        return
    for answer in found:
        item = pool[int(answer["custom_id"].split("-")[0])]
        response = answer["response"]
        if not response:
            yield f"no answer: {answer} to {item!r}"
            continue
        now = answers.read(item, False, response["status_code"], JSON, json.dumps(response["body"]).encode())
        if now != item.expected:
            yield f"another answer than the server's: {item!r}\n  server {item.expected}\n  now    {now}"


class Batches:
    """One file after the other, until the time is up."""

    def __init__(self, program, model, flags, folder, rng, pool):
        self.command = [program, "run-batch", model, *flags]
        self.folder, self.rng, self.pool = Path(folder), rng, pool
        self.passed = self.failed = self.requests = 0

    def one(self, number, bound_s):
        given, made, said = (self.folder / f"{number}.{kind}" for kind in ("requests", "answers", "log"))
        ids = write(given, self.pool, self.rng.choice([1, 3]))
        kills = self.rng.randrange(1, 8)
        with said.open("wb") as log:
            faults = list(run([*self.command, "-i", str(given), "-o", str(made)], log, self.rng, kills, bound_s))
        if not faults:
            faults = list(judge(made, self.pool, ids))
        text = said.read_text(errors="replace")
        if faults or "Sanitizer" in text or "runtime error:" in text:
            faults.append(text[-4000:])
        self.passed, self.failed, self.requests = self.passed + (not faults), self.failed + bool(faults), self.requests + len(ids)
        print(f"batch {number}: {len(ids)} requests, up to {kills} times killed", flush=True)
        for fault in faults[:6]:
            print(f"FAULT in batch: {fault}", flush=True)

    def run(self, seconds, bound_s):
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until or number < 1:
            self.one(number, bound_s)
            number += 1
