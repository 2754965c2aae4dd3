"""The contract between detectors and the rest: observations in, a signal out.

A detector only measures. It sees a batch as plain arrays, answers with one `Signal`, and keeps
its state in plain arrays, so that a restart goes on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drift.features import NO_FEATURES, Features, joined, packed, unpacked

Kind = Literal["covariate", "label", "concept"]
State = dict[str, NDArray[np.generic]]

UNLABELLED = -1
COLUMNS = ("embeddings", "probabilities", "labels", "times")
FEATURE = "features."
WRONG = "wrong"


class DriftError(Exception):
    """Anything this room refuses to do; the message says what to do instead."""


class NotFitted(DriftError):  # noqa: N818 - a state, not a mistake of the data
    """A detector was asked to observe before it was given a reference."""


class NotEnoughReference(DriftError):  # noqa: N818
    """The reference holds too few usable events to say what normal is."""

    def __init__(self, detector: str, needed: int, had: int, what: str) -> None:
        self.detector, self.needed, self.had = detector, needed, had
        super().__init__(
            f"{detector} needs a reference of at least {needed} {what}; this one has {had}. "
            "Collect more before calling fit, or lower drift.reference_minimum."
        )


class ShapeMismatch(DriftError):  # noqa: N818
    """A batch does not look like the reference: another encoder made it."""


@dataclass(frozen=True, slots=True)
class Observations:
    """``n`` events as detectors see them, in stream order.

    embeddings: float32 [n, d] of the serving model's encoder. probabilities: float32 [n, k] of
    the serving model. labels: int64 [n], the class index, or `UNLABELLED`; an index >= k is a
    class that the model does not know. times: float64 [n], seconds since the epoch. features: the
    columns of a table by name, each [n] (see `drift.features`); none for text. wrong: bool [n], for
    a model of which that is more than another class than the label, such as one that predicts
    numbers; labels are then the part of the target's range. Of no meaning where unlabelled.
    """

    embeddings: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    times: NDArray[np.float64]
    features: Features = field(default_factory=lambda: NO_FEATURES)
    wrong: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Bool [n]: the events whose label has arrived (any negative label is `UNLABELLED`)."""
        return self.labels >= 0

    @property
    def predicted(self) -> NDArray[np.int64]:
        """int64 [n]: the class the model answered; -1 where its probabilities are not finite."""
        if self.probabilities.shape[1] == 0:
            return np.full(len(self), -1, dtype=np.int64)
        answer: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        # A sum is NaN or infinite when a term is: one look at the total spares one at each row.
        with np.errstate(invalid="ignore", over="ignore"):
            total = self.probabilities.sum()
        if not np.isfinite(total):
            answer[~np.isfinite(self.probabilities).all(axis=1)] = -1
        return answer

    @property
    def errors(self) -> NDArray[np.bool_]:
        """Bool [m]: for the ``m`` labelled events, whether the model was wrong.

        A model that gave no finite probabilities was wrong.
        """
        known = self.labelled
        if self.wrong is not None:
            return self.wrong[known]
        those = self if known.all() else self.take(known)
        wrong: NDArray[np.bool_] = those.predicted != those.labels
        return wrong

    def take(self, index: NDArray[np.generic] | slice) -> Observations:
        """The events at ``index``, as new observations."""
        return Observations(
            self.embeddings[index],
            self.probabilities[index],
            self.labels[index],
            self.times[index],
            {name: column[index] for name, column in self.features.items()},
            None if self.wrong is None else self.wrong[index],
        )

    @classmethod
    def join(cls, batches: Sequence[Observations]) -> Self:
        """Several batches, one after another.

        Classes that a later batch knows have probability 0 in the earlier ones.
        """
        width = max(batch.probabilities.shape[1] for batch in batches)
        wrong = [batch.wrong for batch in batches if batch.wrong is not None]
        return cls(
            np.concatenate([batch.embeddings for batch in batches]),
            np.concatenate([_widened(batch.probabilities, width) for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
            np.concatenate([batch.times for batch in batches]),
            joined([(batch.features, len(batch)) for batch in batches]),
            np.concatenate(wrong) if len(wrong) == len(batches) else None,
        )

    def arrays(self) -> State:
        """Plain contiguous arrays by name, about 4 (d + k) bytes an event."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        if self.wrong is not None:
            columns[WRONG] = self.wrong
        features = {f"{FEATURE}{key}": value for key, value in packed(self.features).items()}
        return {key: np.array(value, order="C") for key, value in {**columns, **features}.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The observations that `arrays` describes.

        Raises DriftError when an array is missing or the columns differ in length.
        """
        missing = [name for name in COLUMNS if name not in arrays]
        if missing:
            raise DriftError(f"these are no observations: {', '.join(missing)} missing")
        found = cls(
            np.asarray(arrays["embeddings"], dtype=np.float32),
            np.asarray(arrays["probabilities"], dtype=np.float32),
            np.asarray(arrays["labels"], dtype=np.int64),
            np.asarray(arrays["times"], dtype=np.float64),
            unpacked({k[len(FEATURE) :]: v for k, v in arrays.items() if k.startswith(FEATURE)}),
            arrays[WRONG].astype(np.bool_) if WRONG in arrays else None,
        )
        lengths = {name: len(getattr(found, name)) for name in COLUMNS}
        lengths |= {name: len(column) for name, column in found.features.items()}
        if len(set(lengths.values())) != 1:
            raise DriftError(f"these observations are damaged: their columns differ, {lengths}")
        return found


def _widened(probabilities: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.pad(probabilities, ((0, 0), (0, width - probabilities.shape[1])))


@dataclass(frozen=True, slots=True)
class Signal:
    """What a detector says of a batch: a score, the threshold it must cross, and why.

    ``score`` is the highest of the batch, or where the detector stands if the batch held nothing
    for it; it shares ``threshold``'s unit, the detector's own. ``alarmed`` is
    ``score >= threshold`` at some event of the batch. ``evidence`` holds JSON-able values only;
    every detector gives ``seen`` (events since `fit`, before this batch) and ``at`` (positions in
    this batch of the events that raised an alarm), so ``seen + at`` does not depend on how the
    stream was cut.
    """

    detector: str
    kind: Kind
    score: float
    threshold: float
    alarmed: bool
    evidence: Mapping[str, object] = field(default_factory=dict)


@runtime_checkable
class Detector(Protocol):
    """Measures one kind of drift: `fit` on a drift-free reference, then `observe` by batches."""

    name: str
    kind: Kind

    def fit(self, reference: Observations) -> None:
        """Learn what normal is, calibrate the threshold, and forget everything observed before."""

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch, in order, and answer. Never changes the arrays it was given."""

    def state(self) -> State:
        """Everything that `restore` needs, as plain arrays."""

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
