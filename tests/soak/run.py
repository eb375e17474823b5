#!/usr/bin/env python3
"""A hostile soak of `moebius serve`: many clients, half of them rude, for as long as is asked, in several configurations.

    tests/soak/run.py --minutes 45                         all configurations in turns, and run-batch
    tests/soak/run.py --minutes 5 --only disk,fp8 --seed 7 --clients 40
    tests/soak/run.py --program build/debug/moebius        the sanitizers' build; a report of theirs is a fault

Every request of the mix (mix.py) is first asked alone, on a plain server. Then come rounds: clients that ask in any order, streamed or
not, on kept or pipelined connections, slowly, or leave at any point, and send noise. An answer must be whole, well formed and the one
it was alone, bit by bit. After a round the server must be idle, all pages free, with as many threads and descriptors as before; in
rounds without rude clients /metrics must count exactly what was received. Between rounds the server lives on, is drained by SIGTERM
under load (what was begun must come whole), or is killed and started again with its cache on disk.

Needs the packages of tests/requirements.txt and Linux. Closes with `N passed, N failed`: rounds.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "server")]

import answers
import batch
import mix
from clients import Crowd, bounded
from serving import Server, wait_until

ROOT = HERE.parent.parent
LONG_S = 300  # a guard where nothing is measured: a busy machine, a slow build
ENGINE = ["--batch-invariant", "--threads", "2", "--max-model-len", "4096"]
SERVER = [*ENGINE, "--request-timeout", "5"]

# name -> what changes bits (so that the server that is asked alone has it too), and what must not.
CONFIGURATIONS = {
    "plain": ([], ["--max-num-seqs", "8"]),
    "memory": (["--max-model-len", "1536"], ["--max-num-seqs", "16"]),
    "narrow": ([], ["--max-num-seqs", "2", "--max-queue", "6", "--max-connections", "40", "--max-num-batched-tokens", "48"]),
    "disk": ([], ["--max-num-seqs", "4", "--prefix-cache-dir", "{folder}/cache", "--prefix-cache-disk", "0.009"]),
    "experts": ([], ["--max-num-seqs", "8", "--expert-cache", "0.004"]),
    "int4": (["--quantization", "int4"], ["--max-num-seqs", "8"]),
    "fp8": (["--kv-cache-dtype", "fp8"], ["--max-num-seqs", "8"]),
    "drafts": ([], ["--max-num-seqs", "6", "--draft-max", "6"]),
    "ranks": ([], ["--max-num-seqs", "8"]),
    "all": (["--quantization", "int4", "--kv-cache-dtype", "fp8"],
            ["--max-num-seqs", "5", "--draft-max", "4", "--prefix-cache-dir", "{folder}/cache", "--max-num-batched-tokens", "96"]),
    "batch": ([], ["--max-num-seqs", "8"]),  # run-batch, killed and gone on with
}
# What ends a server; nohup's children do not mind SIGHUP.
ENDS = [signal.SIGTERM, signal.SIGINT] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
MAY_REFUSE = {"narrow"}
SMALL_MEMORY_GIB = {"memory": "0.06", "disk": "0.2"}  # fewer pages than sequences may need


# What is worth knowing of a round: whether it met what it is there for.
WORTH = {"preempted": "vllm:num_preemptions_total", "found": "vllm:prefix_cache_hits_total", "on disk": "vllm:external_prefix_cache_hits_total",
         "not written": "moebius:disk_cache_forgotten_total", "damaged": "moebius:disk_cache_refused_total",
         "guessed": "vllm:spec_decode_num_accepted_tokens_total", "experts read": "moebius:expert_cache_misses_total",
         "exchanges": "moebius:rank_exchanges_total"}


# --- the server ------------------------------------------------------------------------------------------------------


class Host(Server):
    """Server, under mpirun if need be, and what the system says of its process."""

    def __init__(self, options, flags, folder, env=None, ranks=1):
        words = [options.program]
        if ranks > 1:
            words = ["mpirun", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", str(ranks), *words]
        # program, then "serve": what Server puts together, with a launcher in front
        self.words = words
        env = {"ASAN_OPTIONS": f"detect_leaks={int(ranks == 1)}", "UBSAN_OPTIONS": "print_stacktrace=1", **(env or {})}
        start = wrapper(folder, words)
        super().__init__(options.model, *SERVER, *flags, folder=folder, program=start, env=env)
        self.pid = self.process.pid if ranks == 1 else first_child(self.process.pid)
        self.ranks = ranks

    def wait_ready(self):
        assert wait_until(lambda: self.get("/health").status == 200, LONG_S), self.log

    def request(self, method, path, body=None, headers=None, timeout_s=LONG_S):
        return super().request(method, path, body, headers, timeout_s)

    def status(self):
        """{"threads", "files", "rss_mb"} of the server's process."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        number = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+)", text, re.M)}
        return {"threads": number["Threads"], "files": len(os.listdir(f"/proc/{self.pid}/fd")), "rss_mb": number["VmRSS"] // 1024}

    def sanitizer_report(self):
        found = re.search(r"(ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|LeakSanitizer)(.*\n){0,60}", self.log)
        return found.group(0) if found else None


def wrapper(folder, words):
    """One word that starts several."""
    if len(words) == 1:
        return words[0]
    path = Path(folder) / "start.sh"
    path.write_text("#!/bin/sh\nexec " + " ".join(words) + ' "$@"\n')
    path.chmod(0o755)
    return str(path)


def first_child(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])


