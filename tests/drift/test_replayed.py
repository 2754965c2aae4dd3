"""River's detectors alarm where river does, and as often as the budget allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from river import drift as river

from drift import DriftConfig, Monitors
from drift.budget import RESERVE
from drift.concept.adwin import ADWIN
from drift.concept.ddm import DDM
from drift.concept.hddm_w import HDDMW
from drift.concept.page_hinkley import PageHinkley
from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RATES, BudgetOutOfReach, RunLengths
from drift.ensemble import RIVER
from drift.measures import Interval
from drift.signal import NotEnoughReference, Observations, Signal

Outcomes = Callable[[NDArray[np.bool_]], Observations]


def alarms(signal: Signal) -> list[int]:
    at = signal.evidence["at"]
    assert isinstance(at, list)
    return at


@pytest.mark.parametrize(
    ("wrapper", "original"),
    [
        (ADWIN, river.ADWIN),
        (HDDMW, river.binary.HDDMW),
        (PageHinkley, lambda: river.PageHinkley(mode="up")),
    ],
)
def test_at_river_s_settings_it_alarms_where_river_does(
    wrapper: type[ReplayedDetector],
    original: Callable[[], RiverDetector],
    outcomes: Outcomes,
) -> None:
    random = np.random.default_rng(3)
    wrong = random.random(4_000) < np.repeat([0.1, 0.4, 0.4, 0.8], 1_000)
    detector = wrapper(false_alarm=None)
    detector.fit(outcomes(wrong[:0]))
    reference, expected = original(), []
    for event, error in enumerate(wrong.tolist()):
        reference.update(int(error))
        if reference.drift_detected:
            expected.append(event)
    assert expected
    found = alarms(detector.observe(outcomes(wrong)))
    if wrapper is ADWIN:  # alarms on chance falls too; those we leave out
        assert set(found) <= set(expected)
    else:
        assert found == expected
    for start in (1_000, 3_000):
        assert min(e for e in expected if e > start) in found


def test_a_better_model_is_no_alarm(outcomes: Outcomes) -> None:
    random = np.random.default_rng(4)
    detector = ADWIN()
    detector.fit(outcomes(random.random(1_000) < 0.5))
    assert not detector.observe(outcomes(random.random(1_000) < 0.05)).alarmed
    assert detector.observe(outcomes(random.random(1_000) < 0.5)).alarmed


@pytest.mark.parametrize("name", sorted(RIVER))
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4])
def test_false_alarms_are_what_the_budget_says(name: str, rate: float, outcomes: Outcomes) -> None:
    """The tables hold for the river that is installed."""
    # KSWIN takes a quarter of a millisecond an event.
    budget, events = (500, 8_000) if name == "kswin" else (2_000, 120_000)
    random = np.random.default_rng(5)
    detector = RIVER[name](budget)
    # A reference that leaves the rate in no doubt: else the worst it may be is what counts.
    detector.fit(outcomes(random.random(100_000) < rate))
    found = len(alarms(detector.observe(outcomes(random.random(events) < rate))))
    expected = events / budget
    assert found <= 1.6 * expected
    # A jump may lie between two settings; DDM and EDDM alarm soon after a fit, then hardly ever.
    if not detector.run_lengths.stepped and name not in ("ddm", "eddm"):
        assert found >= expected / 3


@pytest.mark.parametrize("name", sorted(RIVER))
def test_a_longer_budget_is_a_less_sensitive_setting(name: str, outcomes: Outcomes) -> None:
    reference = outcomes(np.random.default_rng(6).random(4_000) < 0.2)
    settings = []
    for budget in (1_000, 10_000, 100_000):
        detector = RIVER[name](budget)
        detector.fit(reference)
        evidence = detector.observe(reference.take(slice(0, 0))).evidence
        assert isinstance(evidence["setting"], dict)
        settings.append(evidence["setting"][detector.parameter])
    least = detector.run_lengths.settings[-1]
    assert len(set(settings)) == 3
    distances = [abs(np.log(least / setting)) for setting in settings]
    assert distances == sorted(distances, reverse=True)


def test_the_setting_goes_into_the_state(outcomes: Outcomes) -> None:
    random = np.random.default_rng(7)
    detector, restored = PageHinkley(1_000), PageHinkley(1_000)
    detector.fit(outcomes(random.random(4_000) < 0.2))
    restored.restore({key: value.copy() for key, value in detector.state().items()})
    worse = outcomes(random.random(500) < 0.4)
    found, again = detector.observe(worse), restored.observe(worse)
    assert found == again
    assert found.evidence["setting"] != {"threshold": PageHinkley.default}


def test_a_budget_out_of_reach_is_refused_with_the_numbers(outcomes: Outcomes) -> None:
    """DDM's first error after 30 right answers is an alarm, whatever its threshold."""
    rare = np.zeros(4_000, dtype=np.bool_)
    rare[::500] = True
    detector = DDM(20_000)
    with pytest.raises(BudgetOutOfReach, match=r"ddm cannot keep .* 20,000 .* 0.2% .* one per"):
        detector.fit(outcomes(rare))
    monitors = Monitors(DriftConfig(detectors=("error_rate", "ddm")))
    monitors.fit(outcomes(rare))
    assert set(monitors.waiting) == {"ddm"}
    assert "cannot keep" in monitors.distances()[1].sentence()


