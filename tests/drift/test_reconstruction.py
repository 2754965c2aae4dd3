"""The reconstruction error keeps its budget and sees what leaves the subspace, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drift import NotEnoughReference, Observations, ShapeMismatch
from drift.covariate import ReconstructionError


def only(rows: NDArray[np.floating]) -> Observations:
    n = len(rows)
    return Observations(
        rows.astype(np.float32), np.ones((n, 1), np.float32), np.full(n, -1), np.arange(n) * 1.0
    )


def flat(random: np.random.Generator, n: int, thickness: float = 0.1) -> NDArray[np.float64]:
    """Three wide dimensions of twelve."""
    rows = random.standard_normal((n, 12)) * thickness
    rows[:, :3] = random.standard_normal((n, 3))
    return rows


@pytest.mark.parametrize("size", [400, 2_000])
def test_false_alarms_stay_within_the_budget(size: int) -> None:
    random = np.random.default_rng(size)
    found = 0
    for _ in range(15):  # 15 references, 300,000 events: 60 false alarms are allowed
        detector = ReconstructionError(5_000, directions=3)
        detector.fit(only(flat(random, size)))
        signal = detector.observe(only(flat(random, 20_000)))
        found += len(signal.evidence["at"])  # type: ignore[arg-type]
    assert 3 <= found <= 90


def test_what_leaves_the_subspace_is_found_whichever_way() -> None:
    random = np.random.default_rng(1)
    for thickness in (0.08, 0.13):
        detector = ReconstructionError(directions=3)
        detector.fit(only(flat(random, 2_000)))
        assert not detector.observe(only(flat(random, 500))).alarmed
        signal = detector.observe(only(flat(random, 500, thickness)))
        assert signal.evidence["at"][0] < 200  # type: ignore[index]


def test_what_stays_inside_is_not_its_business() -> None:
    random = np.random.default_rng(2)
    detector = ReconstructionError(directions=3)
    detector.fit(only(flat(random, 2_000)))
    rows = flat(random, 1_000)
    rows[:, 0] += 1
    assert not detector.observe(only(rows)).alarmed


def test_a_difference_below_the_floor_is_no_alarm_however_sure() -> None:
    random = np.random.default_rng(3)
    reference, stream = flat(random, 4_000), flat(random, 30_000, 0.106)
    found = {}
    for floor in (0.0, 0.5):
        detector = ReconstructionError(directions=3, floor=floor)
        detector.fit(only(reference))
        found[floor] = len(detector.observe(only(stream)).evidence["at"])  # type: ignore[arg-type]
    assert found[0.0] >= 5
    assert found[0.5] == 0


def test_nothing_outside_of_the_subspace() -> None:
    random = np.random.default_rng(4)
    detector = ReconstructionError(directions=3)
    detector.fit(only(flat(random, 400, 0.0)))
    calm = flat(random, 320, 0.0)
    calm[100] = 1e11  # one wild event is no drift
    assert not detector.observe(only(calm)).alarmed
    assert detector.observe(only(flat(random, 64))).alarmed
    detector.fit(only(np.ones((300, 1))))
    assert detector.observe(only(np.full((64, 1), 2.0))).alarmed


def test_refusals() -> None:
    detector = ReconstructionError()
    with pytest.raises(NotEnoughReference, match="200 finite embeddings; this one has 1"):
        detector.fit(only(np.ones((1, 3))))
    detector.fit(only(np.random.default_rng(5).standard_normal((300, 3))))
    with pytest.raises(ShapeMismatch, match=r"width 2.*has 3"):
        detector.observe(only(np.ones((5, 2))))
