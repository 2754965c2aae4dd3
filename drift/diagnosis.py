"""What an alarm means: the kind of drift, how bad, since when, and what moved.

A detector says that something moved; `diagnose` looks at the recent events beside the reference
and explains it, for the journal, the policy and a person.

The rule for the kind, in words:

1. The inputs moved, that is embeddings, features or the mix of answers: covariate drift. Unless the
   class mix moved as well and, class by class, the inputs are what they were: then more of some
   class came in, and it is label drift.
2. The inputs did not move, but the class mix did: label drift. Unless errors rose by more than the
   new mix explains: then the same inputs carry other labels, and it is concept drift.
3. Neither moved, but errors rose: concept drift.
4. Nothing can be shown (few events, no labels): the kind of the detector that alarmed.

A rise of the errors beside covariate or label drift is its damage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drift.measures import (
    Floats,
    Integers,
    Interval,
    Measure,
    difference,
    mean_test,
    mix_change,
    rise_test,
    shape,
    share_test,
    suffix_sums,
    wilson,
)
from drift.reference import Reference
from drift.signal import Kind, Observations, Signal
from drift.signature import Signature
from drift.slices import FeatureChange, SliceChange, feature_changes, slice_changes
from drift.subspace import Subspace, usable

# One in a thousand under chance, one-sided.
SIGNIFICANT = 3.1
# Smaller effects do not count as moved, however significant: shift of the mean in standard
# deviations, and total variation of class mixes.
SMALLEST_SHIFT, SMALLEST_MIX = 0.2, 0.05
# Fewer events than this since the onset say nothing about a rate.
ENOUGH = 20
# An onset nearer to the end than this is not looked for.
SHORTEST = 10
# Fewer events than this since the onset may be near a known regime, but are not called the same.
RECOGNISABLE = 100
# How many classes and examples are named.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Onset:
    """The likeliest beginning: ``events_ago`` from the end of the recent events, and its time.

    ``before_window``: it lies at the very start of the recent events, or before them.
    """

    events_ago: int
    time: float | None
    before_window: bool


@dataclass(frozen=True, slots=True)
class ShareChange:
    """A class that became more or less frequent (label -1: all classes the reference lacks)."""

    label: int
    reference: float
    recent: float


@dataclass(frozen=True, slots=True)
class ErrorChange:
    """A class on which the model errs more often than it did."""

    label: int
    reference: float | None
    recent: float
    events: int


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The nearest known regime, and whether it is near enough to be the same one come back."""

    version: str
    distance: float
    same: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """An alarm, explained. Everything but the methods is JSON through `as_dict`.

    severity: 0 to 1; the share of the model's right answers that was lost, or without labels how
    little the embeddings overlap with the reference's (``severity_from`` says which).
    accuracy_lost: as a share (0.05 is five points), with a 95 % interval; None without labels.
    shape: abrupt, gradual or unclear, or recurring when it is a known regime come back.
    examples: positions in the recent events that show the drift best. measures: each test's score
    (standard deviations away from chance) and effect. rule: why this kind. features, slices: of a
    table, which columns moved, and on which events errors rose more than on the rest.
    """

    kind: Kind
    damage: bool
    severity: float
    severity_from: Literal["labels", "embeddings", "nothing"]
    accuracy_lost: Interval | None
    onset: Onset
    shape: str
    shares: tuple[ShareChange, ...]
    errors: tuple[ErrorChange, ...]
    examples: tuple[int, ...]
    measures: Mapping[str, Measure]
    alarms: tuple[str, ...]
    rule: str
    recurrence: Recurrence | None = None
    features: tuple[FeatureChange, ...] = ()
    slices: tuple[SliceChange, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Plain dicts, lists, numbers and strings."""
        return {**asdict(self), "sentence": self.sentence()}

    def sentence(self, labels: Sequence[str] = ()) -> str:
        """One sentence for a person; ``labels`` names the classes."""

        def name(label: int) -> str:
            if label < 0:
                return "classes not seen before"
            return labels[label] if label < len(labels) else f"class {label}"

        ago = f"{self.onset.events_ago:,} events ago"
        since = f"{ago} or earlier" if self.onset.before_window else f"about {ago}"
        manner = "" if self.shape == "unclear" else f"{self.shape} "
        parts = [f"{manner}{self.kind} drift since {since}".capitalize()]
        lost = self.accuracy_lost
        if lost is not None:
            points = f"{100 * lost.low:.0f} to {100 * lost.high:.0f}"
            if self.damage:
                parts.append(f"{100 * lost.estimate:.0f} points of accuracy lost ({points})")
            else:
                parts.append(f"no loss of accuracy shown ({points} points)")
        if self.shares and self.kind != "concept":
            top = self.shares[0]
            parts.append(
                f"{name(top.label)} went from {top.reference:.0%} to {top.recent:.0%} of traffic"
            )
        if self.features and self.kind == "covariate":
            moved = self.features[0]
            parts.append(f"{moved.name}: {moved.description}")
        if self.slices and self.damage:
            part = self.slices[0]
            parts.append(
                f"worst where {part.where}: {part.recent:.0%} wrong (was {part.reference:.0%})"
            )
        elif self.errors and self.damage:
            worst = self.errors[0]
            was = "" if worst.reference is None else f" (was {worst.reference:.0%})"
            parts.append(f"worst on {name(worst.label)}: {worst.recent:.0%} wrong{was}")
        if self.recurrence is not None and self.recurrence.same:
            parts.append(f"it looks like the regime of {self.recurrence.version} come back")
        return "; ".join(parts) + "."


def diagnose(
    signals: Iterable[Signal],
    reference: Reference,
    recent: Observations,
    *,
    known: Mapping[str, Signature] | None = None,
    same_regime: float = 0.1,
) -> Diagnosis:
    """Explain the alarms among ``signals`` by the ``recent`` events, the last of them the latest.

    Give some hundreds of recent events, drifted and not: the onset is looked for among them.
    ``known`` are signatures of archived regimes by version; the events since the onset are compared
    with each. Takes about a tenth of a second for 4,000 reference events of 384 dimensions.
    """
    alarmed = [signal for signal in signals if signal.alarmed]
    view = _View.of(reference.observations, recent)
    start = _onset(view, {signal.kind for signal in alarmed})
    seen = view.since(start)
    since = recent.take(slice(start, None))

    measures = _measure(view, seen)
    strongest, features = feature_changes(reference.observations, since)
    if strongest is not None:
        measures["features"] = strongest
    alarms: set[Kind] = {signal.kind for signal in alarmed}
    kind, rule = _kind(measures, alarmed)
    # A detector that alarmed has tested more events, or tested more sharply, than is done here.
    damage = _moved(measures.get("errors"), 0.0) or "concept" in alarms
    lost = _accuracy_lost(view, seen)
    severity, severity_from = _severity(view, seen, lost, measures.get("inputs"))
    if lost is None:
        damage = False
    manner, examples = _manner(view, seen, kind)
    recurrence = _recurrence(reference, since, known, same_regime)
    time = float(recent.times[start]) if start < len(recent) else math.nan
    return Diagnosis(
        kind=kind,
        damage=damage,
        severity=severity,
        severity_from=severity_from,
        accuracy_lost=lost,
        onset=Onset(len(recent) - start, time if math.isfinite(time) else None, start == 0),
        shape="recurring" if recurrence is not None and recurrence.same else manner,
        shares=_share_changes(view, seen),
        errors=_error_changes(view, seen),
        examples=examples,
        measures=measures,
        alarms=tuple(signal.detector for signal in alarmed),
        rule=rule,
        recurrence=recurrence,
        features=features,
        slices=slice_changes(reference.observations, since),
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """Events as the tests want them: rows and their positions for each kind of evidence.

    white [m, c] at rows; labels, wrong [l] at labelled; answers [n].
    """

    rows: Integers
    white: Floats
    labelled: Integers
    labels: Integers
    wrong: NDArray[np.bool_]
    answers: Integers

    def since(self, start: int) -> _Columns:
        row, label = np.searchsorted(self.rows, start), np.searchsorted(self.labelled, start)
        return _Columns(
            self.rows[row:],
            self.white[row:],
            self.labelled[label:],
            self.labels[label:],
            self.wrong[label:],
            self.answers[start:],
        )


@dataclass(frozen=True, slots=True)
class _View:
    """Reference and recent events in the same coordinates, and the classes of the reference.

    before: of the reference, with coordinates only of the events kept apart from the fit.
    shrink: what those coordinates overstate the distance of new events by, inverted.
    """

    before: _Columns
    now: _Columns
    classes: Integers
    shrink: float

    @classmethod
    def of(cls, reference: Observations, recent: Observations) -> _View:
        fine = np.flatnonzero(usable(reference.embeddings))
        width = reference.embeddings.shape[1]
        now_fine = np.flatnonzero(usable(recent.embeddings))
        if len(fine) < 2 * ENOUGH or recent.embeddings.shape[1] != width:
            nothing = np.zeros((0, 1))
            none = np.zeros(0, dtype=np.int64)
            before = _columns(reference, none, nothing)
            return cls(before, _columns(recent, none, nothing), np.unique(before.labels), 1.0)
        space, kept, white = Subspace.fit(reference.embeddings[fine], 32)
        before = _columns(reference, fine[kept], white)
        now = _columns(recent, now_fine, space.coordinates(recent.embeddings[now_fine]))
        shrink = space.shrinkage(len(white))
        return cls(before, now, np.unique(before.labels), shrink)

    def since(self, start: int) -> _Columns:
        return self.now.since(start)

    def counts(self, labels: Integers) -> Integers:
        """Counts [classes + 1] of labels, the last of those the reference lacks."""
        if len(self.classes) == 0:
            return np.array([len(labels)], dtype=np.int64)
        place = np.minimum(np.searchsorted(self.classes, labels), len(self.classes) - 1)
        place = np.where(self.classes[place] == labels, place, len(self.classes))
        return np.bincount(place, minlength=len(self.classes) + 1).astype(np.int64)


def _columns(observations: Observations, rows: Integers, white: Floats) -> _Columns:
    labelled = np.flatnonzero(observations.labelled)
    return _Columns(
        rows,
        white,
        labelled,
        observations.labels[labelled],
        observations.errors,
        observations.predicted,
    )


def _onset(view: _View, kinds: set[Kind]) -> int:
    """Where the recent events' likeliest change began, by the evidence that speaks loudest.

    Each kind of evidence is maximised over every possible beginning; only that of the detectors
    that alarmed counts, or all if none did.
    """
    found: list[tuple[float, int]] = []
    now, before = view.now, view.before
    if (not kinds or "concept" in kinds) and len(now.wrong) >= SHORTEST and len(before.wrong):
        rate = (before.wrong.sum() + 0.5) / (len(before.wrong) + 1)
        length = np.arange(len(now.wrong), 0, -1)
        share = np.clip(suffix_sums(now.wrong.astype(float)) / length, rate, 1 - 1e-6)
        nats = length * (
            share * np.log(share / rate) + (1 - share) * np.log((1 - share) / (1 - rate))
        )
        found.append(_best(nats, now.labelled))
    if (not kinds or "covariate" in kinds) and len(now.white) >= SHORTEST and len(before.white):
        length = np.arange(len(now.white), 0, -1)
        distance = (suffix_sums(now.white) ** 2).sum(axis=1) / length**2 * view.shrink
        chi_square = distance / (1 / length + 1 / len(before.white))
        found.append(_best((chi_square - now.white.shape[1]) / 2, now.rows))
    if (not kinds or "label" in kinds) and len(now.labels) >= SHORTEST and len(before.labels):
        shares = (view.counts(before.labels) + 0.5).astype(np.float64)
        shares /= shares.sum()
        place = np.stack([now.labels == label for label in view.classes], axis=1).astype(float)
        place = np.column_stack([place, 1 - place.sum(axis=1)])
        found.append(_best(mix_change(place, shares), now.labelled))
    return max(found)[1] if found else 0


def _best(nats: Floats, positions: Integers) -> tuple[float, int]:
    candidates = nats[: len(nats) - SHORTEST + 1]
    best = int(candidates.argmax())
    # The very first of its kind may have had others before it: say so by beginning at the start.
    return float(candidates[best]), int(positions[best]) if best else 0


def _measure(view: _View, seen: _Columns) -> dict[str, Measure]:
    """Every test that the events since the onset allow."""
    measures: dict[str, Measure] = {}
    before = view.before
    if len(seen.white) >= SHORTEST and len(before.white):
        white = seen.white * math.sqrt(view.shrink)
        measures["inputs"] = mean_test(white, 1 / len(white) + 1 / len(before.white))
    classes = np.union1d(before.answers, seen.answers)
    if len(seen.answers) >= ENOUGH and len(classes) > 1:
        measures["answers"] = share_test(
            _tally(classes, before.answers), _tally(classes, seen.answers)
        )
    if len(seen.labels) < ENOUGH or len(before.labels) < ENOUGH:
        return measures
    measures["labels"] = share_test(view.counts(before.labels), view.counts(seen.labels))
    wrong, events = int(seen.wrong.sum()), len(seen.wrong)
    rate = float(before.wrong.mean())
    spread = math.sqrt(max(rate * (1 - rate), 1 / len(before.wrong)) / len(before.wrong))
    measures["errors"] = rise_test(wrong, events, rate, spread)
    # What the reference's error rate of each class predicts for the recent mix of classes.
    rates = {int(c): float(before.wrong[before.labels == c].mean()) for c in view.classes}
    predicted = float(np.mean([rates.get(int(label), 1.0) for label in seen.labels]))
    measures["errors beyond the mix"] = rise_test(wrong, events, predicted, spread)
    within = _within_classes(view, seen)
    if within is not None:
        measures["inputs given labels"] = within
    return measures


def _within_classes(view: _View, seen: _Columns) -> Measure | None:
    """Are the inputs of each class what they were? The mean test on deviations from class means."""
    before = view.before
    shared, at, label_at = np.intersect1d(seen.rows, seen.labelled, return_indices=True)
    old, old_at, old_label_at = np.intersect1d(before.rows, before.labelled, return_indices=True)
    if len(shared) < ENOUGH or len(old) < 4 * before.white.shape[1]:
        return None
    white, labels = seen.white[at], seen.labels[label_at]
    old_white, old_labels = before.white[old_at], before.labels[old_label_at]
    residual, deviation = [], []
    chance = 0.0
    for label in np.unique(old_labels).tolist():
        own, new = old_white[old_labels == label], white[labels == label]
        if len(own) < 2:
            continue
        mean = own.mean(axis=0)
        deviation.append((own - mean) * math.sqrt(len(own) / (len(own) - 1)))
        residual.append(new - mean)
        chance += len(new) ** 2 / len(own)
    deviations, residuals = np.concatenate(deviation), np.concatenate(residual)
    if len(residuals) < ENOUGH:
        return None
    covariance = deviations.T @ deviations / len(deviations)
    covariance += 1e-6 * np.eye(len(covariance))
    narrowed = residuals @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    narrowed *= math.sqrt(view.shrink)
    return mean_test(narrowed, 1 / len(residuals) + chance / len(residuals) ** 2)


def _moved(measure: Measure | None, smallest: float) -> bool:
    return measure is not None and measure.score > SIGNIFICANT and measure.effect >= smallest


def _kind(measures: Mapping[str, Measure], alarmed: Sequence[Signal]) -> tuple[Kind, str]:
    """The rule of the module's docstring, and the sentence that says which part of it applied."""
    alarms = {signal.kind for signal in alarmed}
    inputs = (
        "covariate" in alarms
        or _moved(measures.get("inputs"), SMALLEST_SHIFT)
        or _moved(measures.get("features"), SMALLEST_SHIFT)
        or _moved(measures.get("answers"), SMALLEST_MIX)
    )
    labels = "label" in alarms or _moved(measures.get("labels"), SMALLEST_MIX)
    errors = "concept" in alarms or _moved(measures.get("errors"), 0.0)
    within = measures.get("inputs given labels")
    if inputs:
        if labels and within is not None and not _moved(within, SMALLEST_SHIFT):
            return "label", "the class mix moved, and class by class the inputs are what they were"
        return "covariate", "the inputs moved" + (", and the errors rose with them" * errors)
    if labels:
        if errors and _moved(measures.get("errors beyond the mix"), 0.0):
            return "concept", "the inputs are what they were, but carry other labels"
        return "label", "the class mix moved, and the inputs did not move beyond it"
    if errors:
        return "concept", "errors rose, while neither the inputs nor the class mix moved"
    if alarmed:
        loudest = max(alarmed, key=lambda signal: signal.score / signal.threshold)
        return loudest.kind, f"only {loudest.detector} saw it; too few events to tell more"
    return "covariate", "nothing has moved that could be shown"


def _accuracy_lost(view: _View, seen: _Columns) -> Interval | None:
    if len(seen.wrong) < SHORTEST or len(view.before.wrong) < SHORTEST:
        return None
    now = wilson(int(seen.wrong.sum()), len(seen.wrong))
    return difference(now, wilson(int(view.before.wrong.sum()), len(view.before.wrong)))


def _severity(
    view: _View, seen: _Columns, lost: Interval | None, inputs: Measure | None
) -> tuple[float, Literal["labels", "embeddings", "nothing"]]:
    if lost is not None and len(seen.wrong) >= ENOUGH:
        right = 1 - float(view.before.wrong.mean())
        return min(1.0, max(0.0, lost.estimate / max(right, 1e-9))), "labels"
    if inputs is not None:
        # The total variation distance of two normal clouds so many standard deviations apart.
        return math.erf(inputs.effect / math.sqrt(8)), "embeddings"
    return 0.0, "nothing"


def _manner(view: _View, seen: _Columns, kind: Kind) -> tuple[str, tuple[int, ...]]:
    """Abrupt or gradual, and the positions of the events that show the drift best."""
    now, before = view.now, view.before
    if kind == "concept" and len(now.wrong) and len(before.wrong):
        worst = _error_changes(view, seen)
        label = worst[0].label if worst else -1
        telling = seen.labelled[seen.wrong & ((seen.labels == label) | (label < 0))]
        series = now.wrong.astype(np.float64) - float(before.wrong.mean())
        return shape(series)[0], tuple(telling[-NAMED:].tolist())
    changes = _share_changes(view, seen)
    if kind == "label" and changes:
        label = changes[0].label
        member = now.labels == label if label >= 0 else ~np.isin(now.labels, view.classes)
        telling = now.labelled[member]
        telling = telling[telling >= (seen.labelled[0] if len(seen.labelled) else 0)]
        return shape(member.astype(np.float64) - changes[0].reference)[0], tuple(
            telling[-NAMED:].tolist()
        )
    if len(seen.white) < SHORTEST or not len(before.white):
        return "unclear", ()
    direction = seen.white.mean(axis=0)
    direction /= max(float(np.linalg.norm(direction)), 1e-12)
    # The furthest quarter along the drift is the new region; the events nearest its middle show it.
    along = seen.white @ direction
    region = np.flatnonzero(along >= np.quantile(along, 0.75))
    middle = seen.white[region].mean(axis=0)
    nearest = np.argsort(((seen.white[region] - middle) ** 2).sum(axis=1), kind="stable")[:NAMED]
    return shape(now.white @ direction)[0], tuple(seen.rows[region[nearest]].tolist())


def _share_changes(view: _View, seen: _Columns) -> tuple[ShareChange, ...]:
    """Classes whose share changed by more than three standard deviations, largest first."""
    if len(seen.labels) < SHORTEST or len(view.before.labels) < SHORTEST:
        return ()
    counts, old = view.counts(seen.labels), view.counts(view.before.labels)
    shares, was = counts / counts.sum(), old / old.sum()
    pooled = (counts + old) / (counts.sum() + old.sum())
    spread = np.sqrt(pooled * (1 - pooled) * (1 / counts.sum() + 1 / old.sum()))
    names = np.append(view.classes, -1)
    order = np.argsort(-np.abs(shares - was), kind="stable")
    return tuple(
        ShareChange(int(names[i]), float(was[i]), float(shares[i]))
        for i in order.tolist()
        if abs(shares[i] - was[i]) > 3 * spread[i]
    )[:NAMED]


def _error_changes(view: _View, seen: _Columns) -> tuple[ErrorChange, ...]:
    """Classes with more errors than before, those that cost most accuracy first."""
    changes: list[tuple[float, ErrorChange]] = []
    for label in np.unique(seen.labels).tolist():
        wrong = seen.wrong[seen.labels == label]
        before = view.before.wrong[view.before.labels == label]
        was = float(before.mean()) if len(before) else None
        rise = float(wrong.mean()) - (was or 0.0)
        if len(wrong) >= 5 and rise > 0:
            change = ErrorChange(int(label), was, float(wrong.mean()), len(wrong))
            changes.append((rise * len(wrong), change))
    changes.sort(key=lambda cost: -cost[0])
    return tuple(change for _, change in changes[:NAMED])


def _recurrence(
    reference: Reference,
    since: Observations,
    known: Mapping[str, Signature] | None,
    same_regime: float,
) -> Recurrence | None:
    if not known or len(since) == 0:
        return None
    nearest = Signature.of(since, reference.signature.space).nearest(known)
    if nearest is None:
        return None
    same = nearest[1] <= same_regime and len(since) >= RECOGNISABLE
    return Recurrence(nearest[0], nearest[1], same)


def _tally(classes: Integers, values: Integers) -> Integers:
    return np.bincount(np.searchsorted(classes, values), minlength=len(classes)).astype(np.int64)
