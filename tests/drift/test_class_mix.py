"""The class-mix detector keeps its budget, names what moved, and notices new classes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drift.label import ClassMix
from drift.signal import NotEnoughReference, Observations, Signal


def only(labels: NDArray[np.integer]) -> Observations:
    n = len(labels)
    return Observations(
        np.zeros((n, 1), np.float32),
        np.ones((n, 1), np.float32),
        labels.astype(np.int64),
        np.arange(n, dtype=float),
    )


def draw(random: np.random.Generator, mix: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    return random.choice(len(mix), size=n, p=mix).astype(np.int64)


def alarms(signal: Signal) -> list[int]:
    at = signal.evidence["at"]
    assert isinstance(at, list)
    return at


ZIPF = 1 / np.arange(1, 31)
MIXES = {"even": np.full(4, 0.25), "two": np.array([0.9, 0.1]), "zipf": ZIPF / ZIPF.sum()}


@pytest.mark.parametrize("name", sorted(MIXES))
def test_false_alarms_stay_within_the_budget(name: str) -> None:
    random, mix = np.random.default_rng(21), MIXES[name]
    found = 0
    for _ in range(15):  # 15 references, 300,000 events: 60 false alarms are allowed
        detector = ClassMix(5_000)
        detector.fit(only(draw(random, mix, 2_000)))
        found += len(alarms(detector.observe(only(draw(random, mix, 20_000)))))
    assert found <= 75
    assert found >= 5


def test_a_class_that_surges_is_found_and_named() -> None:
    random = np.random.default_rng(22)
    for _ in range(5):
        detector = ClassMix(20_000)
        detector.fit(only(draw(random, np.full(4, 0.25), 2_000)))
        signal = detector.observe(only(draw(random, np.array([0.2, 0.2, 0.2, 0.4]), 3_000)))
        assert alarms(signal)[0] < 700
        moved = signal.evidence["moved"]
        assert isinstance(moved, list)
        top = moved[0]
        assert top["class"] == 3
        assert 0.2 < top["reference_share"] < 0.3 < top["share"] < 0.65


def test_a_class_that_vanishes_is_found() -> None:
    random = np.random.default_rng(23)
    detector = ClassMix(20_000)
    detector.fit(only(draw(random, np.full(10, 0.1), 2_000)))
    without = np.append(np.full(9, 1 / 9), 0.0)
    signal = detector.observe(only(draw(random, without, 3_000)))
    assert alarms(signal)[0] < 400
    moved = signal.evidence["moved"]
    assert isinstance(moved, list)
    assert moved[0]["class"] == 9
    assert moved[0]["share"] < 0.05


def test_a_class_never_seen_is_evidence_at_once() -> None:
    random = np.random.default_rng(24)
    detector = ClassMix(20_000)
    detector.fit(only(draw(random, np.full(4, 0.25), 2_000)))
    labels = draw(random, np.full(4, 0.25), 200)
    labels[20::10] = 17
    signal = detector.observe(only(labels))
    assert alarms(signal)[0] <= 60
    assert signal.evidence["unseen"] == [17]
    moved = signal.evidence["moved"]
    assert isinstance(moved, list)
    assert moved[0]["class"] == -1


def test_a_single_unknown_label_is_no_alarm() -> None:
    random = np.random.default_rng(25)
    detector = ClassMix(20_000)
    detector.fit(only(draw(random, np.full(4, 0.25), 2_000)))
    labels = draw(random, np.full(4, 0.25), 400)
    labels[100] = 9
    signal = detector.observe(only(labels))
    assert not signal.alarmed
    assert signal.evidence["unseen"] == [9]


def test_where_new_classes_are_common_one_more_is_nothing() -> None:
    """A long tail: every tenth event of the reference was the first of its class."""
    random = np.random.default_rng(26)
    fresh = iter(range(100, 100_000))

    def tail(n: int) -> Observations:
        labels = draw(random, np.full(4, 0.25), n)
        rare = random.random(n) < 0.1
        labels[rare] = [next(fresh) for _ in range(int(rare.sum()))]
        return only(labels)

    detector = ClassMix(20_000)
    detector.fit(tail(1_000))
    assert not detector.observe(tail(2_000)).alarmed


def test_one_class_only() -> None:
    detector = ClassMix(20_000)
    detector.fit(only(np.zeros(500, dtype=np.int64)))
    assert not detector.observe(only(np.zeros(5_000, dtype=np.int64))).alarmed
    assert detector.observe(only(np.ones(50, dtype=np.int64))).alarmed


def test_too_few_labels_are_refused_with_the_numbers() -> None:
    with pytest.raises(NotEnoughReference, match=r"at least 200 labelled events.* has 10"):
        ClassMix().fit(only(np.array([0, 1] * 5 + [-1] * 500)))
