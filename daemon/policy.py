"""The policy: which rung of the ladder next, or why to wait.

It decides and does nothing else. An `Incident` is the damage being repaired, from the alarm to
the end of the climb; `choose` looks at it and at the `Situation` and answers with a rung and the
reason, both of which go to the journal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from daemon.policy_config import LADDER, PolicyConfig, Rung

# Standard deviations: one wrong "damage is shown" in 200 looks at a model without any.
SURE = 2.576
# Logarithm of the likelihood ratio that shows a change.
LIKELIER = 15.0
# Events after a fall of accuracy, at least, for it to be seen.
FEWEST = 20

Cause = Literal["drift", "improvement", "operator", "exclusion", "bootstrap"]


@dataclass(slots=True)
class Attempt:
    """One rung that was tried: what it cost and how it ended."""

    rung: Rung
    started_event: int
    outcome: str = "running"
    version: str | None = None
    reason: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    examples: int = 0
    parameters: int = 0
    gain_points: float = 0.0


@dataclass(slots=True)
class Incident:
    """Damage under repair.

    Event numbers count all events that the daemon has seen. ``reference_accuracy`` is what the
    model reached before (0 to 1). ``onset_event``: where the new regime began, and training with
    it. ``since_event``: where the champion is judged from, the onset or the last promotion.
    """

    id: str
    cause: Cause
    kind: str
    opened_event: int
    onset_event: int
    since_event: int
    reference_accuracy: float
    severity: float = 0.0
    sentence: str = ""
    only: Rung | None = None
    attempts: list[Attempt] = field(default_factory=list)
    wait_until: int = 0

    def tried(self, rung: Rung, event: int) -> bool:
        """Whether the rung had its chance; a cheap one has another once it is `outgrown`."""
        latest = max((a.started_event for a in self.attempts if a.rung == rung), default=None)
        if latest is None:
            return False
        return rung not in SHALLOW or not self.outgrown(latest, event)

    @property
    def smaller(self) -> bool:
        """Whether an operator asked for a student, and nothing else is behind it."""
        return self.cause == "operator" and self.only == "student"

    @property
    def yields(self) -> bool:
        """Whether a drift takes its place: nothing is damaged, and what it works on has moved."""
        return self.cause == "improvement" or self.smaller

    def outgrown(self, started_event: int, event: int) -> bool:
        """Whether the regime's data has doubled since an attempt began to learn from it."""
        then, now = started_event - self.onset_event, event - self.onset_event
        return now >= MORE_DATA * max(then, 1)

    def tries(self, rung: Rung) -> int:
        """How many attempts there were at the rung."""
        return sum(attempt.rung == rung for attempt in self.attempts)

    @property
    def promoted(self) -> Attempt | None:
        """The last attempt that was promoted, if any."""
        return next((a for a in reversed(self.attempts) if a.outcome == "promoted"), None)

    @property
    def cpu_seconds(self) -> float:
        """CPU-seconds of training spent on this incident."""
        return sum(attempt.cpu_seconds for attempt in self.attempts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint and the journal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Incident:
        """The inverse of `as_dict`."""
        attempts = [Attempt(**attempt) for attempt in values["attempts"]]
        return cls(**{**values, "attempts": attempts})


@dataclass(frozen=True, slots=True)
class Situation:
    """What the policy may look at.

    labelled: labelled events since the incident's onset (or its last promotion). accuracy: of the
    champion on them, 0 to 1. archived: versions that could be recalled. deep: whether the model has
    layers below its head that training can move. followed: whether the champion follows a whole
    model that learns online. promotions_today: by the daemon in the last 24 hours.
    """

    event: int
    labelled: int
    accuracy: float
    promotions_today: int
    archived: int = 0
    online_head: bool = False
    deep: bool = True
    followed: bool = False
    pinned: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """``climb`` a rung, ``wait``, or ``close`` the incident; always with the reason."""

    action: Literal["climb", "wait", "close"]
    reason: str
    rung: Rung | None = None
    outcome: str = ""


def damage_points(incident: Incident, situation: Situation) -> float:
    """Accuracy points lost against the reference, on the events since the onset."""
    return 100.0 * (incident.reference_accuracy - situation.accuracy)


def sure_loss(accuracy: float, events: int, reference: float) -> float:
    """Accuracy points below the reference that so many events prove at least; may be negative.

    By the upper end of Wilson's interval (1927) for the accuracy, 0 to 1, on the events.
    """
    if not events:
        return -math.inf
    z2 = SURE * SURE / events
    spread = math.sqrt(accuracy * (1 - accuracy) / events + z2 / (4 * events))
    return 100 * (reference - (accuracy + z2 / 2 + SURE * spread) / (1 + z2))


def fell_at(outcomes: NDArray[np.bool_], config: PolicyConfig) -> int | None:
    """The place in the champion's outcomes, bool [n], from which it answers clearly worse, if any.

    By the likelihood ratio of one change, at its likeliest place, to none. It is looked for at all
    places, every turn: `LIKELIER` leaves room for a million looks.
    """
    n = len(outcomes)
    places = np.arange(config.min_labelled, n - FEWEST)
    if not len(places):
        return None
    right = np.cumsum(outcomes)
    before = right[places - 1] / places
    after = (right[-1] - right[places - 1]) / (n - places)
    fits = places * _fit(before) + (n - places) * _fit(after)
    best = int(fits.argmax())
    place = int(places[best])
    ratio = float(fits[best] - n * _fit(right[-1:] / n)[0])
    lost = 100 * float(before[best] - after[best])
    return place if ratio >= LIKELIER and lost >= config.min_damage_points else None


def _fit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-likelihood an event of outcomes with mean ``p`` under it."""
    found: NDArray[np.float64] = xlogy(p, p) + xlogy(1 - p, 1 - p)
    return found


def damage_shown(incident: Incident, situation: Situation, config: PolicyConfig) -> bool:
    """Whether the events since the onset, or the last promotion, prove a damage to be repaired."""
    if incident.cause != "drift":
        return False
    loss = sure_loss(situation.accuracy, situation.labelled, incident.reference_accuracy)
    return loss >= config.min_damage_points


def choose(incident: Incident, situation: Situation, config: PolicyConfig) -> Choice:
    """The lowest rung that may repair the damage, or why not to climb now."""
    if situation.paused:
        return Choice("wait", "learning is paused by an operator")
    if situation.pinned:
        return Choice("wait", "the champion is pinned by an operator")
    if situation.event < incident.wait_until and not damage_shown(incident, situation, config):
        return Choice("wait", f"collecting evidence until event {incident.wait_until}")
    if situation.promotions_today >= config.max_promotions_per_day:
        limit = config.max_promotions_per_day
        return Choice("wait", f"{limit} promotions in 24 hours: the daily budget is spent")
    if incident.cause == "drift" and situation.labelled >= config.min_labelled:
        lost = damage_points(incident, situation)
        if incident.promoted and lost <= config.tolerance_points:
            done = incident.promoted
            sentence = f"{done.rung} repaired it: {_describe(lost)} the reference"
            return Choice("close", sentence, outcome="repaired")
        if not incident.promoted and lost < config.min_damage_points:
            sentence = f"no damage to repair: accuracy is {_describe(lost)} the reference"
            return Choice("close", sentence, outcome="harmless")
    return _next_rung(incident, situation, config)


def _next_rung(incident: Incident, situation: Situation, config: PolicyConfig) -> Choice:
    rungs = [incident.only] if incident.only else [r for r in LADDER if r in config.rungs]
    if incident.only and incident.only not in SHALLOW and not situation.deep:
        sentence = f"{incident.only} trains layers that this table's model does not have"
        return Choice("close", sentence, outcome="failed")
    waiting = ""
    # Of the two ways to a new head, the one that had fewer chances comes first.
    for rung in sorted(rungs, key=lambda r: (PRICE[r], incident.tries(r) if PRICE[r] == 1 else 0)):
        if incident.tried(rung, situation.event):
            continue
        if rung == "recall" and not situation.archived:
            continue
        if rung == "online" and not situation.online_head:
            continue
        if rung not in SHALLOW and not situation.deep:
            continue
        if rung in SHALLOW and situation.followed and incident.cause == "drift":
            continue  # it has learned from all that these would learn from, and goes on
        if incident.cause == "drift" and incident.kind == "label" and rung not in SHALLOW:
            # A moved prior is repaired by the head's bias; deeper layers have nothing to learn.
            continue
        need = config.min_labelled_by_rung.get(rung, config.min_labelled)
        if incident.cause == "drift" and situation.labelled < need:
            waiting = waiting or f"{rung} needs {need} labelled events, {situation.labelled} so far"
            continue
        if waiting:
            # A lower rung only lacks labels: wait for it rather than pay for a higher one.
            break
        lost = damage_points(incident, situation)
        why = f"{rung} is the lowest rung that may repair it"
        if incident.cause == "drift":
            why += f"; {_describe(lost)} the reference on {situation.labelled} events"
        return Choice("climb", why, rung)
    if waiting:
        return Choice("wait", waiting)
    young = situation.event - incident.onset_event < config.patience_events
    if young and not incident.only and damage_shown(incident, situation, config):
        if situation.followed:
            return Choice("wait", "the champion follows what learns online, which may repair it")
        return Choice("wait", "every rung had its chance: the next is at twice the events")
    if incident.promoted:
        lost = damage_points(incident, situation)
        sentence = (
            f"best version found by {incident.promoted.rung}; {_describe(lost)} the reference"
        )
        return Choice("close", sentence, outcome="improved")
    return Choice("close", "every rung was tried and none passed the gate", outcome="unrepaired")


# These leave the layers below the head alone: cheap enough to be tried again with more data.
SHALLOW: frozenset[Rung] = frozenset({"recall", "online", "head"})
MORE_DATA = 2
# A recall trains nothing; a new head costs about the same either way; layers cost ever more.
PRICE: dict[Rung, int] = {rung: place for place, rung in enumerate(LADDER)} | {"head": 1}


def _describe(lost: float) -> str:
    return f"{lost:.1f} points below" if lost > 0 else f"{-lost:.1f} points above"
