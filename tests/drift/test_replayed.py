"""River's detectors behind the contract alarm where river does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from river import drift as river

from drift.concept.adwin import ADWIN
from drift.concept.hddm_w import HDDMW
from drift.concept.page_hinkley import PageHinkley
from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.signal import Observations


@pytest.mark.parametrize(
    ("wrapper", "original"),
    [
        (ADWIN, river.ADWIN),
        (HDDMW, river.binary.HDDMW),
        (PageHinkley, lambda: river.PageHinkley(mode="up")),
    ],
)
def test_alarms_where_river_does(
    wrapper: type[ReplayedDetector],
    original: Callable[[], RiverDetector],
    outcomes: Callable[[np.ndarray], Observations],
) -> None:
    random = np.random.default_rng(3)
    wrong = random.random(4_000) < np.repeat([0.1, 0.4, 0.4, 0.8], 1_000)
    detector = wrapper()
    detector.fit(outcomes(wrong[:0]))
    reference, expected = original(), []
    for event, error in enumerate(wrong.tolist()):
        reference.update(int(error))
        if reference.drift_detected:
            expected.append(event)
    assert expected
    # River's also alarm on chance falls; those we leave out.
    found = detector.observe(outcomes(wrong)).evidence["at"]
    assert isinstance(found, list)
    assert set(found) <= set(expected)
    for start in (1_000, 3_000):
        assert min(e for e in expected if e > start) in found


def test_a_better_model_is_no_alarm(outcomes: Callable[[np.ndarray], Observations]) -> None:
    random = np.random.default_rng(4)
    detector = ADWIN()
    detector.fit(outcomes(random.random(1_000) < 0.5))
    assert not detector.observe(outcomes(random.random(1_000) < 0.05)).alarmed
    assert detector.observe(outcomes(random.random(1_000) < 0.5)).alarmed
