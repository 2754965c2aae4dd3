"""River's drift detectors behind the `Detector` contract, on the false-alarm budget.

Each has one parameter that says how sensitive it is: `fit` reads off `RunLengths`, measured once,
what the budget asks for at the reference's error rate.

River keeps no state that could be stored without pickle. But each of its detectors starts afresh
after a drift, so it is a function of the errors since then: those bits are the state, and
`restore` replays them. Each detector has its own file beside this one.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from drift.concept.run_length import BudgetOutOfReach, RunLengths
from drift.measures import wilson
from drift.signal import (
    Kind,
    NotEnoughReference,
    NotFitted,
    Observations,
    Signal,
    State,
)


class RiverDetector(Protocol):
    """What is used of a ``river.drift`` detector."""

    drift_detected: bool

    def update(self, x: float) -> object:
        """Take in one observation."""


class ReplayedDetector:
    """One of river's detectors on the model's errors (1 wrong, 0 right).

    At most one false alarm per ``false_alarm`` labelled events, as far as measuring can tell (no
    proof stands behind it); without a ``false_alarm`` it runs at river's own setting, wherever that
    leads. All other parameters are river's. What is added: where river looks for changes both ways,
    a *fall* of the error rate restarts the detector without an alarm. Score: 1 for a drift, 0.5 for
    river's warning zone, 0 otherwise; the threshold is 1. Evidence: ``setting`` (the parameter and
    its value), ``events`` (labelled events of this batch), ``remembered`` (errors since the last
    restart), ``rate`` (their mean).
    """

    name: str
    kind: Kind = "concept"
    #: The parameter that says how sensitive the detector is, and its value in river.
    parameter: ClassVar[str]
    default: ClassVar[float]
    run_lengths: ClassVar[RunLengths]
    # How many of the reference's labelled events warm the detector up.
    warm_up: ClassVar[int] = 1_000
    # The longest run of errors that is remembered: 8 KiB as bits, replayed in under a second. On
    # reaching it, the detector is rebuilt from the latter half: at a fixed place of the stream, so
    # that neither batches nor restarts make a difference.
    longest_tail: ClassVar[int] = 65_536

    def __init__(self, false_alarm: int | None = 20_000, *, minimum: int = 200) -> None:
        self._false_alarm = false_alarm
        self._minimum = minimum
        self._setting = self.default
        self._tail = bytearray()
        self._detector = self.create(self._setting)
        self._fitted = False
        self._standing = 0.0
        self._seen = 0

    def create(self, setting: float) -> RiverDetector:
        """A new detector of river's, its parameter set."""
        raise NotImplementedError

    def recent(self) -> int | None:
        """How many of the last observations a detector of changes both ways takes for new.

        None: it looks for rises only.
        """
        return None

    def fit(self, reference: Observations) -> None:
        """Choose the setting, and warm up on the reference's last labelled events.

        At river's own setting any length will do. Otherwise raises NotEnoughReference with fewer
        labelled events than ``minimum``, and BudgetOutOfReach when no setting keeps the budget.
        """
        errors = reference.errors
        self._setting = self._calibrated(int(errors.sum()), len(errors))
        self._restart()
        self._seen = 0
        self._fitted = True
        for error in errors[-self.warm_up :].tolist():
            self._step(int(error))
        self._standing = 0.0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's labelled events, one by one, as river does."""
        if not self._fitted:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        labelled = np.flatnonzero(batch.labelled)
        at = []
        highest = 0.0 if len(labelled) else self._standing
        for position, error in zip(labelled.tolist(), batch.errors.tolist(), strict=True):
            score = self._step(int(error))
            highest = max(highest, score)
            if score >= 1:
                at.append(position)
        evidence = {
            "seen": self._seen,
            "at": at,
            "setting": {self.parameter: self._setting},
            "events": len(labelled),
            "remembered": len(self._tail),
            "rate": sum(self._tail) / len(self._tail) if self._tail else None,
        }
        self._seen += len(batch)
        return Signal(self.name, self.kind, highest, 1.0, bool(at), evidence)

    def state(self) -> State:
        """The errors since the last restart, as bits: at most 8 KiB."""
        return {
            "tail": np.packbits(np.frombuffer(self._tail, dtype=np.uint8)),
            "length": np.array(len(self._tail), dtype=np.int64),
            "setting": np.array(self._setting),
            "fitted": np.array(self._fitted),
            "standing": np.array(self._standing),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Replay the errors kept in ``state``."""
        self._setting = float(state["setting"].item())
        bits: NDArray[np.uint8] = np.asarray(state["tail"], dtype=np.uint8)
        self._replay(bytearray(np.unpackbits(bits, count=int(state["length"].item())).tobytes()))
        self._fitted = bool(state["fitted"].item())
        self._standing = float(state["standing"].item())
        self._seen = int(state["seen"].item())

    def _calibrated(self, wrong: int, events: int) -> float:
        if self._false_alarm is None:
            return self.default
        if events < self._minimum:
            raise NotEnoughReference(self.name, self._minimum, events, "labelled events")
        setting = self.run_lengths.setting(self._false_alarm, wilson(wrong, events))
        if setting is None:
            longest = self.run_lengths.at(wilson(wrong, events))[-1]
            raise BudgetOutOfReach(self.name, self._false_alarm, int(longest), wrong / events)
        return setting

    def _step(self, error: int) -> float:
        """Take in one error; the score after it."""
        self._tail.append(error)
        self._detector.update(error)
        score = 0.0
        if self._detector.drift_detected:
            score = 1.0 if self._risen() else 0.0
            self._restart()
        elif getattr(self._detector, "warning_detected", False):
            score = 0.5
        if len(self._tail) >= self.longest_tail:
            self._replay(self._tail[-(self.longest_tail // 2) :])
        self._standing = score if score < 1 else 0.0
        return score

    def _risen(self) -> bool:
        window = self.recent()
        if window is None:
            return True
        recent = min(window, len(self._tail) - 1)
        if recent < 1:
            return bool(self._tail[-1])
        errors = np.frombuffer(bytes(self._tail), dtype=np.uint8)
        return bool(errors[-recent:].mean() > errors[:-recent].mean())

    def _restart(self) -> None:
        self._tail = bytearray()
        self._detector = self.create(self._setting)

    def _replay(self, tail: bytearray) -> None:
        """Rebuild the detector from ``tail``; a drift inside of it restarts without an alarm."""
        self._restart()
        for error in tail:
            self._tail.append(error)
            self._detector.update(error)
            if self._detector.drift_detected:
                self._restart()
