"""What the operator asked for, as the number of events a detector is calibrated to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drift import DriftConfig, Monitors, NoTraffic
from drift.budget import RESERVE, events_per_alarm, traffic


@pytest.mark.parametrize(
    ("asked", "events"),
    [(500, 500), ("1 per hour", 360), ("2 per day", 4_320), ("3 per week", 20_160)],
)
def test_a_budget_per_time_is_one_in_events(asked: int | str, events: int) -> None:
    assert events_per_alarm(asked, np.arange(1_000) * 10.0) == events


def test_a_budget_is_never_below_what_can_be_calibrated() -> None:
    assert events_per_alarm("100 per hour", np.arange(1_000) * 60.0) == 100


def test_wrong_clocks_do_not_change_the_traffic(world: Any) -> None:
    times = np.arange(1_000) * 10.0
    times[[5, 77]] = 0.0, 4e9
    times[400:420] -= 3_600
    times[[9, 10]] = np.nan, np.inf
    assert traffic(times) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("times", [np.zeros(0), np.zeros(500), np.full(500, np.nan), np.ones(1)])
def test_times_that_tell_nothing_are_refused(times: Any) -> None:
    with pytest.raises(NoTraffic, match=r"fields\.time"):
        events_per_alarm("1 per day", times)


@pytest.mark.parametrize("wrong", ["0 per day", "1 per second", "per day", "1.5 per day", 99, ""])
def test_a_budget_in_no_such_unit_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        DriftConfig.model_validate({"false_alarm": wrong})


def test_monitors_keep_the_budget_of_their_reference(make_world: Any) -> None:
    world = make_world(seed=3)
    reference = world.events(1_000)
    monitors = Monitors(DriftConfig(false_alarm="1 per day", detectors=("error_rate",)))
    assert monitors.budget == 0
    monitors.fit(reference)
    assert monitors.budget == events_per_alarm("1 per day", reference.times)
    (first,) = monitors.observe(world.events(0))
    # Evidence that begins anew at every event, stopped at A, runs for A events: see `eprocess`.
    assert first.threshold == pytest.approx(np.log1p(RESERVE * monitors.budget), abs=1e-4)

    again = Monitors(monitors.config)
    again.restore(monitors.state())
    assert again.budget == monitors.budget
    (second,) = again.observe(world.events(0))
    assert second.threshold == first.threshold
