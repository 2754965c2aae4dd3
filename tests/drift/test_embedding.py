"""The embedding detector keeps its budget and finds what matters, not what does not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drift.covariate import EmbeddingShift
from drift.signal import NotEnoughReference, Observations, ShapeMismatch, Signal

SCALES = np.arange(1, 65) ** -0.5


def only(rows: NDArray[np.floating]) -> Observations:
    n = len(rows)
    return Observations(
        rows.astype(np.float32),
        np.ones((n, 1), np.float32),
        np.full(n, -1),
        np.arange(n, dtype=float),
    )


def cloud(random: np.random.Generator, n: int, shift: float = 0.0) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = random.standard_normal((n, 64)) * SCALES
    rows[:, 3] += shift * SCALES[3]
    return rows


def first(signal: Signal) -> int:
    at = signal.evidence["at"]
    assert isinstance(at, list)
    assert at, "no alarm at all"
    return int(at[0]) + 1


@pytest.mark.parametrize("size", [400, 2_000])
def test_false_alarms_stay_within_the_budget(size: int) -> None:
    random = np.random.default_rng(size)
    found = 0
    for _ in range(15):  # 15 references, 300,000 events: 60 false alarms are allowed
        detector = EmbeddingShift(5_000)
        detector.fit(only(cloud(random, size)))
        found += len(detector.observe(only(cloud(random, 20_000))).evidence["at"])  # type: ignore
    # Alarms of one unlucky reference come together, so the spread is wider than Poisson's.
    assert found <= 90
    assert found >= 10


def test_heavy_tails_do_not_break_the_budget() -> None:
    random = np.random.default_rng(5)
    found = 0
    for _ in range(5):
        detector = EmbeddingShift(5_000)
        detector.fit(only(random.standard_t(3, size=(2_000, 64)) * SCALES))
        stream = random.standard_t(3, size=(20_000, 64)) * SCALES
        found += len(detector.observe(only(stream)).evidence["at"])  # type: ignore[arg-type]
    assert found <= 40  # 20 are allowed


def test_a_new_topic_is_found_within_few_events() -> None:
    random = np.random.default_rng(6)
    for _ in range(5):
        detector = EmbeddingShift(20_000)
        detector.fit(only(cloud(random, 2_000)))
        detector.observe(only(cloud(random, 1_000)))
        assert first(detector.observe(only(cloud(random, 2_000, shift=2.5)))) <= 100


def test_a_topic_in_a_tenth_of_the_traffic_is_found() -> None:
    random = np.random.default_rng(7)
    for _ in range(3):
        detector = EmbeddingShift(20_000)
        detector.fit(only(cloud(random, 4_000)))
        rows = cloud(random, 4_000)
        new = random.random(4_000) < 0.1
        rows[new, 3] += 6 * SCALES[3]
        signal = detector.observe(only(rows))
        assert first(signal) <= 1_500


def test_a_direction_outside_of_the_reference_is_found() -> None:
    random = np.random.default_rng(8)
    flat = cloud(random, 2_000)
    flat[:, 40:] = 0
    detector = EmbeddingShift(20_000, directions=16)
    detector.fit(only(flat))
    rows = cloud(random, 200)
    assert detector.observe(only(rows)).alarmed


def test_less_or_more_variety_alone_is_found() -> None:
    random = np.random.default_rng(9)
    for factor in (0.6, 1.5):
        detector = EmbeddingShift(20_000)
        detector.fit(only(cloud(random, 2_000)))
        assert first(detector.observe(only(cloud(random, 1_000) * factor))) <= 300


def test_a_difference_below_the_floor_is_no_alarm_however_sure() -> None:
    random = np.random.default_rng(10)
    reference = cloud(random, 4_000)
    moved = cloud(random, 20_000, shift=0.3)
    found = {}
    for floor in (0.0, 0.4):
        detector = EmbeddingShift(20_000, floor=floor)
        detector.fit(only(reference))
        found[floor] = len(detector.observe(only(moved)).evidence["at"])  # type: ignore[arg-type]
    assert found[0.0] >= 10
    assert found[0.4] <= 2


def test_one_wild_event_is_no_drift() -> None:
    random = np.random.default_rng(11)
    detector = EmbeddingShift(20_000)
    detector.fit(only(cloud(random, 2_000)))
    rows = cloud(random, 320)
    rows[100] = 1e11
    rows[200] = -1e30  # no embedding at all
    rows[250, 3] = np.inf
    signal = detector.observe(only(rows))
    assert not signal.alarmed
    assert signal.evidence["skipped"] == 2


def test_constant_embeddings() -> None:
    random = np.random.default_rng(12)
    same = np.ones((300, 8))
    detector = EmbeddingShift(20_000)
    detector.fit(only(same))
    assert not detector.observe(only(same)).alarmed
    assert detector.observe(only(random.standard_normal((64, 8)))).alarmed
    # One constant column among others is nothing special; its waking up is.
    rows = random.standard_normal((400, 8))
    rows[:, 2] = 5
    detector.fit(only(rows))
    calm = random.standard_normal((320, 8))
    calm[:, 2] = 5
    assert not detector.observe(only(calm)).alarmed
    calm[:, 2] = 6
    assert detector.observe(only(calm)).alarmed


def test_more_dimensions_than_events() -> None:
    random = np.random.default_rng(13)
    detector = EmbeddingShift(20_000)
    detector.fit(only(random.standard_normal((250, 768))))
    assert not detector.observe(only(random.standard_normal((1_000, 768)))).alarmed
    assert detector.observe(only(random.standard_normal((200, 768)) + 0.5)).alarmed


def test_refusals_say_what_to_do() -> None:
    random = np.random.default_rng(14)
    rows = cloud(random, 300)
    rows[150:] = np.nan
    detector = EmbeddingShift()
    with pytest.raises(
        NotEnoughReference, match="at least 200 finite embeddings; this one has 150"
    ):
        detector.fit(only(rows))
    detector.fit(only(cloud(random, 300)))
    with pytest.raises(ShapeMismatch, match=r"width 32.*has 64.*encoder"):
        detector.observe(only(np.zeros((5, 32))))
