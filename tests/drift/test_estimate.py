"""Accuracy without labels: the interval holds, follows a shift, and refuses what it cannot use."""

from __future__ import annotations

import csv
import gzip
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drift.estimate import AccuracyEstimate
from drift.signal import DriftError, NotEnoughReference, NotFitted, Observations

DATA = Path(__file__).parents[3] / "shared" / "data"


def events(
    random: np.random.Generator, n: int, easy: tuple[float, float], overconfident: float
) -> Observations:
    """Two classes; answers right with probabilities drawn between 0.5 and 1, said distorted."""
    right = 0.5 + 0.5 * random.beta(*easy, n)
    odds = (right / np.maximum(1 - right, 1e-12)) ** overconfident
    sure = odds / (1 + odds)
    return Observations(
        np.zeros((n, 1), np.float32),
        np.stack([sure, 1 - sure], axis=1).astype(np.float32),
        (random.random(n) > right).astype(np.int64),
        np.arange(n, dtype=float),
    )


def without_labels(observations: Observations) -> Observations:
    return Observations(
        observations.embeddings,
        observations.probabilities,
        np.full(len(observations), -1),
        observations.times,
    )


@pytest.mark.parametrize("recent", [50, 300, 2_000])
@pytest.mark.parametrize("overconfident", [1.0, 3.0])
def test_the_interval_holds_the_accuracy_19_times_in_20(recent: int, overconfident: float) -> None:
    """Whatever the confidences are worth, and although the recent events are harder."""
    random = np.random.default_rng(recent)
    held = 0
    for _ in range(200):
        estimate = AccuracyEstimate()
        estimate.fit(events(random, 1_000, (3, 1), overconfident))
        harder = events(random, recent, (2, 2), overconfident)
        found = estimate.estimate(without_labels(harder))
        assert found.low <= found.estimate <= found.high
        held += found.low <= 1 - harder.errors.mean() <= found.high
    assert 180 <= held <= 199  # 95 % of 200 within three standard deviations


def test_a_shift_to_harder_inputs_shows() -> None:
    random = np.random.default_rng(4)
    estimate = AccuracyEstimate()
    estimate.fit(events(random, 4_000, (3, 1), 3.0))
    as_before = estimate.estimate(events(random, 1_000, (3, 1), 3.0))
    harder = estimate.estimate(events(random, 1_000, (1, 3), 3.0))
    assert harder.high < as_before.low - 0.1


def test_concept_drift_is_not_seen(world: Any) -> None:
    """What the docstring says: the same inputs with other labels look as well answered as ever."""
    estimate = AccuracyEstimate()
    estimate.fit(world.events(4_000))
    relabelled = world.events(1_000, relabel={0: 1, 1: 0})
    found = estimate.estimate(relabelled)
    assert found.low > 1 - relabelled.errors.mean() + 0.2


def test_answers_without_probabilities_count_as_wrong(world: Any) -> None:
    estimate = AccuracyEstimate()
    estimate.fit(world.events(2_000))
    recent = world.events(400)
    whole = estimate.estimate(recent)
    recent.probabilities[::2] = np.nan
    assert estimate.estimate(recent).estimate == pytest.approx(whole.estimate / 2, abs=0.03)
    recent.probabilities[:] = np.inf
    assert estimate.estimate(recent).estimate == 0
    assert estimate.estimate(recent).high < 0.01


def test_a_reference_with_gaps_is_judged_by_what_is_there(world: Any) -> None:
    reference = world.events(2_000, labelled=0.5)
    reference.probabilities[::3] = np.nan
    estimate = AccuracyEstimate()
    estimate.fit(reference)
    recent = world.events(2_000)
    found = estimate.estimate(recent)
    assert found.low <= 1 - recent.errors.mean() <= found.high


def test_one_class_and_one_confidence_only() -> None:
    """A model of one class answers it with probability 1, right or wrong."""
    random = np.random.default_rng(6)

    def alone(n: int) -> Observations:
        labels = (random.random(n) < 0.1).astype(np.int64)
        return Observations(
            np.zeros((n, 1), np.float32), np.ones((n, 1), np.float32), labels, np.zeros(n)
        )

    estimate = AccuracyEstimate()
    estimate.fit(alone(1_000))
    assert estimate.estimate(alone(500)).estimate == pytest.approx(0.9, abs=0.03)


