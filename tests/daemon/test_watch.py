"""The watch over a champion: which budget its monitors keep, and that a restart keeps it too."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from daemon.watch import Watch
from drift import DriftConfig, Observations
from drift.budget import DEFAULT


def events(count: int, seed: int) -> Observations:
    """Events of two classes, a fifth answered wrongly, all at the same time."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    answers = np.where(random.random(count) < 0.2, 1 - labels, labels)
    return Observations(
        random.normal(size=(count, 4)).astype(np.float32),
        np.eye(2, dtype=np.float32)[answers],
        labels,
        np.zeros(count),
    )


def test_a_stream_without_traffic_is_watched_on_the_default_budget_across_restarts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = DriftConfig(false_alarm="1 per day", detectors=("error_rate",))
    watch = Watch(config, settle_events=500)
    watch.rearm("encoder")
    with caplog.at_level(logging.ERROR, "driftd.watch"):
        watch.observe(events(500, seed=1))
    assert "fields.time" in caplog.text
    assert watch.monitors is not None
    assert watch.monitors.budget == DEFAULT
    watch.observe(events(300, seed=2))

    caplog.clear()
    again = Watch(config, settle_events=500)
    again.restore(watch.state())
    assert not caplog.records
    # Not fitted anew: what was gathered since the fit is still there.
    rest = events(100, seed=3)
    assert again.observe(rest) == watch.observe(rest)
