"""The policy: which rung of the ladder next, or why to wait.

It decides and does nothing else. An `Incident` is the damage being repaired, from the alarm to
the end of the climb; `choose` looks at it and at the `Situation` and answers with a rung and the
reason, both of which go to the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from daemon.policy_config import LADDER, PolicyConfig, Rung

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
        """Whether the rung had its chance; it has another once the regime's data has tripled."""
        latest = max((a.started_event for a in self.attempts if a.rung == rung), default=None)
        if latest is None:
            return False
        then, now = latest - self.onset_event, event - self.onset_event
        return rung not in RETRIED or now < MORE_DATA * max(then, 1)

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
    layers below its head that training can move. promotions_today: by the daemon in the last 24
    hours.
    """

    event: int
    labelled: int
    accuracy: float
    archived: int
    online_head: bool
    promotions_today: int
    deep: bool = True
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


def choose(incident: Incident, situation: Situation, config: PolicyConfig) -> Choice:
    """The lowest rung that may repair the damage, or why not to climb now."""
    if situation.paused:
        return Choice("wait", "learning is paused by an operator")
    if situation.pinned:
        return Choice("wait", "the champion is pinned by an operator")
    if situation.event < incident.wait_until:
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
        sentence = f"{incident.only} trains layers that a table's ensemble does not have"
        return Choice("close", sentence, outcome="failed")
    waiting = ""
    for rung in rungs:
        if incident.tried(rung, situation.event):
            continue
        if rung == "recall" and not situation.archived:
            continue
        if rung == "online" and not situation.online_head:
            continue
        if rung not in SHALLOW and not situation.deep:
            continue
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
    if incident.promoted:
        lost = damage_points(incident, situation)
        sentence = (
            f"best version found by {incident.promoted.rung}; {_describe(lost)} the reference"
        )
        return Choice("close", sentence, outcome="improved")
    return Choice("close", "every rung was tried and none passed the gate", outcome="unrepaired")


# Cheap enough to be tried again when there is much more to learn from.
RETRIED: frozenset[Rung] = frozenset({"recall", "online", "head"})
MORE_DATA = 3
SHALLOW: frozenset[Rung] = frozenset({"recall", "online", "head"})


def _describe(lost: float) -> str:
    return f"{lost:.1f} points below" if lost > 0 else f"{-lost:.1f} points above"