def test_too_few_labels_are_refused_with_the_numbers(outcomes: Outcomes) -> None:
    few = outcomes(np.zeros(50, dtype=np.bool_))
    with pytest.raises(NotEnoughReference, match=r"at least 200 labelled events.* has 50"):
        ADWIN().fit(few)
    unlabelled = replace(outcomes(np.zeros(500, dtype=np.bool_)), labels=np.full(500, -1))
    with pytest.raises(NotEnoughReference, match="has 0"):
        ADWIN().fit(unlabelled)
    ADWIN(None).fit(few)  # river's own setting asks nothing of the reference


def test_at_river_s_settings_the_others_have_the_budget_to_themselves(world: Any) -> None:
    names: Any = ("error_rate", "adwin", "hddm_w")
    reference = world.events(1_000)
    thresholds, deltas = [], []
    for defaults in (False, True):
        monitors = Monitors(DriftConfig(detectors=names, river_defaults=defaults))
        monitors.fit(reference)
        error_rate, adwin, _ = monitors.observe(reference.take(slice(0, 0)))
        thresholds.append(error_rate.threshold)
        assert isinstance(adwin.evidence["setting"], dict)
        deltas.append(adwin.evidence["setting"]["delta"])
    assert thresholds[0] == pytest.approx(np.log1p(RESERVE * 60_000))
    assert thresholds[1] == pytest.approx(np.log1p(RESERVE * 20_000))
    assert deltas[1] == 0.002 != deltas[0]


TABLE = RunLengths(
    settings=(10.0, 20.0, 40.0),
    events=(
        (100, 100, 100, 100, 100, 100, 100),
        (1_000, 1_000, 1_000, 400, 1_000, 1_000, 1_000),
        (800, 9_000, 9_000, 9_000, 9_000, 9_000, 9_000),
    ),
)


def test_the_worst_rate_in_the_interval_counts() -> None:
    assert TABLE.at(Interval(0.05, 0.05, 0.05))[1] == pytest.approx(1_000)
    assert TABLE.at(Interval(0.1, 0.05, 0.3))[1] == pytest.approx(400)
    # Outside of what was measured, the nearest that was.
    assert TABLE.at(Interval(0.0, 0.0, 0.0))[2] == pytest.approx(800)
    assert TABLE.at(Interval(1.0, 1.0, 1.0))[2] == pytest.approx(9_000)
    assert len(RATES) == len(TABLE.events[0])


def test_between_two_settings_and_beyond_them() -> None:
    at = Interval(0.05, 0.05, 0.05)
    assert TABLE.setting(1_000, at) == pytest.approx(20)
    between = TABLE.setting(3_000, at)
    assert between is not None
    assert 20 < between < 40
    assert TABLE.setting(10, at) == pytest.approx(10)
    assert TABLE.setting(10_000, at) is None
    stepped = replace(TABLE, stepped=True)
    assert stepped.setting(3_000, at) == 40
    assert stepped.setting(10, at) == 10
    assert stepped.setting(10_000, at) is None


@pytest.mark.parametrize("name", sorted(RIVER))
def test_the_tables_are_whole(name: str) -> None:
    table = RIVER[name].run_lengths
    assert len(table.events) == len(table.settings)
    assert all(len(row) == len(RATES) for row in table.events)
    steps = np.diff(table.settings)
    assert (steps > 0).all() or (steps < 0).all()  # from sensitive to insensitive, all one way
