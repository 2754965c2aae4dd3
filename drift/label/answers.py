"""The mix of the model's answers moved: label shift that shows before any label arrives.

`mix.Mix` on the answers of all events, labelled or not. The reference's labels say how often each
class is answered as each other; with that, an alarm tells the mix of classes behind the answers.
"""

from __future__ import annotations

import numpy as np

from drift.eprocess import Floats, Integers
from drift.label.mix import NAMED, Mix
from drift.measures import mix_change
from drift.signal import Observations, State

# The most recent answers, among which an alarm looks for the beginning of the shift.
WINDOW = 2_048
# An onset nearer to the end than this is not looked for: a mix is not told from so few answers.
SHORTEST = 32
# Answers that tell a mix of classes from another by less than this share of their difference (the
# confusion matrix's least singular value) leave the estimate mostly to the reference's mix.
TELLING = 0.1


class Answers(Mix):
    """E-detector for a change of the mix of answers; ``false_alarm`` counts all events.

    An alarm's evidence has, beside `Mix`'s: ``shares`` (the classes whose share moved most:
    ``class``, ``reference_share``, ``share``), estimated from the ``estimated_from`` answers since
    the likeliest beginning of the shift, and ``note``, which says what stands in the way of the
    estimate, or None. The estimate supposes that P(x given y) is what it was. If it is not, the
    answers move all the same and the alarm is right, but the shares are not: diagnose.

    The shares solve black box shift estimation's equation, answers = confusion matrix times
    shares, by maximum likelihood on the simplex, from the reference's mix on. No matrix is
    inverted, so a class that the answers cannot tell from another stays where it was.

    Reference: Lipton, Wang & Smola, "Detecting and Correcting for Label Shift with Black Box
    Predictors", ICML 2018; the iteration is that of Saerens, Latinne & Decaestecker, "Adjusting
    the Outputs of a Classifier to New a Priori Probabilities", Neural Computation 14, 2002.
    """

    name = "answers"
    what = "events that the model answered"

    def __init__(
        self,
        false_alarm: int = 20_000,
        *,
        floor: float = 0.05,
        minimum: int = 200,
        baseline_events: int = 50_000,
    ) -> None:
        super().__init__(false_alarm, floor=floor, minimum=minimum, baseline_events=baseline_events)
        self._recent: Integers = np.zeros(0, dtype=np.int64)
        # Of the labelled reference: label, column of the answer, and how often they met.
        self._pairs: Integers = np.zeros((0, 3), dtype=np.int64)

    def classes_of(self, observations: Observations) -> Integers:
        """The answers; events whose probabilities are not finite have none."""
        return observations.predicted

    def fit(self, reference: Observations) -> None:
        """Take the reference's answers for the baseline, and its labels for what they mean.

        Raises NotEnoughReference with fewer answered events than ``minimum``. Without labels it
        runs, and estimates no shares.
        """
        super().fit(reference)
        known = reference.take(reference.labelled)
        answers = known.predicted
        pairs = np.stack([known.labels, self._columns(answers)], axis=1)[answers >= 0]
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        self._pairs = np.column_stack([found, counts])
        self._recent = np.zeros(0, dtype=np.int64)

    def state(self) -> State:
        """`Mix`'s arrays, 8 KB of recent answers, 12 bytes for each kind of confusion seen."""
        arrays = super().state()
        if not arrays:
            return {}
        return arrays | {
            "recent": self._recent.astype(np.int32),
            "pairs": self._pairs.astype(np.int32),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        super().restore(state)
        if not state:
            return
        self._recent = np.array(state["recent"], dtype=np.int64)
        self._pairs = np.array(state["pairs"], dtype=np.int64)

    def _more(self, columns: Integers, at: list[int]) -> dict[str, object]:
        """The shares at the last alarm of the batch."""
        answers = np.concatenate([self._recent, columns])
        upto = len(self._recent) + at[-1] + 1 if at else 0
        self._recent = answers[-WINDOW:]
        return self._estimate(answers[:upto][-WINDOW:]) if at else {}

    def _estimate(self, answers: Integers) -> dict[str, object]:
        labels, columns, counts = self._pairs.T
        if len(counts) == 0:
            return {"shares": [], "estimated_from": 0, "note": "the reference has no labels"}
        names, rows = np.unique(labels, return_inverse=True)
        met = np.zeros((len(names), len(self._classes) + 1))
        np.add.at(met, (rows, columns), counts)
        reference = met.sum(axis=1) / met.sum()
        # One event more of each class, answered as any event is: no answer is impossible.
        usual = (met.sum(axis=0) + 0.5) / (met.sum() + 0.5 * met.shape[1])
        confusion = (met + usual) / (met.sum(axis=1, keepdims=True) + 1)
        since = answers[_beginning(answers, usual) :]
        seen = np.bincount(since, minlength=met.shape[1]).astype(np.float64)
        shares = class_shares(confusion, seen, reference)
        order = np.argsort(-np.abs(shares - reference), kind="stable")[:NAMED]
        told = float(np.linalg.svd(confusion, compute_uv=False).min())
        return {
            "shares": [
                {
                    "class": int(names[i]),
                    "reference_share": float(reference[i]),
                    "share": float(shares[i]),
                }
                for i in order.tolist()
            ],
            "estimated_from": len(since),
            "note": None
            if told >= TELLING
            else f"some classes are hardly told apart by the answers (least singular value "
            f"{told:.2g} of the confusion matrix): their shares lean on the reference's",
        }


def class_shares(confusion: Floats, answers: Floats, reference: Floats) -> Floats:
    """Shares [c] of the classes behind answers [a], counts: the likeliest on the simplex.

    confusion: float64 [c, a], how often each class is answered as what; rows sum to 1. reference:
    float64 [c], the mix to begin from, and a prior worth one event.
    """
    shares = reference
    for _ in range(500):
        expected = np.maximum(shares @ confusion, 1e-300)
        better = reference + shares * (confusion @ (answers / expected))
        better /= better.sum()
        settled = np.abs(better - shares).max() < 1e-6
        shares = better
        if settled:
            break
    return shares


def _beginning(answers: Integers, usual: Floats) -> int:
    """Where the answers' likeliest change from their usual shares [a] began."""
    members = (answers[:, None] == np.arange(len(usual))).astype(np.float64)
    return int(mix_change(members, usual)[: max(1, len(answers) - SHORTEST + 1)].argmax())
