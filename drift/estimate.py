"""The accuracy of events without labels, from how sure the model was of its answers.

Labels come late or never. A confidence says how likely an answer is right once it is calibrated on
labelled events; the mean over recent events is then what their accuracy should be. Measures only:
no alarm comes from here.
"""

from __future__ import annotations

import math

import numpy as np

from drift.eprocess import Floats, Integers
from drift.measures import Interval
from drift.signal import DriftError, NotEnoughReference, NotFitted, Observations, State

# The reference's confidences are cut into at most so many parts of equal size, of SMALLEST events
# or more: smaller ones would follow chance, and fewer not the curve where few events lie.
PARTS, SMALLEST = 100, 25


class AccuracyEstimate:
    """Accuracy estimated from calibrated confidence, with a 95 % interval.

    It sees what a model can know of itself: more events of the kinds it is unsure of, covariate
    shift within regions that the reference knows. It does *not* see concept drift (the same inputs
    with other labels, answered as surely as before), nor that inputs on which the model is sure and
    wrong become frequent, be they of a new kind or of a class it always found hard. The interval
    covers neither. Where labels arrive, trust them.

    Calibration: the share of right answers by confidence, monotone (pooled adjacent violators) and
    linear between the middles of the parts. The interval is for the share of right answers *among
    the events given*, as their labels would tell: it holds the chance in those outcomes and the
    uncertainty of the calibration, and no more. Events whose probabilities are not finite count as
    answered wrongly, as in `Observations.errors`.

    Reference: NannyML's confidence-based performance estimation (CBPE); Zadrozny & Elkan,
    "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD 2002.

    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> def events(n, surest):
    ...     right = random.uniform(0.5, surest, n)
    ...     labels = (random.random(n) > right).astype(np.int64)
    ...     return Observations(np.zeros((n, 1), np.float32),
    ...                         np.stack([right, 1 - right], axis=1).astype(np.float32),
    ...                         labels, np.arange(n, dtype=float))
    >>> estimate = AccuracyEstimate()
    >>> estimate.fit(events(4_000, 1.0))
    >>> found = estimate.estimate(events(1_000, 0.7))  # it answers less surely
    >>> found.low < 0.6 < found.high
    True
    """

    def __init__(self, *, minimum: int = 200) -> None:
        self._minimum = minimum
        # Of each part: mean confidence (increasing), share of right answers, variance of that.
        self._middles: Floats = np.zeros(0)
        self._rates: Floats = np.zeros(0)
        self._variances: Floats = np.zeros(0)

    def fit(self, reference: Observations) -> None:
        """Calibrate on the reference's labelled events.

        Raises NotEnoughReference with fewer labelled and answered events than ``minimum``.
        """
        known = reference.take(reference.labelled)
        known = known.take(known.predicted >= 0)
        if len(known) < self._minimum:
            raise NotEnoughReference(
                "accuracy estimate", self._minimum, len(known), "labelled and answered events"
            )
        sure, right = _confidence(known), ~known.errors
        parts = min(PARTS, max(1, len(sure) // SMALLEST))
        cuts = np.quantile(sure, np.arange(1, parts) / parts)
        # Equal confidences fall into one part.
        _, part = np.unique(np.searchsorted(cuts, sure), return_inverse=True)
        events = np.bincount(part).astype(np.float64)
        self._middles = np.bincount(part, sure) / events
        # One event more, as right as all are, keeps a part without errors from being certain.
        usual = (right.sum() + 0.5) / (len(right) + 1)
        raw = (np.bincount(part, right) + usual) / (events + 1)
        self._rates = _increasing(raw, events)
        self._variances = raw * (1 - raw) / (events + 1)

    @property
    def fitted(self) -> bool:
        """Whether there is a calibration."""
        return len(self._middles) > 0

    def estimate(self, recent: Observations) -> Interval:
        """The share of right answers among ``recent``, whose labels are not looked at.

        Raises NotFitted before `fit`, and DriftError when there are no events.
        """
        if not self.fitted:
            raise NotFitted("accuracy estimate: call fit with a labelled reference first")
        if len(recent) == 0:
            raise DriftError("accuracy estimate: no events to estimate the accuracy of")
        answered = recent.predicted >= 0
        below, share = self._places(_confidence(recent.take(answered)))
        above = np.minimum(below + 1, len(self._middles) - 1)
        right = (1 - share) * self._rates[below] + share * self._rates[above]
        n = len(recent)
        # How much of the estimate hangs on each part of the calibration.
        parts = len(self._middles)
        weights = np.bincount(below, 1 - share, parts) + np.bincount(above, share, parts)
        variance = (right * (1 - right)).sum() / n**2
        variance += ((weights / n) ** 2 * self._variances).sum()
        return _interval(float(right.sum()) / n, float(variance), 0.5 / n)

    def state(self) -> State:
        """Plain arrays, at most 2.4 KB."""
        return {
            "middles": self._middles.copy(),
            "rates": self._rates.copy(),
            "variances": self._variances.copy(),
        }

    def restore(self, state: State) -> None:
        """Estimate as where `state` was taken."""
        self._middles = np.array(state["middles"], dtype=np.float64)
        self._rates = np.array(state["rates"], dtype=np.float64)
        self._variances = np.array(state["variances"], dtype=np.float64)

    def _places(self, sure: Floats) -> tuple[Integers, Floats]:
        """The middle at or below each confidence, and how far it is on the way to the next."""
        if len(self._middles) == 1:
            return np.zeros(len(sure), dtype=np.int64), np.zeros(len(sure))
        place = np.interp(sure, self._middles, np.arange(len(self._middles)))
        below = np.minimum(place.astype(np.int64), len(self._middles) - 2)
        return below, place - below


def _confidence(answered: Observations) -> Floats:
    if len(answered) == 0:
        return np.zeros(0)
    sure: Floats = answered.probabilities.max(axis=1).astype(np.float64)
    return sure


def _increasing(values: Floats, weights: Floats) -> Floats:
    """The nearest values that never fall: neighbours in the wrong order share their mean."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many values
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, heavy, size = pools.pop()
            total = heavy + pool[1]
            pool = ((mean * heavy + pool[0] * pool[1]) / total, total, size + pool[2])
        pools.append(pool)
    return np.repeat([mean for mean, _, _ in pools], [size for _, _, size in pools])


def _interval(estimate: float, variance: float, half_event: float) -> Interval:
    """95 %, normal on the logarithmic odds, and half an event wider: outcomes are whole events."""
    inside = min(max(estimate, 1e-9), 1 - 1e-9)
    spread = 1.96 * math.sqrt(variance) / (inside * (1 - inside))
    odds = math.log(inside / (1 - inside))
    low, high = (1 / (1 + math.exp(-odds - step)) for step in (-spread, spread))
    return Interval(estimate, max(0.0, low - half_event), min(1.0, high + half_event))
