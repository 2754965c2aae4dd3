"""Versions that follow what learns online: proven as a process, watched as a run, ended by many."""

from __future__ import annotations

import json
import threading
from collections import Counter

import numpy as np
import pytest

from daemon.config import Config
from daemon.evidence import Tally
from daemon.following import Met
from learn.examples import Examples
from tests.daemon.loops import loop_of

pytestmark = pytest.mark.timeout(300)

ROWS, WARM_UP = 3000, 300


@pytest.fixture
def config(tmp_path):
    """Rows whose border turns all the time, so that a model is never done learning."""
    random = np.random.default_rng(3)
    lines = []
    for i in range(ROWS):
        x, angle = random.normal(size=2), 2 * np.pi * i / 2500
        truth = bool(x[0] * np.cos(angle) + x[1] * np.sin(angle) > 0)
        row = {"id": f"e{i}", "a": x[0], "b": x[1], "label": "yes" if truth else "no"}
        lines.append(json.dumps(row))
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return Config.model_validate(
        {
            "model": {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]},
            "source": {"kind": "file", "path": str(path)},
            "fields": {"id": "id"},
            "dead_letters": {"kind": "none"},
            "bootstrap": {"warmup_events": WARM_UP},
            "policy": {"rungs": ["online"], "follow": {"events": 64, "seconds": 0}},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {
                "path": str(tmp_path / "state"),
                "every_events": 10_000,
                "every_seconds": 600,
            },
        }
    )


def make_loop(config):
    loop = loop_of(config)
    loop.start()
    return loop


def run_until(loop, true):
    for _ in range(20_000):
        loop.step()
        if true():
            return
    raise AssertionError("it never came to that")


@pytest.fixture
def followed(config):
    """A loop in a run that has taken a few steps."""
    loop = make_loop(config)
    run_until(loop, lambda: loop.state.following and loop.state.following.steps >= 3)
    yield loop
    loop.close("the test is over")


def kinds(loop):
    return Counter(row.kind for row in loop.registry.journal.rows())


def test_the_champion_keeps_up_with_what_learns_online(config):
    loop = make_loop(config)
    loop.run(threading.Event())
    loop.close("the test is over")
    found, registry = kinds(loop), loop.registry
    assert found["followed"] == found["follow"] > 5
    first = next(row for row in registry.journal.rows() if row.kind == "verdict").fields
    assert first["decision"] == "promote"
    assert {"paired", "negative_flips", "agreement"} <= {c["name"] for c in first["checks"]}
    # Frozen, it would be right as often as wrong by now; the labels of the last 64 are not in.
    assert loop.state.prequential.recent_accuracy > 0.85
    # What was passed over is gone, and a rollback leads back to what was proven.
    state, run = registry.state(), loop.state.following
    steps = [v for v in registry.versions() if "follows" in v.manifest.lineage]
    assert len(steps) <= 6 + len(state.chain)
    assert loop.state.probation.previous == state.previous
    lineage = registry.version(state.champion).manifest.lineage
    assert lineage["follows"] == state.previous
    (place,) = lineage["trained_on"]
    assert place["end"] <= ROWS
    assert f'driftd_follow_ups_total{{model="model"}} {found["followed"]}.0' in (
        loop.metrics.exposition().decode()
    )
    # It answers as one version: what was answered by its steps is counted in one place.
    assert run.first in loop.state.records
    assert len(loop.state.records) < 6


def test_a_run_goes_on_after_a_restart_where_it_was(config, followed):
    followed.checkpoint()
    known = followed.state.following.version
    run_until(followed, lambda: followed.state.following.steps >= 6)
    champion, events = followed.state.champion, followed.state.events
    assert champion != known
    # It dies without another checkpoint, and reads some events again.
    again = make_loop(config)
    try:
        run, state = again.state.following, again.state
        assert state.champion == run.version == champion
        assert state.events < events
        assert state.judged_from > state.events
        judged = state.probation.test.events
        again.step()
        assert state.probation.test.events == judged
        run_until(again, lambda: state.champion != champion)
        assert kinds(again)["follow-ended"] == 0
    finally:
        again.close("the test is over")


def test_a_student_is_held_against_a_champion_that_stays(followed):
    repair, state = followed.repair, followed.state
    repair.request("student", "small machines")
    closed = list(followed.registry.journal.rows(kinds=("incident-closed",)))[-1].fields
    assert closed["reason"] == "a student needs a text model: a table's is small already"
    assert state.incident is None
    assert state.following is not None  # for a table nothing was begun
    text = repair.config.model.model_copy(update={"task": "text"})
    repair.config = repair.config.model_copy(update={"model": text})
    repair.request("student", "small machines")
    assert state.following is None
    state.follow_after = 0
    state.learner.test.observe(np.ones(900, bool), np.zeros(900, bool))
    assert not repair._keep_up(followed.champion)
    repair._close("failed", "the test goes on")
    assert repair._keep_up(followed.champion)


