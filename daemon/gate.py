"""The gate: may this challenger serve? Promote, reject or undecided, each with its reasons.

A `Trial` holds what is known of one challenger against the champion: static checks of the INT8
file that would serve, and paired evidence on labelled events that neither has learned from. It
judges after every batch; "undecided" means "keep collecting", until the deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from daemon.evidence import PairedTest
from daemon.policy_config import GateConfig

RECALL_EVENTS = 300
# An FP32 file below this is mostly graph, which INT8 does not shrink: its ratio says nothing.
SMALL_FILE_BYTES = 1_000_000

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
    one answer among a hundred is a point, and no evidence. The size is not looked at where
    ``fp32_size_bytes`` says that the model is tiny, as a table's is.
    ``latency_ratio`` is the challenger's median time for one item over the champion's, or None
    where both run the same graph.
    """
    checks = []
    size = metrics.get("fp32_size_bytes")
    tiny = isinstance(size, int | float) and size < SMALL_FILE_BYTES
    for name, limit, unit in (
        ("size_ratio", config.size_ratio, "of the FP32 size"),
        ("parity_points", config.parity_points, "points below FP32"),
    ):
        measured = metrics.get(name)
        if not isinstance(measured, int | float) or (name == "size_ratio" and tiny):
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


@dataclass(slots=True)
class Trial:
    """One challenger before the gate.

    ``labels`` names the daemon's classes by index; it may grow while the trial runs. The version
    looked best of ``chosen_from`` candidates on events that count in the trial: it must show so
    many times the evidence (Bonferroni).
    """

    version: str
    rung: str
    config: GateConfig
    labels: list[str]
    checks: list[Check] = field(default_factory=list)
    chosen_from: int = 1
    test: PairedTest = field(init=False)
    by_class: dict[int, PairedTest] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.test = PairedTest(self.config.alpha / self.chosen_from)

    @property
    def deadline(self) -> int:
        """Events after which the trial ends undecided; a recall is plain soon, or not at all."""
        limit = self.config.max_events
        return min(limit, RECALL_EVENTS) if self.rung == "recall" else limit

    def observe(
        self,
        labels: NDArray[np.int64],
        challenger: NDArray[np.int64],
        champion: NDArray[np.int64],
    ) -> None:
        """Count labelled events, int64 [n] each: the truth and the class each model answered."""
        right, other = challenger == labels, champion == labels
        self.test.observe(right, other)
        for label in np.unique(labels):
            mine = labels == label
            test = self.by_class.setdefault(int(label), PairedTest(self.config.alpha))
            test.observe(right[mine], other[mine])

    def verdict(self) -> Verdict:
        """The verdict on the evidence so far."""
        return combine([*self.checks, self._paired(), self._classes(), self._flips()])

    def _paired(self) -> Check:
        test, config = self.test, self.config
        facts = (
            f"{test.gain:+.1f} points on {test.events} unseen events "
            f"({test.wins} won, {test.losses} lost, e-value {test.better:.3g}, "
            f"needed {1 / test.alpha:g})"
        )
        enough = test.events >= config.min_events
        if enough and test.verdict == "better" and test.gain >= config.minimal_gain:
            return Check("paired", "pass", f"better: {facts}", test.gain, config.minimal_gain)
        if test.verdict == "worse":
            return Check("paired", "fail", f"worse: {facts}", test.gain, config.minimal_gain)
        if test.events >= self.deadline:
            sentence = f"not shown better by the deadline of {self.deadline} events: {facts}"
            return Check("paired", "fail", sentence, test.gain, config.minimal_gain)
        return Check("paired", "open", f"collecting: {facts}", test.gain, config.minimal_gain)

    def _classes(self) -> Check:
        floor = self.config.class_floor
        for label, test in self.by_class.items():
            if test.verdict == "worse" and -test.gain > floor:
                sentence = f"class {self.labels[label]!r} loses {-test.gain:.1f} points"
                return Check("classes", "fail", sentence, -test.gain, floor)
        worst = max((-test.gain for test in self.by_class.values()), default=0.0)
        sentence = f"no class is shown to lose more than {floor:g} points"
        return Check("classes", "pass", sentence, max(worst, 0.0), floor)

    def _flips(self) -> Check:
        test, budget = self.test, self.config.negative_flips
        rate = test.losses / test.events if test.events else 0.0
        over = test.events >= self.config.min_events and rate > budget
        sentence = f"right before and wrong now: {rate:.1%} of the events (budget {budget:.0%})"
        return Check("negative_flips", "fail" if over else "pass", sentence, rate, budget)

    def as_dict(self) -> dict[str, object]:
        """The evidence as plain values."""
        return {
            "version": self.version,
            "rung": self.rung,
            "paired": self.test.as_dict(),
            "classes": {
                self.labels[label]: test.as_dict() for label, test in sorted(self.by_class.items())
            },
            **self.verdict().as_dict(),
        }
