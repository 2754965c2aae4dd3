"""The comparison in figures: accuracy, cost, useful life and what was forgotten, by policy.

Every event is scored once, by what served when it arrived. The yardsticks that cost nothing
(majority so far, last known label) stand beside the policies; kappa-temporal is the share of the
last label's errors that a policy avoids (Zliobaite et al., 2015).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.replay.outcome import Outcome
from daemon.replay.recording import NO_DELAY, Delay, Recording

WINDOW = 500
TARGET_POINTS = 5.0
# CPU-seconds; below it the cost is noise, and a quotient by it says nothing.
LEAST_COST = 1.0
CHANGED_PAIRS = 12

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the report shows.

    target: accuracy (0 to 1) below which the model is of no use. positions: int64 [m], the scored
    events. right: by policy, bool [m]. rolling: by policy and yardstick, float64 [m], accuracy on
    the last ``window`` scored events. figures: by policy, the measures by name.
    """

    target: float
    target_reason: str
    window: int
    positions: NDArray[np.int64]
    right: dict[str, Bools]
    rolling: dict[str, Floats]
    figures: dict[str, dict[str, Any]]
    yardsticks: dict[str, float]
    outcomes: dict[str, Outcome]
    confusion: dict[str, list[dict[str, Any]]]


def measure(
    recording: Recording,
    outcomes: Sequence[Outcome],
    delay: Delay = NO_DELAY,
    target: float | None = None,
    window: int = WINDOW,
) -> Comparison:
    """Compare the outcomes of one replay; ``target`` as accuracy, 0 to 1.

    Without one it is the first version's own accuracy on its first ``window`` events, less five
    points: what whoever let it serve would have noticed.

    Raises:
        ValueError: no event after the warm-up has a label.
    """
    start = min(outcome.served[0]["position"] for outcome in outcomes)
    labelled = np.fromiter((label is not None for label in recording.truth), np.bool_)
    positions = start + np.flatnonzero(labelled[start:] & recording.first[start:])
    if not len(positions):
        raise ValueError("no event after the warm-up has a label: nothing can be measured")
    window = min(window, len(positions))
    truth = recording.truth[positions]
    right = {outcome.policy: _answers(outcome, positions) == truth for outcome in outcomes}
    guesses = _yardsticks(recording, positions, delay.known(recording))
    beside = {name: guess == truth for name, guess in guesses.items()}
    base = _baseline(outcomes)
    reason = "as given"
    if target is None:
        first = right[(base or outcomes[0]).policy][:window]
        target = float(first.mean()) - TARGET_POINTS / 100
        reason = (
            f"the first version's accuracy on its first {window:,} events,"
            f" less {TARGET_POINTS:g} points"
        )
    rolling = {name: rolled(r, window) for name, r in (right | beside).items()}
    yardsticks = {name: float(r.mean()) for name, r in beside.items()}
    last = yardsticks["last label"]
    figures = {
        outcome.policy: _figures(
            outcome, base, right, rolling[outcome.policy], target, window, last, truth, positions
        )
        for outcome in outcomes
    }
    confusion = {
        outcome.policy: _changed(outcome, base, positions, truth)
        for outcome in outcomes
        if base is not None and outcome is not base
    }
    return Comparison(
        target,
        reason,
        window,
        positions,
        right,
        rolling,
        figures,
        yardsticks,
        {outcome.policy: outcome for outcome in outcomes},
        confusion,
    )


