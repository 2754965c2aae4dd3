"""What the daemon knows: everything that a restart must find again, and nothing else.

The loop and the repair change it; the checkpoint writes it, in one piece with the positions that
produced it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.awaiting import Awaiting
from daemon.baseline import Baseline
from daemon.canary import Canary
from daemon.checkpoint import Arrays, Checkpoint, prefixed, under
from daemon.clock import Clock
from daemon.config import Config
from daemon.events import columns
from daemon.evidence import PairedTest
from daemon.following import Following, Met
from daemon.gate import Trial
from daemon.guard import Guard
from daemon.online import OnEmbeddings, Online, restored, whole_beside
from daemon.policy import Incident
from daemon.prequential import Prequential
from daemon.quarantine import Quarantine
from daemon.residuals import Residuals
from daemon.rivals import Rivals
from daemon.served import Classes, Served
from daemon.stream_config import KafkaSourceConfig
from daemon.watch import Watch
from drift import Reference, Signature, Slices
from learn.memory import Memory
from learn.number_scale import NumberScale
from learn.past import Past

DAY = 86_400.0
KNOWN_REGIMES = 64
KNOWN_RECORDS = 64
SLICED_EVENTS = 2000  # that the slices of a table are cut from
VALUE = "value"  # the only label of a model that predicts a number


@dataclass(slots=True)
class Probation:
    """The watch after a promotion: the new champion against the old one, on the same events."""

    version: str
    previous: str
    started_event: int
    test: PairedTest = field(default_factory=PairedTest)


@dataclass(slots=True)
class Record:
    """What became of one version's answers: those whose label has come, and the right ones."""

    labelled: int = 0
    right: int = 0


