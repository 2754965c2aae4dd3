"""The gate: may this challenger serve? Promote, reject or undecided, each with its reasons.

A `Trial` holds what is known of one challenger against the champion: static checks of the INT8
file that would serve, what it has forgotten of the anchor, and evidence on labelled events that
neither has learned from. It judges after every batch; "undecided" means "keep collecting", until
the deadline. Only the paired test has to be won; a student, made to be small and not to be better,
has to be shown to lose little instead. The other checks of labelled events fail when they are
*shown* to fail, at `gate.alpha` each however often one looks: few events reject nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from daemon.calibration import Calibration
from daemon.checkpoint import Arrays, prefixed, under
from daemon.evidence import Outcomes, PairedTest, Tally
from daemon.policy_config import GateConfig
from daemon.served import Opinion, score
from drift import Slices
from drift.features import NO_FEATURES, Features
from learn.number_scale import NumberScale

RECALL_EVENTS = 300
# Bytes; in a smaller file the graph's own words outweigh what INT8 can shrink.
SMALL = 1 << 20

Outcome = Literal["pass", "fail", "open"]
Decision = Literal["promote", "reject", "undecided"]


@dataclass(frozen=True, slots=True)
class Check:
    """One question of the gate and its answer so far."""

    name: str
    outcome: Outcome
    sentence: str
    value: float | None = None
    limit: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain values, for the journal."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "sentence": self.sentence,
            "value": None if self.value is None else round(self.value, 4),
            "limit": self.limit,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision and every check behind it."""

    decision: Decision
    checks: tuple[Check, ...]

    @property
    def reason(self) -> str:
        """The sentences that decided: the failed checks, else the paired test."""
        failed = [c.sentence for c in self.checks if c.outcome == "fail"]
        if failed:
            return "; ".join(failed)
        pending = [c.sentence for c in self.checks if c.outcome == "open"]
        return "; ".join(pending) or next(
            (c.sentence for c in self.checks if c.name == "paired"), "all checks passed"
        )

    def as_dict(self) -> dict[str, object]:
        """Plain values, for the journal and the version's evidence."""
        return {
            "decision": self.decision,
            "reason": self.reason,
            "checks": [check.as_dict() for check in self.checks],
        }


def margin_of(rung: str, config: GateConfig) -> float:
    """The share of the events that a version of this rung may lose against the champion."""
    return config.student_points / 100 if rung == "student" else 0.0


def combine(checks: list[Check]) -> Verdict:
    """One failed check rejects; all passed promote; anything still open is undecided.

    >>> combine([Check("size", "pass", "fits"), Check("paired", "open", "3 of 50")]).decision
    'undecided'
    """
    outcomes = {check.outcome for check in checks}
    decision: Decision
    if "fail" in outcomes:
        decision = "reject"
    elif "open" in outcomes:
        decision = "undecided"
    else:
        decision = "promote"
    return Verdict(decision, tuple(checks))


def artefact_checks(
    metrics: Mapping[str, object], config: GateConfig, latency_ratio: float | None
) -> list[Check]:
    """What the INT8 file itself must satisfy.

    ``metrics`` is the manifest's: ``size_ratio`` (INT8 bytes over FP32 bytes) and
    ``parity_points`` (FP32 accuracy minus INT8 accuracy, in points), where they were measured. A
    loss counts as over the limit when it is by more than ``parity_error`` (its standard error):
    one answer among a hundred is a point, and no evidence. The size of a small file (`SMALL`)
    is not judged.
    ``latency_ratio`` is the challenger's median time for one item over the champion's, or None
    where both run the same graph.
    """
    checks = []
    size = metrics.get("fp32_size_bytes")
    for name, limit, unit in (
        ("size_ratio", config.size_ratio, "of the FP32 size"),
        ("parity_points", config.parity_points, "points below FP32"),
    ):
        measured = metrics.get(name)
        if not isinstance(measured, int | float):
            continue
        if name == "size_ratio" and isinstance(size, int | float) and size < SMALL:
            continue
        error = metrics.get("parity_error", 0.0) if name == "parity_points" else 0.0
        assert isinstance(error, int | float)
        fits = measured - error <= limit
        verb = "within" if fits else "over"
        unit += f" (± {error:.2g})" if error else ""
        checks.append(
            Check(
                name,
                "pass" if fits else "fail",
                f"INT8 file: {measured:.3g} {unit}, {verb} the limit of {limit:g}",
                float(measured),
                limit,
            )
        )
    if latency_ratio is not None:
        fits = latency_ratio <= config.latency_ratio
        checks.append(
            Check(
                "latency_ratio",
                "pass" if fits else "fail",
                f"one item takes x{latency_ratio:.2f} of the champion's time "
                f"(limit x{config.latency_ratio:g})",
                latency_ratio,
                config.latency_ratio,
            )
        )
    return checks


