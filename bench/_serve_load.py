"""A load generator for one core, over plain keep-alive HTTP; prints what it saw as JSON.

``python -m bench._serve_load HOST:PORT PATH BODIES SECONDS --clients N [--rate R]``: BODIES is a
file of one JSON body a line, sent in turn. Without a rate each client asks again as soon as it has
its answer (closed loop), until SIGTERM at the latest. With one, requests begin at random times at
that rate whether or not the earlier ones were answered (open loop), each on a free connection, of
which there are N. ``--server PID``: the server, whose CPU time is told too, with its children's:
one that had less than its core, while this had time left, was starved by something else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

WARM_SECONDS = 0.5
PATIENCE_SECONDS = 30.0


class Seen:
    """Answers: when they came, after how long, and with what status."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.seconds: list[float] = []
        self.outcomes: Counter[str] = Counter()

    def add(self, now: float, seconds: float, status: str) -> None:
        self.times.append(now)
        if status == "200":
            self.seconds.append(seconds)
        self.outcomes[status] += 1

    def summary(self, seconds: float) -> dict[str, Any]:
        found = 1e3 * np.array(self.seconds or [np.nan])
        good = self.outcomes["200"]
        return {
            "seconds": seconds,
            "good": good,
            "per_second": good / seconds,
            "outcomes": dict(self.outcomes),
            "p50_ms": float(np.quantile(found, 0.5)),
            "p90_ms": float(np.quantile(found, 0.9)),
            "p99_ms": float(np.quantile(found, 0.99)),
            "max_ms": float(found.max()),
        }


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: Any = None
        self.begun = 0.0
        self.asking = False
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.load.free(self)

    def ask(self, request: bytes) -> None:
        self.begun = time.perf_counter()
        self.asking = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data
        head = self.data.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = self.data[:head].lower()
        at = fields.find(b"content-length:")
        if at >= 0:
            end = fields.find(b"\r\n", at)
            size = int(fields[at + 15 : end if end >= 0 else None])
            if len(self.data) < head + 4 + size:
                return
        elif not self.data.endswith(b"0\r\n\r\n"):  # in chunks
            return
        status, self.data, self.asking = self.data[9:12].decode(), b"", False
        now = time.perf_counter()
        self.load.seen.add(now, now - self.begun, status)
        self.load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.asking:
            self.load.seen.add(time.perf_counter(), 0.0, "lost")
        self.load.lost(self)


class Load:
    """All clients of one run."""

    def __init__(
        self, address: tuple[str, int], requests: Iterator[bytes], rate: float, server: int = 0
    ) -> None:
        self.seen = Seen()
        self.asked = 0  # in an open loop
        self.server = server
        self.address = address
        self.requests = requests
        self.rate = rate
        self.ended = False
        self.idle: deque[Client] = deque()
        self.waiting: list[asyncio.Task[Any]] = []

    async def run(self, clients: int, seconds: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        for _ in range(clients):
            await loop.create_connection(lambda: Client(self), *self.address)
        await asyncio.sleep(WARM_SECONDS)
        self.seen = Seen()
        begun, own = time.perf_counter(), time.process_time()
        server = sum(family(self.server).values())
        if self.rate:
            await self._open_loop(begun + seconds)
        else:
            told = asyncio.Event()
            loop.add_signal_handler(signal.SIGTERM, told.set)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), seconds)
        self.ended = True
        seconds = time.perf_counter() - begun
        return {
            **self.seen.summary(seconds),
            "asked_per_second": self.asked / seconds,
            "server_cores": (sum(family(self.server).values()) - server) / seconds,
            "load_cores": (time.process_time() - own) / seconds,
        }

    def free(self, client: Client) -> None:
        if self.rate:
            self.idle.append(client)
        elif not self.ended:
            client.ask(next(self.requests))

    def lost(self, client: Client) -> None:
        if client in self.idle:
            self.idle.remove(client)
        if not self.ended:
            loop = asyncio.get_running_loop()
            connect = loop.create_connection(lambda: Client(self), *self.address)
            self.waiting.append(asyncio.ensure_future(connect))

    async def _open_loop(self, end: float) -> None:
        due = time.perf_counter()
        while due < end:
            due += random.expovariate(self.rate)
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            elif random.random() < 0.05:
                await asyncio.sleep(0)  # let answers in while it is behind
            self.asked += 1
            if self.idle:
                self.idle.popleft().ask(next(self.requests))
            else:
                self.seen.add(time.perf_counter(), 0.0, "unsent")


def family(root: int) -> dict[int, float]:
    """A process and all that it has started, by pid: the seconds each has computed."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid] = int(fields[1])
            seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found = {root} & seconds.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: seconds[pid] for pid in found}


def requests(host: str, path: str, bodies: list[bytes]) -> Iterator[bytes]:
    """Whole requests, in turn, for ever; each with a key of its own, as users have."""
    made = [
        b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
        b"X-Driftd-Key: user-%d\r\nContent-Length: %d\r\n\r\n%b"
        % (path.encode(), host.encode(), i, len(body), body)
        for i, body in enumerate(bodies)
    ]
    return itertools.cycle(made)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("path")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--server", type=int, default=0)
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    bodies = options.bodies.read_bytes().splitlines()
    asked = requests(options.address, options.path, bodies)
    load = Load((host, int(port)), asked, options.rate, options.server)
    work = asyncio.wait_for(
        load.run(options.clients, options.seconds), options.seconds + PATIENCE_SECONDS
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(work)))


if __name__ == "__main__":
    main()