@pytest.mark.parametrize("order", ["pin", "pause", "rollback"])
def test_an_operator_ends_a_run(followed, order):
    registry, state = followed.registry, followed.state
    champion, proven = state.champion, registry.state().previous
    getattr(registry, order)(actor="ann", reason="to look at it")
    run_until(followed, lambda: state.following is None)
    row = next(row for row in registry.journal.rows() if row.kind == "follow-ended")
    assert row.fields["version"] == champion
    assert state.champion == (proven if order == "rollback" else champion)
    assert state.follow_after == row.fields["event"] + followed.config.policy.settle_events
    for _ in range(4):
        followed.step()
    later = [r for r in registry.journal.rows(row.seq) if r.kind in ("followed", "verdict")]
    assert all(r.fields["event"] >= state.follow_after for r in later)
    assert order == "rollback" or not later


def test_a_run_that_is_shown_worse_is_taken_back_as_a_whole(followed):
    state, proven = followed.state, followed.state.probation.previous
    assert proven == followed.registry.state().previous
    wrong = np.zeros(600, dtype=np.bool_)
    state.probation.test.observe(wrong, ~wrong)
    run_until(followed, lambda: state.champion == proven)
    assert state.following is None
    found = kinds(followed)
    assert found["rollback"] == found["follow-ended"] == found["probation-failed"] == 1
    # What learns online has learned anew, from what is in memory.
    assert state.met.events <= state.events


def test_a_run_that_is_proven_is_held_against_itself(followed):
    state = followed.state
    earlier = state.probation.previous
    right = np.ones(200, dtype=np.bool_)
    state.probation.test.observe(right, ~right)
    run_until(followed, lambda: state.probation.previous != earlier)
    proven = state.probation.previous
    assert state.following.covers(proven)
    assert state.probation.test.events < 200
    run_until(followed, lambda: state.champion != proven)
    # A rollback leads back to it, and then to what was proven before.
    chain = followed.registry.state().chain
    assert chain.index(earlier) < chain.index(proven)


def test_a_step_that_has_forgotten_the_anchor_is_the_last(followed, monkeypatch):
    state, champion = followed.state, followed.state.champion

    def forgotten(challenger, champion):
        return Tally(events=200, losses=150)

    state.following.anchored = True
    state.incident = None
    monkeypatch.setattr(followed.repair, "_anchored", forgotten)
    run_until(followed, lambda: state.following is None)
    assert state.champion == champion
    row = next(row for row in followed.registry.journal.rows() if row.kind == "follow-ended")
    assert "anchor" in row.fields["reason"]


def test_what_learns_online_is_given_up_for_now_at_the_gates_deadline(followed):
    state = followed.state
    followed.repair.end_following("to begin again")
    state.follow_after = 0
    same = np.ones(3000, dtype=np.bool_)
    state.learner.test.observe(same, same)
    followed.repair.advance(followed.champion, paused=False, pinned=False)
    assert state.learner.test.events < 3000
    assert kinds(followed)["learner-rejected"] == 1
    assert state.follow_after > state.events - 300


def test_following_can_be_switched_off_and_gives_way_to_canaries(config):
    loop = make_loop(config)
    assert loop.repair._may_follow
    for change in (
        {"policy": {**config.policy.model_dump(), "follow": {"events": 0}}},
        {"policy": {**config.policy.model_dump(), "online_head": False}},
        {"gate": {"canary": {"steps": [10, 100]}}},
        {"probation": {"events": 0}},
    ):
        loop.repair.config = Config.model_validate({**config.model_dump(), **change})
        assert not loop.repair._may_follow
    loop.close("the test is over")


def test_what_was_met_is_a_few_stretches():
    met = Met()
    met.add(Examples.empty())
    assert met.lineage() == []
    for offsets in ([4, 6], [9], [2]):
        n = len(offsets)
        met.add(
            Examples(
                ids=np.array([str(o) for o in offsets], dtype=object),
                times=np.full(n, 10.0),
                inputs=np.array(["text"] * n, dtype=object),
                labels=np.zeros(n, np.int64),
                embeddings=None,
                weights=np.ones(n, np.float32),
                topics=np.array(["a/b"] * n, dtype=object),
                partitions=np.zeros(n, np.int32),
                offsets=np.array(offsets),
                arrivals=np.array(offsets),
            )
        )
    assert met.lineage() == [{"topic": "a/b", "partition": 0, "start": 2, "end": 10}]
    assert Met.restored(json.loads(json.dumps(met.values()))) == met
