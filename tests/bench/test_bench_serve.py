"""The load generator of `bench serve` counts what a server did, and the versions it makes serve."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench._serve_load import Load, requests
from bench._serve_ours import INFER, identity, running, serving


@contextmanager
def answering(answers: list[bytes]) -> Iterator[int]:
    """A server that gives these answers in turn, whatever it is asked; empty: it hangs up."""
    turn = itertools.cycle(answers)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    port = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = int(head.lower().partition(b"content-length:")[2].split()[0])
            await reader.readexactly(size)
            answer = next(turn)
            if not answer:
                break
            writer.write(answer)
        writer.close()

    def run() -> None:
        nonlocal port
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(5)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
FULL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"


def test_answers_are_counted_by_what_they_were() -> None:
    with answering([GOOD, CHUNKED, FULL, b""]) as port:
        load = Load(("127.0.0.1", port), requests("x", "/predict", [b"{}"]), 0.0)
        found = asyncio.run(load.run(3, 0.5))
    outcomes = found["outcomes"]
    assert set(outcomes) == {"200", "429", "lost"}
    assert outcomes["200"] == found["good"] > outcomes["429"] > 1
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]


def test_an_open_loop_keeps_its_rate_whatever_the_answers_do() -> None:
    with answering([GOOD]) as port:
        load = Load(("127.0.0.1", port), requests("x", "/predict", [b"{}"]), 200.0)
        found = asyncio.run(load.run(64, 1.0))
    assert sum(found["outcomes"].values()) == pytest.approx(200, abs=80)
    assert found["asked_per_second"] == pytest.approx(200, abs=80)


def test_the_identity_model_gives_its_number_back(tmp_path: Path) -> None:
    (body,) = identity(tmp_path)
    with serving(tmp_path) as server:
        (output,) = server.get(INFER, body)["outputs"]
        assert (output["name"], output["data"]) == ("embedding", [0.5])
        assert json.loads(body)["inputs"][0]["data"] == [0.5]
        assert server.memory_mb() > 10
        found = server.load(tmp_path, INFER, [body], 0.5, clients=2)
        assert found["good"] > 0
        assert 0 < found["server_cores"] < 2


def test_a_server_leaves_no_children(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with running(command, tmp_path / "log"):
        while not (child := (tmp_path / "log").read_text().strip()):
            pass
    state, end = Path(f"/proc/{child}/stat"), time.monotonic() + 10
    while state.exists() and " Z " not in state.read_text():
        assert time.monotonic() < end
