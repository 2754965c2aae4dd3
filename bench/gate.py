"""The gate judged: how often luck is promoted, how soon a gain is found, how surely a loss undone.

Simulated champions and challengers of known accuracy, batch by batch through the daemon's own
`Trial` and `PairedTest`, with a look after each. Events are drawn independently: the champion is
right on 85 % of them, and the two answers differ in being right on a share of 4, 10 or 20 %, as
they do after a refit, a deeper refresh, and a change of model. A challenger that is worse than
another by a known amount has that many points fewer.

The fixed-size test is McNemar's, one-sided at the same 5 %, planned for 80 or 90 % power with the
true share of differing answers known beforehand, which no operator knows. The gate is compared at
the same power: its deadline is where it has found as many. ``--quick`` simulates a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bench.report import Row, row
from daemon.evidence import PairedTest
from daemon.gate import Trial
from daemon.policy_config import GateConfig, ProbationConfig
from daemon.served import Opinion

ACCURACY = 0.85
DIFFERING = (0.04, 0.1, 0.2)
BATCH = 32
CLASSES = ("a", "b", "c", "d", "e")
NULL_TRIALS, GAIN_TRIALS = 1000, 400
POWERS = (0.8, 0.9)
LONG = 40_000  # events: a deadline that no gain of two points reaches


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models. gain: accuracy of the first over the second, in points; differing: a share."""

    gain: float
    differing: float

    def outcomes(
        self, random: np.random.Generator, n: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each is right, bool [n] twice."""
        won = (self.differing + self.gain / 100) / 2
        lost = self.differing - won
        luck = random.random(n)
        both = ACCURACY - lost
        ours = luck < both + won
        theirs = (luck < both) | ((luck >= both + won) & (luck < both + won + lost))
        return ours, theirs


def rows(quick: bool) -> Iterator[Row]:
    """All figures."""
    random = np.random.default_rng(0)
    nulls, gains = (n // 10 if quick else n for n in (NULL_TRIALS, GAIN_TRIALS))
    yield from _luck(random, nulls)
    yield from _power(random, gains)
    yield from _probation(random, gains)


def _luck(random: np.random.Generator, trials: int) -> Iterator[Row]:
    judged, promoted = 0, 0
    for gain in (0.0, -1.0, -2.0):
        for differing in DIFFERING:
            config = GateConfig()
            found = [_judge(Pair(gain, differing), config, random)[0] for _ in range(trials)]
            count = found.count("promote")
            judged, promoted = judged + trials, promoted + count
            what = "equal" if not gain else f"{-gain:g} points worse"
            figure = f"promoted: {what}, differing on {differing:.0%}"
            yield row(figure, 100 * count / trials, "%", "<= 5", f"of {trials:,} trials")
    patient = GateConfig(max_events=10 * GateConfig().max_events)
    found = [_judge(Pair(0.0, 0.1), patient, random)[0] for _ in range(trials // 2)]
    share = 100 * found.count("promote") / len(found)
    note = f"of {len(found):,} trials of up to {patient.max_events:,} events"
    yield row("promoted: equal, ten times the deadline", share, "%", "<= 5", note)
    yield row("promoted: equal or worse, all", 100 * promoted / judged, "%", "<= 5",
              f"of {judged:,} trials, a look every {BATCH} events up to the deadline")  # fmt: skip


def _power(random: np.random.Generator, trials: int) -> Iterator[Row]:
    config = GateConfig(max_events=LONG)
    for differing in DIFFERING:
        pair = Pair(2.0, differing)
        ends = [_judge(pair, config, random) for _ in range(trials)]
        needed = np.array([events if end == "promote" else LONG for end, events in ends])
        for power in POWERS:
            fixed = _fixed_size(pair, power)
            deadline = float(np.quantile(needed, power))
            mean = float(np.minimum(needed, deadline).mean())
            yield row(
                f"+2 points, differing on {differing:.0%}: events over a fixed test of "
                f"{power:.0%} power",
                mean / fixed,
                "",
                "<= 1.3",
                f"mean {mean:,.0f} against {fixed:,.0f}; latest {deadline / fixed:.2f} times",
            )
        found = 100 * float((needed < LONG).mean())
        spent = float(needed.mean())
        over = spent / _fixed_size(pair, 0.8)
        note = f"{over:.2f} times the fixed test of 80 %; {found:.1f} % were found"
        figure = f"+2 points, differing on {differing:.0%}: events until found"
        yield row(figure, spent, "", "", note)
        usual = GateConfig().max_events
        share = 100 * float((needed <= usual).mean())
        figure = f"+2 points, differing on {differing:.0%}: found by the default deadline"
        yield row(figure, share, "%", "", f"gate.max_events: {usual:,}")


def _probation(random: np.random.Generator, trials: int) -> Iterator[Row]:
    config = ProbationConfig()
    for differing in DIFFERING:
        pair = Pair(-2.0, differing)
        taken = np.array([_events_to_rollback(pair, config, random) for _ in range(trials)])
        found = taken[np.isfinite(taken)]
        within = 100 * float((taken <= config.events).mean())
        sure = float(np.quantile(taken, 0.99))
        note = f"within probation.events {config.events:,}; median {np.median(found):,.0f} events, "
        note += f"99 % by {sure:,.0f}; of {trials:,}"
        figure = f"-2 points after promotion, differing on {differing:.0%}: rolled back"
        yield row(figure, within, "%", ">= 99", note)
    wrongly = sum(
        _events_to_rollback(Pair(0.0, 0.1), config, random) <= config.events for _ in range(trials)
    )
    yield row("equal after promotion: rolled back", 100 * wrongly / trials, "%", "<= 5")


def _judge(pair: Pair, config: GateConfig, random: np.random.Generator) -> tuple[str, int]:
    """The verdict on one challenger, and the events it took."""
    trial = Trial("v0002", "head", config, list(CLASSES))
    while True:
        labels = random.integers(0, len(CLASSES), BATCH)
        ours, theirs = pair.outcomes(random, BATCH)
        trial.observe(labels, _opinion(labels, ours, random), _opinion(labels, theirs, random))
        verdict = trial.verdict()
        if verdict.decision != "undecided":
            return verdict.decision, trial.test.events


def _opinion(
    labels: NDArray[np.int64], right: NDArray[np.bool_], random: np.random.Generator
) -> Opinion:
    """Answers right where they shall be, by a model that is about as sure as it is right."""
    predicted = np.where(right, labels, (labels + 1) % len(CLASSES))
    sure = random.uniform(2 * ACCURACY - 1, 1.0, len(labels)).astype(np.float32)
    return Opinion(predicted, sure)


def _events_to_rollback(pair: Pair, config: ProbationConfig, random: np.random.Generator) -> float:
    """Events until the probation of a promoted version fails; infinite if it is passed."""
    test = PairedTest(config.alpha)
    while test.events < LONG:
        test.observe(*pair.outcomes(random, BATCH))
        verdict = test.verdict
        if verdict != "undecided":
            return test.events if verdict == "worse" else math.inf
    return math.inf


def _fixed_size(pair: Pair, power: float) -> float:
    """Events that McNemar's test needs (Lachin, Statistics in Medicine 1992, on the differing)."""
    normal = NormalDist()
    won = 0.5 + pair.gain / 200 / pair.differing
    spread = normal.inv_cdf(0.95) * 0.5 + normal.inv_cdf(power) * math.sqrt(won * (1 - won))
    return (spread / (won - 0.5)) ** 2 / pair.differing
