"""Clients: polite ones, whose answers are compared, and others, which leave, dawdle, cut their requests short or send noise."""

import asyncio
import json
import random
import re
import socket
import time

import answers
import mix
from serving import HOST, Metrics

READ = 1 << 16


class Gone(Exception):
    """The server closed before the answer was whole. `asked`: when the request was sent, if it was the connection's next."""

    def __init__(self, what, asked=None):
        super().__init__(what)
        self.asked = asked


class Hung(AssertionError):
    pass


async def bounded(work, seconds):
    """The result of `work`; Hung after so many seconds. Time in which this process was stopped does not count."""
    task = asyncio.ensure_future(work)
    for _ in range(int(seconds * 2)):
        done, _ = await asyncio.wait({task}, timeout=0.5)
        if done:
            return task.result()
    task.cancel()
    raise Hung(f"no end after {seconds} s")


class Wire:
    """One connection, read strictly."""

    def __init__(self, port, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setblocking(False)
        self.port, self.asked = port, None  # when the whole request was sent

    async def __aenter__(self):
        try:
            await asyncio.get_running_loop().sock_connect(self.socket, (HOST, self.port))
            self.reader, self.writer = await asyncio.open_connection(sock=self.socket, limit=1 << 24)
        except OSError as error:
            self.socket.close()
            raise Gone(f"no connection: {error}") from error
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()

    async def send(self, data, whole=True):
        try:
            self.writer.write(data)
            await self.writer.drain()
            self.asked = time.monotonic() if whole else None
        except OSError as error:
            raise Gone(f"while sending: {error}") from error

    async def reply(self):
        """(status, headers, body)"""
        try:
            status, headers = await self.head()
            while status == 100:
                status, headers = await self.head()
            data = await self.body(headers)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Gone(f"while reading: {error!r}", self.asked) from error
        self.asked = None
        return status, headers, data

    async def head(self):
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.[01] (\d\d\d)( .*)?", lines[0])
        answers.must(found, lines[0])
        pairs = [line.split(":", 1) for line in lines[1:] if line]
        return int(found.group(1)), {name.lower(): value.strip() for name, value in pairs}

    async def body(self, headers):
        if headers.get("transfer-encoding", "").lower() == "chunked":
            data = b""
            while True:
                size = int((await self.reader.readuntil(b"\r\n")), 16)
                piece = await self.reader.readexactly(size + 2)
                answers.must(piece.endswith(b"\r\n"), "end of a chunk", piece[-20:])
                if size == 0:
                    return data
                data += piece[:-2]
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read(-1)


class Crowd:
    """What all clients of a round share: the server's port, the requests, and what came of them."""

    def __init__(self, port, pool, bound_s, may_refuse):
        self.port, self.pool, self.bound_s, self.may_refuse = port, pool, bound_s, may_refuse
        self.stops = False     # no new requests
        self.drains_from = None  # when the server was told to end: requests that come later may be refused
        self.is_killed = False
        self.tally = {}        # how many of each
        self.totals = {"answers": 0, "tokens": 0, "prompt": 0, "requests": 0}
        self.faults = []
        self.beat, self.stopped = time.monotonic(), -1e9

    async def heart(self):
        """Notices that this process was stopped for a while: the server's limits of time went on."""
        while True:
            now = time.monotonic()
            if now - self.beat > 2:
                self.stopped = now
            self.beat = now
            await asyncio.sleep(0.2)

    def was_stopped(self):
        now = time.monotonic()
        return now - self.stopped < 20 or now - self.beat > 2

    def count(self, what):
        self.tally[what] = self.tally.get(what, 0) + 1

    def fault(self, what):
        self.faults.append(what)
        self.stops = True

    @property
    def breaks(self):
        return self.is_killed or self.drains_from is not None

    def may_close(self, gone):
        """Whether the server may have closed this connection. One that drains answers what it was asked before."""
        if self.is_killed or self.may_refuse or self.was_stopped():
            return True
        return self.drains_from is not None and (gone.asked is None or gone.asked > self.drains_from - 0.5)

    # --- polite ---

    def judge(self, item, stream, status, headers, body):
        """A whole answer, held against the one that the same request had alone."""
        answer = answers.read(item, stream, status, headers, body)
        self.count(f"{status}")
        if status in (429, 503) and (self.may_refuse or self.breaks):
            return
        self.totals["requests"] += 1
        if "choices" in answer:
            n_sequences = len(answer["choices"])
            self.totals["answers"] += n_sequences
            self.totals["tokens"] += answer["tokens"]
            self.totals["prompt"] += answer["prompt"]
        if answer != item.expected:
            self.fault(f"another answer than alone: stream={stream} {item!r}\n  alone {item.expected}\n  now   {answer}")

    async def ask(self, wire, item, stream):
        await wire.send(mix.post(item.path, answers.body_of(item, stream)))
        self.judge(item, stream, *await wire.reply())

    async def stay(self, rng):
        """Some requests on one connection, one after the other."""
        async with Wire(self.port) as wire:
            for _ in range(rng.choice([1, 1, 3])):
                await self.ask(wire, rng.choice(self.pool), rng.random() < 0.5)
                if self.stops:
                    return

    async def pipeline(self, rng):
        items = [(rng.choice(self.pool), rng.random() < 0.5) for _ in range(rng.randrange(2, 5))]
        async with Wire(self.port) as wire:
            await wire.send(b"".join(mix.post(item.path, answers.body_of(item, stream)) for item, stream in items))
            for item, stream in items:
                self.judge(item, stream, *await wire.reply())

    async def drip(self, rng):
        """The request comes in pieces, the last one late."""
        item, stream = rng.choice(self.pool), rng.random() < 0.5
        data = mix.post(item.path, answers.body_of(item, stream))
        cuts = sorted(rng.randrange(len(data)) for _ in range(8))
        async with Wire(self.port) as wire:
            for start, end in zip([0, *cuts], [*cuts, len(data)]):
                await wire.send(data[start:end], end == len(data))
                await asyncio.sleep(rng.random() * 0.1)
            self.judge(item, stream, *await wire.reply())

    async def slow(self, rng):
        """Reads late, and from a small buffer, but all of it."""
        item, stream = rng.choice(self.pool), True
        async with Wire(self.port, receive_buffer=2048) as wire:
            wire.writer.transport.pause_reading()
            await wire.send(mix.post(item.path, answers.body_of(item, stream)))
            await asyncio.sleep(rng.random() * 3)
            wire.writer.transport.resume_reading()
            self.judge(item, stream, *await wire.reply())

    async def chunked(self, rng):
        """The body comes in chunks, behind a head that may wait for "100 Continue"."""
        item, stream = rng.choice(self.pool), rng.random() < 0.5
        expects = rng.random() < 0.5
        head = f"POST {item.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + "Expect: 100-continue\r\n" * expects
        data = json.dumps(answers.body_of(item, stream)).encode()
        size = rng.choice([100, 5000, 1 << 20])
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(data[i:i + size]), data[i:i + size]) for i in range(0, len(data), size))
        async with Wire(self.port) as wire:
            await wire.send(head.encode() + b"\r\n", False)
            await asyncio.sleep(rng.random() * 0.05)
            await wire.send(chunks + b"0\r\n\r\n")
            self.judge(item, stream, *await wire.reply())

    async def poll(self, rng):
        path = rng.choice(["/metrics", "/metrics", "/health", "/slots", "/props", "/v1/models", "/api/tags", "/api/ps", "/version"])
        async with Wire(self.port) as wire:
            await wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            status, _, body = await wire.reply()
            answers.must(status == 200 or (self.breaks and status == 503), path, status, body)
            if path == "/metrics":
                Metrics(body.decode())

    # --- others ---

    async def vanish(self, rng):
        item, stream = rng.choice(self.pool), rng.random() < 0.8
        data = mix.post(item.path, answers.body_of(item, stream))
        async with Wire(self.port) as wire:
            where = rng.choice(["head", "body", "sent", "wait", "first", "middle", "half", "stall"])
            await wire.send(data[:rng.randrange(1, 60)] if where == "head" else data[:rng.randrange(len(data))] if where == "body" else data)
            if where in ("wait", "half"):
                if where == "half":
                    wire.writer.write_eof()
                await asyncio.sleep(rng.random() * 0.3)
            elif where in ("first", "middle"):
                await wire.reader.read(1 if where == "first" else rng.randrange(1, 4000))
            elif where == "stall":
                wire.writer.transport.pause_reading()
                await asyncio.sleep(rng.choice([0.5, 3, 8]))
            if rng.random() < 0.5:
                wire.writer.close()  # politely; else aborted

    async def mutate(self, rng):
        """A request with odd values: good or refused, but nothing of the server's own fails."""
        item = rng.choice(self.pool)
        body = mix.mutant(rng, answers.body_of(item, rng.random() < 0.5))
        async with Wire(self.port) as wire:
            await wire.send(mix.post(item.path, body))
            status, headers, data = await wire.reply()
            if status != 200:
                answers.read(item, False, status, headers, data)
            refused = status == 503 and (self.breaks or self.may_refuse)
            answers.must(status < 500 or status == 501 or refused, "mutant", item.path, json.dumps(body), status, data)
            self.count(f"mutant {status // 100}xx")

    async def noise(self, rng):
        async with Wire(self.port) as wire:
            await wire.send(mix.garbage(rng))
            if rng.random() < 0.5:
                wire.writer.write_eof()
            status, _, body = await wire.reply()
            answers.must(status < 500 or status in (501, 505) or (status == 503 and (self.breaks or self.may_refuse)), "noise", status, body)

    WAYS = {"stay": 10, "pipeline": 2, "drip": 2, "chunked": 1, "slow": 1, "poll": 2, "vanish": 8, "mutate": 6, "noise": 4}
    POLITE = ("stay", "pipeline", "drip", "chunked", "slow", "poll")

    async def client(self, seed, polite):
        rng = random.Random(seed)
        ways = [way for way in self.WAYS if not polite or way in self.POLITE]
        while not self.stops:
            way = rng.choices(ways, [self.WAYS[w] for w in ways])[0]
            try:
                await bounded(getattr(self, way)(rng), self.bound_s)
                self.count(way)
            except Gone as gone:
                self.count("gone")
                if way in self.POLITE and not self.may_close(gone):
                    self.fault(f"{way}: the server closed: {gone}")
                await asyncio.sleep(0.05)
            except OSError:
                self.count("gone")
            except AssertionError as error:
                self.fault(f"{way}: {error}")
