"""All detectors of the configuration, under one false-alarm budget.

The daemon owns one `Monitors`: it is fitted on a version's reference, sees every batch, and goes
into the checkpoint. It measures; what to do about an alarm is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import cast

import numpy as np

from drift.budget import FEWEST, aimed, events_per_alarm
from drift.concept.adwin import ADWIN
from drift.concept.ddm import DDM
from drift.concept.eddm import EDDM
from drift.concept.error_rate import ErrorRate
from drift.concept.hddm_a import HDDMA
from drift.concept.hddm_w import HDDMW
from drift.concept.kswin import KSWIN
from drift.concept.page_hinkley import PageHinkley
from drift.concept.replayed import ReplayedDetector
from drift.concept.run_length import BudgetOutOfReach
from drift.config import DriftConfig
from drift.covariate.classifier import ClassifierShift
from drift.covariate.embedding import EmbeddingShift
from drift.covariate.features import FeatureShift
from drift.covariate.mmd import KernelShift
from drift.covariate.reconstruction import ReconstructionError
from drift.label.answers import Answers
from drift.label.class_mix import ClassMix
from drift.reference import Reference
from drift.signal import (
    Detector,
    DriftError,
    Kind,
    NotEnoughReference,
    NotFitted,
    Observations,
    Signal,
    State,
)

NOT_FITTED = "no reference yet"


class SettingsChanged(DriftError):  # noqa: N818
    """A state was taken under other settings; thresholds and baselines would not fit."""


def _error_rate(config: DriftConfig, budget: int) -> Detector:
    return ErrorRate(
        budget,
        floor=config.error_floor,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
        rebase_events=config.rebase_events,
    )


def _embedding(config: DriftConfig, budget: int) -> Detector:
    return EmbeddingShift(
        budget,
        floor=config.embedding_floor,
        directions=config.embedding_directions,
        window=config.embedding_window,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
    )


def _class_mix(config: DriftConfig, budget: int) -> Detector:
    return ClassMix(
        budget,
        floor=config.mix_floor,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
    )


def _answers(config: DriftConfig, budget: int) -> Detector:
    return Answers(
        budget,
        floor=config.mix_floor,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
    )


def _features(config: DriftConfig, budget: int) -> Detector:
    return FeatureShift(
        budget,
        measure=config.feature_measure,
        floor=config.feature_floor,
        window=config.embedding_window,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
    )


def _mmd(config: DriftConfig, budget: int) -> Detector:
    return KernelShift(
        budget,
        floor=config.mmd_floor,
        window=config.embedding_window,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
    )


def _classifier(config: DriftConfig, budget: int) -> Detector:
    return ClassifierShift(
        budget,
        floor=config.classifier_floor,
        directions=config.embedding_directions,
        minimum=config.reference_minimum,
    )


def _reconstruction(config: DriftConfig, budget: int) -> Detector:
    return ReconstructionError(
        budget,
        floor=config.reconstruction_floor,
        directions=config.embedding_directions,
        window=config.embedding_window,
        minimum=config.reference_minimum,
        baseline_events=config.baseline_events,
    )


CALIBRATED: dict[str, Callable[[DriftConfig, int], Detector]] = {
    "error_rate": _error_rate,
    "embedding": _embedding,
    "class_mix": _class_mix,
    "answers": _answers,
    "features": _features,
    "mmd": _mmd,
    "classifier": _classifier,
    "reconstruction": _reconstruction,
}
# On the same budget, or at river's own settings if the configuration says so.
RIVER: dict[str, type[ReplayedDetector]] = {
    "adwin": ADWIN,
    "ddm": DDM,
    "eddm": EDDM,
    "hddm_a": HDDMA,
    "hddm_w": HDDMW,
    "page_hinkley": PageHinkley,
    "kswin": KSWIN,
}


#: What measures by labels; all others by what is known when the event comes.
LABELLED = frozenset({"error_rate", "class_mix", *RIVER})


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a detector is from an alarm: ``share`` of the way, 1 being there.

    ``waiting`` says why it does not run, if it does not.
    """

    detector: str
    kind: Kind
    score: float
    threshold: float
    share: float
    waiting: str | None = None

    def sentence(self) -> str:
        """One line for a person."""
        if self.waiting is not None:
            return f"{self.detector} ({self.kind}) does not run: {self.waiting}"
        return (
            f"{self.detector} ({self.kind}) is {self.share:.0%} of the way to an alarm: "
            f"{self.score:.2f} of {self.threshold:.2f}"
        )


