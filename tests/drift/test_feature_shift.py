"""The feature detector keeps its budget, names what moved, and has an answer for odd columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drift import DriftConfig, Monitors, NotEnoughReference, Observations, Reference, diagnose
from drift.bins import Bins, Table
from drift.config import FeatureMeasure
from drift.covariate import FeatureShift
from drift.distances import DISTANCES
from drift.signal import Signal

MEASURES: tuple[FeatureMeasure, ...] = ("ks", "psi", "wasserstein", "jensen_shannon")


def table(columns: dict[str, NDArray[Any]]) -> Observations:
    n = len(next(iter(columns.values()))) if columns else 300
    return Observations(
        np.zeros((n, 0), np.float32),
        np.zeros((n, 0), np.float32),
        np.full(n, -1),
        np.arange(n, dtype=float),
        columns,
    )


def columns(random: np.random.Generator, n: int, shift: float = 0.0) -> dict[str, NDArray[Any]]:
    """Dependent numbers, ties, a constant, gaps and categories; ``price`` shifts."""
    common = random.standard_normal(n)
    price = common + random.standard_normal(n)
    colour = random.choice(np.array(["red", "green", "blue"], dtype=object), n, p=[0.6, 0.3, 0.1])
    colour[random.random(n) < 0.05] = None
    heavy = random.standard_t(2, n)
    heavy[random.random(n) < 0.1] = np.nan
    return {
        "price": price + shift * np.sqrt(2),
        "twin": price + 0.1 * common,
        "hour": random.integers(24, size=n).astype(float),
        "flag": (random.random(n) < 0.01).astype(float),
        "one": np.full(n, 5.0),
        "heavy": heavy,
        "colour": colour,
        "name": np.array([f"n{i}" for i in random.integers(5_000, size=n)], dtype=object),
    }


def fitted(random: np.random.Generator, n: int = 2_000, **options: Any) -> FeatureShift:
    detector = FeatureShift(**options)
    detector.fit(table(columns(random, n)))
    return detector


def alarms(signal: Signal) -> list[int]:
    at = signal.evidence["at"]
    assert isinstance(at, list)
    return at


def moved(signal: Signal) -> list[dict[str, Any]]:
    found = signal.evidence["moved"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("measure", "size"),
    [("ks", 300), ("ks", 2_000), ("psi", 2_000), ("wasserstein", 300), ("jensen_shannon", 2_000)],
)
def test_false_alarms_stay_within_the_budget(measure: FeatureMeasure, size: int) -> None:
    random = np.random.default_rng(size)
    found = 0
    for _ in range(3):  # 3 references, 60,000 events of 8 columns: 60 false alarms are allowed
        detector = fitted(random, size, false_alarm=1_000, measure=measure)
        found += len(alarms(detector.observe(table(columns(random, 20_000)))))
    assert 3 <= found <= 75


@pytest.mark.parametrize("measure", MEASURES)
def test_one_column_of_eight_is_found_and_named(measure: FeatureMeasure) -> None:
    random = np.random.default_rng(1)
    detector = fitted(random, measure=measure)
    assert not detector.observe(table(columns(random, 1_000))).alarmed
    signal = detector.observe(table(columns(random, 1_000, shift=1.0)))
    assert alarms(signal)[0] < 200
    assert moved(signal)[0]["feature"] == "price"
    assert moved(signal)[0]["measure"] == measure
    assert moved(signal)[0]["effect"] > 0.1


def test_effects_are_in_the_unit_of_the_measure() -> None:
    random = np.random.default_rng(2)
    # Of two normal columns one standard deviation apart.
    expected = {"ks": 0.383, "wasserstein": 1.0, "psi": 1.0, "jensen_shannon": 0.34}
    for measure, effect in expected.items():
        cells = Table.fit({"x": random.standard_normal(200_000)})
        counts = [
            cells.counts(cells.codes({"x": x}, len(x))[None])
            for x in (random.standard_normal(200_000), random.standard_normal(200_000) + 1)
        ]
        distance = DISTANCES[measure]
        layout = cells.layout(slice(1))
        root = distance.roots(counts[1], 200_000, counts[0], np.array([2e5]), layout)
        found = distance.factor * (root[0, 0] / np.sqrt(1e5)) ** distance.exponent
        assert found == pytest.approx(effect, rel=0.12), measure


def test_a_category_that_grew_is_found() -> None:
    random = np.random.default_rng(3)
    detector = fitted(random)
    new = columns(random, 1_500)
    new["colour"][random.random(1_500) < 0.2] = "blue"
    signal = detector.observe(table(new))
    assert signal.alarmed
    assert moved(signal)[0]["feature"] == "colour"
    assert moved(signal)[0]["measure"] == "chi_square"


def test_a_category_never_seen_is_found() -> None:
    random = np.random.default_rng(4)
    detector = fitted(random)
    new = columns(random, 1_500)
    new["colour"][random.random(1_500) < 0.05] = "violet"
    assert moved(detector.observe(table(new)))[0]["feature"] == "colour"


def test_a_feature_that_vanishes_is_drift_however_it_does() -> None:
    random = np.random.default_rng(5)
    detector = fitted(random)
    start = detector.state()
    for gone in (None, np.full(200, np.nan), np.full(200, np.inf), np.full(200, None)):
        detector.restore(start)
        new = columns(random, 200)
        del new["price"]
        if gone is not None:
            new["price"] = gone
        signal = detector.observe(table(new))
        assert alarms(signal)[0] < 64
        assert moved(signal)[0]["feature"] == "price"
    # All of them at once.
    detector.restore(start)
    assert detector.observe(table({})).alarmed


def test_a_feature_that_appears_is_named_and_ignored() -> None:
    random = np.random.default_rng(6)
    detector, other = fitted(random), fitted(np.random.default_rng(6))
    new = columns(random, 500)
    signal = detector.observe(table({**new, "extra": np.full(500, 1e9)}))
    assert signal.evidence["unknown"] == ["extra"]
    assert signal.score == other.observe(table(new)).score


def test_columns_that_change_their_type() -> None:
    random = np.random.default_rng(7)
    reference = {
        "x": random.standard_normal(500),
        "code": random.choice(["1.0", "2.0"], 500).astype(object),
    }
    detector = FeatureShift()
    detector.fit(table(reference))
    same = {
        "x": np.array([str(v) for v in random.standard_normal(320)], dtype=object),
        "code": random.choice([1.0, 2.0], 320),
    }
    assert not detector.observe(table(same)).alarmed
    words = {**same, "x": np.full(320, "much", dtype=object)}
    assert moved(detector.observe(table(words)))[0]["feature"] == "x"


def test_a_constant_column() -> None:
    random = np.random.default_rng(8)
    detector = fitted(random)
    start = detector.state()
    for value in (6.0, 4.999, np.nan):
        detector.restore(start)
        calm = columns(random, 640)
        calm["one"][100] = value  # one odd event is no drift
        assert not detector.observe(table(calm)).alarmed
        new = columns(random, 64)
        new["one"][:] = value
        assert moved(detector.observe(table(new)))[0]["feature"] == "one"


def test_a_difference_below_the_floor_is_no_alarm_however_sure() -> None:
    random = np.random.default_rng(9)
    reference, stream = columns(random, 4_000), columns(random, 30_000, shift=0.2)
    found = {}
    for floor in (0.0, 0.3):
        detector = FeatureShift(floor=floor)
        detector.fit(table(reference))
        found[floor] = len(alarms(detector.observe(table(stream))))
    assert found[0.0] >= 10
    assert found[0.3] <= 2


def test_refusals_say_what_is_lacking() -> None:
    with pytest.raises(NotEnoughReference, match="no named features"):
        FeatureShift().fit(table({}))
    with pytest.raises(NotEnoughReference, match="this one has 1"):
        FeatureShift().fit(table({"x": np.ones(1)}))


def test_bins_hold_every_value_and_have_a_text() -> None:
    numbers = Bins.fit("x", np.array([1.0, 1, 1, 1, 2, 3, 4, 5, 6, np.nan]), 4)
    values = np.array([np.nan, 0.5, 1, 1.5, 7, np.inf])
    texts = [numbers.text(code) for code in numbers.codes(values, 6).tolist()]
    assert texts == ["x missing", "x below 1", "x 1", "x 1 to 2", "x 4 or more", "x missing"]
    words = Bins.fit("c", np.array(["a"] * 8 + ["rare", None], dtype=object))
    codes = words.codes(np.array([None, "a", "rare", "new"], dtype=object), 4)
    assert [words.text(code) for code in codes.tolist()] == [
        "c missing",
        "c a",
        "c any other",
        "c any other",
    ]
    empty = Bins.fit("e", np.full(5, np.nan))
    assert empty.text(int(empty.codes(np.ones(1), 1)[0])) == "e any number"


def test_monitors_share_the_budget_among_those_that_run(world: Any) -> None:
    """A text stream loses none of its budget to the features that it does not have."""
    text = Monitors(DriftConfig(detectors=("error_rate", "features", "embedding", "class_mix")))
    without = Monitors(DriftConfig(detectors=("error_rate", "embedding", "class_mix")))
    reference = world.events(1_000)
    text.fit(reference)
    without.fit(reference)
    assert set(text.waiting) == {"features"}
    batch = world.events(100)
    shared = [signal for signal in text.observe(batch) if signal.detector != "features"]
    assert shared == without.observe(batch)
    restarted = Monitors(text.config)
    restarted.restore(text.state())
    batch = world.events(100)
    assert restarted.observe(batch) == text.observe(batch)
    # With a table they share it with the features.
    rows = Observations(*_columns_of(reference), {"x": reference.times % 7})
    text.fit(rows)
    assert text.waiting == {}
    assert text.observe(batch)[0].threshold > without.observe(batch)[0].threshold


def _columns_of(events: Observations) -> tuple[NDArray[Any], ...]:
    return events.embeddings, events.probabilities, events.labels, events.times


def test_a_diagnosis_names_features_and_slices() -> None:
    random = np.random.default_rng(11)

    def events(n: int, shift: float = 0.0, wrong_at: str | None = None) -> Observations:
        features = columns(random, n, shift)
        wrong = random.random(n) < 0.1
        if wrong_at is not None:
            wrong |= (features["colour"] == wrong_at) & (random.random(n) < 0.5)
        answers = np.tile(np.array([[1, 0]], dtype=np.float32), (n, 1))
        return Observations(
            np.zeros((n, 0), np.float32), answers, wrong.astype(np.int64), np.arange(n), features
        )

    reference = Reference.of(events(3_000), limit=3_000)
    calm = diagnose([], reference, events(600))
    assert calm.features == ()
    assert calm.slices == ()
    shifted = diagnose([], reference, events(600, shift=1.0))
    assert shifted.features[0].name == "price"
    assert shifted.features[0].description.startswith("median ")
    assert shifted.kind == "covariate"
    assert "price: median" in shifted.sentence()
    worse = diagnose([], reference, events(600, wrong_at="green"))
    assert worse.damage
    assert worse.slices[0].where == "colour green"
    assert worse.slices[0].recent > 0.4 > 0.2 > worse.slices[0].reference
    assert "worst where colour green" in worse.sentence()