def test_a_model_that_was_never_wrong_is_not_certain_to_be_right() -> None:
    random = np.random.default_rng(7)
    perfect = events(random, 300, (3, 1), 1.0)
    perfect.labels[:] = perfect.predicted
    estimate = AccuracyEstimate()
    estimate.fit(perfect)
    found = estimate.estimate(perfect)
    assert found.low < found.estimate < found.high == 1


def test_too_little_is_refused_with_the_numbers(world: Any) -> None:
    estimate = AccuracyEstimate()
    with pytest.raises(NotFitted, match="fit"):
        estimate.estimate(world.events(10))
    with pytest.raises(NotEnoughReference, match=r"at least 200 labelled .* has 0"):
        estimate.fit(without_labels(world.events(500)))
    nothing = world.events(500)
    nothing.probabilities[:] = np.nan
    with pytest.raises(NotEnoughReference, match="has 0"):
        estimate.fit(nothing)
    estimate.fit(world.events(500))
    with pytest.raises(DriftError, match="no events"):
        estimate.estimate(world.events(0))


def test_the_state_is_plain_arrays_and_all_there_is(world: Any) -> None:
    estimate, restored = AccuracyEstimate(), AccuracyEstimate()
    estimate.fit(world.events(1_000))
    restored.restore({key: value.copy() for key, value in estimate.state().items()})
    recent = world.events(300)
    assert restored.estimate(recent) == estimate.estimate(recent)
    assert all(value.dtype == np.float64 for value in estimate.state().values())


def banking(most: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Counts of hashed words and pairs [n, 4096], and intents [n], of real customers' queries."""
    rows: list[dict[str, str]] = []
    for name in ("train", "test"):
        path = DATA / f"banking77_{name}.csv.gz"
        if not path.exists():
            pytest.skip(f"needs {path.name} in shared/data")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    order = np.random.default_rng(0).permutation(len(rows))[:most]
    counts = np.zeros((len(order), 4_096))
    for row, place in enumerate(order.tolist()):
        words = rows[place]["text"].lower().split()
        for word in (*words, *map(" ".join, pairwise(words))):
            counts[row, zlib.crc32(word.encode()) % 4_096] += 1
    names = sorted({row["category"] for row in rows})
    return counts, np.array([names.index(rows[place]["category"]) for place in order.tolist()])


def test_real_queries_and_an_overconfident_model() -> None:
    """Naive Bayes is 92 % sure and 73 % right; traffic turns to what it is unsure, or sure, of."""
    counts, intents = banking(13_000)
    learned, kept = slice(0, 4_000), slice(4_000, None)
    member = np.eye(77)[intents[learned]]
    words = member.T @ counts[learned] + 0.1
    logits = counts[kept] @ np.log(words / words.sum(axis=1, keepdims=True)).T
    logits += np.log(member.sum(axis=0) + 1)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    n = len(probabilities)
    queries = Observations(
        np.zeros((n, 1), np.float32),
        probabilities.astype(np.float32),
        intents[kept],
        np.arange(n, dtype=float),
    )
    random, held = np.random.default_rng(8), 0
    for _ in range(40):
        shuffled = queries.take(random.permutation(n))
        estimate = AccuracyEstimate()
        estimate.fit(shuffled.take(slice(0, 2_500)))
        rest = shuffled.take(slice(2_500, None))
        sure = rest.probabilities.max(axis=1)
        unsure = sure < np.median(sure)
        for some in (np.arange(1_000), np.flatnonzero(unsure), np.flatnonzero(~unsure)):
            recent = rest.take(some[:1_000])
            found = estimate.estimate(without_labels(recent))
            held += found.low <= 1 - recent.errors.mean() <= found.high
            assert found.high - found.low < 0.12
    assert held >= 106  # of 120; the same events come again in every round
