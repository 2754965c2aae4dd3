"""Tabular streams: prequential accuracy, cost, memory and label delay, beside river's ensembles."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench import _tabular_peers as peers
from bench._tabular_ours import (
    BLOCK,
    Floats,
    Labels,
    Outcome,
    Setting,
    int8_agreement,
    run,
    structured,
)
from bench.report import Row, row
from bench.streams import NoData, table
from deploy.river_version import RiverVersion
from learn.config import ModelConfig
from learn.past import Past

SEEDS = (0, 1, 2)
STREAMS = {"elec2": ("Elec2", ">= 92"), "noaa_weather": ("NOAA", ">= 82.5")}
PREFIX = 15_000  # events on which slow peers, and delayed labels, are compared
MADE = 10_000
DELAYS = (100, 1_000)
PARITY_EVENTS = 4_000
SINGLE_EVENTS = 3_000


def rows(quick: bool) -> Iterator[Row]:
    """Every figure; quick: two thousand events of each stream and one seed."""
    most = 2_000 if quick else None
    prefix, seeds = (2_000, SEEDS[:1]) if quick else (PREFIX, SEEDS)
    try:
        streams = {name: table(name) for name in STREAMS}
    except NoData as error:
        yield Row("real streams", None, note=str(error))
        streams = {}
    for key, (x, y) in streams.items():
        name, target = STREAMS[key]
        yield from _real(name, "" if quick else target, x[:most], y[:most], seeds)
        yield from _on_prefix(name, x[:prefix], y[:prefix], seeds)
        yield from _parity(name, x[:most], y[:most], 500 if quick else PARITY_EVENTS)
    made = peers.made(2_000 if quick else MADE)
    yield from _as_version(*made["SEA, abrupt"])
    for name, (x, y) in made.items():
        yield from _compared(f"{name} ({len(y):,} events)", x, y, seeds[:1])


def _real(name: str, target: str, x: Floats, y: Labels, seeds: tuple[int, ...]) -> Iterator[Row]:
    """The whole stream: ours with and without the past, the yardsticks, ARF and the cost."""
    found = [run(x, y, Setting(), seed) for seed in seeds]
    mean, note = _mean(found)
    yield row(f"{name}: driftd", mean, "%", target, note)
    last = 100 * float((y[1:] == y[:-1]).mean())
    majority = 100 * float(np.bincount(y).max()) / len(y)
    yield row(f"{name}: kappa-temporal of driftd", 100 * (mean - last) / (100 - last), "%")
    yield row(f"{name}: last label", last, "%")
    yield row(f"{name}: majority", majority, "%")
    for words, setting in (
        ("without relative columns (the default)", Setting(relative=False)),
        ("with the last 2 labels too", Setting(lagged_labels=2)),
    ):
        mean, note = _mean([run(x, y, setting, seed) for seed in seeds])
        yield row(f"{name}: driftd, {words}", mean, "%", note=note)
    forest = peers.run(peers.arf, x, y)
    yield row(f"{name}: ARF10", forest.accuracy, "%")
    rate = float(np.mean([each.events_per_second for each in found]))
    yield row(f"{name}: driftd, test then learn", rate, "events/CPU-s")
    yield row(f"{name}: ARF10, test then learn", forest.events_per_second, "events/CPU-s")
    yield row(
        f"{name}: driftd's rate over ARF10's",
        rate / forest.events_per_second,
        "times",
        ">= 10",
        f"events handed over {BLOCK} at a time; the answers are those of one by one",
    )
    single = run(x[:SINGLE_EVENTS], y[:SINGLE_EVENTS], Setting(), seeds[0], block=1)
    yield row(f"{name}: driftd, handed over one by one", single.events_per_second, "events/CPU-s")
    yield row(f"{name}: driftd's memory", found[0].size_bytes / 1e6, "MB", note="constant")
    yield row(f"{name}: ARF10's memory", forest.size_bytes / 1e6, "MB", note="at the end; grows")


def _on_prefix(name: str, x: Floats, y: Labels, seeds: tuple[int, ...]) -> Iterator[Row]:
    """What takes peers long, on the first events: bagging, the same columns, delayed labels."""
    title = f"{name}, first {len(y):,}"
    mean, note = _mean([run(x, y, Setting(), seed) for seed in seeds])
    yield row(f"{title}: driftd", mean, "%", note=note)
    forest = peers.run(peers.arf, x, y)
    yield row(f"{title}: ARF10", forest.accuracy, "%")
    bagging = peers.run(peers.leveraging_bagging, x, y)
    yield row(f"{title}: leveraging bagging 10", bagging.accuracy, "%")
    helped = peers.run(peers.arf, with_past(x), y)
    yield row(f"{title}: ARF10, given the relative columns too", helped.accuracy, "%")
    for delay in DELAYS:
        if delay >= len(y) // 2:
            continue
        ours, note = _mean([run(x, y, Setting(), seed, delay=delay) for seed in seeds])
        late = peers.run(peers.arf, x, y, delay=delay)
        yield row(f"{title}: driftd, labels {delay:,} late", ours, "%", note=note)
        yield row(f"{title}: ARF10, labels {delay:,} late", late.accuracy, "%")


def _parity(name: str, x: Floats, y: Labels, events: int) -> Iterator[Row]:
    single, batched = int8_agreement(x, y, SEEDS[0], events)
    words = f"{name}: same decision of the INT8 file"
    yield row(f"{words}, one by one", single, "%", ">= 99.5", f"on {events:,} events")
    yield row(f"{words}, in batches of 32", batched, "%")


def _as_version(x: Floats, y: Labels) -> Iterator[Row]:
    """What it takes to open a model of river, whose version holds the events it has learned."""
    whole, first = peers.as_version(x, y), peers.as_version(x[:-BLOCK], y[:-BLOCK])
    title = f"ARF10 as a version of {len(y):,} events"
    yield row(f"{title}: size", len(whole) / 1e6, "MB")
    with tempfile.TemporaryDirectory() as place:
        path, before = Path(place, "whole"), Path(place, "first")
        path.write_bytes(whole)
        before.write_bytes(first)
        alone = [_cpu_seconds(lambda: RiverVersion.open(path)) for _ in range(3)]
        yield row(f"{title}: opened", float(np.median(alone)), "CPU-s", note="median of 3")
        champion = RiverVersion.open(before)
        beside = [_cpu_seconds(lambda: RiverVersion.open(path)) for _ in range(3)]
        note = f"median of 3; {len(champion):,} of its events are known"
        yield row(
            f"{title}: opened beside the one before", float(np.median(beside)), "CPU-s", note=note
        )


def _cpu_seconds(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def _compared(name: str, x: Floats, y: Labels, seeds: tuple[int, ...]) -> Iterator[Row]:
    for words, setting in (("driftd", Setting()), ("driftd, default", Setting(relative=False))):
        mean, _ = _mean([run(x, y, setting, seed) for seed in seeds])
        yield row(f"{name}: {words}", mean, "%")
    yield row(f"{name}: ARF10", peers.run(peers.arf, x, y).accuracy, "%")


def with_past(x: Floats) -> Floats:
    """The numbers float64 [n, f] and beside them what `learn.past` makes of them, [n, 5 f]."""
    config: ModelConfig = Setting().config(x.shape[1])
    table = Past(config).extend(structured(x), np.full(len(x), None, dtype=object))
    return np.column_stack([table[column.name] for column in config.columns])


def _mean(found: list[Outcome]) -> tuple[float, str]:
    accuracies = [each.accuracy for each in found]
    note = f"{len(found)} seeds, {min(accuracies):.2f} to {max(accuracies):.2f}"
    return float(np.mean(accuracies)), note if len(found) > 1 else ""
