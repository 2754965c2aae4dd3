"""All detectors of the configuration, under one false-alarm budget.

The daemon owns one `Monitors`: it is fitted on a version's reference, sees every batch, and goes
into the checkpoint. It measures; what to do about an alarm is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from drift.concept.adwin import ADWIN
from drift.concept.ddm import DDM
from drift.concept.eddm import EDDM
from drift.concept.error_rate import ErrorRate
from drift.concept.hddm_a import HDDMA
from drift.concept.hddm_w import HDDMW
from drift.concept.kswin import KSWIN
from drift.concept.page_hinkley import PageHinkley
from drift.config import DriftConfig
from drift.covariate.embedding import EmbeddingShift
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


# Those that keep the budget share it; river's run at their own settings.
CALIBRATED: dict[str, Callable[[DriftConfig, int], Detector]] = {
    "error_rate": _error_rate,
    "embedding": _embedding,
    "class_mix": _class_mix,
}
AS_THEY_ARE: dict[str, Callable[[], Detector]] = {
    "adwin": ADWIN,
    "ddm": DDM,
    "eddm": EDDM,
    "hddm_a": HDDMA,
    "hddm_w": HDDMW,
    "page_hinkley": PageHinkley,
    "kswin": KSWIN,
}


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

    ``m`` calibrated detectors each get ``m`` times the events for one false alarm, so that all
    together keep the budget however they depend on one another (Bonferroni).
    """

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        names = dict.fromkeys(self.config.detectors)
        budget = self.config.false_alarm * sum(name in CALIBRATED for name in names)
        self.detectors: tuple[Detector, ...] = tuple(
            CALIBRATED[name](self.config, budget) if name in CALIBRATED else AS_THEY_ARE[name]()
            for name in names
        )
        #: Why a detector does not run, by its name; empty when all do.
        self.waiting: dict[str, str] = {d.name: NOT_FITTED for d in self.detectors}

    def fit(self, reference: Reference | Observations) -> None:
        """Fit every detector, and forget what was observed before.

        A detector for which the reference is too small (say, of labels) waits, and its signals say
        why. Raises NotEnoughReference when that is all of them.
        """
        if isinstance(reference, Reference):
            reference = reference.observations
        waiting: dict[str, str] = {}
        refusal: NotEnoughReference | None = None
        for detector in self.detectors:
            try:
                detector.fit(reference)
            except NotEnoughReference as error:
                waiting[detector.name], refusal = str(error), error
        if refusal is not None and len(waiting) == len(self.detectors):
            raise refusal
        self.waiting = waiting

    def observe(self, batch: Observations) -> list[Signal]:
        """One signal from each detector, in order.

        Raises NotFitted before the first `fit`, ShapeMismatch for another encoder's embeddings.
        """
        if len(self.waiting) == len(self.detectors):
            raise NotFitted("monitors: call fit with a reference, or restore a state, first")
        return [
            Signal(d.name, d.kind, 0.0, 1.0, False, {"at": [], "waiting": self.waiting[d.name]})
            if d.name in self.waiting
            else d.observe(batch)
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


NOTHING = Observations(
    np.zeros((0, 0), dtype=np.float32),
    np.zeros((0, 0), dtype=np.float32),
    np.zeros(0, dtype=np.int64),
    np.zeros(0),
)


def _text(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(text.encode(), dtype=np.uint8)
