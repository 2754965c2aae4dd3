"""The classifier's bets keep the budget, and win where it can tell new events."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drift import NotEnoughReference, Observations, ShapeMismatch
from drift.covariate import ClassifierShift


def only(rows: NDArray[np.floating]) -> Observations:
    n = len(rows)
    return Observations(
        rows.astype(np.float32), np.ones((n, 1), np.float32), np.full(n, -1), np.arange(n) * 1.0
    )


@pytest.mark.parametrize("size", [300, 2_000])
def test_false_alarms_stay_within_the_budget(size: int) -> None:
    random = np.random.default_rng(size)
    found = 0
    for _ in range(20):  # 20 references, 200,000 events: 200 false alarms are allowed
        detector = ClassifierShift(1_000)
        detector.fit(only(random.standard_t(4, size=(size, 24))))
        signal = detector.observe(only(random.standard_t(4, size=(10_000, 24))))
        found += len(signal.evidence["at"])  # type: ignore[arg-type]
    assert 1 <= found <= 200


def test_a_shift_is_found_and_how_well_it_can_be_told() -> None:
    random = np.random.default_rng(1)
    for shift, within, accuracy in ((0.5, 700, 0.55), (2.0, 130, 0.58)):
        detector = ClassifierShift()
        detector.fit(only(random.standard_normal((4_000, 24))))
        assert not detector.observe(only(random.standard_normal((1_000, 24)))).alarmed
        rows = random.standard_normal((1_000, 24))
        rows[:, 3] += shift
        signal = detector.observe(only(rows))
        assert signal.evidence["at"][0] < within  # type: ignore[index]
        assert accuracy < signal.evidence["accuracy"] <= 1  # type: ignore[operator]


def test_less_variety_alone_is_found() -> None:
    random = np.random.default_rng(2)
    detector = ClassifierShift()
    detector.fit(only(random.standard_normal((2_000, 24))))
    assert detector.observe(only(random.standard_normal((600, 24)) * 0.8)).alarmed


def test_numeric_columns_stand_in_for_embeddings() -> None:
    random = np.random.default_rng(3)

    def rows(n: int, shift: float = 0.0) -> Observations:
        blank = only(np.zeros((n, 0)))
        gaps = random.standard_normal(n) + shift
        gaps[random.random(n) < 0.1] = np.nan
        features = {"x": random.standard_normal(n) * 1e4 + 1e6, "gaps": gaps, "same": np.ones(n)}
        return Observations(
            blank.embeddings, blank.probabilities, blank.labels, blank.times, features
        )

    detector = ClassifierShift()
    detector.fit(rows(2_000))
    assert not detector.observe(rows(1_000)).alarmed
    assert detector.observe(rows(600, 1.0)).alarmed


def test_constant_embeddings() -> None:
    same = np.ones((400, 4))
    detector = ClassifierShift()
    detector.fit(only(same))
    odd = same.copy()
    odd[200] = 1e11
    assert not detector.observe(only(odd)).alarmed
    assert detector.observe(only(same[:200] + 1)).alarmed


def test_refusals() -> None:
    detector = ClassifierShift()
    with pytest.raises(NotEnoughReference, match="200 finite embeddings; this one has 1"):
        detector.fit(only(np.ones((1, 3))))
    detector.fit(only(np.random.default_rng(5).standard_normal((300, 3))))
    with pytest.raises(ShapeMismatch, match=r"width 2.*has 3"):
        detector.observe(only(np.ones((5, 2))))
