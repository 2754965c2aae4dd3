"""What the daemon knows: everything that a restart must find again, and nothing else.

The loop and the repair change it; the checkpoint writes it, in one piece with the positions that
produced it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from daemon.checkpoint import Arrays, Checkpoint, prefixed, under
from daemon.clock import Clock
from daemon.config import Config
from daemon.evidence import PairedTest
from daemon.gate import Check, Trial
from daemon.policy import Incident
from daemon.prequential import Prequential
from daemon.served import Classes, Served
from daemon.watch import Watch
from drift import Signature
from learn.head import Head
from learn.memory import Memory
from learn.online import OnlineHead

DAY = 86_400.0
KNOWN_REGIMES = 64


@dataclass(slots=True)
class Probation:
    """The watch after a promotion: the new champion against the old one, on the same events."""

    version: str
    previous: str
    started_event: int
    test: PairedTest = field(default_factory=PairedTest)


class State:
    """The daemon's knowledge, in memory."""

    def __init__(self, config: Config, clock: Clock = time) -> None:
        self.config = config
        self._clock = clock
        self.classes = Classes(config.model.labels or ())
        self.memory = Memory(config.memory)
        self.watch = Watch(config.drift, config.policy.settle_events)
        self.prequential = Prequential()
        self.events = 0
        self.positions: dict[tuple[str, int], int] = {}
        self.champion: str | None = None
        self.champion_event = 0
        self.champion_since = 0.0
        self.online: OnlineHead | None = None
        self.online_test = PairedTest(config.gate.alpha)
        self.incident: Incident | None = None
        self.incidents = 0
        self.trial: Trial | None = None
        self.probation: Probation | None = None
        #: Alarms are held, and improvements not proposed, before these events.
        self.quiet_until = self.rest_until = 0
        #: Where the present regime began, and up to where a refresh has learned from it.
        self.regime_event = self.learned_event = 0
        #: The regime in which each version became normal, by version; the oldest are forgotten.
        self.regimes: dict[str, Signature] = {}
        #: Classes that a refresh for the sake of a new one was given last.
        self.taught = 0
        self.promotions: list[float] = []
        self.failed: list[str] = []

    def follow_champion(self, served: Served, since: float) -> None:
        """``served`` is the champion from now on: what was measured of the old one is void."""
        self.champion, self.champion_event, self.champion_since = served.version, self.events, since
        self.prequential.restart()
        self.watch.rearm(served.encoder)
        self.restart_online(served)

    def know_regime(self, signature: Signature) -> None:
        """The champion is at home in this regime; an alarm may find that it came back."""
        if self.champion is not None:
            self.regimes[self.champion] = signature
        while len(self.regimes) > KNOWN_REGIMES:
            del self.regimes[next(iter(self.regimes))]

    def restart_online(self, served: Served) -> None:
        """The online head goes on from the champion's head, in the daemon's class indices."""
        weight, bias = served.weight, served.bias
        columns = served.columns
        classes = len(self.classes)
        wide = np.zeros((weight.shape[0], classes), dtype=np.float32)
        # A class the champion does not know starts with no weight and the smallest bias in use.
        offsets = np.full(classes, bias.min(initial=0.0), dtype=np.float32)
        wide[:, columns], offsets[columns] = weight, bias
        self.online = OnlineHead(Head(wide, offsets), self.config.learn.online)
        self.online_test = PairedTest(self.config.gate.alpha)

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
            "events": self.events,
            "positions": self.listed_positions(),
            "champion": self.champion,
            "champion_event": self.champion_event,
            "champion_since": self.champion_since,
            "online_test": self.online_test.state(),
            "incident": self.incident.as_dict() if self.incident else None,
            "incidents": self.incidents,
            "trial": trial
            and {
                "version": trial.version,
                "rung": trial.rung,
                "chosen_from": trial.chosen_from,
                "checks": [asdict(check) for check in trial.checks],
                "test": trial.test.state(),
                "by_class": {str(k): t.state() for k, t in trial.by_class.items()},
            },
            "probation": probation
            and {
                "version": probation.version,
                "previous": probation.previous,
                "started_event": probation.started_event,
                "test": probation.test.state(),
            },
            "quiet_until": self.quiet_until,
            "rest_until": self.rest_until,
            "regime_event": self.regime_event,
            "learned_event": self.learned_event,
            "taught": self.taught,
            "regimes": list(self.regimes),
            "promotions": self.promotions,
            "failed": self.failed,
        }

    def arrays(self) -> Arrays:
        """The other half: arrays by name."""
        parts: Arrays = {
            **prefixed("memory", self.memory.state()),
            **prefixed("watch", self.watch.state()),
            **prefixed("prequential", self.prequential.state()),
        }
        if self.online is not None:
            parts |= prefixed("online", self.online.state())
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
        self.memory.restore(under("memory", arrays))
        self.watch.restore(under("watch", arrays))
        self.prequential.restore(under("prequential", arrays))
        self.events = values["events"]
        self.positions = {(t, p): offset for t, p, offset in values["positions"]}
        self.champion = values["champion"]
        self.champion_event = values["champion_event"]
        self.champion_since = values["champion_since"]
        online = under("online", arrays)
        self.online = OnlineHead.restored(online, self.config.learn.online) if online else None
        self.online_test = PairedTest.restored(gate.alpha, values["online_test"])
        self.incidents = values["incidents"]
        self.incident = None
        if values["incident"]:
            self.incident = Incident.from_dict(values["incident"])
            ended = [a for a in self.incident.attempts if a.outcome != "running"]
            self.incident.attempts = ended
        self.trial = self._trial(values["trial"])
        self.probation = None
        if found := values["probation"]:
            test = PairedTest.restored(self.config.probation.alpha, found["test"])
            self.probation = Probation(
                found["version"], found["previous"], found["started_event"], test
            )
        self.quiet_until = values["quiet_until"]
        self.rest_until = values.get("rest_until", self.quiet_until)
        self.regime_event = values.get("regime_event", 0)
        self.learned_event = values.get("learned_event", self.events)
        self.taught = values.get("taught", 0)
        self.regimes = {
            version: Signature.from_arrays(under(f"regimes/{version}", arrays))
            for version in values.get("regimes", ())
        }
        self.promotions = list(values["promotions"])
        self.failed = list(values["failed"])

    def _trial(self, values: dict[str, Any] | None) -> Trial | None:
        if not values:
            return None
        gate = self.config.gate
        checks = [Check(**check) for check in values["checks"]]
        trial = Trial(
            values["version"],
            values["rung"],
            gate,
            self.classes.names,
            checks,
            values.get("chosen_from", 1),
        )
        trial.test = PairedTest.restored(trial.test.alpha, values["test"])
        trial.by_class = {
            int(k): PairedTest.restored(gate.alpha, counts)
            for k, counts in values["by_class"].items()
        }
        return trial
