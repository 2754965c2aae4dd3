"""The replay: one warm-up for all, then each policy over the same events, resumable at any time.

Everything lies in one folder. The warm-up ends with a snapshot (registry, checkpoint, answers so
far) and each policy begins from a copy of it, as it would go on from one of its own after an
interruption: beginning and resuming are the same thing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.checkpoint import CheckpointStore
from daemon.config import Config
from daemon.dead_letters import open_dead_letters
from daemon.loop import Loop
from daemon.policy_config import Rung
from daemon.replay.embeddings import EmbeddingStore
from daemon.replay.outcome import Outcome
from daemon.replay.policies import Operator, Policy
from daemon.replay.recording import NO_DELAY, Delay, Player, Recording, SimulatedClock
from daemon.replay.training import NOMINAL_SECONDS, WaitingTrainer
from daemon.served import Classes, Served
from daemon.stream_config import FileSourceConfig, NoLettersConfig
from learn.blas import one_blas_thread
from learn.past import Past
from registry import Registry, open_registry

log = logging.getLogger("driftd.replay")

WARM_UP, SNAPSHOT, DONE, PLAN = "warm-up", "snapshot", "done", "plan.json"
EVENTS_A_TURN = 32
SNAPSHOT_SECONDS = 30.0
EMBEDDED_AT_ONCE = 256
NEVER = 10**12
#: Rows of the journal that say what was decided, and why.
DECISIONS = (
    "alarm",
    "incident-opened",
    "incident-closed",
    "refresh-started",
    "refresh-finished",
    "recalled",
    "verdict",
    "probation-failed",
    "learner-rejected",
    "follow-ended",
    "new-class",
)

Say = Callable[["Progress"], None]


class ReplayError(ValueError):
    """The replay cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: ``done`` of ``events`` of this policy. left: seconds for all, if known."""

    policy: str
    done: int
    events: int
    left: float | None


@dataclass
class Replay:
    """A recording, its policies, and where their runs lie.

    seconds: of the stream that a refresh takes, by rung.
    """

    config: Config
    recording: Recording
    policies: Sequence[Policy]
    folder: Path
    delay: Delay = NO_DELAY
    seconds: Mapping[Rung, float] = field(default_factory=lambda: dict(NOMINAL_SECONDS))
    events_a_turn: int = EVENTS_A_TURN

    def __post_init__(self) -> None:
        self._store = EmbeddingStore(self.folder / "embeddings")
        self._began = time.monotonic()
        self._played = 0

    # ---------------------------------------------------------------- the whole

    def prepare(self, *, resume: bool) -> None:
        """Make the folder, or find there what an interrupted replay left.

        Raises:
            ReplayError: what lies there is a replay of something else.
        """
        plan = json.dumps(self._plan(), indent=1, sort_keys=True)
        path = self.folder / PLAN
        if resume and path.exists():
            if path.read_text() != plan:
                raise ReplayError(
                    f"{self.folder} holds a replay of other events or settings: leave out --resume"
                    " to start anew, or name another folder"
                )
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        path.write_text(plan)

    def run(self, say: Say = lambda progress: None) -> list[Outcome]:
        """Run what is not done yet, policy by policy; all outcomes."""
        with one_blas_thread():
            return self._run(say)

    def _run(self, say: Say) -> list[Outcome]:
        if not (self.folder / WARM_UP / DONE).exists():
            self._warm_up()
        warm = Outcome.read(self.folder / WARM_UP / SNAPSHOT)
        self._embed(say, warm.arrived)
        outcomes = []
        for number, policy in enumerate(self.policies):
            place = self.folder / policy.name
            if not (place / DONE).exists():
                self._play(policy, len(self.policies) - number - 1, say)
            outcomes.append(Outcome.read(place / SNAPSHOT))
        return outcomes

    def finished(self) -> list[Outcome]:
        """The outcomes of those policies that have been run to the end."""
        places = [self.folder / policy.name for policy in self.policies]
        return [Outcome.read(place / SNAPSHOT) for place in places if (place / DONE).exists()]

    def _plan(self) -> dict[str, Any]:
        """What must be the same for a replay to be resumed; policies may be added."""
        return {
            "recording": self.recording.digest(),
            "config": _digest(self.config),
            "delay": [self.delay.events, self.delay.seconds],
            "seconds": dict(self.seconds),
            "events_a_turn": self.events_a_turn,
        }

    # ---------------------------------------------------------------- warm-up

    def _warm_up(self) -> None:
        """Train the first version on the first labelled events, and stop the stream meanwhile."""
        wanted = self.config.bootstrap.warmup_events
        labelled = np.cumsum([label is not None for label in self.recording.events.labels])
        if labelled[-1] <= wanted:
            raise ReplayError(
                f"{labelled[-1]} labelled events, and bootstrap.warmup_events wants {wanted} before"
                " the first: lower it, or replay more"
            )
        end = int(np.searchsorted(labelled, wanted)) + 1
        place = self.folder / WARM_UP
        shutil.rmtree(place, ignore_errors=True)
        clock = SimulatedClock(float(self.recording.clock[0]))
        # Labels of the warm-up are at hand: it stands for the past before the replay begins.
        player = Player(self.recording, NO_DELAY, clock)
        loop, _ = self._loop(self.config, place, player, clock, waits=False)
        loop.start()
        player.arrive(end)
        while not player.ended or loop.champion is None:
            loop.step()
            if loop.champion is None and loop.state.incident is None and player.ended:
                why = loop.registry.journal.rows(kinds=["incident-closed"], limit=1)
                told = "; ".join(str(row.fields.get("reason")) for row in why)
                raise ReplayError(f"the first version could not be trained: {told}")
        outcome = Outcome("", np.full(len(self.recording), -1, dtype=np.int32), end)
        self._snapshot(loop, place, outcome)
        loop.close("the warm-up is over")
        (place / DONE).touch()

    def _embed(self, say: Say, done: int) -> None:
        """Embed all events with the first version, in an order that no policy changes."""
        if self.config.model.context:
            return  # what the past adds to a row is known when it comes, and is cheap to embed
        if not any(not (self.folder / p.name / DONE).exists() for p in self.policies):
            return
        served = self._first(Classes())
        inputs = self.recording.events.inputs
        for start in range(0, len(inputs), EMBEDDED_AT_ONCE):
            served.answer(inputs[start : start + EMBEDDED_AT_ONCE])
            say(Progress("embedding", start, len(inputs), None))
        self._store.save()
        self._began, self._played = time.monotonic(), 0

    def _first(self, classes: Classes) -> Served:
        registry = open_registry(self.folder / WARM_UP / "registry")
        version = registry.version(registry.state().champion or "")
        return self._store.open(registry.path(version.id), version.manifest, classes)

    # ---------------------------------------------------------------- one policy

    def _play(self, policy: Policy, after: int, say: Say) -> None:
        place = self.folder / policy.name
        from_here = place / SNAPSHOT
        if not from_here.exists():
            shutil.rmtree(place, ignore_errors=True)
            from_here = self.folder / WARM_UP / SNAPSHOT
        outcome = _unpack(from_here, place)
        fresh = not outcome.policy
        outcome.policy = policy.name
        clock = SimulatedClock(float(self.recording.clock[outcome.arrived - 1]))
        player = Player(self.recording, self.delay, clock)
        loop, trainer = self._loop(policy.config, place, player, clock, waits=True)
        operator = policy.operator()
        loop.start()
        if fresh:
            operator.begin(loop)
            outcome.served = [_serving(loop, outcome.arrived)]
        try:
            _Run(self, loop, trainer, player, operator, outcome, place).play(after, say)
        finally:
            trainer.cancel()
        (place / DONE).touch()

    def _loop(
        self, config: Config, place: Path, player: Player, clock: SimulatedClock, *, waits: bool
    ) -> tuple[Loop, WaitingTrainer]:
        config = _replayed(config, place)
        trainer = WaitingTrainer(
            place / "state" / "jobs", config.trainer, clock if waits else None, self.seconds
        )
        loop = Loop(
            config,
            open_registry(config.registry, create=True),
            player,
            open_dead_letters(config),
            checkpoints=CheckpointStore(place / "state" / "checkpoints"),
            trainer=trainer,
            clock=clock,
            opener=self._store.open,
        )
        return loop, trainer

    def _snapshot(self, loop: Loop, place: Path, outcome: Outcome) -> None:
        """Keep, in one piece, all that is needed to go on from here."""
        self._store.save()
        loop.checkpoint()
        outcome.classes = list(loop.state.classes.names)
        partial, old = place / "snapshot.partial", place / "snapshot.old"
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        _copy_registry(place / "registry", partial / "registry")
        shutil.copytree(place / "state" / "checkpoints", partial / "checkpoints")
        outcome.write(partial)
        current = place / SNAPSHOT
        if current.exists():
            os.replace(current, old)
        os.replace(partial, current)
        shutil.rmtree(old, ignore_errors=True)


@dataclass
class _Run:
    """One policy on its way through the events."""

    replay: Replay
    loop: Loop
    trainer: WaitingTrainer
    player: Player
    operator: Operator
    outcome: Outcome
    place: Path

    def play(self, after: int, say: Say) -> None:
        """To the last event; ``after``: policies that come after this one."""
        recording, outcome = self.replay.recording, self.outcome
        count, turn = len(recording), self.replay.events_a_turn
        kept = time.monotonic()
        while outcome.arrived < count:
            start, end = outcome.arrived, min(outcome.arrived + turn, count)
            self._turn(start, end)
            outcome.arrived = end
            self.replay._played += end - start
            say(Progress(outcome.policy, end, count, self._left(after, count)))
            due = time.monotonic() - kept >= SNAPSHOT_SECONDS
            if due and self.operator.idle and not self.loop.busy:
                self._settle()
                self.replay._snapshot(self.loop, self.place, outcome)
                kept = time.monotonic()
        self._finish()

    def _turn(self, start: int, end: int) -> None:
        loop, outcome, store = self.loop, self.outcome, self.replay._store
        began, encoded, wall = time.process_time(), store.cpu_seconds, time.monotonic()
        inputs = self._asked(start, end)
        self.player.arrive(end)
        outcome.predicted[start:end] = self.operator.answer(loop, inputs)
        while True:
            loop.step()
            self.operator.after(loop)
            if self.player.ended:
                break
        encoded = store.cpu_seconds - encoded
        outcome.encoder_cpu_seconds += encoded
        outcome.loop_cpu_seconds += time.process_time() - began - encoded
        outcome.wall_seconds += time.monotonic() - wall
        outcome.steps.append((loop.state.events, end))
        if loop.champion and loop.champion.version != outcome.served[-1]["version"]:
            outcome.served.append(_serving(loop, end))
        for signal in loop.state.watch.signals:
            if signal.threshold > 0 and np.isfinite(signal.score):
                ratio = round(float(signal.score / signal.threshold), 4)
                outcome.signals.append((end, signal.detector, ratio))

    def _asked(self, start: int, end: int) -> NDArray[Any]:
        """The inputs as they are answered on arrival, with what is known of the past by then."""
        events, past = self.replay.recording.events, deepcopy(self.loop.state.past)
        labels = events.labels[start:end]
        if self.replay.delay != NO_DELAY:
            labels = np.full(end - start, None, dtype=object)
        return past.extend(events.inputs[start:end], labels)

    def _settle(self) -> None:
        """Move what the trainer has counted since into the outcome."""
        self.outcome.training_cpu_seconds += self.trainer.cpu_seconds
        for rung, jobs in self.trainer.jobs.items():
            self.outcome.jobs[rung] = self.outcome.jobs.get(rung, 0) + jobs
        self.trainer.cpu_seconds = 0.0
        self.trainer.jobs.clear()

    def _finish(self) -> None:
        loop, outcome = self.loop, self.outcome
        self._settle()
        outcome.rows = [
            {"kind": row.kind, "position": outcome.position(row.fields["event"]), **row.fields}
            for row in loop.registry.journal.rows(kinds=DECISIONS)
            if row.fields["event"] > outcome.served[0]["position"]  # after the warm-up
        ]
        outcome.versions = [_described(loop.registry, v.id) for v in loop.registry.versions()]
        outcome.held_out = self._held_out()
        self.replay._snapshot(loop, self.place, outcome)
        loop.close("the recording has ended")

    def _held_out(self) -> dict[str, float]:
        """Accuracy on the warm-up's held-out events: of the first version, and of what serves now.

        No training has seen them; what is lost on them is forgotten.
        """
        loop, recording = self.loop, self.replay.recording
        end = self.outcome.served[0]["position"]
        known = np.array([label is not None for label in recording.truth[:end]])
        rows = np.flatnonzero(known & loop.state.memory.held_out(recording.events.ids[:end]))
        if not len(rows):
            return {}
        truth = loop.state.classes.index(recording.truth[rows])
        past = Past(loop.config.model)
        inputs = past.extend(recording.events.inputs[rows], recording.truth[rows])
        first = self.replay._first(loop.state.classes).answer(inputs).predicted
        last = self.operator.answer(loop, inputs)
        return {
            "events": float(len(rows)),
            "before": float((first == truth).mean()),
            "after": float((last == truth).mean()),
        }

    def _left(self, after: int, count: int) -> float | None:
        if not self.replay._played:
            return None
        pace = (time.monotonic() - self.replay._began) / self.replay._played
        return pace * (count - self.outcome.arrived + after * count)


def _replayed(config: Config, place: Path) -> Config:
    """The user's settings, with everything that would reach outside turned to the replay's folder.

    Of what decides, only the gate's look at latency is off: it would depend on the machine's
    mood, and answers here come from kept embeddings.
    """
    return config.model_copy(
        update={
            # Followed, so that the stream goes on while a refresh runs, as a live one does.
            "source": FileSourceConfig(kind="file", path=Path("recorded"), follow=True),
            "dead_letters": NoLettersConfig(kind="none"),
            "registry": config.registry.model_copy(update={"path": str(place / "registry")}),
            "checkpoint": config.checkpoint.model_copy(
                update={"path": place / "state", "every_events": NEVER, "every_seconds": NEVER}
            ),
            "gate": config.gate.model_copy(update={"latency_ratio": float(NEVER)}),
        }
    )


def _digest(config: Config) -> str:
    """What identifies the settings that shape a replay."""
    parts = config.model_dump(mode="json", exclude={"source", "registry", "checkpoint", "http"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _serving(loop: Loop, position: int) -> dict[str, Any]:
    """Who serves from ``position`` on, and how it came to."""
    found = loop.registry.state()
    move = found.champion_move
    version = loop.registry.version(found.champion or "")
    return {
        "position": position,
        "version": version.id,
        "rung": version.manifest.rung,
        "move": move.kind if move else "",
        "reason": move.reason if move else "",
    }


def _described(registry: Registry, version: str) -> dict[str, Any]:
    manifest = registry.version(version).manifest
    return {
        "version": version,
        "parent": manifest.parent,
        "rung": manifest.rung,
        "examples": manifest.lineage.get("examples"),
        "labels": len(manifest.labels),
    }


def _copy_registry(source: Path, target: Path) -> None:
    """Versions never change, so their files are shared; the rest is copied."""
    versions = source / "versions"

    def copy(one: str, other: str) -> None:
        if versions in Path(one).parents:
            os.link(one, other)
        else:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=copy)


def _unpack(snapshot: Path, place: Path) -> Outcome:
    """Lay out a run's folder as it was when the ``snapshot`` was taken."""
    for part in ("registry", "state"):
        shutil.rmtree(place / part, ignore_errors=True)
    _copy_registry(snapshot / "registry", place / "registry")
    shutil.copytree(snapshot / "checkpoints", place / "state" / "checkpoints")
    return Outcome.read(snapshot)
