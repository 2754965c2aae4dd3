"""A stream that runs ahead: all of it is watched, a journalled sample of it is learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.pace import Pace
from daemon.stream_config import EventsConfig
from registry import open_registry
from tests.daemon.test_delayed_labels import Daemon, rows


def test_a_sample_is_learned_while_behind_and_the_journal_says_so(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "registry", create=True)
    metrics = Metrics("m")
    pace = Pace(
        EventsConfig(behind_events=100, behind_share=0.25),
        JournalWriter(registry.journal, lambda: 7),
        metrics,
    )
    ids = np.array([f"e{n}" for n in range(1000)], dtype=object)
    pace.look(None)
    pace.look(100)
    assert pace.learned(ids).all()
    pace.look(101)
    first = pace.learned(ids)
    assert 180 < first.sum() < 320
    assert (pace.learned(ids) == first).all()  # by the id alone
    assert b'driftd_learning_share{model="m"} 0.25' in metrics.exposition()
    pace.look(51)
    assert pace.behind
    pace.look(50)
    assert pace.learned(ids).all()
    begun, ended = registry.journal.rows(kinds=["learning-sampled", "learning-whole"])
    assert begun.fields["lag_events"] == 101
    assert ended.fields["left_out"] == 2 * int((~first).sum())


def test_what_is_left_out_is_watched_and_counted_all_the_same(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 700)
    daemon.put("events", events[:400])
    daemon.put("labels", labels[:400])
    daemon.turn()
    daemon.bootstrap()
    loop = daemon.loop
    loop.pace = Pace(EventsConfig(behind_events=1), loop.journal, loop.metrics)
    loop.pace.look(10_000)
    loop.source.lag = lambda: 10_000  # type: ignore[method-assign]
    daemon.put("events", events[400:])
    daemon.put("labels", labels[400:])
    daemon.turn()
    assert loop.state.events == 700
    assert loop.state.prequential.labelled == 300
    learned = len(daemon.memory()) - 400
    assert 30 < learned < 130
    assert loop.state.watch.armed  # which takes 300 labelled events
