"""Replays of real streams: accuracy, cost and useful life of frozen, retraining and the ladder.

``--only elec2`` runs one stream and keeps the figures of the others. An interrupt (Ctrl-C) ends a
stream with the policies that are finished; the next run of the same code resumes it from
``.cache/bench/replay``. A stream is timed at its own pace where its data tell it, else at an event
a second. ``--only speed`` measures the loop alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench._replay_streams import STREAMS, Stream
from bench.report import Row, row
from bench.streams import NoData
from daemon.config import Config
from daemon.replay import Replay, measure, parse, read

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench" / "replay"
POLICIES = ("frozen", "ladder", "online", "every:1000:head", "at-alarm")
NEAR_BEST, SHARE_OF_COST, LONGER_LIFE, NO_WORSE = -0.3, 1 / 3, 3.0, -0.2
QUICK_EVENTS = 3_000


def rows(quick: bool) -> Iterator[Row]:
    """Run the streams; quick: the beginning of NOAA, with the policies that train only heads."""
    if quick:
        yield from _quick()
        return
    for part in PARTS.values():
        yield from part(quick)


def stream(name: str, quick: bool) -> Iterator[Row]:
    """One stream under all policies; quick: not at all."""
    if quick:
        return
    make = STREAMS[name]
    try:
        figures = replayed(name, make())
    except NoData as reason:
        yield Row(f"{name}: accuracy", None, note=str(reason))
        return
    yield from judged(name, make().drifts, figures)


def _code() -> str:
    """What tells this code from any other: its results are not those of another."""
    digest = hashlib.sha256()
    for room in ("bench", "daemon", "deploy", "drift", "learn", "registry"):
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def replayed(
    name: str, stream: Stream, policies: Sequence[str] = POLICIES, place: Path | None = None
) -> dict[str, Any]:
    """The figures of each policy on the stream."""
    place = place or CACHE / _code()
    path = place / f"{name}.jsonl"
    if not path.exists():
        stream.write(path)
    config = Config.model_validate(
        {**stream.settings, "source": {"kind": "file", "path": str(path)}}
    )
    recording = read(config)
    replay = Replay(config, recording, parse(policies, config), place / name)
    replay.prepare(resume=True)
    try:
        outcomes = replay.run()
    except KeyboardInterrupt:
        outcomes = replay.finished()
    if not outcomes:
        return {"figures": {}}
    found = measure(recording, outcomes)
    return {
        "target": found.target,
        "yardsticks": found.yardsticks,
        "figures": found.figures,
    }


def judged(name: str, drifts: bool, found: dict[str, Any]) -> Iterator[Row]:
    """Each policy's figures, and the ladder's against what was promised of it."""
    figures = found["figures"]
    if not {"ladder", "frozen"} <= figures.keys():
        yield Row(f"{name}: ladder", None, note="interrupted before it was finished: run it again")
        return
    beside = found["yardsticks"]
    note = ", ".join(f"{k} {100 * v:.1f}" for k, v in beside.items())
    for policy, f in figures.items():
        yield row(f"{name}: {policy}", 100 * f["accuracy"], "%", note=_told(f) + f"; {note}")
    ladder, frozen = figures["ladder"], figures["frozen"]
    if not drifts:
        gain = 100 * (ladder["accuracy"] - frozen["accuracy"])
        yield row(f"{name}: ladder over frozen", gain, "points", f">= {NO_WORSE}")
        steps = f"and {ladder['follow_ups']:,} steps that followed what it learns online"
        yield row(f"{name}: promotions without drift", ladder["promotions"], "", "<= 1", steps)
        return
    best = max(figures, key=lambda k: figures[k]["accuracy"])
    behind = 100 * (ladder["accuracy"] - figures[best]["accuracy"])
    target = f">= {NEAR_BEST}" if len(figures) == len(POLICIES) else ""
    named = f"best of {len(figures)}: {best}"
    yield row(f"{name}: ladder over the best", behind, "points", target, named)
    yield _cost(name, figures)
    ratio, life = ladder["useful_life_ratio"], ladder["useful_life"]
    if ratio is None:
        why = "frozen lives to the end"
        yield Row(f"{name}: useful life over frozen", None, note=why)
        return
    told = "lives to the end" if life is None else f"{life:,} events"
    yield row(
        f"{name}: useful life over frozen",
        ratio,
        "x",
        f">= {LONGER_LIFE:g}",
        f"{told}, frozen {frozen['useful_life']:,}; target {100 * found['target']:.1f} %",
    )


def _cost(name: str, figures: dict[str, Any]) -> Row:
    figure = f"{name}: CPU over retraining at alarms"
    if "at-alarm" not in figures:
        return Row(figure, None, note="at-alarm was not run to its end")
    full = figures["at-alarm"]["training_cpu_seconds"]
    if not full:
        return Row(figure, None, note="nothing was retrained at an alarm")
    share = figures["ladder"]["training_cpu_seconds"] / full
    return row(figure, share, "", f"<= {SHARE_OF_COST:.4f}")


def _told(f: dict[str, Any]) -> str:
    life = "to the end" if f["useful_life"] is None else f"{f['useful_life']:,}"
    avoided = f["errors_avoided_per_cpu_second"]
    parts = [
        f"{f['training_cpu_seconds']:,.0f} CPU-s of training",
        f"{f['refreshes']} refreshes, {f['promotions']} promotions and {f['follow_ups']:,} steps"
        f" that followed, {f['rollbacks']} rollbacks",
        f"below target {f['below_target']:.0%}, life {life}",
        f"kappa-temporal {f['kappa_temporal']:.2f}",
    ]
    if avoided is not None:
        parts.append(f"{avoided:,.1f} errors avoided a CPU-s")
    if f["forgetting"] is not None:
        parts.append(f"forgot {100 * f['forgetting']:.1f} points")
    return "; ".join(parts)


def speed(quick: bool) -> Iterator[Row]:
    """The loop on embeddings at hand, in full batches: a stream without drift, nothing trained."""
    if quick:
        return
    try:
        stream = STREAMS["elec2-shuffled"]()
    except NoData as reason:
        yield Row("speed", None, note=str(reason))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.jsonl")
        stream.write(path)
        config = Config.model_validate(
            {**stream.settings, "source": {"kind": "file", "path": str(path)}}
        )
        recording = read(config)
        for turn, target in ((256, ">= 20000"), (32, "")):
            place = Path(folder, f"turn-{turn}")
            replay = Replay(config, recording, parse(["frozen"], config), place, events_a_turn=turn)
            replay.prepare(resume=False)
            (outcome,) = replay.run()
            events = int((outcome.predicted >= 0).sum())
            pace = events / outcome.loop_cpu_seconds
            figure = f"speed: kept embeddings, {turn} events a turn"
            yield row(figure, pace, "events/CPU-s", target, f"{events:,} events, with arming")


def _quick() -> Iterator[Row]:
    try:
        stream = STREAMS["noaa"]()
    except NoData as reason:
        yield Row("noaa", None, note=str(reason))
        return

    def beginning() -> Iterator[dict[str, Any]]:
        return (event for _, event in zip(range(QUICK_EVENTS), stream.events(), strict=False))

    with tempfile.TemporaryDirectory() as folder:
        some = dataclasses.replace(stream, events=beginning)
        found = replayed("noaa", some, ("frozen", "ladder", "online"), Path(folder))
    yield from judged(f"noaa, {QUICK_EVENTS:,} events", True, found)


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    **{name: partial(stream, name) for name in STREAMS},
    "speed": speed,
}