# --- a configuration -------------------------------------------------------------------------------------------------


class Soak:
    def __init__(self, options, name, folder):
        self.options, self.name, self.folder = options, name, folder
        self.rng = random.Random(f"{options.seed} {name}")
        self.bits, rest = CONFIGURATIONS[name]
        self.flags = [*self.bits, *(flag.format(folder=folder) for flag in rest)]
        self.env = {"MOEBIUS_MEMORY": SMALL_MEMORY_GIB[name]} if name in SMALL_MEMORY_GIB else {}
        self.ranks = 2 if name == "ranks" else 1
        self.pool = mix.pool(self.rng, options.pool)
        self.host, self.passed, self.failed, self.requests = None, 0, 0, 0
        self.rss_mb, self.met, self.is_mounted = [], {}, False

    def start(self):
        self.host = Host(self.options, self.flags, self.folder, self.env, self.ranks)
        self.host.get("/health")
        self.first = None  # the process at rest, once it has worked

    def learn(self):
        """What each request is answered when nothing else runs."""
        alone = Host(self.options, [*self.bits, "--max-num-seqs", "8", "--no-enable-prefix-caching"], self.folder)
        self.host = alone  # so that it does not outlive a failure here
        for item in self.pool:
            reply = alone.post(item.path, answers.body_of(item, False))
            assert reply.status < 500 or reply.status == 501, (item, reply)
            item.expected = answers.read(item, False, reply.status, reply.headers, reply.body)
        self.end(alone)

    def end(self, host):
        """SIGTERM to a server that has nothing to do."""
        os.kill(host.pid, signal.SIGTERM)
        code = host.process.wait(LONG_S)
        assert code == 0, f"exit status {code} of an idle server:\n{host.log[-4000:]}"
        assert not host.sanitizer_report(), host.sanitizer_report()

    async def crowd(self, crowd, seconds, polite, ending):
        heart = asyncio.ensure_future(crowd.heart())
        clients = [asyncio.ensure_future(crowd.client(self.rng.random(), polite)) for _ in range(self.options.clients)]
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until and not crowd.stops:
            await asyncio.sleep(0.2)
            if self.host.process.poll() is not None:
                crowd.fault(f"the server ended with {self.host.process.returncode}")
        if ending != "go on" and not crowd.stops:
            await self.interrupt(crowd, ending)
        crowd.stops = True
        await bounded(asyncio.gather(*clients), LONG_S)
        heart.cancel()

    async def interrupt(self, crowd, ending):
        """The server is told to end while clients wait, or killed."""
        if ending == "kill":
            crowd.is_killed = True
            os.kill(self.host.pid, signal.SIGKILL)
        else:
            crowd.drains_from = time.monotonic()
            os.kill(self.host.pid, self.rng.choice(ENDS))
        for _ in range(LONG_S * 5):
            await asyncio.sleep(0.2)
            if self.host.process.poll() is not None:
                return
        crowd.fault(f"the server did not end within {LONG_S} s of {ending}")

    # --- a disk that is full, and files that are damaged ---

    @property
    def cache(self):
        return Path(self.folder) / "cache"

    def mount(self):
        """A disk of its own, so small that it fills up."""
        self.cache.mkdir(mode=0o700)
        if "{folder}/cache" in CONFIGURATIONS[self.name][1] and os.geteuid() == 0:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "soak", self.cache], capture_output=True)
            self.is_mounted = done.returncode == 0

    def unmount(self):
        if self.is_mounted:
            subprocess.run(["umount", "-l", self.cache], check=True)

    def vandalise(self):
        """Between two rounds: bytes are changed, files cut or gone, and the disk full, or no longer so."""
        for path in sorted(self.cache.glob("*.page")):
            luck = self.rng.random()
            try:
                if luck < 0.03:
                    path.unlink()
                elif luck < 0.06:
                    os.truncate(path, self.rng.randrange(3000))
                elif luck < 0.09:
                    with path.open("r+b") as file:
                        file.seek(self.rng.randrange(path.stat().st_size))
                        file.write(b"\x55")
            except (OSError, ValueError):
                pass  # the server was quicker
        filler = self.cache / "filler"
        if filler.exists():
            filler.unlink()
        elif self.is_mounted:
            room = os.statvfs(self.cache)
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(room.f_bavail * room.f_bsize - self.rng.choice([0, 60000, 200000])))

    def round(self, number, seconds):
        polite = number % 3 == 2
        ending = "go on" if polite else self.rng.choice(["go on", "go on", "drain", "kill"])
        crowd = Crowd(self.host.port, self.pool, LONG_S, self.name in MAY_REFUSE)
        before = self.host.metrics()
        asyncio.run(self.crowd(crowd, seconds, polite, ending))
        faults = crowd.faults
        try:
            faults += list(self.after(crowd, ending, polite, before))
        except (AssertionError, OSError) as error:
            faults.append(f"after the round: {type(error).__name__} {error}")
        report = self.host.sanitizer_report()
        faults += [report] if report else []
        self.tell(number, polite, ending, crowd, faults)
        if self.host.process.poll() is not None or faults:
            self.again()

    def after(self, crowd, ending, polite, before):
        """Faults of a server after a round."""
        host = self.host
        self.requests += sum(n for what, n in crowd.tally.items() if what.isdigit())
        if ending == "drain" and host.process.poll() != 0:
            yield f"exit status {host.process.poll()} after SIGTERM:\n{host.log[-4000:]}"
        if ending != "go on":
            return
        if host.process.poll() is not None:
            yield f"the server is gone, exit status {host.process.poll()}:\n{host.log[-6000:]}"
            return
        if not host.becomes_idle(LONG_S):
            yield f"requests or pages were left behind: {host.get('/metrics').body.decode()[:3000]}"
            return
        metrics = host.metrics()
        self.met = {what: int(metrics.value(name)) for what, name in WORTH.items() if name in metrics.families and metrics.value(name)}
        if polite:
            yield from self.count(crowd.totals, before, metrics)
        yield from self.at_rest()

    def count(self, totals, before, after):
        """What /metrics count in a round in which every answer was received whole."""
        def grown(name, **labels):
            return after.value(name, **labels) - before.value(name, **labels)

        ended = {reason: grown("vllm:request_success_total", finished_reason=reason) for reason in ("stop", "length", "abort", "error")}
        found = {"answers": ended["stop"] + ended["length"], "tokens": grown("vllm:generation_tokens_total"),
                 "abort": ended["abort"], "error": ended["error"]}
        wanted = {"answers": totals["answers"], "tokens": totals["tokens"], "abort": 0, "error": 0}
        if self.name in MAY_REFUSE:  # of several answers some were begun, and ended when there was no room for the last
            found.pop("abort"), wanted.pop("abort")
        if found != wanted:
            yield f"/metrics counted {found}, received were {wanted}"

    def at_rest(self):
        """Threads and files of an idle server do not grow."""
        wait_until(lambda: self.first is None or self.host.status()["files"] <= self.first["files"], 20)
        now = self.host.status()
        self.rss_mb.append(now["rss_mb"])
        self.first = self.first or now
        for what in ("threads", "files"):
            if now[what] > self.first[what]:
                yield f"{what} of an idle server grew from {self.first[what]} to {now[what]}"

    def again(self):
        if self.host.process.poll() is None:
            self.host.process.kill()
        self.host.process.wait()
        wait_until(lambda: not Path(f"/proc/{self.host.pid}").exists(), 60)
        self.start()

    def tell(self, number, polite, ending, crowd, faults):
        self.failed += bool(faults)
        self.passed += not faults
        said = ", ".join(f"{what} {n}" for what, n in sorted(crowd.tally.items()))
        rss = f"; {self.rss_mb[-1]} MB" if self.rss_mb else ""
        met = "".join(f", {what} {n}" for what, n in self.met.items())
        print(f"{self.name} {number} {'polite' if polite else 'rude'}, {ending}{rss}: {said}{met}", flush=True)
        self.met = {}
        for fault in faults[:6]:
            print(f"FAULT in {self.name}: {fault}", flush=True)

    def batches(self, seconds):
        files = batch.Batches(self.options.program, self.options.model, [*ENGINE, *self.flags], self.folder, self.rng, self.pool)
        files.run(seconds, LONG_S)
        self.passed, self.failed, self.requests = files.passed, files.failed, files.requests

    def run(self, seconds):
        until = time.monotonic() + seconds
        self.learn()
        if self.name == "batch":
            self.batches(seconds)
            return
        self.mount()
        self.start()
        number = 0
        while time.monotonic() < until or number < 3:
            self.round(number, min(self.options.round, seconds / 3))
            self.vandalise()
            number += 1
        assert self.host.becomes_idle(LONG_S), "requests or pages were left behind"
        self.end(self.host)


