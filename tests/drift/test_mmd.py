"""MMD keeps its budget, and finds what leaves means alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drift import NotEnoughReference, Observations, ShapeMismatch
from drift.covariate import KernelShift


def only(rows: NDArray[np.floating]) -> Observations:
    n = len(rows)
    return Observations(
        rows.astype(np.float32), np.ones((n, 1), np.float32), np.full(n, -1), np.arange(n) * 1.0
    )


def columns(rows: NDArray[np.floating]) -> Observations:
    """The same as columns of a table, without embeddings."""
    events = only(rows[:, :0])
    features = {f"x{i}": column for i, column in enumerate(rows.T.astype(float))}
    return Observations(
        events.embeddings, events.probabilities, events.labels, events.times, features
    )


@pytest.mark.parametrize("size", [400, 2_000])
def test_false_alarms_stay_within_the_budget(size: int) -> None:
    random = np.random.default_rng(size)
    found = 0
    for _ in range(6):  # 6 references, 120,000 events: 40 false alarms are allowed
        detector = KernelShift(3_000)
        detector.fit(only(random.standard_normal((size, 24))))
        signal = detector.observe(only(random.standard_normal((20_000, 24))))
        found += len(signal.evidence["at"])  # type: ignore[arg-type]
    assert 5 <= found <= 60


@pytest.mark.parametrize("wrap", [only, columns])
def test_a_shift_is_found_in_embeddings_and_in_columns(wrap: object) -> None:
    assert callable(wrap)
    random = np.random.default_rng(10)
    detector = KernelShift()
    detector.fit(wrap(random.standard_normal((2_000, 6))))
    assert not detector.observe(wrap(random.standard_normal((500, 6)))).alarmed
    signal = detector.observe(wrap(random.standard_normal((500, 6)) + 0.7))
    assert signal.evidence["at"][0] < 100
    assert signal.evidence["discrepancy"] > 0.1


def test_a_shape_with_the_same_mean_and_spread_is_found() -> None:
    random = np.random.default_rng(2)
    ring = random.standard_normal((4_000, 2))
    angle = random.random(2_000) * 2 * np.pi
    detector = KernelShift()
    detector.fit(only(ring))
    new = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert detector.observe(only(new)).alarmed


def test_a_difference_below_the_floor_is_no_alarm_however_sure() -> None:
    random = np.random.default_rng(3)
    reference, stream = (
        random.standard_normal((4_000, 6)),
        random.standard_normal((30_000, 6)) + 0.1,
    )
    found = {}
    for floor in (0.0, 0.2):
        detector = KernelShift(floor=floor)
        detector.fit(only(reference))
        found[floor] = len(detector.observe(only(stream)).evidence["at"])  # type: ignore[arg-type]
    assert found[0.0] >= 5
    assert found[0.2] == 0


def test_constant_and_far_away_embeddings() -> None:
    random = np.random.default_rng(4)
    same = np.ones((320, 4))
    detector = KernelShift()
    detector.fit(only(same))
    odd = same.copy()
    odd[100] = 1e11  # one wild event is no drift
    assert not detector.observe(only(odd)).alarmed
    assert detector.observe(only(same[:64] + 1)).alarmed
    far = random.standard_normal((1_000, 4)) + 1e4
    detector.fit(only(far))
    assert not detector.observe(only(random.standard_normal((1_000, 4)) + 1e4)).alarmed
    assert detector.observe(only(random.standard_normal((200, 4)) + 1e4 + 2)).alarmed


def test_refusals() -> None:
    detector = KernelShift()
    with pytest.raises(NotEnoughReference, match="200 finite embeddings; this one has 1"):
        detector.fit(only(np.ones((1, 3))))
    with pytest.raises(NotEnoughReference, match="embeddings or numeric features"):
        detector.fit(only(np.ones((300, 0))))
    detector.fit(only(np.random.default_rng(5).standard_normal((300, 3))))
    with pytest.raises(ShapeMismatch, match=r"width 2.*has 3"):
        detector.observe(only(np.ones((5, 2))))