class State:
    """The daemon's knowledge, in memory."""

    def __init__(self, config: Config, clock: Clock = time) -> None:
        self.config = config
        self._clock = clock
        self.classes = Classes((VALUE,) if config.model.number else config.model.labels)
        #: What a small error is, where a number is predicted; known from the first version on.
        self.scale: NumberScale | None = None
        self.residuals = Residuals()
        self.memory = Memory(config.memory)
        source = config.source
        later = isinstance(source, KafkaSourceConfig) and source.labels is not None
        self.watch = Watch(config.drift, config.policy.settle_events, labels_later=later)
        self.prequential = Prequential()
        self.awaiting = Awaiting(config.probation.late_events)
        self.guard = Guard(config.guard)
        self.quarantine = Quarantine()
        #: By version; those of the oldest are forgotten.
        self.records: dict[str, Record] = {}
        self.events = 0
        #: Events beyond those, which were counted as they were answered and not looked at.
        self.passed = 0
        self.positions: dict[tuple[str, int], int] = {}
        self.champion: str | None = None
        self.champion_event = 0
        self.champion_since = 0.0
        self.past = Past(config.model)
        self.online: Online | None = None
        self._online_state: Arrays = {}
        #: The first version, which the champion is compared with.
        self.baseline = Baseline()
        #: What learns online as a challenger: each answer given before it learned the label.
        self.learner = self._learner_trial()
        self.met = Met()
        self.following: Following | None = None
        #: No run of versions that follow it begins before this event.
        self.follow_after = 0
        #: Events before this one are read again after a restart, and the champion knows them.
        self.judged_from = 0
        self.rivals = Rivals(config.model, config.seed, config.gate.alpha)
        self.incident: Incident | None = None
        self.incidents = 0
        self.trial: Trial | None = None
        #: Of the trial's version, once the gate has let it pass.
        self.canary: Canary | None = None
        self.probation: Probation | None = None
        #: The champion before, and what was normal for it, should it come back.
        self.former: tuple[str, Reference] | None = None
        #: Alarms are held, and improvements not proposed, before these events.
        self.quiet_until = self.rest_until = 0
        #: Where the present regime began, and up to where a refresh has learned from it.
        self.regime_event = self.learned_event = 0
        #: Accuracy, 0 to 1, from which a drift took away what no rung could repair: the next alarm
        #: measures its damage against it, as the monitors' new normal is the damaged one.
        self.owed = 0.0
        #: The regime in which each version became normal, by version; the oldest are forgotten.
        self.regimes: dict[str, Signature] = {}
        #: Classes that a refresh for the sake of a new one was given last.
        self.taught = 0
        self.promotions: list[float] = []
        self.failed: list[str] = []

    def read_labels(self, labels: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Labels, object [n] of str or None, as int64 [n], -1 for None; and the truth, [n].

        The truth is the same, but of numbers: float64 with NaN for None, and all labels are 0.
        """
        if not self.config.model.number:
            found = self.classes.index(labels)
            return found, found
        truth = np.array([np.nan if label is None else float(label) for label in labels])
        return np.where(np.isnan(truth), -1, 0).astype(np.int64), truth

    @property
    def part_names(self) -> list[str]:
        """What the monitors and the gate tell apart: classes, or parts of a number's range."""
        return self.scale.names if self.scale else self.classes.names

    def follow_champion(self, served: Served, since: float, *, anew: bool = False) -> None:
        """``served`` is the champion from now on: what was measured of the old one is void.

        ``anew``: so is what learned online.
        """
        left, normal, former = self.champion, self.watch.reference, self.former
        self.champion, self.champion_event, self.champion_since = served.version, self.events, since
        self.scale = served.scale or self.scale
        if self.following is not None and self.following.version != served.version:
            self.following = None
        self.prequential.restart()
        self.watch.rearm(served.encoder)
        if former is not None and former[0] == served.version:
            self.watch.adopt(former[1])
        self.former = (left, normal) if left is not None and normal is not None else None
        if self.following is None:
            self.restart_online(served, anew=anew)
        self.learner = self._learner_trial()
        if left is None:
            self._teach_rivals()
        self.rivals.follow_champion()

    def step(self, served: Served, since: float, *, mine: bool) -> None:
        """``served`` follows the champion as the next step of a run: what was measured stands."""
        left = self.champion
        self.champion, self.champion_since = served.version, since
        if left in self.regimes:
            self.regimes[served.version] = self.regimes.pop(left)
        if not mine:
            self.following = None
            self.restart_online(served)

    def follow_anew(self, rest: int) -> None:
        """The run is over: what learns online is to be proven again, from ``rest`` events on."""
        self.following = None
        self.follow_after = self.events + rest
        self.learner = self._learner_trial()

    @property
    def probation_alpha(self) -> float:
        """The chance of a mistake in a probation that begins now; of all of a run's together."""
        share = 1 + (self.following.proven if self.following else 0)
        return self.config.probation.alpha / (share * (share + 1) if self.following else 1)

    def try_learner(self) -> None:
        """What learns online has another chance, on the events from now on."""
        self.learner = self._learner_trial()

    def _learner_trial(self) -> Trial:
        gate = self.config.gate
        return Trial("", "online", gate, self.part_names, slices=self.slices(), scale=self.scale)

    @property
    def online_test(self) -> PairedTest:
        """What learns online against the champion, as far as it is known."""
        return self.learner.test

    def slices(self) -> Slices | None:
        """The slices of the table that comes in now; None for texts."""
        features = columns(self.memory.recent(SLICED_EVENTS).inputs)
        return Slices.fit(features, self.config.gate.slices) if features else None

    def record(self, version: str, right: NDArray[np.bool_]) -> None:
        """Labels came, bool [n], for answers that ``version`` gave; a run counts as its first."""
        run = self.following
        found = self.records.setdefault(
            run.first if run is not None and run.covers(version) else version, Record()
        )
        found.labelled += len(right)
        found.right += int(right.sum())
        while len(self.records) > KNOWN_RECORDS:
            del self.records[next(iter(self.records))]

    def know_regime(self, signature: Signature) -> None:
        """The champion is at home in this regime; an alarm may find that it came back."""
        if self.champion is not None:
            self.regimes[self.champion] = signature
        while len(self.regimes) > KNOWN_REGIMES:
            del self.regimes[next(iter(self.regimes))]

    def restart_online(self, served: Served, *, anew: bool = False) -> None:
        """What learns online begins beside ``served``, or goes on where the champion allows it.

        ``anew``: it may not go on, as it has learned what it must forget.
        """
        classes = len(self.classes)
        whole = whole_beside(served, classes, self.config.model)
        if whole is None:
            self.online = OnEmbeddings.beside(served, classes, self.config.learn.online)
            if self.following is None:  # else it goes on from what it has given out
                self.met = Met()
        elif anew or self.online is None or not whole.fits(self.online):
            known = self.memory.recent(self.memory.config.recent, since=0, training=True)
            self.met = Met()
            if len(known):
                whole.learn(known.inputs, np.empty((len(known), 0), np.float32), known.truth)
                self.met.add(known)
            self.online = whole
        self.learner = self._learner_trial()

    def resume_online(self, served: Served) -> None:
        """After a restart: what learned online goes on beside the same champion."""
        self.scale = served.scale or self.scale
        self._teach_rivals()
        if self._online_state:
            self.online = restored(
                self._online_state, served, self.config.learn.online, self.config.model
            )
            self._online_state = {}
        else:
            self.restart_online(served)

    def _teach_rivals(self) -> None:
        """The rivals begin with what is in memory, in order."""
        if not self.rivals.all:
            return
        known = self.memory.recent(self.memory.config.recent, since=0)
        if len(known):
            names = np.array(self.classes.names, dtype=object)
            truth = names[known.labels] if known.targets is None else known.targets
            self.rivals.learn(known.inputs, truth)

    def promotions_today(self) -> int:
        """Promotions by the daemon in the last 24 hours."""
        now = self._clock.time()
        self.promotions = [at for at in self.promotions if now - at < DAY]
        return len(self.promotions)

    def listed_positions(self) -> list[tuple[str, int, int]]:
        """(topic, partition, next offset) of each partition, sorted."""
        return [(t, p, offset) for (t, p), offset in sorted(self.positions.items())]

    def values(self) -> dict[str, Any]:
        """The JSON-able half of the checkpoint."""
        trial, probation = self.trial, self.probation
        return {
            "classes": self.classes.names,
            "scale": self.scale.as_dict() if self.scale else None,
            "features": [f.model_dump() for f in self.config.model.features],
            "events": self.events,
            "passed": self.passed,
            "positions": self.listed_positions(),
            "champion": self.champion,
            "champion_event": self.champion_event,
            "champion_since": self.champion_since,
            "learner": self.learner.values(),
            "met": self.met.values(),
            "following": self.following.values() if self.following else None,
            "follow_after": self.follow_after,
            "past": self.past.values(),
            "rivals": self.rivals.values(),
            "baseline": self.baseline.version,
            "incident": self.incident.as_dict() if self.incident else None,
            "incidents": self.incidents,
            "trial": trial.values() if trial else None,
            "canary": self.canary.values() if self.canary else None,
            "probation": probation
            and {
                "version": probation.version,
                "previous": probation.previous,
                "started_event": probation.started_event,
                "test": probation.test.state(),
                "margin": probation.test.margin,
            },
            "quiet_until": self.quiet_until,
            "rest_until": self.rest_until,
            "regime_event": self.regime_event,
            "learned_event": self.learned_event,
            "taught": self.taught,
            "owed": self.owed,
            "regimes": list(self.regimes),
            "former": self.former[0] if self.former else None,
            "quarantine": self.quarantine.values(),
            "records": {v: [r.labelled, r.right] for v, r in self.records.items()},
            "promotions": self.promotions,
            "failed": self.failed,
        }

    def arrays(self) -> Arrays:
        """The other half: arrays by name."""
        parts: Arrays = {
            **prefixed("memory", self.memory.state()),
            **prefixed("watch", self.watch.state()),
            **prefixed("prequential", self.prequential.state()),
            **prefixed("residuals", self.residuals.state()),
            **prefixed("awaiting", self.awaiting.state()),
            **prefixed("guard", self.guard.state()),
            **prefixed("quarantine", self.quarantine.arrays()),
            **prefixed("past", self.past.arrays()),
            **prefixed("rivals", self.rivals.arrays()),
            **prefixed("baseline", self.baseline.arrays()),
        }
        if self.online is not None:
            parts |= prefixed("online", self.online.state())
        parts |= prefixed("learner", self.learner.arrays())
        if self.trial is not None:
            parts |= prefixed("trial", self.trial.arrays())
        if self.former is not None:
            parts |= prefixed("former", self.former[1].arrays())
        for version, signature in self.regimes.items():
            parts |= prefixed(f"regimes/{version}", signature.arrays())
        return parts

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was taken.

        A refresh that was running is forgotten and its rung is free to be tried again.
        """
        values, arrays = checkpoint.values, checkpoint.arrays
        gate = self.config.gate
        self.classes = Classes(values["classes"])
        self.scale = NumberScale.of(values)
        self.memory.restore(under("memory", arrays))
        self.watch.restore(under("watch", arrays))
        self.prequential.restore(under("prequential", arrays))
        if residuals := under("residuals", arrays):
            self.residuals.restore(residuals)
        if awaiting := under("awaiting", arrays):
            self.awaiting.restore(awaiting)
        if guard := under("guard", arrays):
            self.guard.restore(guard)
        if found := values.get("quarantine"):
            self.quarantine.restore(found, under("quarantine", arrays))
        self.records = {v: Record(*counts) for v, counts in values.get("records", {}).items()}
        self.events = values["events"]
        self.passed = values.get("passed", 0)
        self.positions = {(t, p): offset for t, p, offset in values["positions"]}
        self.champion = values["champion"]
        self.champion_event = values["champion_event"]
        self.champion_since = values["champion_since"]
        self._online_state = under("online", arrays)
        self.past.restore(values.get("past", ()), under("past", arrays))
        self.rivals.restore(values.get("rivals", {}), under("rivals", arrays))
        self.baseline.restore(values.get("baseline"), under("baseline", arrays))
        self.incidents = values["incidents"]
        self.incident = None
        if values["incident"]:
            self.incident = Incident.from_dict(values["incident"])
            ended = [a for a in self.incident.attempts if a.outcome != "running"]
            self.incident.attempts = ended
        self.learner = self._learner_trial()
        if found := values.get("learner"):
            arrays_of_trial = under("learner", arrays)
            names = self.part_names
            self.learner = Trial.restored(gate, names, found, arrays_of_trial, self.scale)
        elif found := values.get("online_test"):  # of an older release
            self.learner.test = PairedTest.restored(gate.alpha, found)
        self.met = Met.restored(values["met"]) if "met" in values else Met()
        self.following = None
        if found := values.get("following"):
            self.following = Following.restored(found, self._clock.monotonic())
        self.follow_after = values.get("follow_after", 0)
        self.trial = None
        if (found := values["trial"]) and "overall" in found:  # else of an older release
            arrays_of_trial = under("trial", arrays)
            names = self.part_names
            self.trial = Trial.restored(gate, names, found, arrays_of_trial, self.scale)
        self.canary = None
        if (found := values.get("canary")) and self.trial and gate.canary.steps:
            self.canary = Canary.restored(gate.canary, gate.alpha, found)
        self.probation = None
        if found := values["probation"]:
            margin = found.get("margin", 0.0)
            test = PairedTest.restored(self.probation_alpha, found["test"], margin)
            self.probation = Probation(
                found["version"], found["previous"], found["started_event"], test
            )
        self.quiet_until = values["quiet_until"]
        self.rest_until = values.get("rest_until", self.quiet_until)
        self.regime_event = values.get("regime_event", 0)
        self.learned_event = values.get("learned_event", self.events)
        self.taught = values.get("taught", 0)
        self.owed = values.get("owed", 0.0)
        self.regimes = {
            version: Signature.from_arrays(under(f"regimes/{version}", arrays))
            for version in values.get("regimes", ())
        }
        self.former = None
        if version := values.get("former"):
            self.former = version, Reference.from_arrays(under("former", arrays))
        self.promotions = list(values["promotions"])
        self.failed = list(values["failed"])
