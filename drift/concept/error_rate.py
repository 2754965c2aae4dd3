"""The error rate rose above what it was: an anytime-valid test, in columns.

The default concept detector. One column (the model was wrong) of `watch.Watch`, bets on rises of
geometric sizes, and a ratchet that lowers the baseline when the model has improved.
"""

from __future__ import annotations

import math

import numpy as np

from drift.eprocess import Baseline, Bets, Floats
from drift.signal import Kind, NotEnoughReference, NotFitted, Observations, Signal, State
from drift.watch import Ratchet, Watch

# Neighbouring rises differ by this factor: between two of them a bet loses little, and the seven
# that fit between 0.03 and 1 cost a change of 0.2 -> 0.4 about ten events over knowing the rate.
GROWTH = 1.6


class ErrorRate:
    """E-detector for a rise of the error rate, with a learned baseline.

    At most one false alarm per ``false_alarm`` labelled events on average, whatever the rate; a
    rise from 0.2 to 0.4 is found in about 67 events at one per 20,000 (a CUSUM that was told both
    rates and tuned by simulation needs 57). Score and threshold are ``log(1 + evidence)``, in
    nats. Evidence: ``reference_rate`` (the baseline), ``rate`` (the alternatives' mean, weighted
    by their evidence), ``events`` (labelled events of this batch), ``learned_from`` (events behind
    the baseline).

    Reference: Shin, Ramdas & Rinaldo, "E-detectors", 2022.

    >>> import numpy as np
    >>> def events(wrong):
    ...     answers = np.tile(np.float32([[1, 0]]), (len(wrong), 1))
    ...     return Observations(np.zeros((len(wrong), 1), np.float32), answers,
    ...                         wrong.astype(np.int64), np.arange(len(wrong), dtype=float))
    >>> random = np.random.default_rng(0)
    >>> detector = ErrorRate(false_alarm=20_000)
    >>> detector.fit(events(random.random(2_000) < 0.2))
    >>> detector.observe(events(random.random(500) < 0.2)).alarmed
    False
    >>> signal = detector.observe(events(random.random(500) < 0.4))
    >>> signal.alarmed, signal.evidence["at"][0] < 150
    (True, True)
    """

    name = "error_rate"
    kind: Kind = "concept"

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        floor: float = 0.03,
        minimum: int = 200,
        baseline_events: int = 50_000,
        rebase_events: int = 1_000,
    ) -> None:
        steps = range(int(math.log(1 / floor, GROWTH)) + 1)
        sizes = np.array([floor * GROWTH**step for step in steps])
        self._bets = _even(sizes)
        self._watch = Watch(
            self._bets,
            threshold=float(false_alarm),
            learn_until=float(baseline_events),
            ratchet=Ratchet(_even(-sizes), rebase_events),
        )
        self._minimum = minimum
        self._fitted = False
        self._seen = 0

    def fit(self, reference: Observations) -> None:
        """Take the reference's error rate for the baseline.

        Raises NotEnoughReference with fewer labelled events than ``minimum``.
        """
        errors = reference.errors
        if len(errors) < self._minimum:
            raise NotEnoughReference(self.name, self._minimum, len(errors), "labelled events")
        # Half an error and half a right answer more: the Krichevsky-Trofimov predictive rate.
        self._watch.begin(Baseline(np.array([errors.sum() + 0.5]), len(errors) + 1.0))
        self._fitted = True
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's labelled events, in order."""
        if not self._fitted:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        labelled = np.flatnonzero(batch.labelled)
        fired = batch.errors.astype(np.int64) - 1  # column 0 where wrong, -1 where right
        found = self._watch.take(fired)
        seen, self._seen = self._seen, self._seen + len(batch)
        return self._watch.signal(
            self.name,
            self.kind,
            found,
            seen,
            labelled,
            reference_rate=float(found.rates[0]),
            rate=self._rate(found.evidence, found.rates),
        )

    def state(self) -> State:
        """Plain arrays; under 2 KB, whatever has been observed."""
        return {
            **self._watch.state(),
            "fitted": np.array(self._fitted),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        self._watch.restore(state)
        self._fitted = bool(state["fitted"].item())
        self._seen = int(state["seen"].item())

    def _rate(self, evidence: Floats, rates: Floats) -> float:
        """What the error rate seems to be now, if it has changed."""
        weights = self._bets.weights * evidence
        total = float(weights.sum())
        if total == 0:
            return float(rates[0])
        return float((weights * self._bets.alternatives(rates)).sum() / total)


def _even(shifts: Floats) -> Bets:
    return Bets(shifts[None], np.full((1, len(shifts)), 1 / len(shifts)))
