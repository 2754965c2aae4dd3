"""Events that carry their prediction: all count as they were answered, a part is looked at."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

from daemon.config import Config
from daemon.looks import BURST, TELL_SECONDS, Looks
from daemon.loop import Loop
from tests.daemon.loops import loop_of

ROWS = 2600


def write(path: Path, **more: Any) -> list[dict[str, Any]]:
    """Rows of which nine in ten are answered rightly; every fifth by another version."""
    random = np.random.default_rng(5)
    events = []
    for i in range(ROWS):
        a, b = random.normal(size=2)
        label = "yes" if a + 0.5 * b > 0 else "no"
        other = {"yes": "no", "no": "yes"}[label]
        event = {"id": f"e{i}", "a": a, "b": b, "label": label}
        event["said"] = label if random.random() < 0.9 else other
        event["by"] = "v0009" if i % 5 == 0 else "v0001"
        events.append(event | more)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return events


def make(tmp_path: Path, looks: float) -> Loop:
    config = Config.model_validate(
        {
            "model": {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]},
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id", "prediction": "said", "version": "by"},
            "events": {"looks_share": looks},
            "dead_letters": {"kind": "file", "path": str(tmp_path / "dead.jsonl")},
            "bootstrap": {"warmup_events": 400},
            "policy": {"rungs": ["recall", "head"], "settle_events": 300},
            "gate": {"size_ratio": 10.0, "parity_points": 10.0},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state"), "ledger": True},
        }
    )
    return loop_of(config)


def first_version(loop: Loop) -> int:
    """Run until one serves; how many events came before it."""
    loop.start()
    while loop.champion is None:
        loop.step()
    return loop.state.events


def ledger(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "state" / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)[0] for line in lines]


@pytest.mark.parametrize("looks", [1e-6, 1.0])
def test_each_counts_once_for_who_answered_it_whether_looked_at_or_not(
    tmp_path: Path, looks: float
) -> None:
    events = write(tmp_path / "events.jsonl")
    loop = make(tmp_path, looks)
    before = first_version(loop)
    loop.run(threading.Event())
    loop.close("the test is over")
    state = loop.state
    assert loop.status()["events"] == state.events + state.passed == ROWS
    assert sorted(ledger(tmp_path)) == sorted(event["id"] for event in events)
    if looks < 1:
        assert state.events - before <= BURST + 1
    else:
        assert state.events - before > 4 * BURST
    after = events[before:]
    for version in ("v0001", "v0009"):
        mine = [event["said"] == event["label"] for event in after if event["by"] == version]
        assert (state.records[version].labelled, state.records[version].right) == (
            len(mine),
            sum(mine),
        )
    assert state.prequential.labelled == state.records["v0001"].labelled
    assert 0.85 < state.prequential.accuracy < 0.95

    # A restart knows both counts.
    again = make(tmp_path, looks)
    again.start()
    assert (again.state.events, again.state.passed) == (state.events, state.passed)
    again.close("the test is over")


def test_a_label_that_comes_late_counts_for_the_answer_that_was_carried(tmp_path: Path) -> None:
    events = write(tmp_path / "events.jsonl")
    loop = make(tmp_path, 1e-6)
    before = first_version(loop)
    for event in events[before:]:
        event["label"] = None
    late = [{**e, "label": "yes", "said": None, "by": None} for e in events[-50:]]
    assert before < ROWS - 50
    lines = [*events, *late]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    loop.close("the test is over")

    # The same stream, its labels gone, then some of them by themselves.
    (tmp_path / "more.jsonl").replace(tmp_path / "events.jsonl")
    again = make(tmp_path, 1e-6)
    again.start()
    again.run(threading.Event())
    for version in ("v0001", "v0009"):
        mine = [event["said"] == "yes" for event in events[-50:] if event["by"] == version]
        found = again.state.records[version]
        assert (found.labelled, found.right) == (len(mine), sum(mine))
    again.close("the test is over")


def test_an_unknown_prediction_is_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "events.jsonl", said=None, by=None)
    loop = make(tmp_path, 1e-6)
    before = first_version(loop)
    loop.run(threading.Event())
    loop.close("the test is over")
    assert loop.state.passed == 0
    assert loop.state.events == ROWS
    assert loop.state.prequential.labelled == ROWS - before


class ByHand:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


def test_looks_are_a_steady_budget_and_it_is_told_when_not_all_events_get_one() -> None:
    clock = ByHand()
    looks = Looks(0.1, clock)
    looked = 0
    for _ in range(1000):
        clock.now += 0.1
        rows = looks.choose(400)
        assert len(set(rows.tolist())) == len(rows)
        assert not len(rows) or 0 <= rows.min() <= rows.max() < 400
        if len(rows):
            looks.spent(0.001 * len(rows), len(rows))
        looked += len(rows)
    assert looked == pytest.approx(0.1 * 100 / 0.001, rel=0.05)
    share = looks.news()
    assert share == pytest.approx(looked / 400_000)
    assert looks.sampling
    assert looks.news() is None
    # A stream that is slow enough is looked at whole, which is told once.
    for _ in range(200):
        clock.now += 1.0
        if looks.news() is not None:
            break
        assert len(looks.choose(20)) == 20
        looks.spent(0.02, 20)
    assert not looks.sampling
    assert clock.now < 100 + 3 * TELL_SECONDS