# --- all of them -----------------------------------------------------------------------------------------------------


def left_out(name):
    """Why a configuration cannot be had here, or None."""
    if name == "ranks" and not shutil.which("mpirun"):
        return "no mpirun"
    return None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="all in all (default 10)")
    parser.add_argument("--round", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--pool", type=int, default=150, help="different requests (default 150)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(CONFIGURATIONS), help="configurations: " + ", ".join(CONFIGURATIONS))
    parser.add_argument("--program", default=os.environ.get("MOEBIUS", str(ROOT / "build" / "moebius")))
    parser.add_argument("--model", default=str(ROOT / "models" / "demo"))
    return parser.parse_args()


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak: told to stop"))  # servers and disks are left by `finally`
    names = options.only.split(",")
    passed = failed = requests = 0
    for name in names:
        why = left_out(name)
        if why:
            print(f"left out: {name}: {why}")
            continue
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            soak = Soak(options, name, folder)
            try:
                soak.run(60 * options.minutes / len(names))
            except Exception as error:  # of one configuration: the others go on
                soak.failed += 1
                print(f"FAULT in {name}: {type(error).__name__} {error}", flush=True)
            finally:
                if soak.host and soak.host.process.poll() is None:
                    soak.host.process.kill()
                    soak.host.process.wait()
                soak.unmount()
            passed, failed, requests = passed + soak.passed, failed + soak.failed, requests + soak.requests
            print(f"{name}: {soak.requests} answers, rounds {soak.passed} good, {soak.failed} bad; MB at rest {soak.rss_mb}", flush=True)
    print(f"{requests} answers\n{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
