"""A canary's steps: a challenger that passed the gate answers a growing share of the traffic.

Each step is judged anew, with the gate's three values: next step, back, or wait. Failures and slow
answers are compared with the champion's at the same time, the answers themselves by the paired test
on labelled events. "No worse" is *shown* before a step is taken, within a margin; that needs
requests, and a step that cannot show it by `gate.canary.max_requests` sends the challenger back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from scipy.stats import beta

from daemon.evidence import PairedTest, log_e_above
from daemon.gate import Check, Verdict, combine
from daemon.policy_config import CanaryConfig
from registry import Counts, Traffic

Step = Literal["next", "back", "wait"]
STEPS: dict[str, Step] = {"promote": "next", "reject": "back", "undecided": "wait"}


def judge(
    traffic: Traffic, paired: PairedTest, config: CanaryConfig, alpha: float
) -> tuple[Step, Verdict]:
    """The next step, back, or wait, and the checks behind it.

    ``traffic``: what was counted on this step. Each check is mistaken with a chance of ``alpha`` at
    most, at any number of requests.
    """
    ours, theirs = traffic.challenger, traffic.champion
    late = ours.requests >= config.max_requests
    checks = [
        _rate("errors", ours.errors, theirs.errors, traffic, config.error_margin, alpha, late),
        _rate("slow", ours.slow, theirs.slow, traffic, config.slow_margin, alpha, late),
        _paired(paired),
    ]
    if ours.requests < config.min_requests:
        sentence = f"{ours.requests} of {config.min_requests} requests"
        checks.append(Check("requests", "open", sentence, ours.requests, config.min_requests))
    verdict = combine(checks)
    return STEPS[verdict.decision], verdict


def _rate(
    name: str, ours: int, theirs: int, traffic: Traffic, margin: float, alpha: float, late: bool
) -> Check:
    """Whether the challenger's share is shown to be within the champion's and a margin, or not.

    Half of ``alpha`` is for the champion's own rate (Clopper & Pearson, at each doubling of its
    requests), half for the bet on the challenger's (`log_e_above`).
    """
    asked, others = traffic.challenger.requests, traffic.champion.requests
    value = ours / asked if asked else 0.0
    usual = theirs / others if others else 0.0
    needed = math.log(2 / alpha)
    # Looked at more often as requests come: alpha / 2 is spent over the doublings, 1 / k (k + 1).
    looks = max(1, math.ceil(math.log2(others + 1)))
    doubt = alpha / 2 / (looks * (looks + 1))
    low = float(beta.ppf(doubt, theirs, others - theirs + 1)) if theirs else 0.0
    high = float(beta.ppf(1 - doubt, theirs + 1, others - theirs)) if theirs < others else 1.0
    facts = f"{value:.2%} of {asked:,} requests against {usual:.2%} of {others:,} (± {margin:.2%})"
    over, within = min(1.0, high + margin), low + margin
    if over < 1 and log_e_above(ours, asked - ours, 0, over, lowest=0) >= needed:
        return Check(name, "fail", f"{name}: more than the champion's, {facts}", value, over)
    if log_e_above(asked - ours, ours, 0, max(0.0, 1 - within), lowest=0) >= needed:
        return Check(name, "pass", f"{name}: shown to be within the margin, {facts}", value, within)
    if late:
        return Check(name, "fail", f"{name}: not shown to be within the margin, {facts}", value)
    return Check(name, "open", f"{name}: collecting, {facts}", value, within)


def _paired(test: PairedTest) -> Check:
    facts = f"{test.gain:+.1f} points on {test.events} labelled events (e-value {test.worse:.3g})"
    if test.verdict == "worse":
        return Check("paired", "fail", f"worse: {facts}", test.gain)
    return Check("paired", "pass", f"not shown worse: {facts}", test.gain)


@dataclass(slots=True)
class Canary:
    """One challenger on its way up the steps.

    generation: of the routing that is in force. before: the champion's counts on the step before.
    margin: the share of the events that it may lose against the champion.
    """

    version: str
    config: CanaryConfig
    alpha: float
    step: int = 0
    generation: int = 0
    margin: float = 0.0
    before: Counts = field(default_factory=Counts)
    test: PairedTest = field(init=False)

    def __post_init__(self) -> None:
        self.test = PairedTest(self.alpha, margin=self.margin)

    @property
    def share(self) -> float:
        """Percent of the traffic on this step."""
        return self.config.steps[self.step]

    @property
    def last(self) -> bool:
        """Whether there is no step after this one."""
        return self.step + 1 >= len(self.config.steps)

    def judge(self, traffic: Traffic) -> tuple[Step, Verdict]:
        """See `judge`."""
        if self.share >= 100 and not traffic.champion.requests:
            # Nobody asks the champion any more: what it showed on the steps before stands for it.
            traffic = Traffic(traffic.generation, traffic.challenger, self.before)
        return judge(traffic, self.test, self.config, self.alpha)

    def climb(self, generation: int, traffic: Traffic) -> None:
        """The next step begins, under a routing of this generation, with everything at zero."""
        self.step += 1
        self.generation = generation
        self.before = traffic.champion
        self.test = PairedTest(self.alpha, margin=self.margin)

    def as_dict(self, traffic: Traffic) -> dict[str, Any]:
        """Plain values, for the journal and the status."""
        step, verdict = self.judge(traffic)
        return {
            "version": self.version,
            "share": self.share,
            "next": step,
            "traffic": traffic.as_dict(),
            "paired": self.test.as_dict(),
            **verdict.as_dict(),
        }

    def values(self) -> dict[str, Any]:
        """For the checkpoint."""
        before = self.before
        return {
            "version": self.version,
            "step": self.step,
            "generation": self.generation,
            "margin": self.margin,
            "before": [before.requests, before.errors, before.slow],
            "test": self.test.state(),
        }

    @classmethod
    def restored(cls, config: CanaryConfig, alpha: float, values: Mapping[str, Any]) -> Self:
        """One that goes on from `values`; on the last step, where there are fewer now."""
        step = min(values["step"], len(config.steps) - 1)
        margin = values.get("margin", 0.0)
        canary = cls(values["version"], config, alpha, step, values["generation"], margin)
        canary.before = Counts(*values["before"])
        canary.test = PairedTest.restored(alpha, values["test"], margin)
        return canary
