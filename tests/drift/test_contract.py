"""What every detector promises, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drift.concept.adwin import ADWIN
from drift.concept.ddm import DDM
from drift.concept.eddm import EDDM
from drift.concept.error_rate import ErrorRate
from drift.concept.hddm_a import HDDMA
from drift.concept.hddm_w import HDDMW
from drift.concept.kswin import KSWIN
from drift.concept.page_hinkley import PageHinkley
from drift.covariate import (
    ClassifierShift,
    EmbeddingShift,
    FeatureShift,
    KernelShift,
    ReconstructionError,
)
from drift.features import Features
from drift.label import Answers, ClassMix
from drift.signal import Detector, NotFitted, Observations, Signal

# A short budget makes alarms frequent: the places where state is reset are what is to be tested.
MAKERS: dict[str, Callable[[], Detector]] = {
    "error_rate": lambda: ErrorRate(300, baseline_events=1_500, rebase_events=200),
    "embedding": lambda: EmbeddingShift(400, window=256, baseline_events=900),
    "class_mix": lambda: ClassMix(300, baseline_events=1_500),
    "answers": lambda: Answers(300, baseline_events=1_500),
    "features": lambda: FeatureShift(400, window=256, baseline_events=900),
    "features_psi": lambda: FeatureShift(400, measure="psi", window=256, baseline_events=900),
    "mmd": lambda: KernelShift(400, window=256, baseline_events=900),
    "classifier": lambda: ClassifierShift(400),
    "reconstruction": lambda: ReconstructionError(400, window=256, baseline_events=900),
    "adwin": lambda: ADWIN(300),
    "ddm": lambda: DDM(300),
    "eddm": lambda: EDDM(300),
    "hddm_a": lambda: HDDMA(300),
    "hddm_w": lambda: HDDMW(300),
    "page_hinkley": lambda: PageHinkley(300),
    "kswin": lambda: KSWIN(300),
    "adwin_at_river_s": lambda: ADWIN(None),
}
# Those that look at no labels see events all the same when none has come.
LABEL_FREE = ("embedding", "answers", "features", "mmd", "classifier", "reconstruction")
EVENTS = 1_600


class Rebased(HDDMA):
    """Forgets half of its errors often, which the others do after 65,536."""

    name = "hddm_a_rebased"
    longest_tail = 256


MAKERS["hddm_a_rebased"] = lambda: Rebased(300)


@pytest.fixture(params=sorted(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[[], Detector]:
    return MAKERS[request.param]


@pytest.fixture(scope="module")
def history() -> tuple[Observations, Observations]:
    """A reference, and a stream in which everything moves, with gaps in labels and embeddings."""
    random = np.random.default_rng(7)

    def events(n: int, wrong: float, moved: float, mix: list[float]) -> Observations:
        labels = random.choice(len(mix), size=n, p=mix)
        rows = random.standard_normal((n, 6)) + labels[:, None] * 0.5 + moved
        answers = np.where(random.random(n) < wrong, (labels + 1) % 3, labels)
        probabilities = np.full((n, 3), 0.1, dtype=np.float32)
        known = answers < 3
        probabilities[known, answers[known]] = 0.8
        labels[random.random(n) < 0.15] = -1
        rows[random.random(n) < 0.02] = np.nan
        return Observations(
            rows.astype(np.float32),
            probabilities,
            labels.astype(np.int64),
            np.arange(n, dtype=float),
            features(rows, moved),
        )

    def features(rows: NDArray[np.float64], moved: float) -> Features:
        words = np.where(rows[:, 1] > moved, "high", "low").astype(object)
        words[random.random(len(rows)) < 0.05] = None
        return {"number": rows[:, 0], "word": words, "same": np.ones(len(rows))}

    parts = [
        events(500, 0.3, 0.0, [0.5, 0.3, 0.2]),
        events(300, 0.05, 0.0, [0.5, 0.3, 0.2]),
        events(400, 0.5, 0.6, [0.3, 0.3, 0.4]),
        events(400, 0.25, 0.6, [0.4, 0.2, 0.2, 0.2]),
    ]
    stream = Observations.join(parts)
    return events(700, 0.3, 0.0, [0.5, 0.3, 0.2]), stream


def alarms(detector: Detector, batches: list[Observations]) -> tuple[list[int], list[Signal]]:
    """Alarmed events, counted from the fit, and the signals."""
    signals = [detector.observe(batch) for batch in batches]
    places = [s.evidence["seen"] + at for s in signals for at in s.evidence["at"]]  # type: ignore
    return places, signals


@pytest.fixture
def fitted(
    make: Callable[[], Detector], history: tuple[Observations, Observations]
) -> Callable[[], Detector]:
    """New detectors in the state right after one `fit` (itself too slow to repeat)."""
    first = make()
    first.fit(history[0])
    state = first.state()

    def create() -> Detector:
        detector = make()
        detector.restore(state)
        return detector

    return create


def test_is_a_detector(make: Callable[[], Detector]) -> None:
    detector = make()
    assert isinstance(detector, Detector)
    assert detector.kind in ("covariate", "label", "concept")


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(places=st.lists(st.integers(0, EVENTS), max_size=40))
def test_the_same_however_the_stream_is_cut(
    fitted: Callable[[], Detector],
    history: tuple[Observations, Observations],
    cut: Callable[[Observations, list[int]], list[Observations]],
    places: list[int],
) -> None:
    whole, whole_signals = alarms(fitted(), [history[1]])
    parts, part_signals = alarms(fitted(), cut(history[1], places))
    assert parts == whole
    assert max(s.score for s in part_signals) == max(s.score for s in whole_signals)


def test_event_by_event_is_the_same_too(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    stream = history[1]
    whole, one = fitted(), fitted()
    expected, _ = alarms(whole, [stream])
    found, _ = alarms(one, [stream.take(slice(i, i + 1)) for i in range(len(stream))])
    assert found == expected
    assert_same_state(one, whole)


@pytest.mark.parametrize("place", [1, 450, 1_113])
def test_a_restart_changes_nothing(
    fitted: Callable[[], Detector],
    make: Callable[[], Detector],
    history: tuple[Observations, Observations],
    place: int,
) -> None:
    stream = history[1]
    before, after = stream.take(slice(0, place)), stream.take(slice(place, None))
    detector = fitted()
    detector.observe(before)
    state = {key: value.copy() for key, value in detector.state().items()}
    restarted = make()
    restarted.restore(state)
    batches = [after.take(slice(i, i + 97)) for i in range(0, len(after), 97)]
    assert alarms(restarted, batches) == alarms(detector, batches)
    assert_same_state(restarted, detector)


def assert_same_state(one: Detector, other: Detector) -> None:
    mine, its = one.state(), other.state()
    assert mine.keys() == its.keys()
    for key, value in mine.items():
        np.testing.assert_array_equal(value, its[key], err_msg=key)


def test_state_is_plain_arrays_apart_from_the_detector(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector = fitted()
    detector.observe(history[1].take(slice(0, 500)))
    state = detector.state()
    copies = {key: value.copy() for key, value in state.items()}
    assert all(isinstance(v, np.ndarray) and v.dtype.kind in "biuf" for v in state.values())
    detector.observe(history[1].take(slice(500, None)))
    for key, value in copies.items():
        np.testing.assert_array_equal(state[key], value, err_msg=key)


def test_state_stays_small(
    make: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector = make()
    detector.fit(history[0])
    repeats = 2 if detector.name == "kswin" else 12
    sizes = []
    for _ in range(repeats):
        detector.observe(history[1])
        sizes.append(sum(value.nbytes for value in detector.state().values()))
    assert max(sizes) < 40_000


def test_inputs_are_not_changed(
    fitted: Callable[[], Detector],
    make: Callable[[], Detector],
    history: tuple[Observations, Observations],
) -> None:
    for run, observations in ((make().fit, history[0]), (fitted().observe, history[1])):
        columns = ("embeddings", "probabilities", "labels", "times")
        before = {name: getattr(observations, name).copy() for name in columns}
        words = {name: column.copy() for name, column in observations.features.items()}
        run(observations)
        for name in columns:
            np.testing.assert_array_equal(getattr(observations, name), before[name])
        for name, column in words.items():
            np.testing.assert_array_equal(observations.features[name], column)


def test_alarmed_means_that_the_score_reached_the_threshold(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector, stream = fitted(), history[1]
    for begin in range(0, len(stream), 40):
        signal = detector.observe(stream.take(slice(begin, begin + 40)))
        assert signal.alarmed == (signal.score >= signal.threshold) == bool(signal.evidence["at"])
        json.dumps(dict(signal.evidence), allow_nan=False)
        # What it stands at with nothing new is no alarm, even right after one.
        standing = detector.observe(stream.take(slice(0, 0)))
        assert not standing.alarmed
        assert 0 <= standing.score < standing.threshold


def test_an_empty_batch_changes_nothing(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector, other = fitted(), fitted()
    detector.observe(history[1].take(slice(0, 200)))
    other.observe(history[1].take(slice(0, 200)))
    detector.observe(history[1].take(slice(0, 0)))
    assert_same_state(detector, other)


def test_unlabelled_events_are_no_evidence_about_labels(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector, stream = fitted(), history[1]
    unlabelled = Observations(
        stream.embeddings,
        stream.probabilities,
        np.full(len(stream), -1),
        stream.times,
        stream.features,
    )
    signal = detector.observe(unlabelled)
    if detector.name in LABEL_FREE:
        assert signal.alarmed
    else:
        assert not signal.alarmed
        assert signal.evidence["events"] == 0


def test_a_batch_of_nothing_but_nan_is_survived(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector, stream = fitted(), history[1].take(slice(0, 100))
    for value in (np.nan, np.inf, -np.inf):
        broken = Observations(
            np.full_like(stream.embeddings, value),
            np.full_like(stream.probabilities, value),
            stream.labels,
            np.full_like(stream.times, np.nan),
            {"number": np.full(len(stream), value)},
        )
        signal = detector.observe(broken)
        assert np.isfinite(signal.score)
        json.dumps(dict(signal.evidence), allow_nan=False)
        if detector.name == "features":
            assert signal.evidence["skipped"] == 0  # that all of a column is missing is drift
        elif detector.kind == "covariate":
            assert not signal.alarmed
            assert signal.evidence["skipped"] == len(stream)
    assert np.isfinite(detector.observe(history[1]).score)


def test_a_clock_that_jumps_back_makes_no_difference(
    fitted: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    stream = history[1]
    backwards = Observations(
        stream.embeddings,
        stream.probabilities,
        stream.labels,
        stream.times[::-1].copy(),
        stream.features,
    )
    assert alarms(fitted(), [backwards]) == alarms(fitted(), [stream])


def test_fit_forgets(
    make: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector, new = make(), make()
    new.fit(history[0])
    detector.fit(history[0])
    detector.observe(history[1])
    detector.fit(history[0])
    assert_same_state(detector, new)


def test_observing_before_fitting_is_refused(
    make: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    detector = make()
    with pytest.raises(NotFitted, match="fit"):
        detector.observe(history[1])
    other = make()
    other.restore(detector.state())
    with pytest.raises(NotFitted):
        other.observe(history[1])


def test_every_detector_notices_a_collapse(
    make: Callable[[], Detector], history: tuple[Observations, Observations]
) -> None:
    """Everything at once: all answers wrong, another class, elsewhere."""
    random = np.random.default_rng(1)
    n = 400
    worse = Observations(
        (random.standard_normal((n, 6)) + 3).astype(np.float32),
        np.tile(np.array([[0.8, 0.1, 0.1]], dtype=np.float32), (n, 1)),
        np.full(n, 2),
        np.arange(n, dtype=float),
        {"number": random.standard_normal(n) + 3},
    )
    detector = make()
    detector.fit(history[0])
    assert any(detector.observe(worse.take(slice(i, i + 50))).alarmed for i in range(0, n, 50))
