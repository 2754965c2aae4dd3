"""The mix of classes moved: one more or less frequent, or one never seen before.

What the detectors of labels and of answers share: one column of `watch.Watch` for each class of the
reference and one for all others together, with bets on rises and falls of each.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from drift.eprocess import Baseline, Bets, Floats, Integers
from drift.signal import Kind, NotEnoughReference, NotFitted, Observations, Signal, State
from drift.watch import Watch

# Bets on changes of the floor times 1, 2, 4, 8: 0.05 to 0.4. Finer steps cost what they gain.
STEPS = 4
# How many movers, and how many unknown classes, the evidence names.
NAMED = 5


class Mix:
    """E-detector for a change of class frequencies, with a learned baseline.

    At most one false alarm per ``false_alarm`` events on average (`eprocess` says why and for
    what). A change of many classes shows in the one that moved most. A class the reference never
    saw starts from the frequency at which unseen classes were to be expected (Good and Turing's
    estimate), so that three or four of its events in a hundred are an alarm.

    Score and threshold are ``log(1 + evidence)``, in nats. Evidence: ``moved`` (the likeliest
    classes: ``class``, -1 for unseen ones together, with its ``reference_share`` and ``share``),
    ``unseen`` (class indices the reference lacks, last seen last), ``events`` (of this batch, with
    a class), ``learned_from`` (events behind the baseline).
    """

    name: str
    kind: Kind = "label"
    #: What it counts, for the message that there are too few.
    what: ClassVar[str]

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        floor: float = 0.05,
        minimum: int = 200,
        baseline_events: int = 50_000,
    ) -> None:
        self._false_alarm = false_alarm
        self._floor = floor
        self._minimum = minimum
        self._baseline_events = baseline_events
        self._classes: Integers = np.zeros(0, dtype=np.int64)
        self._watch: Watch | None = None
        self._unseen: list[int] = []
        self._seen = 0

    def classes_of(self, observations: Observations) -> Integers:
        """int64 [n]: the class of each event, negative where there is none."""
        raise NotImplementedError

    def fit(self, reference: Observations) -> None:
        """Take the reference's class frequencies for the baseline.

        Raises NotEnoughReference with fewer events that have a class than ``minimum``.
        """
        found = self.classes_of(reference)
        found = found[found >= 0]
        if len(found) < self._minimum:
            raise NotEnoughReference(self.name, self._minimum, len(found), self.what)
        self._classes, counts = np.unique(found, return_counts=True)
        shares = np.append(counts, 0) / len(found)
        self._watch = self._create(shares)
        # Half an event each way (Krichevsky and Trofimov); for unseen classes, as many as there
        # are classes seen once.
        yes = np.append(counts, (counts == 1).sum()) + 0.5
        self._watch.begin(Baseline(yes.astype(np.float64), len(found) + 1.0))
        self._unseen = []
        self._seen = 0

    def observe(self, batch: Observations) -> Signal:
        """Take in the batch's classes, in order."""
        if self._watch is None:
            raise NotFitted(f"{self.name}: call fit with a reference first")
        classes = self.classes_of(batch)
        usable = np.flatnonzero(classes >= 0)
        classes = classes[usable]
        columns = self._columns(classes)
        for label in dict.fromkeys(classes[columns == len(self._classes)].tolist()):
            self._unseen = [*(c for c in self._unseen if c != label), label][-NAMED:]
        found = self._watch.take(columns)
        seen, self._seen = self._seen, self._seen + len(batch)
        return self._watch.signal(
            self.name,
            self.kind,
            found,
            seen,
            usable,
            moved=self._moved(self._watch, found.evidence, found.rates),
            unseen=list(self._unseen),
            **self._more(columns, found.at),
        )

    def _more(self, columns: Integers, at: list[int]) -> dict[str, object]:
        """Evidence of a detector's own: of the columns taken and of those that alarmed."""
        return {}

    def state(self) -> State:
        """Plain arrays: some 200 bytes a class, whatever has been observed."""
        if self._watch is None:
            return {}
        return {
            **self._watch.state(),
            "classes": self._classes.copy(),
            "weights": self._watch.bets.weights.copy(),
            "unseen": np.array(self._unseen, dtype=np.int64),
            "seen": np.array(self._seen, dtype=np.int64),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if not state:
            self._watch = None
            return
        self._classes = np.array(state["classes"], dtype=np.int64)
        weights = np.array(state["weights"], dtype=np.float64)
        self._watch = self._over(Bets(self._shifts(len(weights)), weights))
        self._watch.restore(state)
        self._unseen = [int(label) for label in state["unseen"].tolist()]
        self._seen = int(state["seen"].item())

    def _columns(self, classes: Integers) -> Integers:
        """The column of each class; those the reference lacks share the last one."""
        columns = np.minimum(np.searchsorted(self._classes, classes), len(self._classes) - 1)
        return np.where(self._classes[columns] == classes, columns, len(self._classes))

    def _create(self, shares: Floats) -> Watch:
        shifts = self._shifts(len(shares))
        # A class cannot lose more than its share, nor can all of them together.
        possible = (shifts > 0) | (shares[:, None] + shifts > 0)
        # One class alone has nothing to lose to, and its rise is nothing at all.
        possible &= (shares[:, None] < 1) | (shifts < 0)
        return self._over(Bets(shifts, possible / possible.sum()))

    def _over(self, bets: Bets) -> Watch:
        return Watch(
            bets, threshold=float(self._false_alarm), learn_until=float(self._baseline_events)
        )

    def _shifts(self, columns: int) -> Floats:
        sizes = self._floor * 2.0 ** np.arange(STEPS)
        return np.tile(np.concatenate([sizes, -sizes]), (columns, 1))

    def _moved(self, watch: Watch, evidence: Floats, rates: Floats) -> list[dict[str, object]]:
        """The columns with the most evidence, and the share that each seems to have now."""
        weights = watch.bets.weights * evidence
        totals = weights.sum(axis=1)
        names: NDArray[np.int64] = np.append(self._classes, -1)
        shares = (weights * watch.bets.alternatives(rates)).sum(axis=1)
        return [
            {
                "class": int(names[column]),
                "reference_share": float(rates[column]),
                "share": float(shares[column] / totals[column]),
            }
            for column in np.argsort(totals)[::-1][:NAMED].tolist()
            if totals[column] > 0
        ]