class Monitors:
    """The configured detectors, in the configured order.

    ``m`` calibrated detectors that run each get ``m`` times the events for one false alarm, so that
    all together keep the budget however they depend on one another (Bonferroni), with a reserve.
    """

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        #: Events for one false alarm of all together; 0 until `fit`.
        self.budget = 0
        self.detectors = self._sharing(())
        #: Why a detector does not run, by its name; empty when all do.
        self.waiting: dict[str, str] = {d.name: NOT_FITTED for d in self.detectors}

    def fit(self, reference: Reference | Observations, budget: int | None = None) -> None:
        """Fit every detector, and forget what was observed before.

        budget: events for one false alarm, in place of what the configuration asks for.

        A detector for which the reference is too small (say, of labels), or which cannot keep the
        budget, waits, and its signals say why; the others share the budget without it. Raises that
        reason when it is all of them, and NoTraffic when the budget is per time and the reference
        does not tell how many events come.
        """
        if isinstance(reference, Reference):
            reference = reference.observations
        self.budget = budget or events_per_alarm(self.config.false_alarm, reference.times)
        waiting: dict[str, str] = {}
        while True:
            detectors = self._sharing(waiting)
            try:
                for detector in detectors:
                    if detector.name not in waiting:
                        detector.fit(reference)
            except (NotEnoughReference, BudgetOutOfReach) as refusal:
                waiting[detector.name] = str(refusal)
                if len(waiting) == len(detectors):
                    raise
            else:
                break
        self.detectors, self.waiting = detectors, waiting

    def observe(self, batch: Observations, *, again: bool = False) -> list[Signal]:
        """One signal from each detector, in order.

        again: the events were observed before, without the labels that they have now; only what
        looks at labels sees them.

        Raises NotFitted before the first `fit`, ShapeMismatch for another encoder's embeddings.
        """
        if len(self.waiting) == len(self.detectors):
            raise NotFitted("monitors: call fit with a reference, or restore a state, first")
        return [
            Signal(d.name, d.kind, 0.0, 1.0, False, {"at": [], "waiting": self.waiting[d.name]})
            if d.name in self.waiting
            else d.observe(NOTHING if again and d.name not in LABELLED else batch)
            for d in self.detectors
        ]

    def distances(self) -> list[Distance]:
        """How far each detector is from alarming now: the answer to "why was there no alarm?"."""
        found = []
        for detector in self.detectors:
            reason = self.waiting.get(detector.name)
            if reason is not None:
                found.append(Distance(detector.name, detector.kind, 0.0, 1.0, 0.0, reason))
                continue
            # An empty batch changes nothing, and is answered with where the detector stands.
            signal = detector.observe(NOTHING)
            share = signal.score / signal.threshold
            found.append(
                Distance(detector.name, detector.kind, signal.score, signal.threshold, share)
            )
        return found

    def state(self) -> State:
        """Plain arrays of all detectors, each under its name and a dot."""
        arrays: State = {
            "settings": _text(self.config.model_dump_json()),
            "waiting": _text(json.dumps(self.waiting)),
            "budget": np.array(self.budget, dtype=np.int64),
        }
        for detector in self.detectors:
            if detector.name not in self.waiting:
                for key, value in detector.state().items():
                    arrays[f"{detector.name}.{key}"] = value
        return arrays

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken.

        Raises SettingsChanged when it was taken under another configuration: fit again instead.
        """
        settings = json.loads(state["settings"].tobytes())
        if settings != self.config.model_dump(mode="json"):
            changed = sorted(
                key
                for key, value in self.config.model_dump(mode="json").items()
                if settings.get(key) != value
            )
            raise SettingsChanged(
                f"drift settings have changed since this state was saved ({', '.join(changed)}). "
                "Fit the monitors on the version's reference again; what they had gathered is lost."
            )
        self.waiting = cast("dict[str, str]", json.loads(state["waiting"].tobytes()))
        self.budget = int(state["budget"].item())
        self.detectors = self._sharing(self.waiting)
        for detector in self.detectors:
            if detector.name not in self.waiting:
                prefix = f"{detector.name}."
                detector.restore(
                    {
                        key.removeprefix(prefix): value
                        for key, value in state.items()
                        if key.startswith(prefix)
                    }
                )

    def _sharing(self, waiting: Collection[str]) -> tuple[Detector, ...]:
        """New detectors, the budget shared among those that are not waiting."""
        config = self.config
        names = dict.fromkeys(config.detectors)
        free = RIVER.keys() if config.river_defaults else ()
        sharing = sum(name not in free and name not in waiting for name in names)
        budget = aimed(max(self.budget, FEWEST) * max(1, sharing))
        return tuple(
            CALIBRATED[name](config, budget)
            if name in CALIBRATED
            else RIVER[name](None if name in free else budget, minimum=config.reference_minimum)
            for name in names
        )


NOTHING = Observations(
    np.zeros((0, 0), dtype=np.float32),
    np.zeros((0, 0), dtype=np.float32),
    np.zeros(0, dtype=np.int64),
    np.zeros(0),
)


def _text(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(text.encode(), dtype=np.uint8)