def rolled(right: Bools, window: int) -> Floats:
    """Accuracy on the last ``window`` events at each; on fewer at the beginning, float64 [m].

    >>> rolled(np.array([True, False, True, True]), 2).tolist()
    [1.0, 0.5, 0.5, 1.0]
    """
    sums = np.concatenate([[0], np.cumsum(right)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    found: Floats = (sums[ends] - sums[starts]) / (ends - starts)
    return found


def useful_life(rolling: Floats, target: float, window: int) -> int | None:
    """Events until accuracy stays below ``target``; None if it never does.

    To stay below is to be below for two windows on end: in the first, the mean still holds events
    from before the fall. A dip that is repaired sooner does not end a life.

    >>> useful_life(np.array([0.9, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5]), 0.8, 2)
    3
    """
    below = rolling < target
    ends = np.flatnonzero(np.diff(np.concatenate([[0], below.astype(np.int8), [0]])))
    for begin, end in ends.reshape(-1, 2).tolist():
        if end - begin >= 2 * window:
            return int(begin)
    return None


def kappa(accuracy: float, by_chance: float) -> float:
    """The share of a yardstick's errors that is avoided; 1 is perfect, 0 no better.

    >>> kappa(0.9, 0.8)
    0.5
    """
    return (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan


def _baseline(outcomes: Sequence[Outcome]) -> Outcome | None:
    return next((outcome for outcome in outcomes if outcome.policy == "frozen"), None)


def _answers(outcome: Outcome, positions: NDArray[np.int64]) -> NDArray[np.object_]:
    names: NDArray[np.object_] = np.array([*outcome.classes, None], dtype=object)
    return names[outcome.predicted[positions]]


def _yardsticks(
    recording: Recording, positions: NDArray[np.int64], known: NDArray[np.int64]
) -> dict[str, NDArray[np.object_]]:
    """What the majority so far and the last label say, knowing what was known before each event."""
    counts: Counter[Any] = Counter()
    last: Any = None
    majority: Any = None
    taken = 0
    says = {name: np.empty(len(positions), dtype=object) for name in ("majority", "last label")}
    for row, position in enumerate(positions.tolist()):
        for label in recording.events.labels[taken : min(position, int(known[position]))]:
            taken += 1
            if label is None:
                continue
            last = label
            counts[label] += 1
            if majority is None or counts[label] > counts[majority]:
                majority = label
        says["majority"][row], says["last label"][row] = majority, last
    return says


def _figures(
    outcome: Outcome,
    base: Outcome | None,
    right: dict[str, Bools],
    rolling: Floats,
    target: float,
    window: int,
    last_label: float,
    truth: NDArray[np.object_],
    positions: NDArray[np.int64],
) -> dict[str, Any]:
    mine = right[outcome.policy]
    accuracy = float(mine.mean())
    chance = _by_chance(_answers(outcome, positions), truth)
    life = useful_life(rolling, target, window)
    frozen = _life_of(base, right, target, window)
    moves = Counter(row["move"] for row in outcome.served[1:])
    figures: dict[str, Any] = {
        "events": len(mine),
        "accuracy": accuracy,
        "kappa": kappa(accuracy, chance),
        "kappa_temporal": kappa(accuracy, last_label),
        "below_target": float((rolling < target).mean()),
        "useful_life": life,
        "useful_life_ratio": _ratio(life, frozen, len(mine)),
        "alarms": len(outcome.of_kind("alarm")),
        "refreshes": sum(outcome.jobs.values()),
        "refreshes_by_rung": dict(outcome.jobs),
        "promotions": moves["promote"],
        "follow_ups": moves["follow"],
        "rollbacks": moves["rollback"],
        "training_cpu_seconds": outcome.training_cpu_seconds,
        "loop_cpu_seconds": outcome.loop_cpu_seconds,
        "held_out_before": outcome.held_out.get("before"),
        "held_out_after": outcome.held_out.get("after"),
        "forgetting": _forgotten(outcome),
        "errors_avoided": None,
        "cost_cpu_seconds": None,
        "errors_avoided_per_cpu_second": None,
    }
    if base is not None:
        avoided = int(mine.sum()) - int(right[base.policy].sum())
        extra = max(0.0, outcome.loop_cpu_seconds - base.loop_cpu_seconds)
        cost = outcome.training_cpu_seconds + extra
        figures["errors_avoided"] = avoided
        figures["cost_cpu_seconds"] = cost
        if outcome is not base and cost >= LEAST_COST:
            figures["errors_avoided_per_cpu_second"] = avoided / cost
    return figures


def _by_chance(answers: NDArray[np.object_], truth: NDArray[np.object_]) -> float:
    """Accuracy of answers as frequent as these, but given at random (Cohen's kappa)."""
    said, true = Counter(answers.tolist()), Counter(truth.tolist())
    return sum(said[label] * count for label, count in true.items()) / len(truth) ** 2


def _life_of(
    base: Outcome | None, right: dict[str, Bools], target: float, window: int
) -> int | None:
    return useful_life(rolled(right[base.policy], window), target, window) if base else None


def _ratio(life: int | None, frozen: int | None, events: int) -> float | None:
    """How many times frozen's life; at least that, where this policy lives to the end.

    None where frozen too lives to the end: then nothing was to be prolonged.
    """
    if frozen is None:
        return None
    return (events if life is None else life) / max(frozen, 1)


def _forgotten(outcome: Outcome) -> float | None:
    found = outcome.held_out
    return found["before"] - found["after"] if found else None


def _changed(
    outcome: Outcome,
    base: Outcome | None,
    positions: NDArray[np.int64],
    truth: NDArray[np.object_],
) -> list[dict[str, Any]]:
    """The mistakes whose number changed most against frozen: (truth, answer, before, after)."""
    assert base is not None

    def mistakes(of: Outcome) -> Counter[tuple[Any, Any]]:
        pairs = zip(truth.tolist(), _answers(of, positions).tolist(), strict=True)
        return Counter(pair for pair in pairs if pair[0] != pair[1])

    before, after = mistakes(base), mistakes(outcome)
    pairs = sorted(before.keys() | after.keys(), key=lambda p: (-abs(after[p] - before[p]), str(p)))
    return [
        {"truth": pair[0], "answer": pair[1], "before": before[pair], "after": after[pair]}
        for pair in pairs[:CHANGED_PAIRS]
        if before[pair] != after[pair]
    ]