def forgetting(tally: Tally, gain: float, config: GateConfig) -> Check:
    """What is lost on the anchor may exceed what is won on the stream by the budget.

    ``gain``: that, in points. An input that means something else now cannot be right in both; and
    what is forgotten is in an old version, which a recall brings back.
    """
    budget = config.forgetting + gain
    over = tally.lost > budget and tally.loses_more(budget, config.alpha)
    sentence = (
        f"{tally.lost:.1f} points lost on {tally.events} events of the anchor, "
        f"{'over' if over else 'not shown to be over'} the budget of {budget:.1f}"
    )
    return Check("forgetting", "fail" if over else "pass", sentence, tally.lost, budget)


@dataclass(slots=True)
class Trial:
    """One challenger before the gate.

    ``labels`` names the daemon's classes by index; it may grow while the trial runs. The version
    looked best of ``chosen_from`` candidates on events that count in the trial: it must show so
    many times the evidence (Bonferroni). ``slices``: the parts of a table that are looked at on
    their own, None where there are none. ``anchor``: what was won and lost on the anchor, None
    where it is not asked. ``scale``: what a small error is, where numbers are predicted; the labels
    then name the parts of their range.
    """

    version: str
    rung: str
    config: GateConfig
    labels: list[str]
    checks: list[Check] = field(default_factory=list)
    chosen_from: int = 1
    slices: Slices | None = None
    anchor: Tally | None = None
    scale: NumberScale | None = None
    test: PairedTest = field(init=False)
    overall: Tally = field(init=False, default_factory=Tally)
    by_class: dict[int, Tally] = field(init=False, default_factory=dict)
    by_slice: dict[int, Tally] = field(init=False, default_factory=dict)
    ours: Calibration = field(init=False, default_factory=Calibration)
    theirs: Calibration = field(init=False, default_factory=Calibration)

    def __post_init__(self) -> None:
        margin = margin_of(self.rung, self.config)
        self.test = PairedTest(self.config.alpha / self.chosen_from, margin=margin)

    @property
    def deadline(self) -> int:
        """Events after which the trial ends undecided; a recall is plain soon, or not at all."""
        if self.rung == "student":
            return self.config.student_events
        limit = self.config.max_events
        return min(limit, RECALL_EVENTS) if self.rung == "recall" else limit

    def observe(
        self,
        truth: NDArray[Any],
        challenger: Opinion,
        champion: Opinion,
        features: Features = NO_FEATURES,
    ) -> None:
        """Count labelled events: the truth, int64 [n], and what each model answered.

        Of numbers, float64 [n]. ``features``: a table's columns by name, [n] each.
        """
        right, other = (score(self.scale, o.predicted, truth) for o in (challenger, champion))
        self.test.observe(right, other)
        self.overall.observe(right, other)
        if self.scale is None:
            self.ours.observe(challenger.confidence, right.astype(np.bool_))
            self.theirs.observe(champion.confidence, other.astype(np.bool_))
        _count(self.by_class, self.scale.parts(truth) if self.scale else truth, right, other)
        if self.slices is not None and len(truth):
            for column in self.slices.codes(features).T:
                _count(self.by_slice, column, right, other)

    def verdict(self) -> Verdict:
        """The verdict on the evidence so far."""
        checks = [self._paired(), self._classes(), self._flips()]
        if self.scale is None:
            checks.append(self._calibration())
        if self.slices is not None:
            checks.insert(2, self._slices(self.slices))
        if self.anchor is not None:
            checks.append(self._forgetting(self.anchor))
        return combine([*self.checks, *checks])

    def _paired(self) -> Check:
        test, config = self.test, self.config
        facts = (
            f"{test.gain:+.1f} points on {test.events} unseen events "
            f"({test.wins} won, {test.losses} lost, e-value {test.better:.3g}, "
            f"needed {1 / test.alpha:g})"
        )
        limit, better, worse = config.minimal_gain, "better", "worse"
        if test.margin:
            limit, points = -100 * test.margin, f"{100 * test.margin:g} points"
            better, worse = f"to lose less than {points}", f"loses more than {points}"
        enough = test.events >= config.min_events
        if enough and test.verdict == "better" and test.gain >= limit:
            said = f"shown {better}" if test.margin else better
            return Check("paired", "pass", f"{said}: {facts}", test.gain, limit)
        if test.verdict == "worse":
            return Check("paired", "fail", f"{worse}: {facts}", test.gain, limit)
        if test.events >= self.deadline:
            sentence = f"not shown {better} by the deadline of {self.deadline} events: {facts}"
            return Check("paired", "fail", sentence, test.gain, limit)
        return Check("paired", "open", f"collecting: {facts}", test.gain, limit)

    def _classes(self) -> Check:
        names = {label: f"class {self.labels[label]!r}" for label in self.by_class}
        floor = self.config.class_floor
        return self._floor("classes", self.by_class, names, floor, len(self.labels))

    def _slices(self, slices: Slices) -> Check:
        names = {code: f"slice {slices.text(code)!r}" for code in self.by_slice}
        return self._floor("slices", self.by_slice, names, self.config.slice_floor, len(slices))

    def _floor(
        self, check: str, tallies: dict[int, Tally], names: dict[int, str], floor: float, parts: int
    ) -> Check:
        """No part may be shown to lose more than the floor; as many chances as there are parts."""
        alpha = self.config.alpha / max(parts, 1)
        for part, tally in tallies.items():
            # The mean alone says no more often than not, and costs nothing.
            if tally.lost > floor and tally.loses_more(floor, alpha):
                sentence = (
                    f"{names[part]} loses {tally.lost:.1f} points on {tally.events} events, "
                    f"more than {floor:g}"
                )
                return Check(check, "fail", sentence, tally.lost, floor)
        worst = max((tally.lost for tally in tallies.values()), default=0.0)
        sentence = f"none of the {check} is shown to lose more than {floor:g} points"
        return Check(check, "pass", sentence, max(worst, 0.0), floor)

    def _flips(self) -> Check:
        tally, budget = self.overall, self.config.negative_flips
        over = tally.flipped > budget and tally.flips_more(budget, self.config.alpha)
        sentence = (
            f"right before and wrong now: {tally.flipped:.1%} of the events, "
            f"{'over' if over else 'not shown to be over'} the budget of {budget:.0%}"
        )
        return Check("negative_flips", "fail" if over else "pass", sentence, tally.flipped, budget)

    def _forgetting(self, tally: Tally) -> Check:
        check = forgetting(tally, max(self.test.gain, 0.0), self.config)
        if check.outcome == "fail" and self.test.events < self.config.min_events:
            return replace(check, outcome="open")  # what is won will show
        return check

    def _calibration(self) -> Check:
        margin, half = self.config.calibration, self.config.alpha / 2
        worse = self.ours.error - self.theirs.error
        over = worse > margin and self.test.events >= self.config.min_events
        over = over and self.ours.least(half) - self.theirs.most(half) > margin
        sentence = (
            f"calibration error {self.ours.error:.3f} against {self.theirs.error:.3f}, "
            f"{'shown' if over else 'not shown'} to be worse by more than {margin:g}"
        )
        return Check("calibration", "fail" if over else "pass", sentence, worse, margin)

    def as_dict(self) -> dict[str, object]:
        """The evidence as plain values."""
        slices = self.slices
        return {
            "version": self.version,
            "rung": self.rung,
            "paired": self.test.as_dict(),
            "classes": {
                self.labels[label]: tally.as_dict()
                for label, tally in sorted(self.by_class.items())
            },
            "slices": {
                slices.text(code): tally.as_dict()
                for code, tally in sorted(self.by_slice.items())
                if slices is not None
            },
            **self.verdict().as_dict(),
        }

    def values(self) -> dict[str, Any]:
        """The JSON-able half of the checkpoint."""
        return {
            "version": self.version,
            "rung": self.rung,
            "chosen_from": self.chosen_from,
            "checks": [asdict(check) for check in self.checks],
            "test": self.test.state(),
            "overall": self.overall.state(),
            "by_class": {str(k): tally.state() for k, tally in self.by_class.items()},
            "by_slice": {str(k): tally.state() for k, tally in self.by_slice.items()},
            "anchor": self.anchor.state() if self.anchor else None,
            "calibration": [self.ours.state(), self.theirs.state()],
        }

    def arrays(self) -> Arrays:
        """The other half: arrays by name."""
        return prefixed("slices", self.slices.state()) if self.slices is not None else {}

    @classmethod
    def restored(
        cls,
        config: GateConfig,
        labels: list[str],
        values: Mapping[str, Any],
        arrays: Arrays,
        scale: NumberScale | None = None,
    ) -> Self:
        """A trial that goes on from `values` and `arrays`."""
        bins = under("slices", arrays)
        trial = cls(
            values["version"],
            values["rung"],
            config,
            labels,
            [Check(**check) for check in values["checks"]],
            values["chosen_from"],
            Slices.from_state(bins) if bins else None,
            Tally(*values["anchor"]) if values["anchor"] else None,
            scale,
        )
        trial.test = PairedTest.restored(trial.test.alpha, values["test"], trial.test.margin)
        trial.overall = Tally(*values["overall"])
        trial.by_class = {int(k): Tally(*counts) for k, counts in values["by_class"].items()}
        trial.by_slice = {int(k): Tally(*counts) for k, counts in values["by_slice"].items()}
        trial.ours, trial.theirs = (Calibration.restored(sums) for sums in values["calibration"])
        return trial


def _count(
    tallies: dict[int, Tally],
    parts: NDArray[np.integer],
    right: Outcomes,
    other: Outcomes,
) -> None:
    """Count each event in the tally of the part, [n], that it belongs to."""
    for part in np.unique(parts).tolist():
        mine = parts == part
        tallies.setdefault(part, Tally()).observe(right[mine], other[mine])
