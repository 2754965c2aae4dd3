"""A diagnosis names the kind of a drift that is known, when it began, and what moved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drift import Diagnosis, Monitors, Observations, Reference, Signature, diagnose

SEEDS = range(8)
NAMES = ("apple", "pear", "plum", "quince")


@pytest.fixture
def explain(make_world: Callable[..., Any], concat: Callable[..., Observations]) -> Any:
    def run(seed: int, calm: int = 600, **drift: Any) -> tuple[Diagnosis, int] | None:
        """The diagnosis at the first alarm, and how many events before its end the drift began."""
        world = make_world(seed=seed)
        reference = Reference.of(world.events(2_000), limit=4_000)
        monitors = Monitors()
        monitors.fit(reference)
        recent = world.events(calm, labelled=drift.get("labelled", 1.0))
        monitors.observe(recent)
        for step in range(1, 60):
            batch = world.events(32, **drift)
            recent = concat(recent, batch)
            signals = monitors.observe(batch)
            if any(signal.alarmed for signal in signals):
                return diagnose(signals, reference, recent), 32 * step
        return None

    return run


@pytest.mark.parametrize(
    ("kind", "damage", "drift"),
    [
        ("concept", True, {"relabel": {0: 1, 1: 0}}),
        ("covariate", False, {"move": {0: 2.0, 1: 2.0, 2: 2.0, 3: 2.0}}),
        ("covariate", False, {"move": {0: 3.0}, "labelled": 0.0}),
        ("label", False, {"mix": [0.6, 0.2, 0.1, 0.1]}),
    ],
)
def test_the_kind_is_right(explain: Any, kind: str, damage: bool, drift: dict[str, Any]) -> None:
    found: Counter[tuple[str, bool]] = Counter()
    misses = []
    for seed in SEEDS:
        diagnosis, began = explain(seed, **drift)
        found[diagnosis.kind, diagnosis.damage] += 1
        misses.append(abs(diagnosis.onset.events_ago - began))
    assert found[kind, damage] >= 7, found
    assert np.median(misses) <= 20


def test_damage_is_measured(explain: Any) -> None:
    covered = 0
    for seed in SEEDS:
        diagnosis, began = explain(seed, relabel={0: 1, 1: 0})
        lost = diagnosis.accuracy_lost
        assert lost is not None
        covered += lost.low < 0.45 < lost.high  # half the events, of which some were wrong before
        assert 0.15 < diagnosis.severity < 0.95
        assert diagnosis.severity_from == "labels"
        assert diagnosis.errors[0].label in (0, 1)
        sentence = diagnosis.sentence(NAMES)
        assert "oncept drift" in sentence
        assert "points of accuracy lost" in sentence
        assert "apple" in sentence or "pear" in sentence
        assert all(500 <= place < 600 + began for place in diagnosis.examples)
    assert covered >= 6


def test_covariate_drift_with_damage_says_both(explain: Any) -> None:
    """Two clouds move to where two others are, and keep their labels."""
    found: Counter[tuple[str, bool]] = Counter()
    for seed in SEEDS:
        diagnosis, _ = explain(seed, toward={0: 1, 2: 3})
        found[diagnosis.kind, diagnosis.damage] += 1
    assert found["covariate", True] >= 6, found


def test_a_mix_that_moved_is_named(explain: Any) -> None:
    diagnosis, _ = explain(1, mix=[0.1, 0.1, 0.1, 0.7])
    assert diagnosis.shares[0].label == 3
    assert diagnosis.shares[0].recent > 0.5 > diagnosis.shares[0].reference
    assert "quince went from 2" in diagnosis.sentence(NAMES)


def test_a_class_never_seen_is_label_drift(make_world: Callable[..., Any]) -> None:
    world = make_world(classes=5, known=4)
    mix = [0.25] * 4 + [0.0]
    reference = Reference.of(world.events(2_000, mix=mix), limit=4_000)
    monitors = Monitors()
    monitors.fit(reference)
    batch = world.events(400, mix=[0.2] * 5)
    diagnosis = diagnose(monitors.observe(batch), reference, batch)
    assert diagnosis.kind == "label"
    assert diagnosis.damage
    assert diagnosis.shares[0].label == -1
    assert "classes not seen before" in diagnosis.sentence()
    assert diagnosis.onset.before_window or diagnosis.onset.events_ago > 350


def test_without_labels_severity_comes_from_the_embeddings(explain: Any) -> None:
    near, _ = explain(2, move=dict.fromkeys(range(4), 1.5), labelled=0.0)
    far, _ = explain(2, move=dict.fromkeys(range(4), 5.0), labelled=0.0)
    assert near.severity_from == far.severity_from == "embeddings"
    assert near.severity < far.severity <= 1
    assert near.accuracy_lost is None
    assert not near.damage


def test_abrupt_and_gradual_are_told_apart(
    make_world: Callable[..., Any], concat: Callable[..., Observations]
) -> None:
    shapes: dict[str, Counter[str]] = {"abrupt": Counter(), "gradual": Counter()}
    for seed in SEEDS:
        world = make_world(seed=seed)
        reference = Reference.of(world.events(2_000), limit=4_000)
        swap = {0: 1, 1: 0, 2: 3, 3: 2}
        step = concat(world.events(600), world.events(300, relabel=swap))
        calm, drifted = world.events(1_200), world.events(600, relabel=swap)
        # The drifted events take over bit by bit.
        ramp = world.random.random(600) < np.linspace(0, 1, 600)
        mixed = [
            drifted.take(slice(i, i + 1)) if new else calm.take(slice(600 + i, 601 + i))
            for i, new in enumerate(ramp.tolist())
        ]
        climb = concat(calm.take(slice(0, 600)), *mixed)
        shapes["abrupt"][diagnose([], reference, step).shape] += 1
        shapes["gradual"][diagnose([], reference, climb).shape] += 1
    assert shapes["abrupt"]["abrupt"] >= 7, shapes
    assert shapes["gradual"]["gradual"] >= 7, shapes


def test_a_regime_that_came_back_is_recognised(make_world: Callable[..., Any]) -> None:
    world = make_world(classes=8, dimension=32)
    old, new = [0.25] * 4 + [0.0] * 4, [0.0] * 4 + [0.25] * 4
    first = Reference.of(world.events(1_500, mix=old), limit=2_000)
    second = Reference.of(world.events(1_500, mix=new), limit=2_000)
    known = {"v0001": first.signature, "v0002": second.signature}
    monitors = Monitors()
    monitors.fit(second)
    back = world.events(400, mix=old)
    diagnosis = diagnose(monitors.observe(back), second, back, known=known)
    assert diagnosis.recurrence is not None
    assert (diagnosis.recurrence.version, diagnosis.recurrence.same) == ("v0001", True)
    assert diagnosis.shape == "recurring"
    assert diagnosis.sentence().startswith("Recurring covariate drift")
    assert "v0001 come back" in diagnosis.sentence()
    unknown = world.events(400, mix=[0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0])
    other = diagnose(monitors.observe(unknown), second, unknown, known=known)
    assert other.recurrence is not None
    assert not other.recurrence.same
    assert other.shape != "recurring"


def test_it_is_json(explain: Any) -> None:
    diagnosis, _ = explain(3, relabel={0: 1})
    stored = json.loads(json.dumps(diagnosis.as_dict(), allow_nan=False))
    assert stored["kind"] == diagnosis.kind
    assert stored["sentence"] == diagnosis.sentence()
    assert stored["onset"]["events_ago"] == diagnosis.onset.events_ago


def test_odd_events_are_explained_as_far_as_they_go(world: Any) -> None:
    reference = Reference.of(world.events(500), limit=500)
    good = world.events(100)
    nan = Observations(
        np.full_like(good.embeddings, np.nan),
        np.full_like(good.probabilities, np.nan),
        good.labels,
        np.full(100, np.nan),
    )
    for recent in (good.take(slice(0, 0)), good.take(slice(0, 3)), nan, good):
        diagnosis = diagnose([], reference, recent)
        json.dumps(diagnosis.as_dict(), allow_nan=False)
    assert diagnose([], reference, nan).damage
    assert diagnose([], reference, nan).onset.time is None
    # A reference of nothing, or of another encoder.
    empty = Reference.of(good.take(slice(0, 0)), limit=10)
    json.dumps(diagnose([], empty, good).as_dict(), allow_nan=False)
    narrow = Observations(good.embeddings[:, :3], good.probabilities, good.labels, good.times)
    assert "inputs" not in diagnose([], reference, narrow).measures


def test_signatures_of_different_spaces_are_not_compared(world: Any) -> None:
    events = world.events(300)
    here, there = Signature.of(events, "a"), Signature.of(events, "b")
    assert here.distance(there) == np.inf
    assert here.nearest({"other": there}) is None
    assert here.nearest({"other": there, "own": here}) == ("own", 0.0)
    assert Signature.of(events.take(slice(0, 0)), "a").distance(here) == np.inf


def test_signature_distance_grows_with_what_changed(world: Any) -> None:
    calm = Signature.of(world.events(800))
    distances = [
        calm.distance(Signature.of(world.events(800, **drift)))
        for drift in ({}, {"move": {0: 2.0}}, {"move": dict.fromkeys(range(4), 3.0)})
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.1 < distances[2]
    assert calm.distance(Signature.of(world.events(800, mix=[0.7, 0.1, 0.1, 0.1]))) > 0.2
    both = Signature.of(world.events(500)), Signature.of(world.events(400))
    assert both[0].distance(both[1]) == pytest.approx(both[1].distance(both[0]))
