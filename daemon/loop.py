"""The loop: the way of an event, in one direction.

poll -> predict with the champion's INT8 file -> count -> watch for drift -> judge challenger and
yardstick -> remember and learn -> let the repair take its step -> checkpoint. Everything the loop
knows is in `State`; everything that changed who serves is read back from the registry's alias.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daemon.admission import Admission
from daemon.api import Health
from daemon.checkpoint import Arrays, CheckpointError, Checkpoints, CheckpointTaken, under
from daemon.clock import Clock
from daemon.config import Config
from daemon.dead_letters import DeadLetterError, DeadLetters
from daemon.decode import features_dtype
from daemon.delayed import Delayed, Joined, Made
from daemon.events import EMPTY, EventBatch, LabelBatch, columns
from daemon.evidence import PairedTest
from daemon.joining import JoinError, JoinFull, Waiting
from daemon.journal import JournalWriter
from daemon.ledger import Ledger
from daemon.looks import Looks
from daemon.metrics import Metrics
from daemon.pace import Pace
from daemon.repair import Repair
from daemon.served import Answer, Opener, Opinion, Served, right
from daemon.sharing import Sharing
from daemon.sources import Poll, Source
from daemon.state import Probation, State
from daemon.stream_config import FileSourceConfig, KafkaSourceConfig
from daemon.trainer import Trainer
from drift import Observations, Signal, diagnose
from learn.examples import Examples
from registry import Move, Registry, RegistryError, Request, StorageError

if TYPE_CHECKING:
    from daemon.handover import Handover

log = logging.getLogger("driftd.loop")

MAX_EVENTS = 256
READY_EVENTS = 4096  # a turn, where events carry their prediction
POLL_SECONDS = 0.2
ONLINE_CHUNK = 32
RETRY_SECONDS = 2.0
REPORT_SECONDS = 0.25  # between two reports while events come in
# While an incident is open its monitors go on alarming: diagnosed anew after so many events.
TOLD_AGAIN = 256


class Loop:
    """One model's daemon, without process and network around it.

    `step` is one turn; `run` turns until ``stop`` is set or a finite source is exhausted and the
    repairs it led to have ended.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        source: Source,
        dead_letters: DeadLetters,
        *,
        checkpoints: Checkpoints,
        trainer: Trainer,
        metrics: Metrics | None = None,
        health: Health | None = None,
        actor: str = "driftd",
        clock: Clock = time,
        opener: Opener = Served.open,
        waiting: Waiting | None = None,
    ) -> None:
        self.config = config
        self.registry = registry
        self.source = source
        self.dead_letters = dead_letters
        self.checkpoints = checkpoints
        path = config.checkpoint.path / "ledger.jsonl"
        self.ledger = Ledger(path) if config.checkpoint.ledger else None
        self.metrics = metrics or Metrics(config.name)
        self.health = health or Health()
        self.actor = actor
        self.clock = clock
        self.state = State(config, clock)
        self.champion: Served | None = None
        self.paused = self.pinned = False
        self.journal = JournalWriter(registry.journal, lambda: self.state.events)
        self.repair = Repair(
            config,
            self.state,
            registry,
            self.journal,
            trainer,
            self.metrics,
            self.open_version,
            actor,
            clock,
        )
        self.pace = Pace(config.events, self.journal, self.metrics)
        self.looks = Looks(config.events.looks_share, clock) if config.fields.prediction else None
        self.admission = Admission(config, self.state, self.journal, self.metrics)
        #: Where labels come on a topic of their own.
        self.delayed: Delayed | None = None
        labels = config.source.labels if isinstance(config.source, KafkaSourceConfig) else None
        if waiting is not None and labels is not None:
            parts = waiting, self.state, self.journal, self.metrics, clock
            self.delayed = Delayed(config, labels, *parts)
        #: Where several daemons share the model.
        self.sharing: Sharing | None = None
        if config.sharing.enabled:
            seconds = config.sharing.lease_seconds
            with_them = registry, source, self.state, self.journal, self.metrics
            self.sharing = Sharing(*with_them, actor, seconds, _handover(config, actor))
        self.snapshot: dict[str, Any] = {"model": config.name, "state": "starting"}
        self._generation: object = None
        self._told = 0
        self._repair_again = -math.inf
        self._open = opener
        self._checkpointed = (clock.monotonic(), 0)
        self._started = clock.time()
        self._last_time = float("nan")
        self._connected: bool | None = None
        self._torn = False
        self._reported = -math.inf
        self._finite = isinstance(config.source, FileSourceConfig) and not config.source.follow

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Take up the work: from the checkpoint, where there is one, else from the beginning.

        Raises:
            CheckpointError: checkpoints exist and none is whole.
            RegistryError: the champion cannot be opened.
        """
        found = self.checkpoints.load()
        if found:
            self.state.restore(found)
            self.source.know(self.state.classes.names)
            if self.ledger:
                self.ledger.restore(found.values.get("ledger", 0))
        if self.delayed is not None:
            if found and (waiting := under("waiting", found.arrays)):
                self.delayed.waiting.replace(waiting["pages"].view(np.uint8))
            self.delayed.restore(found.values.get("delayed") if found else None)
        if self.sharing is not None:
            self.sharing.restore(found.values.get("sharing") if found else None)
        self.follow()
        if found and self.sharing is None:
            self.repair.resume()
        elif found:
            self.repair.resign("the daemon was restarted")
        self.source.start(self.state.positions)
        self.journal.write(
            "started",
            champion=self.state.champion,
            checkpoint=found.sequence if found else None,
            fallback=found.fallback if found else None,
            positions=self.state.listed_positions(),
        )

    def run(self, stop: threading.Event, between: Callable[[], object] = lambda: None) -> None:
        """Turn until ``stop`` is set, or until a finite source has ended and all is settled.

        ``between`` is called before every turn.
        """
        while not stop.is_set():
            between()
            turned = self.step()
            if self.source.ended and not turned and not self.busy:
                break

    def reconfigure(self, config: Config) -> None:
        """Go by other settings from now on. Which may differ is said in `daemon.reload`."""
        state = self.state
        self.config = state.config = self.repair.config = config
        self.registry.config = config.registry
        self.repair.trainer.config = config.trainer
        state.watch.settle_events = config.policy.settle_events
        state.guard.config = config.guard
        self.admission.reconfigure(config)
        self.health.stalled_after = config.http.stalled_seconds

    @property
    def leads(self) -> bool:
        """Whether this daemon trains and promotes; always, where it is alone."""
        return self.sharing is None or self.sharing.leads

    @property
    def busy(self) -> bool:
        """Whether work goes on that needs no further event."""
        return self.repair.trainer.running

    def close(self, reason: str) -> None:
        """Stop the trainer, write a last checkpoint, let go of the source.

        After an error in the midst of a batch there is none: it would hold a half of the batch, and
        the restart would count that half twice.
        """
        self.repair.close()
        try:
            if not self._torn:
                self.checkpoint()
        finally:
            self.journal.write("stopped", champion=self.state.champion, reason=reason)
            if self.sharing is not None:
                self._resign(self.sharing)
            self.source.close()
            self.dead_letters.close()
            if self.delayed is not None:
                self.delayed.close()

    # ---------------------------------------------------------------- one turn

    def step(self) -> int:
        """One turn of the loop; returns the number of events taken in."""
        polled = self._poll()
        self.pace.look(self.source.lag())
        began = time.perf_counter()
        for letter in polled.rejected:
            self.dead_letters.send(letter)
            self.metrics.dead_letters(letter.reason).inc()
            self.metrics.events("rejected").inc()
        try:
            self.follow()
        except RegistryError as error:
            self._survived("registry", error)
        batch, positions = polled.batch, polled.positions
        self._torn = bool(polled)
        if self.delayed is not None:
            batch = self.delayed.meet(batch)
        if self.sharing is not None:
            self._share(self.sharing)
            batch = batch.take(self.sharing.mine(batch))
            ours = self.sharing.partitions
            positions = {place: at for place, at in positions.items() if place in ours}
            self.sharing.offer(batch)
        if len(batch):
            self.take_in(batch)
            self.metrics.batch_events().observe(len(batch))
            self.metrics.step_seconds().observe(time.perf_counter() - began)
        if self.delayed is not None:
            self._take_labels(self.delayed, polled.labels)
        self.state.positions |= positions
        if self.sharing is not None:
            self._take_guests(self.sharing)
        self._torn = False
        try:
            if self.leads:
                self._serve_requests()
                self._bootstrap_if_due()
            if self.leads and self.clock.monotonic() >= self._repair_again:
                self.repair.advance(self.champion, paused=self.paused, pinned=self.pinned)
            self.follow()
        except (RegistryError, OSError) as error:
            # A full disk or a store that is away: go on observing, try again in a moment.
            self._repair_again = self.clock.monotonic() + RETRY_SECONDS
            self._survived("repair", error)
        self._tell_looks()
        self.journal.flush()
        self._checkpoint_if_due()
        if not len(batch) or time.monotonic() - self._reported >= REPORT_SECONDS:
            self._report()
            self._reported = time.monotonic()
        return len(polled.batch) + len(polled.labels) + len(polled.rejected)

    def take_in(self, batch: EventBatch) -> None:
        """Test, then learn: one batch of events in the order they were read."""
        state = self.state
        numbers = state.events + np.arange(len(batch), dtype=np.int64)
        before = len(state.classes)
        labels, truth = state.read_labels(batch.labels)
        self._greet(state.classes.names[before:])
        known = labels >= 0
        self.metrics.events("labelled").inc(int(known.sum()))
        self.metrics.events("unlabelled").inc(int((~known).sum()))
        self._last_time = float(batch.times[-1])
        features = batch.features
        batch = replace(batch, inputs=state.past.extend(batch.inputs, batch.labels))
        ready = np.full(len(batch), -1, dtype=np.int64)
        if batch.predictions is not None:
            ready = state.classes.known(batch.predictions)
        if self.champion is not None and self.looks is not None:
            looked = self._count(batch, labels, ready, self.looks)
            batch, labels, ready = batch.take(looked), labels[looked], ready[looked]
            truth = labels  # of a number, no event carries its prediction
            if not len(batch):
                return
            numbers = numbers[: len(batch)]
            features = {name: column[looked] for name, column in features.items()}
        if self.champion is None:
            state.memory.add(_examples(batch, numbers, labels, truth), "")
            self._note(batch, known, labels)
            if self.delayed is not None:
                self.delayed.keep(batch, numbers)
            state.events += len(batch)
            return
        began = time.perf_counter()
        self._look_at(batch, numbers, labels, truth, ready, features, self.champion)
        if self.looks is not None:
            self.looks.spent(time.perf_counter() - began, len(batch))

    def _look_at(
        self,
        batch: EventBatch,
        numbers: NDArray[np.int64],
        labels: NDArray[np.int64],
        truth: NDArray[Any],
        ready: NDArray[np.int64],
        features: Mapping[str, NDArray[np.generic]],
        champion: Served,
    ) -> None:
        """Predict, watch and learn; ``features`` are the columns without those of the past.

        ready: int64 [n], the class that the event says was answered, -1 where it says none.
        """
        state, known = self.state, labels >= 0
        with self.metrics.inference_seconds().time():
            answer = champion.answer(batch.inputs)
        if self.delayed is not None:
            self.delayed.keep(batch, numbers, answer, champion)
        else:
            answered = np.where(ready >= 0, ready, answer.predicted)[~known]
            who = np.where(ready >= 0, self._who(batch), champion.version)[~known]
            state.awaiting.remember(batch.ids[~known], answered, who)
        signals = self._learn(batch, numbers, labels, truth, answer, features, ready=ready)
        state.events += len(batch)
        self._alarm(signals)

    def _take_labels(self, delayed: Delayed, labels: LabelBatch) -> None:
        """Labels that came by themselves: what they join is learned from, each event once."""
        names = len(self.state.classes)
        delayed.queue(labels)
        try:
            joined = delayed.arrive()
            if joined is not None:
                self._learn_later(joined)
            delayed.sweep(self.source.caught_up)
            delayed.waiting.flush()
        except JoinFull as error:
            self._survived("labels", error)
        self._greet(self.state.classes.names[names:])

    def _learn_later(self, joined: Joined) -> None:
        state, batch = self.state, joined.events
        labels, truth = state.read_labels(batch.labels)
        state.past.arrived(batch.labels)
        if self.champion is None:
            state.memory.add(_examples(batch, joined.numbers, labels, truth), "")
            if self.ledger:
                self.ledger.later(batch, labels < 0)
            return
        with self.metrics.inference_seconds().time():
            answer = joined.answer(self.champion)
        made = dict(zip(batch.ids.tolist(), joined.made, strict=True))
        told = [feature.name for feature in self.config.model.context]
        features = {name: c for name, c in batch.features.items() if name not in told}
        signals = self._learn(batch, joined.numbers, labels, truth, answer, features, made=made)
        self._alarm(signals, later=True)

    def _learn(
        self,
        batch: EventBatch,
        numbers: NDArray[np.int64],
        labels: NDArray[np.int64],
        truth: NDArray[Any],
        answer: Answer,
        features: Mapping[str, NDArray[np.generic]],
        *,
        ready: NDArray[np.int64] | None = None,
        made: dict[str, Made | None] | None = None,
    ) -> list[Signal]:
        """Judge with the labels, watch, and learn; the signals of the monitors.

        ``labels``: int64 [n], -1 where none is known; those that are held back become so too.
        ``truth``: [n], see `State.read_labels`. ``ready``: see `_look_at`. ``made``: for events
        that were watched before, who answered them what.
        """
        state, champion = self.state, self.champion
        assert champion is not None
        known = labels >= 0
        rows = np.flatnonzero(known)
        examples = _examples(batch, numbers, labels, truth, answer)
        who = None if batch.labellers is None else batch.labellers[rows]
        admitted = self.admission.admit(examples, who, answer.take(rows), champion)
        examples = examples.take(admitted)
        labels[rows[~admitted]] = -1  # for all that follows it is as if they had not come
        if made is None:
            self._note(batch, known, labels)
        elif self.ledger:
            self.ledger.later(batch, labels < 0)
        given, own = self._given(batch, numbers, answer, labels, truth, ready, made)
        state.prequential.observe(numbers[own], right(state.scale, given[own], truth[own]))
        if state.scale:
            state.residuals.observe(given[own], truth[own])
        self.repair.observe(batch.inputs, answer, labels, truth, given, own, champion)
        observed = self._observed(batch.times, features, answer, labels, truth)
        if made is None:
            signals = state.watch.observe(observed)
        else:
            signals = state.watch.observe_labels(observed, numbers)
        if state.watch.reference is not None and state.champion not in state.regimes:
            state.know_regime(state.watch.reference.signature)
            if not len(state.memory.anchor):
                state.memory.set_anchor(0, self.config.seed)
        self._meet_baseline(batch, answer, labels, truth)
        if not self.paused:
            if self.pace.behind:
                learned = self.pace.learned(examples.ids)
                examples, labels = examples.take(learned), labels.copy()
                labels[rows[admitted][~learned]] = -1
            self._learn_online(batch, answer, labels, truth)
            self._meet_rivals(batch, answer, labels, truth, numbers)
            state.memory.add(examples, champion.encoder)
        return signals

    def _note(self, batch: EventBatch, known: NDArray[np.bool_], labels: NDArray[np.int64]) -> None:
        """Into the ledger. known: bool [n], a label came; labels: int64 [n], -1 if none counts."""
        if self.ledger:
            self.ledger.note(batch, known, known & (labels < 0))

    def _observed(
        self,
        times: NDArray[np.float64],
        features: Mapping[str, NDArray[np.generic]],
        answer: Answer,
        labels: NDArray[np.int64],
        truth: NDArray[Any],
    ) -> Observations:
        """The batch as the monitors see it; of a number, the part of its range is the class."""
        assert self.champion is not None
        scale = self.state.scale
        embeddings = answer.embeddings[:, self.champion.place]
        if scale is None:
            return Observations(embeddings, answer.probabilities, labels, times, features)
        parts = np.where(labels >= 0, scale.parts(truth), -1)
        answered = np.eye(len(scale.names), dtype=np.float32)[scale.parts(answer.predicted)]
        wrong = ~scale.right(answer.predicted, truth)
        return Observations(embeddings, answered, parts, times, features, wrong)

    def _who(self, batch: EventBatch) -> NDArray[np.object_]:
        """Who answered each event, object [n] of str: the champion, unless the event says."""
        assert self.champion is not None
        who = np.full(len(batch), self.champion.version, dtype=object)
        if batch.versions is not None:
            who[:] = [version or self.champion.version for version in batch.versions]
        return who

    def _count(
        self,
        batch: EventBatch,
        labels: NDArray[np.int64],
        ready: NDArray[np.int64],
        looks: Looks,
    ) -> NDArray[np.int64]:
        """Count events as they were answered, all but those that are to be looked at: their rows.

        labels and ready: int64 [n], the true class and the answer that the event carries, -1 for
        none. An event without an answer is always looked at.
        """
        state = self.state
        assert state.champion is not None
        carried = np.flatnonzero(ready >= 0)
        looked = np.ones(len(batch), dtype=np.bool_)
        looked[carried] = False
        looked[carried[looks.choose(len(carried))]] = True
        rows = np.flatnonzero(~looked)
        state.passed += len(rows)
        labelled = labels[rows] >= 0
        hits = ready[rows] == labels[rows]
        who = None if batch.versions is None else self._who(batch)[rows]
        mine = labelled if who is None else labelled & (who == state.champion)
        numbers = np.full(int(mine.sum()), state.events, dtype=np.int64)
        state.prequential.observe(numbers, hits[mine])
        state.record(state.champion, hits[mine])
        if who is not None:
            others = labelled & ~mine
            for version in set(who[others].tolist()):
                state.record(version, hits[others & (who == version)])
        waits = rows[~labelled]
        if len(waits):
            state.awaiting.remember(batch.ids[waits], ready[waits], self._who(batch)[waits])
        if len(state.awaiting):
            state.awaiting.settle(batch.ids[rows[labelled]])
        if self.ledger:
            self.ledger.note(batch.take(rows), labelled, np.zeros(len(rows), dtype=np.bool_))
        return np.flatnonzero(looked)

    def _given(
        self,
        batch: EventBatch,
        numbers: NDArray[np.int64],
        answer: Answer,
        labels: NDArray[np.int64],
        truth: NDArray[Any],
        ready: NDArray[np.int64] | None,
        known: dict[str, Made | None] | None,
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What was answered, [n], when each event came; and where the champion did so, bool [n].

        A label that comes late counts for the version that answered, with the answer it gave:
        ``known`` has it, or what awaits its label. So does an event that carries its answer, which
        ``ready`` has.
        """
        state = self.state
        assert state.champion is not None
        carried = np.zeros(len(batch), dtype=np.bool_) if ready is None else ready >= 0
        given, own = answer.predicted.copy(), labels >= 0
        if ready is not None:
            given[carried] = ready[carried]
        who = None if batch.versions is None else self._who(batch)
        rows = np.flatnonzero(labels >= 0)
        ids = batch.ids[rows]
        found = state.awaiting.settle(ids) if known is None else [known[i] for i in ids]
        for row, made in zip(rows.tolist(), found, strict=True):
            if carried[row] and who is not None and who[row] != state.champion:
                made = who[row], given[row]
            if made is None or (carried[row] and made[0] == state.champion):
                continue
            version, given[row] = made
            run = state.following
            mine = version == state.champion or (run is not None and run.covers(version))
            self.metrics.late_labels("champion" if mine else "earlier").inc()
            if not mine:
                one = slice(row, row + 1)
                state.record(version, right(state.scale, given[one], truth[one]))
                own[row] = False
        own &= numbers >= state.judged_from
        state.record(state.champion, right(state.scale, given[own], truth[own]))
        return given, own

    def _alarm(self, signals: list[Signal], *, later: bool = False) -> None:
        """Act on the signals of a batch; ``later``: of events whose label came later."""
        for signal in signals:
            self.metrics.drift_score(signal.detector, signal.kind).set(signal.score)
            self.metrics.drift_threshold(signal.detector, signal.kind).set(signal.threshold)
        alarmed = [signal for signal in signals if signal.alarmed]
        if not alarmed:
            return
        state = self.state
        for signal in alarmed:
            self.metrics.alarms(signal.detector, signal.kind).inc()
        if not self.leads:
            return  # what to do about it is the leader's to say
        cooling = state.incident is None and state.events < state.quiet_until
        if cooling and not self.repair.losing:
            self.journal.write(
                "alarm-held",
                detectors=[signal.detector for signal in alarmed],
                reason=f"cooling down until event {state.quiet_until}",
            )
            return
        if state.incident is not None and state.events - self._told < TOLD_AGAIN:
            return
        self._told = state.events
        assert state.watch.reference is not None
        if later:
            recent, numbers = state.watch.recently_labelled
        else:
            recent = state.watch.recent
            numbers = np.arange(state.events - len(recent), state.events, dtype=np.int64)
        diagnosis = diagnose(
            alarmed,
            state.watch.reference,
            recent,
            known={name: s for name, s in state.regimes.items() if name != state.champion},
            same_regime=self.config.drift.same_regime,
        )
        ago = diagnosis.onset.events_ago
        onset = int(numbers[-ago]) if ago else state.events
        self.repair.alarm(diagnosis, onset, numbers[list(diagnosis.examples)].tolist())

    def _greet(self, names: list[str]) -> None:
        for name in names:
            self.metrics.new_classes().inc()
            if self.champion is not None:
                log.warning("new label %r: the model learns it once it has seen enough", name)
                grows_after = self.config.learn.new_class_min
                self.journal.write("new-class", label=name, grows_after=grows_after)

    def _learn_online(
        self, batch: EventBatch, answer: Answer, labels: NDArray[np.int64], truth: NDArray[Any]
    ) -> None:
        """Test what learns online on each labelled event, then teach it those not held out."""
        state, champion = self.state, self.champion
        if not self.config.policy.online_head or champion is None or state.online is None:
            return
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            return
        learned = rows[~state.memory.held_out(batch.ids[rows])]
        said = []
        for start in range(0, len(rows), ONLINE_CHUNK):
            chunk = rows[start : start + ONLINE_CHUNK]
            state.online.grow(len(state.classes))
            said.append(state.online.opinion(batch.inputs[chunk], answer.embeddings[chunk]))
            chunk = chunk[np.isin(chunk, learned)]
            state.online.learn(batch.inputs[chunk], answer.embeddings[chunk], truth[chunk])
        state.met.add(batch.take(learned))
        features = columns(batch.inputs[rows])
        ours, theirs = Opinion.join(said), answer.opinion.take(rows)
        self.repair.observe_learner(truth[rows], ours, theirs, features)

    def _tell_looks(self) -> None:
        if self.looks is not None and (share := self.looks.news()) is not None:
            self.journal.write(
                "sampling" if self.looks.sampling else "sampling-ended",
                share=round(share, 4),
                looks_share=self.looks.share,
            )

    def _meet_rivals(
        self,
        batch: EventBatch,
        answer: Answer,
        labels: NDArray[np.int64],
        truth: NDArray[Any],
        numbers: NDArray[np.int64],
    ) -> None:
        rivals, rows = self.state.rivals, np.flatnonzero(labels >= 0)
        if not rivals.all or not len(rows):
            return
        given, true, scale = answer.predicted[rows], truth[rows], self.state.scale
        if scale is None:
            names = np.array(self.state.classes.names, dtype=object)
            given, true = names[given], names[true]
        for rival in rivals.all:
            rival.meet(batch.inputs[rows], true, numbers[rows], given, scale)
        for rival in rivals.shown_better():
            self.journal.write(
                "rival-better",
                rival=rival.name,
                champion=self.state.champion,
                **rival.test.as_dict(),
            )

    def _meet_baseline(
        self, batch: EventBatch, answer: Answer, labels: NDArray[np.int64], truth: NDArray[Any]
    ) -> None:
        share, rows = self.config.policy.baseline_share, np.flatnonzero(labels >= 0)
        if not share or not len(rows) or self.champion is None:
            return
        events = batch.ids[rows], batch.inputs[rows], answer.take(rows), truth[rows]
        how = self.champion, self.state.scale, self.open_version
        self.state.baseline.observe(share, *events, *how)

    # ---------------------------------------------------------------- several daemons

    def _share(self, sharing: Sharing) -> None:
        """Take and give partitions, and lead or follow."""
        try:
            sharing.turn(self.champion, gained=self._lead, lost=self._follow_another)
        except RegistryError as error:
            self._survived("sharing", error)

    def _take_guests(self, sharing: Sharing) -> None:
        """What the others hand over is an event like any other, to the one that leads."""
        try:
            guests = sharing.guests(MAX_EVENTS)
        except CheckpointError as error:
            self._survived("handover", error)
            return
        if len(guests):
            self._torn = True
            self.take_in(guests)

    def _lead(self, term: int) -> None:
        self.repair.lead(f"the daemon that leads changed (term {term})")
        if self.champion is not None:
            # It may have learned from what another has learned since, or was never committed.
            self.state.restart_online(self.champion, anew=True)

    def _follow_another(self, reason: str) -> None:
        log.warning("this daemon no longer leads: %s", reason)
        self.journal.write("leader-lost", term=self.registry.term, reason=reason)
        self.repair.resign(reason)

    def _resign(self, sharing: Sharing) -> None:
        try:
            sharing.close()
        except StorageError as error:
            log.warning("the lease could not be given back, another waits for its end: %s", error)

    # ---------------------------------------------------------------- reading

    def _poll(self) -> Poll:
        try:
            if self.dead_letters.full:
                # Read no more until the letters are away; the loop and its health go on.
                self.source.hold()
                self.dead_letters.flush(POLL_SECONDS)
            if self.ledger and self.ledger.full:
                self.ledger.sync()
            if self.sharing is not None and self.sharing.full:
                self.sharing.hand_over()
            if self.delayed is not None:
                # Read no more until the disk takes what was read.
                self.delayed.waiting.flush()
                if self.delayed.queued:
                    return self._hold()
            if self._finite and self.repair.trainer.running:
                # A file can wait: its events meet the model that a live stream would have met.
                time.sleep(POLL_SECONDS / 4)
                return Poll(EMPTY, [], {})
            ready = self.looks is not None and self.champion is not None
            return self.source.poll(READY_EVENTS if ready else MAX_EVENTS, POLL_SECONDS)
        except (DeadLetterError, CheckpointError) as error:
            if isinstance(error, JoinError) and not isinstance(error, JoinFull):
                raise
            where = "waiting" if isinstance(error, JoinFull) else "checkpoint"
            self._survived("dead-letters" if isinstance(error, DeadLetterError) else where, error)
            time.sleep(POLL_SECONDS)
            return self._hold()
        finally:
            self.health.turned = time.monotonic()

    def _hold(self) -> Poll:
        self.source.hold()
        return Poll(EMPTY, [], {})

    # ---------------------------------------------------------------- the alias and the operators

    def open_version(self, version: str) -> Served:
        """Open a version as the server does: digests verified, then the session."""
        folder = self.registry.path(version, verify=True)
        manifest = self.registry.version(version).manifest
        return self._open(folder, manifest, self.state.classes)

    def follow(self) -> None:
        """Follow the registry: who serves, and what operators said."""
        generation = self.registry.generation()
        if generation == self._generation:
            return
        found = self.registry.state()
        self.paused, self.pinned = found.paused is not None, found.pinned is not None
        self.metrics.paused().set(self.paused)
        self.metrics.pinned().set(self.pinned)
        if found.champion is not None and (
            self.champion is None or self.champion.version != found.champion
        ):
            if self.state.baseline.version is None:
                self.state.baseline.version = (*found.chain, found.champion)[0]
            self._swap(found.champion, found.champion_move)
        self._generation = generation

    def _swap(self, version: str, move: Move | None) -> None:
        state, old = self.state, self.champion
        served = self.repair.opened(version) or self.open_version(version)
        mine = move is not None and move.actor == self.actor
        if old is None and (state.champion == version or self._stepped_on(version)):
            self.champion = served
            state.resume_online(served)
            self.metrics.champion(version, state.champion_since)
            return
        began = self.clock.time()
        if old is not None and move is not None and move.kind == "follow":
            self.champion = served
            state.step(served, began, mine=mine)
            self.metrics.champion(version, began)
            return
        back = move is not None and move.kind == "rollback"
        if state.following is not None and state.following.version != version:
            self.repair.end_following(f"the champion is now {version}")
        self.champion = served
        # Back from a run of snapshots: what learned online is what was taken back.
        state.follow_champion(served, began, anew=back and old is not None and old.step)
        promotion = move is not None and move.kind == "promote"
        if back and not mine:
            self.metrics.rollbacks("operator").inc()
        self.repair.moved(served, old, mine=mine, promotion=promotion)
        self.metrics.champion(version, began)
        log.info("%s serves now (before: %s)", version, old.version if old else "none")
        self._checkpoint_or_later()
        if self.leads:
            self.repair.tidy()

    def _stepped_on(self, version: str) -> bool:
        """Whether the run that the checkpoint knows has gone on to ``version`` since."""
        state, run = self.state, self.state.following
        lineage = self.registry.version(version).manifest.lineage
        if run is None or lineage.get("run") != run.first:
            return False
        proven, test = lineage["follows"], PairedTest(state.probation_alpha)
        state.probation = Probation(version, proven, state.events, test)
        # It has learned what is read again now: that says nothing of it.
        state.judged_from = int(lineage["event"])
        state.champion = run.version = version
        return True

    def _serve_requests(self) -> None:
        for request in self.registry.requests():
            if request.kind not in ("refresh", "quarantine"):
                log.warning("request %s of unknown kind %r ignored", request.id, request.kind)
            elif self.champion is None:
                continue
            elif request.kind == "quarantine":
                self._decide(request, self.champion)
            else:
                without = request.body.get("without") or ()
                self.repair.request(request.body.get("rung"), request.reason, without)
                if without:  # the online head may have learned from them
                    self.state.restart_online(self.champion, anew=True)
            self.registry.done(request)

    def _decide(self, request: Request, champion: Served) -> None:
        """An operator releases or drops a case of the quarantine."""
        case = self.state.quarantine.named(str(request.body.get("case")))
        if case is None:
            log.warning("there is no case %r in the quarantine", request.body.get("case"))
        elif request.body.get("action") == "release":
            self.admission.release(case, champion, request.reason)
        else:
            self.admission.drop(case, request.reason)

    def _bootstrap_if_due(self) -> None:
        if self.champion is not None or self.state.incident is not None or self.paused:
            return
        if self.state.memory.labelled >= self.config.bootstrap.warmup_events:
            self.repair.bootstrap()

    # ---------------------------------------------------------------- checkpoint and report

    def _checkpoint_if_due(self) -> None:
        then, events = self._checkpointed
        settings = self.config.checkpoint
        due = self.state.events - events >= settings.every_events
        if due or self.clock.monotonic() - then >= settings.every_seconds:
            self._checkpoint_or_later()

    def _checkpoint_or_later(self) -> None:
        try:
            self.checkpoint()
        except CheckpointTaken:
            raise
        except (CheckpointError, DeadLetterError, StorageError) as error:
            # Not fatal: the old checkpoint stands and the events can be read again.
            every = self.config.checkpoint.every_seconds
            again = self.clock.monotonic() - every + RETRY_SECONDS
            self._checkpointed = (again, self.state.events)
            self._survived("checkpoint", error)

    def checkpoint(self) -> None:
        """Write a checkpoint now; dead letters are delivered first, so that none is lost."""
        self.dead_letters.flush()
        if self.sharing is not None:
            self.sharing.hand_over()
        began = time.perf_counter()
        values = self.state.values()
        if self.ledger:
            values["ledger"] = self.ledger.sync()
        if self.sharing is not None:
            values["sharing"] = self.sharing.values()
        if self.delayed is not None:
            values["delayed"] = self.delayed.seal()
        size = self.checkpoints.save(values, self.state.arrays() | self._waiting_pages())
        if self.delayed is not None:
            self.delayed.sealed()
        if self.sharing is not None:
            self.sharing.commit()
        self.metrics.checkpoint_seconds().observe(time.perf_counter() - began)
        self.metrics.checkpoint_bytes().set(size)
        self.metrics.checkpoint_timestamp().set_to_current_time()
        self._checkpointed = (self.clock.monotonic(), self.state.events)
        self.source.checkpointed(self.state.positions)

    def _waiting_pages(self) -> Arrays:
        """What waits for labels, where the folder need not survive."""
        if self.delayed is None or self.config.checkpoint.store == "folder":
            return {}
        return {"waiting/pages": self.delayed.waiting.pages()}

    def _survived(self, where: str, error: Exception) -> None:
        log.error("%s: %s", where, error)
        self.metrics.errors(where).inc()
        self.health.why = f"{where}: {error}"

    def _report(self) -> None:
        state, source = self.state, self.source
        self.metrics.source_connected().set(source.connected)
        behind = 0.0 if source.caught_up else self.clock.time() - self._last_time
        self.metrics.lag_seconds().set(max(0.0, behind))
        for window, value in self._accuracy().items():
            self.metrics.accuracy(window).set(value)
        for bound, share in self._estimated().items():
            self.metrics.estimated_accuracy(bound).set(share)
        for measure, value in state.residuals.recent.items():
            self.metrics.prequential_error(measure).set(value)
        for rival in state.rivals.all:
            if rival.score.labelled:
                self.metrics.rival_accuracy(rival.name).set(rival.score.recent_accuracy)
        for who, share in state.baseline.accuracies.items():
            self.metrics.baseline_accuracy(who).set(share)
        self.metrics.incident_open().set(state.incident is not None)
        self.metrics.refresh_running().set(self.repair.trainer.running)
        self.metrics.trial_events().set(state.trial.test.events if state.trial else 0)
        self.metrics.canary_share().set(state.canary.share / 100 if state.canary else 0)
        self.metrics.following().set(state.following is not None)
        self.metrics.probation().set(state.probation is not None)
        self.metrics.quarantine_cases().set(len(state.quarantine.cases))
        self.metrics.quarantine_events().set(len(state.quarantine))
        if source.connected != self._connected:
            self._connected = source.connected
            self.journal.write("source-connected" if source.connected else "source-away")
        located = bool(state.positions or source.positions())
        self.health.ready = self.champion is not None and source.connected and located
        if self.health.ready:
            self.health.why = "ready"
        elif self.champion is None:
            warmup = self.config.bootstrap.warmup_events
            self.health.why = f"no champion yet: {state.memory.labelled} of {warmup} events"
        elif not source.connected:
            self.health.why = "the source is away"
        else:
            self.health.why = "no position in the source yet: it has no partition"
        self.snapshot = self.status()
        self.metrics.lag_events().set(self.snapshot["source"]["lag_events"] or 0)
        for part, count in self.snapshot["memory"].items():
            self.metrics.memory_events(part).set(count)

    def _accuracy(self) -> dict[str, float]:
        score = self.state.prequential
        values = {
            "total": score.accuracy,
            "recent": score.recent_accuracy,
            "since_promotion": score.since_accuracy,
            "reference": self.state.watch.reference_accuracy,
        }
        return {window: value for window, value in values.items() if not np.isnan(value)}

    def _errors(self) -> dict[str, dict[str, float | None]] | None:
        """Of a number: the errors of late and of all, in its own unit."""
        residuals = self.state.residuals
        if not residuals.total:
            return None
        return {
            window: {k: None if np.isnan(v) else float(f"{v:.6g}") for k, v in found.items()}
            for window, found in (("recent", residuals.recent), ("total", residuals.total))
        }

    def _estimated(self) -> dict[str, float]:
        found = self.state.watch.estimated_accuracy
        return asdict(found) if found else {}

    def status(self) -> dict[str, Any]:
        """A snapshot of everything an operator asks first, as plain values."""
        state, job = self.state, self.repair.trainer.job
        incident, trial, probation = state.incident, state.trial, state.probation
        canary = state.canary
        watch = state.watch
        return {
            "model": self.config.name,
            "state": self._phase(),
            "ready": self.health.ready,
            "reason": self.health.why,
            "started": self._started,
            "champion": state.champion,
            "champion_since": state.champion_since,
            "labels": list(self.champion.labels) if self.champion else [],
            "features": {f.name: f.kind for f in self.config.model.features},
            "paused": self.paused,
            "pinned": self.pinned,
            "events": state.events + state.passed,
            "only_counted": state.passed,
            "labelled": state.prequential.labelled,
            "right": state.prequential.right,
            "accuracy": {k: round(v, 4) for k, v in self._accuracy().items()},
            "errors": self._errors(),
            "rivals": {rival.name: rival.as_dict() for rival in state.rivals.all},
            "baseline": state.baseline.as_dict(),
            "estimated_accuracy": {k: round(v, 4) for k, v in self._estimated().items()} or None,
            "source": {
                "connected": self.source.connected,
                "lag_events": self.source.lag(),
                "positions": state.listed_positions(),
            },
            "drift": {
                "watching": watch.armed,
                "reference_events": watch.gathered
                if not watch.armed
                else len(watch.reference or ()),
                "signals": [
                    {
                        "detector": signal.detector,
                        "kind": signal.kind,
                        "score": round(signal.score, 4),
                        "threshold": round(signal.threshold, 4),
                    }
                    for signal in watch.signals
                ],
                "distances": watch.distances(),
                "held_until": state.quiet_until if state.events < state.quiet_until else None,
            },
            "incident": incident.as_dict() if incident else None,
            "refresh": job and {"rung": job.rung, "seconds": round(self.repair.trainer.seconds, 1)},
            "trial": trial.as_dict() if trial else None,
            "canary": canary and {"version": canary.version, "share": canary.share},
            "following": state.following and state.following.values(),
            "probation": probation
            and {
                "version": probation.version,
                "previous": probation.previous,
                **probation.test.as_dict(),
            },
            "versions": {version: asdict(record) for version, record in state.records.items()},
            "awaiting_labels": self.delayed.waiting.pending
            if self.delayed
            else len(state.awaiting),
            "delayed_labels": self.delayed.status() if self.delayed else None,
            "sharing": self.sharing.status() if self.sharing else None,
            "quarantine": [case.as_dict() for case in state.quarantine.cases.values()],
            "memory": state.memory.sizes(),
            "checkpoint_age_seconds": round(self.clock.monotonic() - self._checkpointed[0], 1),
        }

    def _phase(self) -> str:
        state = self.state
        if self.paused:
            return "paused"
        if self.champion is None:
            return "bootstrapping"
        if state.canary:
            return "canary"
        if state.trial:
            return "trial"
        if self.repair.trainer.running:
            return "refreshing"
        if state.incident:
            return "incident"
        if state.probation:
            return "probation"
        return "watching" if state.watch.armed else "learning what is normal"


def _handover(config: Config, owner: str) -> Handover | None:
    source, topic = config.source, config.sharing.topic
    if topic is None or not isinstance(source, KafkaSourceConfig):
        return None
    from daemon.handover import Handover

    features = config.model.features if config.model.task == "tabular" else None
    dtype = np.dtype(object) if features is None else features_dtype(features)
    return Handover(source, config.sharing, topic, owner, dtype)


def _examples(
    batch: EventBatch,
    numbers: NDArray[np.int64],
    labels: NDArray[np.int64],
    truth: NDArray[Any],
    answer: Answer | None = None,
) -> Examples:
    """The labelled events of a batch, with the embeddings of ``answer`` where there is one."""
    known = labels >= 0
    mine = batch.take(known)
    return Examples(
        ids=mine.ids,
        times=mine.times,
        inputs=mine.inputs,
        labels=labels[known],
        embeddings=answer.embeddings[known] if answer else None,
        weights=np.ones(len(mine), dtype=np.float32),
        topics=mine.topics,
        partitions=mine.partitions,
        offsets=mine.offsets,
        arrivals=numbers[known],
        targets=None if truth is labels else truth[known],
    )
