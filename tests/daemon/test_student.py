"""A student in the loop: asked for, proven to lose little, watched by the same measure."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from daemon.config import Config
from daemon.job import RESULT
from deploy.session import MODEL_FILE
from tests.daemon.loops import loop_of
from tests.daemon.small_text import pretrained, texts_of

TURN = 1800


@pytest.fixture
def config(tmp_path):
    """Texts of three classes; from `TURN` on two of them have changed places."""
    (tmp_path / "base").mkdir()
    labels = np.arange(3600) % 3
    lines = [
        json.dumps({"id": f"e{i}", "text": text, "label": "abc"[k if i < TURN else 2 - k]})
        for i, (text, k) in enumerate(zip(texts_of(labels, 5), labels, strict=True))
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    return Config.model_validate(
        {
            "model": {"base": str(pretrained(tmp_path / "base", 64, 4))},
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id"},
            "bootstrap": {"warmup_events": 300},
            "drift": {"reference_events": 300},
            "policy": {"rungs": ["head"], "settle_events": 100, "follow": {"events": 0}},
            "learn": {"student": {"rounds": 20, "batch": 16, "rate": 0.01, "texts": 600}},
            "gate": {"student_points": 5.0, "parity_points": 10.0},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state"), "every_seconds": 600},
            "trainer": {"nice": 0},
        }
    )


def wait_for_trainer(loop):
    """Until it is done; the stream stands still meanwhile."""
    deadline = time.monotonic() + 120
    while loop.repair.trainer.running and not (loop.repair.trainer.job_folder / RESULT).exists():
        assert time.monotonic() < deadline, "the trainer did not end"
        time.sleep(0.02)


def run_until(loop, done, events):
    while not done():
        assert loop.state.events < events, [r.fields for r in loop.registry.journal.rows()][-3:]
        wait_for_trainer(loop)
        loop.step()


def test_a_student_takes_over_and_learns_like_any_champion(config):
    loop = loop_of(config)
    state, registry = loop.state, loop.registry
    loop.start()
    run_until(loop, lambda: loop.champion is not None and state.watch.armed, 1000)
    first = loop.champion
    registry.request("refresh", {"rung": "student"}, actor="test", reason="small machines")
    run_until(loop, lambda: loop.champion.version != first.version, 1600)
    student = loop.champion
    assert registry.version(student.version).manifest.rung == "student"
    assert student.encoder != first.encoder
    assert first.folder is not None
    assert student.folder is not None
    sizes = [(served.folder / MODEL_FILE).stat().st_size for served in (first, student)]
    assert sizes[1] < sizes[0]
    verdict = list(registry.journal.rows(kinds=("verdict",)))[-1].fields
    assert "to lose less than 5 points" in verdict["reason"]
    started = next(iter(registry.journal.rows(kinds=("refresh-started",)))).fields
    assert started["rung"] == "head"
    # What it was allowed to lose is no reason to take it back, over a restart too.
    assert state.probation.test.margin == 0.05
    loop.checkpoint()
    loop.close("the test is over")

    again = loop_of(config)
    again.start()
    state = again.state
    assert state.probation.test.margin == 0.05
    run_until(again, lambda: state.watch.armed and state.events > TURN - 100, TURN)
    # Monitors, memory and the online head are of the student's embeddings now.
    assert state.memory.encoder == student.encoder
    recent = state.memory.recent(50)
    np.testing.assert_allclose(
        np.nan_to_num(recent.embeddings), student.answer(recent.inputs).embeddings, atol=0.1
    )
    assert state.prequential.since(state.champion_event).mean() > 0.8
    # A drift is noticed on them, and repaired by a head on the student.
    run_until(again, lambda: again.champion.version != student.version, 3600)
    assert again.champion.encoder == student.encoder
    assert registry.version(again.champion.version).manifest.rung == "head"
    again.close("the test is over")


def drift():
    """A diagnosis, as far as the repair reads it."""
    from types import SimpleNamespace

    return SimpleNamespace(
        kind="concept", severity=0.5, sentence=lambda names: "a drift", as_dict=dict
    )


def test_a_drift_ends_the_making_of_a_student(config):
    loop = loop_of(config)
    loop.start()
    run_until(loop, lambda: loop.champion is not None, 1000)
    loop.repair.request("student", "small machines")
    incident = loop.state.incident
    # It learns all that the champion knows, not only what came since.
    assert incident.onset_event == loop.state.regime_event
    loop.repair.advance(loop.champion, paused=False, pinned=False)
    assert loop.repair.trainer.running
    loop.repair.alarm(drift(), loop.state.events)
    assert not loop.repair.trainer.running
    assert loop.state.incident is not incident
    assert loop.state.incident.cause == "drift"
    closed = list(loop.registry.journal.rows(kinds=("incident-closed",)))[-1].fields
    assert (closed["outcome"], closed["reason"]) == ("superseded", "the stream drifted")
    loop.close("the test is over")
