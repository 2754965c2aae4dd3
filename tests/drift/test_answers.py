"""The mix of answers: its budget, label shift without labels, and the shares behind the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drift.label import Answers
from drift.label.answers import class_shares
from drift.signal import NotEnoughReference, Observations, Signal


def without_labels(observations: Observations) -> Observations:
    return Observations(
        observations.embeddings,
        observations.probabilities,
        np.full(len(observations), -1),
        observations.times,
    )


def answered(answers: NDArray[np.integer], labels: NDArray[np.integer], known: int) -> Observations:
    """Events of a model that knows ``known`` classes, with these answers and labels."""
    n = len(answers)
    probabilities = np.full((n, known), 0.1 / known, dtype=np.float32)
    probabilities[np.arange(n), answers] += 0.9
    return Observations(
        np.zeros((n, 1), np.float32), probabilities, labels.astype(np.int64), np.arange(float(n))
    )


def alarms(signal: Signal) -> list[int]:
    at = signal.evidence["at"]
    assert isinstance(at, list)
    return at


def shares(signal: Signal) -> dict[int, tuple[float, float]]:
    found = signal.evidence["shares"]
    assert isinstance(found, list)
    return {row["class"]: (row["reference_share"], row["share"]) for row in found}


def test_false_alarms_stay_within_the_budget(make_world: Callable[..., Any]) -> None:
    found = 0
    for seed in range(15):  # 15 references, 150,000 events: 50 false alarms are allowed
        world = make_world(seed=seed)
        detector = Answers(3_000)
        detector.fit(world.events(2_000))
        found += len(alarms(detector.observe(without_labels(world.events(10_000)))))
    assert 4 <= found <= 65


def test_label_shift_is_found_without_a_label_and_its_mix_estimated(
    make_world: Callable[..., Any],
) -> None:
    for seed in range(5):
        world = make_world(seed=seed)
        detector = Answers(20_000)
        detector.fit(world.events(2_000))
        assert not detector.observe(without_labels(world.events(1_000))).alarmed
        shifted = without_labels(world.events(1_000, mix=[0.55, 0.15, 0.15, 0.15]))
        signal = detector.observe(shifted)
        assert alarms(signal)[0] < 300
        reference, now = shares(signal)[0]
        assert reference == pytest.approx(0.25, abs=0.03)
        assert now == pytest.approx(0.55, abs=0.1)
        assert signal.evidence["note"] is None


def test_the_shares_are_of_the_classes_and_not_of_the_answers() -> None:
    """A model that answers class 1 as 0 in 4 of 10 cases: half and half looks like 70 to 30."""
    random = np.random.default_rng(3)

    def events(n: int, second: float) -> Observations:
        labels = (random.random(n) < second).astype(np.int64)
        return answered(np.where(random.random(n) < 0.4, 0, labels), labels, 2)

    detector = Answers(20_000)
    detector.fit(events(4_000, 0.2))
    signal = detector.observe(without_labels(events(2_000, 0.5)))
    assert signal.alarmed
    assert shares(signal)[1][0] == pytest.approx(0.2, abs=0.03)
    assert shares(signal)[1][1] == pytest.approx(0.5, abs=0.08)


def test_only_the_answers_since_the_shift_are_taken(world: Any) -> None:
    detector = Answers(20_000)
    detector.fit(world.events(2_000))
    detector.observe(world.events(3_000))
    surge = world.events(400, mix=[0.7, 0.1, 0.1, 0.1])
    for begin in range(0, 400, 10):
        signal = detector.observe(without_labels(surge.take(slice(begin, begin + 10))))
        if signal.alarmed:
            break
    since = signal.evidence["estimated_from"]
    assert isinstance(since, int)
    assert abs(since - (begin + alarms(signal)[-1] + 1)) < 60
    assert shares(signal)[0][1] == pytest.approx(0.7, abs=0.2)


def test_without_a_labelled_reference_it_runs_and_estimates_nothing(world: Any) -> None:
    detector = Answers(20_000)
    detector.fit(world.events(2_000, labelled=0.0))
    signal = detector.observe(without_labels(world.events(500, mix=[0.7, 0.1, 0.1, 0.1])))
    assert signal.alarmed
    assert signal.evidence["shares"] == []
    assert signal.evidence["note"] == "the reference has no labels"


def test_classes_that_are_answered_alike_stay_as_they_were_and_it_says_so() -> None:
    """Classes 1 and 2 are both answered as 1: a singular confusion matrix."""
    random = np.random.default_rng(4)

    def events(n: int, mix: list[float]) -> Observations:
        labels = random.choice(3, size=n, p=mix)
        return answered(np.minimum(labels, 1), labels, 3)

    detector = Answers(20_000)
    detector.fit(events(3_000, [0.6, 0.3, 0.1]))
    signal = detector.observe(without_labels(events(1_000, [0.2, 0.2, 0.6])))
    assert signal.alarmed
    assert "hardly told apart" in str(signal.evidence["note"])
    found = {label: now for label, (_, now) in shares(signal).items()}
    assert found[1] + found[2] == pytest.approx(0.8, abs=0.08)
    assert found[1] / found[2] == pytest.approx(3.0, abs=0.5)


def test_a_class_the_model_does_not_know_has_a_share_too(make_world: Callable[..., Any]) -> None:
    world = make_world(seed=2, classes=4, known=3)
    detector = Answers(20_000)
    detector.fit(world.events(4_000, mix=[0.3, 0.3, 0.3, 0.1]))
    signal = detector.observe(without_labels(world.events(3_000, mix=[0.6, 0.2, 0.1, 0.1])))
    assert signal.alarmed
    assert set(shares(signal)) == {0, 1, 2, 3}
    assert sum(now for _, now in shares(signal).values()) == pytest.approx(1.0)


def test_one_class_only() -> None:
    detector = Answers(20_000)
    zeros = np.zeros(5_000, dtype=np.int64)
    detector.fit(answered(zeros[:500], zeros[:500], 2))
    assert not detector.observe(answered(zeros, zeros, 2)).alarmed
    signal = detector.observe(answered(zeros[:50] + 1, zeros[:50] + 1, 2))
    assert signal.alarmed
    assert signal.evidence["unseen"] == [1]
    # Whatever is answered, it is the one class that the reference's labels know.
    assert shares(signal)[0][1] == 1.0


def test_events_without_finite_probabilities_are_no_answers(world: Any) -> None:
    detector = Answers(20_000)
    detector.fit(world.events(1_000))
    broken = world.events(500)
    broken.probabilities[:] = np.nan
    signal = detector.observe(broken)
    assert not signal.alarmed
    assert signal.evidence["events"] == 0
    reference = world.events(400)
    reference.probabilities[10:] = np.nan
    with pytest.raises(NotEnoughReference, match=r"at least 200 events .* has 10"):
        detector.fit(reference)


def test_shares_stay_on_the_simplex_for_any_confusion() -> None:
    random = np.random.default_rng(5)
    for classes in (1, 2, 30):
        for row in (np.full(classes, 1.0), random.dirichlet(np.full(classes, 0.1))):
            confusion = np.tile(row / row.sum(), (classes, 1))
            reference = random.dirichlet(np.ones(classes))
            answers = np.zeros(classes)
            answers[0] = 400
            found = class_shares(confusion, answers, reference)
            assert found.sum() == pytest.approx(1.0)
            assert (found >= 0).all()
            # The answers tell nothing: nothing moves.
            np.testing.assert_allclose(found, reference, atol=1e-3)
