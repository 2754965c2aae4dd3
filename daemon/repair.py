"""Repair: from an alarm to a better champion, one journalled step at a time.

Owns the incident, the trainer, the trial before the gate and the probation after a promotion.
It never swaps anything itself: a promotion or a rollback is a move of the registry's alias, and
the loop follows the alias, whoever moved it.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.canary import Canary
from daemon.clock import Clock
from daemon.config import Config
from daemon.events import columns
from daemon.evidence import PairedTest, Tally
from daemon.following import COMPARED, Following, lineage, same_answers, write_step
from daemon.gate import (
    RECALL_EVENTS,
    Check,
    Trial,
    Verdict,
    artefact_checks,
    combine,
    forgetting,
    margin_of,
)
from daemon.job import VERSION, Job, Result, read_embedded
from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.policy import (
    Attempt,
    Choice,
    Incident,
    Situation,
    choose,
    damage_shown,
    fell_at,
    sure_loss,
)
from daemon.policy_config import Rung
from daemon.served import Answer, Judge, Opinion, Served, encoder_digest, right, score
from daemon.state import Probation, State
from daemon.trainer import Trainer
from daemon.version_files import INHERITED
from deploy.errors import LoadError, PatchError
from deploy.session import Session
from drift import Diagnosis
from drift.features import Features
from learn.examples import Examples
from learn.number_scale import errors
from registry import STEPS_KEPT, Manifest, ManifestDraft, Registry, RegistryError, Stretch

log = logging.getLogger("driftd.repair")

BACKLOG = 512
FEWEST_COMPARED = 32  # events on which a step must differ from the champion
RECALL_CANDIDATES = 8
LATENCY_ROUNDS = 15
LOSING_EVENTS = 100
SHOWN = 120  # characters of an input in the journal
BOOTSTRAP_RETRY_SECONDS = 10.0

Open = Callable[[str], Served]


class Repair:
    """The state machine of one model's repairs."""

    def __init__(
        self,
        config: Config,
        state: State,
        registry: Registry,
        journal: JournalWriter,
        trainer: Trainer,
        metrics: Metrics,
        open_version: Open,
        actor: str,
        clock: Clock = time,
    ) -> None:
        self.config = config
        self.state = state
        self.registry = registry
        self.journal = journal
        self.trainer = trainer
        self.metrics = metrics
        self.actor = actor
        self.challenger: Served | None = None
        self.yardstick: Served | None = None
        self._open = open_version
        self._clock = clock
        self._cutoff = 0
        self._bootstrap_again = -math.inf
        self._waiting = ""
        self._step: Served | None = None

    # ---------------------------------------------------------------- what the loop reports

    def resume(self) -> None:
        """After a restart: open again what the checkpoint says is on trial or on probation."""
        state = self.state
        try:
            if state.trial:
                self.challenger = self._open(state.trial.version)
            if state.probation:
                self.yardstick = self._open(state.probation.previous)
        except RegistryError as error:
            log.error("cannot go on with the trial or probation: %s", error)
            self.journal.write("trial-dropped", reason=str(error))
            state.trial = state.canary = state.probation = None
            self.challenger = self.yardstick = None
        if state.incident is not None and state.incident.cause == "bootstrap":
            # Its training went with the daemon, and nothing else would begin it again.
            self._close("interrupted", "the daemon was restarted")
        self._resume_canary()

    def _resume_canary(self) -> None:
        """The step begins anew: the checkpoint may be older than the routing, or know nothing."""
        canary, reason = self.state.canary, "the daemon was restarted"
        routing = self.registry.routing()
        if canary is not None:
            self._route(canary, reason)
        elif routing.mode == "canary" and routing.actor == self.actor:
            self.registry.route(None, mode="off", actor=self.actor, reason=reason)

    def observe(
        self,
        inputs: NDArray[np.generic],
        answer: Answer,
        labels: NDArray[np.int64],
        truth: NDArray[Any],
        given: NDArray[Any],
        own: NDArray[np.bool_],
        champion: Served,
    ) -> None:
        """Judge the challenger and the yardstick on a batch of events, before any learning.

        ``answer`` is the champion's; labels: int64 [n], -1 where none has arrived. truth: [n], the
        same or numbers. given: [n], what was answered when the event came, and own: bool [n], where
        it was the champion that did; the others say nothing of its probation.
        """
        known = labels >= 0
        if not known.any():
            return
        inputs, embeddings = inputs[known], answer.embeddings[known]
        ours, truth, given, own = answer.opinion.take(known), truth[known], given[known], own[known]
        trial, probation, scale = self.state.trial, self.state.probation, self.state.scale
        if trial and self.challenger:
            other = self.challenger.predict(inputs, embeddings, champion.encoder)
            trial.observe(truth, other, ours, columns(inputs))
            if self.state.canary:
                theirs = score(scale, other.predicted, truth)
                self.state.canary.test.observe(theirs, score(scale, ours.predicted, truth))
        if probation and self.yardstick:
            old = self.yardstick.predict(inputs, embeddings, champion.encoder).predicted
            new = score(scale, given[own], truth[own])
            probation.test.observe(new, score(scale, old[own], truth[own]))

    def observe_learner(
        self, truth: NDArray[Any], ours: Opinion, theirs: Opinion, features: Features
    ) -> None:
        """Judge what learns online, before it learned the labels; ``theirs`` are the champion's."""
        run, scale = self.state.following, self.state.scale
        if run is None:
            self.state.learner.observe(truth, ours, theirs, features)
        else:
            run.observe(right(scale, ours.predicted, truth), right(scale, theirs.predicted, truth))

    def alarm(self, diagnosis: Diagnosis, onset: int, examples: Sequence[int] = ()) -> None:
        """The monitors alarmed: open an incident, or add to the evidence of the open one.

        ``onset`` is the number of the event with which it began; ``examples`` are those of the
        events that show the drift best.
        """
        state = self.state
        self.journal.write(
            "alarm",
            incident=self._incident_id(),
            drift=diagnosis.kind,
            sentence=diagnosis.sentence(state.part_names),
            diagnosis=_named(diagnosis.as_dict(), state.part_names),
            examples=self._shown(examples),
        )
        if state.incident is not None and state.incident.yields:
            # What was to be improved, or matched by a student, is no longer what comes in.
            self._cancel("the stream drifted")
            if state.trial:
                self._drop_trial("the stream drifted")
            self._close("superseded", "the stream drifted")
        if state.incident is not None:
            if state.incident.cause == "drift" and diagnosis.kind == "concept":
                state.incident.kind = "concept"  # what only looked different also means another
            return
        self._drifted(
            diagnosis.kind,
            onset,
            max(_or(state.watch.reference_accuracy, 1.0), state.owed),
            diagnosis.severity,
            diagnosis.sentence(state.part_names),
        )

    def _drifted(
        self, kind: str, onset: int, reference: float, severity: float, sentence: str
    ) -> None:
        state = self.state
        # Another regime, another chance for versions that failed in the last one.
        state.failed.clear()
        if state.following is None:
            state.try_learner()
        onset = max(onset, state.champion_event)
        self._open_incident(
            Incident(
                id="",
                cause="drift",
                kind=kind,
                opened_event=state.events,
                onset_event=onset,
                since_event=onset,
                reference_accuracy=reference,
                severity=severity,
                sentence=sentence,
            )
        )

    @property
    def losing(self) -> bool:
        """Whether the champion's last answers prove a damage, for which nothing cools down."""
        state = self.state
        outcomes = state.prequential.since(state.champion_event)[-LOSING_EVENTS:]
        accuracy = float(outcomes.mean()) if len(outcomes) else 0.0
        reference = max(_or(state.watch.reference_accuracy, 0.0), state.owed)
        return sure_loss(accuracy, len(outcomes), reference) >= self.config.policy.min_damage_points

    def _shown(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The events of those numbers, as far as they are in memory, for a person to read."""
        found = self.state.memory.numbered(numbers)
        names, truth = self.state.classes.names, found.truth.tolist()
        shown = [
            {"id": event_id, "label": names[what] if found.targets is None else what}
            for event_id, what in zip(found.ids.tolist(), truth, strict=True)
        ]
        if self.config.policy.show_inputs:
            for example, value in zip(shown, found.inputs, strict=True):
                text = str(value)
                example["input"] = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
        return shown

    def request(
        self, rung: Rung | None, reason: str, without: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """An operator asks for a refresh: of one rung, or up the whole ladder.

        ``without``: offset ranges, as lineages write them, that nothing may be learned from any
        more. What was learned from them is dropped, and the refresh trains; it recalls nothing.
        """
        state = self.state
        if state.incident is not None:
            self._cancel("an operator asked for a refresh")
            self._close("superseded", f"an operator asked for a refresh: {reason}")
        # A student learns anew all that the champion knows of this regime.
        onset = state.regime_event if rung == "student" else state.champion_event
        if without:
            self.end_following("it may have learned what an operator excluded")
            if state.trial:
                self._drop_trial("it may have learned what an operator excluded")
            places = [(r["topic"], r["partition"], r["start"], r["end"]) for r in without]
            forgotten = state.memory.exclude(places)
            self.journal.write("excluded", ranges=list(without), forgotten=forgotten, reason=reason)
            onset = state.regime_event
        self._open_incident(
            Incident(
                id="",
                cause="exclusion" if without else "operator",
                kind="request",
                opened_event=state.events,
                onset_event=onset,
                since_event=onset,
                reference_accuracy=1.0,
                sentence=reason,
                only=rung,
            )
        )
        if rung == "student" and self.config.model.task != "text":
            self._close("failed", "a student needs a text model: a table's is small already")
        elif rung == "student":
            # It is held against one champion, for longer than a run would rest.
            self.end_following("a student of the present champion was asked for")

    def moved(self, served: Served, old: Served | None, *, mine: bool, promotion: bool) -> None:
        """The champion alias moved to ``served``; ``mine`` if this daemon moved it."""
        state = self.state
        if state.trial:
            self._drop_trial(f"the champion is now {served.version}")
        state.probation, self.yardstick = None, None
        if promotion and old is not None and self.config.probation.events:
            self._watch(served, old)
        if state.incident and not mine:
            self._cancel("the champion was moved from outside")
            self._close("superseded", f"the champion was moved to {served.version} from outside")

    # ---------------------------------------------------------------- what it does next

    def bootstrap(self) -> None:
        """Make the first version from what is in memory; after a failure, not again at once."""
        if self._clock.monotonic() < self._bootstrap_again:
            return
        self._bootstrap_again = self._clock.monotonic() + BOOTSTRAP_RETRY_SECONDS
        state, settings = self.state, self.config.bootstrap
        incident = Incident(
            id="",
            cause="bootstrap",
            kind="bootstrap",
            opened_event=state.events,
            onset_event=0,
            since_event=0,
            reference_accuracy=0.0,
            sentence=f"no champion yet: first training on {state.memory.labelled} events",
            only=settings.strategy,
        )
        self._open_incident(incident)
        try:
            self._start(settings.strategy, None, incident.sentence)
        except OSError as error:
            self._close("failed", str(error))
            raise

    def advance(self, champion: Served | None, *, paused: bool, pinned: bool) -> None:
        """Take whatever step is due; called once a turn of the loop."""
        self._follow_trainer(champion)
        if champion is None:
            return
        self._notice_another()
        state = self.state
        if state.following and (paused or pinned):
            self.end_following("learning was paused" if paused else "the champion was pinned")
        if self._judge_probation(champion):
            return
        if not paused and not pinned and self._keep_up(champion):
            return
        if self.trainer.running:
            return
        if state.trial:
            if not pinned and not paused:
                judge = self._judge_canary if state.canary else self._judge_trial
                judge(state.trial, champion)
                self._replace_outgrown()
        elif state.incident:
            self._climb(state.incident, champion, paused=paused, pinned=pinned)
        elif not paused and not pinned:
            self._propose(champion)

    def resign(self, reason: str) -> None:
        """Another daemon leads: what was under way is its to begin. Moves nothing."""
        state = self.state
        self._cancel(reason)
        self.end_following(reason)
        if state.trial:
            self.journal.write("trial-dropped", version=state.trial.version, reason=reason)
        state.trial = state.canary = state.probation = None
        self.challenger = self.yardstick = None
        self._close("superseded", reason)

    def lead(self, reason: str) -> None:
        """This daemon leads now: a canary that the leader before left behind is over."""
        routing = self.registry.routing()
        if routing.mode == "canary" and routing.actor.startswith("driftd@"):
            self.registry.route(None, mode="off", actor=self.actor, reason=reason)

    def close(self) -> None:
        """End the trainer; the rung is tried again after the restart."""
        self.trainer.cancel()

    # ---------------------------------------------------------------- incidents

    def _open_incident(self, incident: Incident) -> None:
        state = self.state
        state.incidents += 1
        incident.id = f"i{state.incidents:04d}"
        state.incident = incident
        self._waiting = ""
        self.journal.write("incident-opened", **_brief(incident))

    def _close(self, outcome: str, reason: str) -> None:
        state, incident = self.state, self.state.incident
        if incident is None:
            return
        self.journal.write(
            "incident-closed",
            **_brief(incident),
            outcome=outcome,
            reason=reason,
            attempts=[attempt.rung for attempt in incident.attempts],
            cpu_seconds=round(incident.cpu_seconds, 2),
        )
        self.metrics.incidents(incident.kind, outcome).inc()
        state.incident = None
        if incident.cause == "drift" and outcome != "harmless":
            state.regime_event = incident.onset_event
        if incident.kind == "concept" and outcome in ("repaired", "improved"):
            state.memory.set_anchor(incident.onset_event, self.config.seed)
        state.rest_until = state.events + self.config.policy.cooldown_events
        if incident.cause == "improvement":
            return  # nothing had moved: the monitors go on as they were
        state.quiet_until = state.rest_until
        if outcome in ("harmless", "unrepaired"):
            # What moved is the new normal; against the old reference it would alarm for ever.
            state.watch.rearm()
        if outcome == "unrepaired":
            state.owed = max(state.owed, incident.reference_accuracy)
        elif outcome in ("repaired", "improved"):
            state.owed = 0.0

    def _notice_another(self) -> None:
        """A drift on top of the one under repair: the monitors, set anew, may not be armed yet."""
        state, incident = self.state, self.state.incident
        if incident is None or incident.cause != "drift":
            return
        outcomes = state.prequential.since(incident.since_event)
        place = fell_at(outcomes, self.config.policy)
        if place is None:
            return
        before, after = float(outcomes[:place].mean()), float(outcomes[place:].mean())
        reason = (
            f"accuracy fell again under repair: {before:.1%} on {place:,} events, "
            f"{after:.1%} on the {len(outcomes) - place:,} since"
        )
        self._cancel(reason)
        if state.trial:
            self._drop_trial(reason)
        reference = max(incident.reference_accuracy, state.owed)
        onset = state.prequential.number(len(outcomes) - place)
        self._close("superseded", reason)
        self._drifted(incident.kind, onset, reference, before - after, reason)

    def _replace_outgrown(self) -> None:
        """End a trial that leads nowhere where a better challenger can be made by now.

        The damage is still there, and the regime has brought as much again as this challenger has
        learned from: one that knows all of it is a better bet than more evidence on this one.
        """
        state, trial, incident = self.state, self.state.trial, self.state.incident
        if trial is None or state.canary is not None or incident is None or incident.only:
            return
        attempt = incident.attempts[-1]
        if trial.rung not in ("online", "head") or trial.test.verdict == "better":
            return  # a recall learns nothing more, layers are not trained twice, and it may be near
        if not incident.outgrown(attempt.started_event, state.events):
            return
        situation = self._situation(incident)
        if not damage_shown(incident, situation, self.config.policy):
            return
        reason = (
            f"undecided, and outgrown: trained {attempt.started_event - incident.onset_event:,} "
            f"events into the regime, which has {state.events - incident.onset_event:,} now"
        )
        self._drop_trial(reason)
        self.registry.set_challenger(None, actor=self.actor, reason=reason)
        self._attempt_ended("outgrown", reason, gain=trial.test.gain)

    def _situation(self, incident: Incident, **more: Any) -> Situation:
        """How the champion does in the incident; ``more``: what else the policy may look at."""
        outcomes = self.state.prequential.since(incident.since_event)
        return Situation(
            event=self.state.events,
            labelled=len(outcomes),
            accuracy=float(outcomes.mean()) if len(outcomes) else math.nan,
            promotions_today=self.state.promotions_today(),
            **more,
        )

    def _climb(self, incident: Incident, champion: Served, *, paused: bool, pinned: bool) -> None:
        state = self.state
        # Where versions may follow what learns online, it has a trial of its own, all the time.
        online = (
            self.config.policy.online_head and state.online is not None and not self._may_follow
        )
        retrain = incident.cause == "exclusion"
        situation = self._situation(
            incident,
            archived=0 if retrain else len(self._archived(champion)),
            online_head=online and not retrain and not self._tainted(champion.version),
            deep=self.config.model.task == "text" or self.config.model.table == "network",
            followed=self._whole_follows,
            paused=paused,
            pinned=pinned,
        )
        choice = choose(incident, situation, self.config.policy)
        if choice.action == "wait":
            self._wait(choice)
        elif choice.action == "close":
            self._close(choice.outcome, choice.reason)
        elif choice.rung is not None:
            self._start(choice.rung, champion, choice.reason)

    def _wait(self, choice: Choice) -> None:
        # The count in the sentence changes with every batch; the journal wants the first of a kind.
        kind = "".join(c for c in choice.reason if not c.isdigit())
        if kind != self._waiting:
            self._waiting = kind
            self.journal.write("waiting", incident=self._incident_id(), reason=choice.reason)

    def _propose(self, champion: Served) -> None:
        """Nothing is wrong: is there something to gain? The first that has grounds is taken."""
        state = self.state
        if state.promotions_today() >= self.config.policy.max_promotions_per_day:
            return  # it would be tried for nothing; the grounds keep until tomorrow
        self._propose_growth(champion)
        if state.incident is None and state.events >= state.rest_until:
            self._propose_online()
            if state.incident is None:
                self._propose_head()

    def _propose_online(self) -> None:
        state = self.state
        test = state.online_test
        if test.events < self.config.policy.min_labelled:
            return
        if not self.config.policy.online_head or test.verdict != "better" or self._may_follow:
            return
        if state.champion is None or self._tainted(state.champion):
            return
        sentence = (
            f"the online head is better by {test.gain:.1f} points on {test.events} events "
            f"(e-value {test.better:.3g})"
        )
        self._improve("online", sentence, state.champion_event)

    def _propose_growth(self, champion: Served) -> None:
        """A class that the champion does not know has enough examples to be learned."""
        state = self.state
        if len(state.classes) <= len(champion.labels) or "head" not in self.config.policy.rungs:
            return
        if state.following:
            return  # the next step brings it
        labels = self._labels(champion)
        grown = labels[max(len(champion.labels), state.taught) :]
        if grown:
            state.taught = len(labels)  # one try for each new class, however it ends
            named = ", ".join(repr(name) for name in grown)
            self._improve("head", f"enough examples of {named} to learn it", state.regime_event)

    def _propose_head(self) -> None:
        """A regime's first repair rests on few events: refit when there are many more."""
        state, policy = self.state, self.config.policy
        factor = policy.refit_growth
        if not factor or "head" not in policy.rungs or self._whole_follows:
            return
        then, now = state.learned_event - state.regime_event, state.events - state.regime_event
        if then >= self.config.memory.recent or now < factor * max(then, policy.min_labelled):
            return
        state.learned_event = state.events  # one try for each growth, however it ends
        sentence = f"{now:,} events of this regime, {then:,} when the model was last trained"
        self._improve("head", sentence, state.regime_event)

    def _improve(self, rung: Rung, sentence: str, onset: int) -> None:
        state = self.state
        self._open_incident(
            Incident(
                id="",
                cause="improvement",
                kind="improvement",
                opened_event=state.events,
                onset_event=onset,
                since_event=state.champion_event,
                reference_accuracy=_or(state.prequential.since_accuracy, 0.0),
                sentence=sentence,
                only=rung,
            )
        )

    # ---------------------------------------------------------------- refreshes

    def _start(self, rung: Rung, champion: Served | None, reason: str) -> None:
        state, incident = self.state, self.state.incident
        assert incident is not None
        if rung == "recall" and champion and self._recall_at_once(incident, champion, reason):
            return
        attempt = Attempt(rung=rung, started_event=state.events)
        if rung not in ("recall", "online"):
            state.learned_event = state.events
        incident.attempts.append(attempt)
        base = self._base(champion, rung) if champion else None
        labels, examples = self._examples(rung, incident, base)
        self._cutoff = state.events
        parent = base and self.registry.path(base.version, verify=False)
        job = Job(
            id=f"{incident.id}-{len(incident.attempts)}-{rung}",
            rung=rung,
            strategy=rung,
            labels=labels,
            parent=str(parent) if parent else None,
            seed=self.config.seed + state.incidents,
            threads=self.config.trainer.threads,
            cpu_seconds=self.config.policy.cpu_seconds_per_refresh,
            model=self.config.model.model_dump(mode="json"),
            export=self.config.export.model_dump(mode="json"),
            learn=self.config.learn.model_dump(mode="json"),
            candidates=[
                (version, str(self.registry.path(version, verify=False)))
                for version in (
                    [champion.version, *self._archived(champion)]
                    if champion and rung == "recall"
                    else []
                )
            ],
            target=self._target(incident),
            onset=incident.onset_event,
            excluded=[stretch.as_dict() for stretch in self._excluded()],
        )
        given = None
        if rung == "online" and state.online is not None:
            given = state.online.weights(np.array([state.classes.add(name) for name in labels]))
        attempt.examples = len(examples)
        try:
            job.write(self.trainer.folder_of(job), examples, given)
            self.trainer.start(job)
        except OSError:
            # The rung had no chance: it keeps its turn for when there is room on the disk again.
            incident.attempts.pop()
            shutil.rmtree(self.trainer.folder_of(job), ignore_errors=True)
            raise
        self.journal.write(
            "refresh-started",
            incident=incident.id,
            rung=rung,
            reason=reason,
            examples=len(examples),
            labels=len(labels),
            parent=base.version if base else None,
            excluded=job.excluded,
            candidates=[version for version, _ in job.candidates],
        )

    def _target(self, incident: Incident) -> float | None:
        """The accuracy at which the damage counts as repaired; none where there was no damage."""
        if incident.cause != "drift":
            return None
        return incident.reference_accuracy - self.config.policy.tolerance_points / 100

    def _recall_at_once(self, incident: Incident, champion: Served, reason: str) -> bool:
        """Try the archived versions on embeddings at hand; False if one has another encoder."""
        state = self.state
        names = self._archived(champion)
        manifests = [self.registry.version(name).manifest for name in names]
        found = state.memory.recent(RECALL_EVENTS, since=incident.since_event)
        embeddings = found.embeddings
        if embeddings is None or not np.isfinite(embeddings).all():
            return False
        if {champion.encoder, state.memory.encoder} != {encoder_digest(m) for m in manifests}:
            return False
        began, cpu = time.monotonic(), time.process_time()
        incident.attempts.append(Attempt("recall", state.events, examples=len(found)))
        self._cutoff = incident.since_event  # none of them has learned from these events
        judges: list[Served | Judge] = [champion]
        for manifest in manifests:
            folder = self.registry.path(manifest.version, verify=False)
            judges.append(Judge.open(folder, manifest, state.classes))
        rows = []
        for judge in judges:
            near = right(state.scale, judge.judge(embeddings).predicted, found.truth)
            rows.append({"version": judge.version, "accuracy": round(float(near.mean()), 4)})
        attempt = incident.attempts[-1]
        attempt.seconds = round(time.monotonic() - began, 3)
        attempt.cpu_seconds = round(time.process_time() - cpu, 3)
        self.metrics.refreshes("recall", "recalled").inc()
        self.journal.write(
            "recalled",
            incident=incident.id,
            reason=reason,
            examples=len(found),
            recall=rows,
            seconds=attempt.seconds,
            cpu_seconds=attempt.cpu_seconds,
        )
        self._recalled(rows, champion)
        return True

    def _base(self, champion: Served, rung: Rung) -> Manifest | None:
        """The version to train from: the champion, if it has learned nothing excluded.

        Else the latest champion of which that is true; None, a beginning from nothing, if none is.
        """
        registered = self.registry.state()
        earlier = [version.id for version in reversed(self.registry.versions())]
        for version in (champion.version, *reversed(registered.chain), *earlier):
            if rung == "recall" or (
                version not in registered.withdrawn and not self._tainted(version)
            ):
                return self.registry.version(version).manifest
        return None

    def _excluded(self) -> list[Stretch]:
        return [Stretch(*place) for place in self.state.memory.excluded]

    def _tainted(self, version: str) -> bool:
        """Whether the version has learned from what an operator excluded."""
        excluded = self._excluded()
        return bool(excluded) and self.registry.learned_from(version, excluded)

    def _examples(
        self, rung: Rung, incident: Incident, base: Manifest | None
    ) -> tuple[list[str], Examples]:
        """The new version's labels, and the examples with labels that index into them."""
        state, settings = self.state, self.config.learn
        names = self._labels(base)
        if rung == "recall":
            found = state.memory.recent(RECALL_EVENTS, since=incident.since_event, training=True)
        elif rung == "online":
            found = state.memory.recent(state.memory.config.recent, since=0, training=True)
        else:
            found = state.memory.training_set(
                since=incident.onset_event,
                # To match the champion no label is needed: old events serve as well as new ones.
                replay=state.memory.config.replay if rung == "student" else settings.replay,
                replay_weight=settings.replay_weight,
                seed=self.config.seed,
            )
        place = np.full(len(state.classes) + 1, -1, dtype=np.int64)
        for position, name in enumerate(names):
            place[state.classes.add(name)] = position
        if base is None or encoder_digest(base) != state.memory.encoder:
            found = found.with_embeddings(None)
        found = found.relabelled(place[found.labels])
        return names, found.take(found.labels >= 0)

    def _labels(self, base: Served | Manifest | None) -> list[str]:
        """The labels of ``base``, and after them those with enough examples to be learned."""
        known = list(base.labels) if base else []
        counts = self.state.memory.class_counts()
        least = self.config.learn.new_class_min
        return known + [
            name
            for number, name in enumerate(self.state.classes.names)
            if name not in known and counts.get(number, 0) >= least
        ]

    def _archived(self, champion: Served) -> list[str]:
        """Versions that could be recalled, newest first."""
        registered = self.registry.state()
        barred = {champion.version, *registered.withdrawn, *self.state.failed}
        versions = [
            version.id
            for version in reversed(self.registry.versions())
            if version.id not in barred
            and ("follows" not in version.manifest.lineage or version.id in registered.chain)
            and not self.registry.taken_back(version.id)
            and not self._tainted(version.id)
        ]
        return versions[:RECALL_CANDIDATES]

    def _follow_trainer(self, champion: Served | None) -> None:
        job = self.trainer.job
        if job is None:
            return
        for line in self.trainer.progress():
            self._panel(job, line)
        result = self.trainer.result()
        if result is None:
            return
        self.metrics.refresh_seconds(job.strategy).observe(result.seconds)
        self.metrics.refresh_cpu_seconds(job.strategy).inc(result.cpu_seconds)
        try:
            self._collect(job, result, champion)
            self._adopt(job, champion)
        except RegistryError as error:
            log.error("cannot register the result of %s: %s", job.id, error)
            self._attempt_ended("failed", str(error))
        finally:
            self.trainer.done()

    def _adopt(self, job: Job, champion: Served | None) -> None:
        """Keep the embeddings that the trainer computed with the champion's encoder."""
        found = read_embedded(self.trainer.folder_of(job))
        if found is None or found.embeddings is None:
            return
        if job.parent is None and champion is not None:
            return  # a new encoder, which does not serve yet
        made_by = Path(job.parent).name if job.parent else self.registry.state().champion
        if made_by is None or (champion and champion.version != made_by):
            return
        encoder = encoder_digest(self.registry.version(made_by).manifest)
        self.state.memory.adopt(found.ids, found.embeddings, encoder)

    def _panel(self, job: Job, line: dict[str, Any]) -> None:
        panel = {
            "gradient_norm": self.metrics.gradient_norm,
            "update_to_weight": self.metrics.update_to_weight,
            "loss_fall": self.metrics.loss_fall,
            "accuracy_gain": self.metrics.accuracy_gain,
            "gap": self.metrics.gap,
        }
        for name, gauge in panel.items():
            if isinstance(line.get(name), int | float):
                gauge(job.strategy).set(line[name])
        self.journal.write("round", incident=self._incident_id(), rung=job.rung, **line)

    def _collect(self, job: Job, result: Result, champion: Served | None) -> None:
        """The trainer ended: a candidate goes on trial, or the attempt is over."""
        incident = self.state.incident
        if incident is None or not incident.attempts:
            return
        attempt = incident.attempts[-1]
        attempt.seconds, attempt.cpu_seconds = result.seconds, result.cpu_seconds
        attempt.parameters = result.parameters_touched
        self.metrics.refreshes(job.strategy, result.outcome).inc()
        if result.stopped is not None:
            why = result.stopped.partition(":")[0]
            self.metrics.training_stopped(job.strategy, why).inc()
        self.journal.write(
            "refresh-finished",
            incident=incident.id,
            rung=job.rung,
            outcome=result.outcome,
            reason=result.reason,
            stopped=result.stopped,
            seconds=result.seconds,
            cpu_seconds=result.cpu_seconds,
            peak_memory_mb=result.peak_memory_mb,
            examples=result.examples,
            parameters_touched=result.parameters_touched,
            metrics=result.metrics,
            recall=result.recall,
        )
        if result.outcome == "failed":
            self._attempt_ended("failed", result.reason)
        elif result.outcome == "recalled":
            assert champion is not None
            self._recalled(result.recall, champion)
        else:
            self._publish(job, result, champion)

    def _recalled(self, rows: list[dict[str, Any]], champion: Served) -> None:
        """Put the archived version that did best on trial, if it did clearly better."""
        ours = next((r["accuracy"] for r in rows if r["version"] == champion.version), 0.0)
        others = [row for row in rows if row["version"] != champion.version]
        best = max(others, key=lambda row: row["accuracy"], default=None)
        least = ours + self.config.policy.min_damage_points / 100
        if best is None or best["accuracy"] < least:
            found = f"{best['accuracy']:.1%}" if best else "none"
            reason = (
                f"no archived version fits the recent events better ({found} against {ours:.1%})"
            )
            self._attempt_ended("rejected", reason)
            return
        self._begin_trial(best["version"], "recall", champion, chosen_from=len(others))

    def _publish(self, job: Job, result: Result, champion: Served | None) -> None:
        folder = self.trainer.folder_of(job) / VERSION
        draft = ManifestDraft(
            parent=Path(job.parent).name if job.parent else None,
            strategy=job.strategy,
            rung=job.rung,
            task=self.config.model.task,
            labels=job.labels,
            input_schema=result.input_schema,
            metrics=result.metrics,
            lineage=result.lineage,
        )
        version = self.registry.publish(folder, draft, actor=self.actor, given=True)
        if champion is None:
            reason = f"first version, from {result.examples} events"
            self.registry.promote(version.id, actor=self.actor, reason=reason)
            self._attempt_ended("promoted", reason, version=version.id)
            self._close("bootstrapped", reason)
            return
        if taken := self.registry.taken_back(version.id):
            reason = f"it is what was taken back as {taken}"
            self._attempt_ended("rejected", reason, version=version.id)
            return
        self.registry.set_challenger(version.id, actor=self.actor, reason=f"trained: {job.rung}")
        self._begin_trial(version.id, job.rung, champion)

    # ---------------------------------------------------------------- the trial before the gate

    def _begin_trial(
        self, version: str, rung: Rung, champion: Served, *, chosen_from: int = 1
    ) -> None:
        """Open the INT8 file as the server will, and judge what is at hand at once."""
        state, incident = self.state, self.state.incident
        assert incident is not None
        manifest = self.registry.version(version).manifest
        challenger = self._open(version)
        ratio = None
        if challenger.encoder != champion.encoder:
            ratio = _latency_ratio(challenger.session.graph, champion.session.graph, state)
        checks = artefact_checks(manifest.metrics, self.config.gate, ratio)
        names, slices = state.part_names, state.slices()
        anchored = None if incident.kind == "concept" else self._anchored(challenger, champion)
        trial = Trial(
            version,
            rung,
            self.config.gate,
            names,
            checks,
            chosen_from,
            slices,
            anchored,
            state.scale,
        )
        self.challenger, state.trial = challenger, trial
        incident.attempts[-1].version = version
        incident.attempts[-1].outcome = "trial"
        unseen = state.memory.unseen(since=incident.since_event, cutoff=self._cutoff, limit=BACKLOG)
        if len(unseen):
            unseen = self._embedded(unseen, champion)
            ours, theirs = self._predict(challenger, unseen), self._predict(champion, unseen)
            trial.observe(unseen.truth, ours, theirs, columns(unseen.inputs))
        self.journal.write("trial-opened", incident=incident.id, **trial.as_dict())
        self._judge_trial(trial, champion)

    def _anchored(self, challenger: Served, champion: Served) -> Tally | None:
        """What the challenger has forgotten of the anchor; None where there is none."""
        anchor = self.state.memory.anchor
        if not len(anchor):
            return None
        anchor = self._embedded(anchor, champion)
        ours, theirs = self._predict(challenger, anchor), self._predict(champion, anchor)
        tally = Tally()
        truth, scale = anchor.truth, self.state.scale
        tally.observe(score(scale, ours.predicted, truth), score(scale, theirs.predicted, truth))
        return tally

    def _embedded(self, examples: Examples, champion: Served) -> Examples:
        """The examples with the champion's embeddings; what is missing is computed and kept."""
        memory, found = self.state.memory, examples.embeddings
        if memory.encoder != champion.encoder or found is None:
            return examples
        missing = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if not len(missing):
            return examples
        found = found.copy()
        found[missing] = champion.answer(examples.inputs[missing]).embeddings
        memory.adopt(examples.ids[missing], found[missing], champion.encoder)
        return examples.with_embeddings(found)

    def _predict(self, served: Served, examples: Examples) -> Opinion:
        found = examples.embeddings
        ours = self.state.memory.encoder == served.encoder
        if ours and found is not None and np.isfinite(found).all():
            return served.judge(found)
        return served.answer(examples.inputs).opinion

    def _judge_trial(self, trial: Trial, champion: Served) -> None:
        verdict = trial.verdict()
        if verdict.decision == "undecided":
            return
        evidence = trial.as_dict()
        self.registry.attach(trial.version, "gate", {**evidence, "champion": champion.version})
        self.metrics.verdicts(verdict.decision, trial.rung).inc()
        self.journal.write(
            "verdict", incident=self._incident_id(), champion=champion.version, **evidence
        )
        if verdict.decision == "reject":
            self._reject(trial, verdict)
        elif self.config.gate.canary.steps and trial.rung != "recall":
            self._begin_canary(trial, verdict)
        else:
            self._promote(trial, verdict, champion)

    def _begin_canary(self, trial: Trial, verdict: Verdict) -> None:
        gate = self.config.gate
        canary = Canary(trial.version, gate.canary, gate.alpha, margin=trial.test.margin)
        if self._route(canary, verdict.reason):
            self.state.canary = canary
            self.journal.write("canary-step", version=trial.version, share=canary.share)

    def _route(self, canary: Canary, reason: str) -> bool:
        """Give the challenger its share; False if the trial is over, as somebody else decided."""
        try:
            routing = self.registry.route(
                canary.version,
                mode="canary",
                share=canary.share,
                slow_seconds=canary.config.slow_seconds,
                actor=self.actor,
                reason=reason,
            )
        except RegistryError as error:
            self._drop_trial(str(error))
            self._attempt_ended("rejected", str(error))
            return False
        canary.generation = routing.generation
        return True

    def _judge_canary(self, trial: Trial, champion: Served) -> None:
        """The next step, the promotion after the last one, or back."""
        canary = self.state.canary
        assert canary is not None
        traffic = self.registry.traffic(canary.generation)
        step, verdict = canary.judge(traffic)
        if step == "wait":
            return
        evidence = canary.as_dict(traffic)
        self.registry.attach(trial.version, "canary", evidence)
        if step == "back":
            self.journal.write("canary-back", **evidence)
            self._reject(trial, verdict)
        elif canary.last:
            self.journal.write("canary-passed", **evidence)
            self._promote(trial, trial.verdict(), champion)
        else:
            canary.climb(canary.generation, traffic)
            if self._route(canary, verdict.reason):
                self.journal.write("canary-step", **{**evidence, "share": canary.share})

    def _end_canary(self, reason: str) -> None:
        """The challenger sees no more traffic."""
        if self.state.canary is None:
            return
        self.state.canary = None
        self.registry.route(None, mode="off", actor=self.actor, reason=reason)

    def _promote(self, trial: Trial, verdict: Verdict, champion: Served) -> None:
        state = self.state
        try:
            self.registry.promote(
                trial.version,
                actor=self.actor,
                reason=verdict.reason,
                expect_champion=champion.version,
            )
        except RegistryError as error:
            # Somebody moved or pinned the champion meanwhile: theirs stands.
            self._drop_trial(str(error))
            self._attempt_ended("rejected", str(error))
            return
        self._end_canary(verdict.reason)
        state.trial, self.challenger = None, None
        self._attempt_ended("promoted", verdict.reason, gain=trial.test.gain)
        if trial.rung == "recall" and state.incident is not None:
            # It learned from as many events of its regime in its day as are worth a refit now.
            had = self.registry.version(trial.version).manifest.lineage.get("examples", 0)
            state.learned_event = state.incident.onset_event + had
        self._promoted(trial.rung, champion)
        if state.incident and state.incident.cause != "drift":
            self._close("improved", verdict.reason)

    def _promoted(self, rung: str, champion: Served) -> None:
        """The promotion counts; the ``champion`` that was did badly in this regime."""
        state = self.state
        state.promotions.append(self._clock.time())
        self.metrics.promotions(rung).inc()
        state.failed = [champion.version]  # no candidate for a recall in it
        if state.incident is None:
            return
        # What follows is judged on the new champion's own events.
        state.incident.since_event = state.events
        state.incident.wait_until = state.events + self.config.policy.settle_events

    def _reject(self, trial: Trial, verdict: Verdict) -> None:
        state = self.state
        state.failed.append(trial.version)
        self._end_canary(verdict.reason)
        state.trial, self.challenger = None, None
        self.registry.set_challenger(None, actor=self.actor, reason=verdict.reason)
        self._attempt_ended("rejected", verdict.reason, gain=trial.test.gain)

    def _drop_trial(self, reason: str) -> None:
        if self.state.trial:
            version = self.state.trial.version
            self.journal.write("trial-dropped", version=version, reason=reason)
        self._end_canary(reason)
        self.state.trial, self.challenger = None, None

    def _attempt_ended(
        self, outcome: str, reason: str, *, version: str | None = None, gain: float = 0.0
    ) -> None:
        incident = self.state.incident
        if incident is None or not incident.attempts:
            return
        attempt = incident.attempts[-1]
        if outcome == "failed":
            log.error("%s failed: %s", attempt.rung, reason)
        attempt.outcome, attempt.reason = outcome, reason
        attempt.version = version or attempt.version
        attempt.gain_points = round(gain, 2)
        self.journal.write(
            "attempt-ended",
            incident=incident.id,
            rung=attempt.rung,
            outcome=outcome,
            reason=reason,
            version=attempt.version,
            gain_points=attempt.gain_points,
            seconds=attempt.seconds,
            cpu_seconds=attempt.cpu_seconds,
            examples=attempt.examples,
            parameters_touched=attempt.parameters,
        )
        if incident.cause != "drift" and outcome != "promoted" and incident.only is not None:
            self._close("unrepaired", reason)

    def _cancel(self, reason: str) -> None:
        job = self.trainer.job
        if job is None:
            return
        self.trainer.cancel()
        self.metrics.refreshes(job.strategy, "cancelled").inc()
        self.journal.write("refresh-cancelled", rung=job.rung, reason=reason)

    # ---------------------------------------------------------------- following what learns online

    @property
    def _may_follow(self) -> bool:
        """Whether versions may serve that had no trial of their own, but watched as a run."""
        policy, gate = self.config.policy, self.config.gate
        return bool(
            policy.follow.events
            and policy.online_head
            and "online" in policy.rungs
            and self.config.probation.events
            and not gate.canary.steps  # which every version is to climb
        )

    @property
    def _whole_follows(self) -> bool:
        """Whether versions follow a whole model, and not just a head on a fixed encoder."""
        online = self.state.online
        return self.state.following is not None and online is not None and online.whole

    def opened(self, version: str) -> Served | None:
        """The version, if it is a step that is open already."""
        step, self._step = self._step, None
        return step if step is not None and step.version == version else None

    def end_following(self, reason: str) -> None:
        """What learns online is to be proven anew before a version follows it again."""
        state, run = self.state, self.state.following
        if run is None:
            return
        self.journal.write(
            "follow-ended",
            version=run.version,
            first=run.first,
            steps=run.steps,
            began_event=run.began_event,
            reason=reason,
        )
        state.follow_anew(rest=self.config.policy.settle_events)
        self.tidy()

    def tidy(self) -> None:
        """Remove old versions, but not the first, nor one that the trainer is at work on."""
        job = self.trainer.job
        spare = {self.state.baseline.version}
        if job:
            spare.update(name for name, _ in job.candidates)
        if job and job.parent:
            spare.add(Path(job.parent).name)
        if removed := self.registry.collect(actor=self.actor, spare=spare):
            log.info("removed old versions: %s", ", ".join(removed))

    def _keep_up(self, champion: Served) -> bool:
        """Let what learns online serve as it is proven, or as it is now; True if it does."""
        state, run = self.state, self.state.following
        if run is not None:
            return self._take_step(run, champion)
        trial = state.learner
        if not self._may_follow or state.events < state.follow_after or state.online is None:
            return False
        if state.incident is not None and state.incident.smaller:
            return False
        if trial.test.verdict == "undecided" and trial.test.events < trial.deadline:
            return False
        verdict = trial.verdict()
        if verdict.decision == "reject":
            self._learner_rejected(verdict.reason)
        if verdict.decision != "promote" or self._tainted(champion.version):
            return False
        if state.promotions_today() >= self.config.policy.max_promotions_per_day:
            return False
        return self._begin_following(trial, champion)

    def _learner_rejected(self, reason: str) -> None:
        self.journal.write("learner-rejected", champion=self.state.champion, reason=reason)
        self.state.follow_anew(rest=self.config.policy.settle_events)

    def _begin_following(self, trial: Trial, champion: Served) -> bool:
        """The learner is proven; its snapshot serves if the INT8 file and the anchor say so too."""
        state = self.state
        try:
            step, checks, _ = self._make_step(champion, follows=champion.version)
        except (PatchError, LoadError) as error:
            self._learner_rejected(str(error))
            return False
        trial.version, trial.checks = step.version, checks
        if not (state.incident and state.incident.kind == "concept"):
            trial.anchor = self._anchored(step, champion)
        verdict, evidence = trial.verdict(), trial.as_dict()
        self.registry.attach(trial.version, "gate", {**evidence, "champion": champion.version})
        self.metrics.verdicts(verdict.decision, trial.rung).inc()
        self.journal.write(
            "verdict", incident=self._incident_id(), champion=champion.version, **evidence
        )
        if verdict.decision != "promote":
            self._learner_rejected(verdict.reason)
            return False
        reason = f"what learns online: {verdict.reason}"
        if state.trial:
            sooner = "what learns online was proven sooner"
            self._drop_trial(sooner)
            self.registry.set_challenger(None, actor=self.actor, reason=sooner)
            self._attempt_ended("outgrown", sooner)
        self.registry.promote(
            step.version, actor=self.actor, reason=reason, expect_champion=champion.version
        )
        now = self._clock.monotonic()
        state.following = Following(step.version, step.version, state.events, now)
        self._step = step
        if state.incident and state.incident.cause == "drift":
            # The last attempt may be under way still.
            done = Attempt("online", state.events, "promoted", step.version, reason)
            done.gain_points = round(trial.test.gain, 2)
            attempts = state.incident.attempts
            attempts.insert(len(attempts) - self.trainer.running, done)
        self._promoted(trial.rung, champion)
        return True

    def _take_step(self, run: Following, champion: Served) -> bool:
        """The next version of the run, if it is due and answers otherwise than the present one."""
        state, settings = self.state, self.config.policy.follow
        probation = state.probation
        if probation is None or self.yardstick is None:
            self.end_following("nothing is left to hold it against")
            return False
        if not run.due(settings, self._clock.monotonic()):
            return False
        recent = state.memory.recent(min(max(run.learned, FEWEST_COMPARED), COMPARED))
        if not self._answers_otherwise(recent, champion):
            run.learned = 0
            return False
        began, cpu = time.monotonic(), time.process_time()
        try:
            step, checks, examples = self._make_step(champion, follows=probation.previous)
        except (PatchError, LoadError) as error:
            self.end_following(str(error))
            return False
        if state.incident and state.incident.kind == "concept":
            run.anchored = False  # its labels are wrong now
        if run.anchored and (tally := self._anchored(step, self.yardstick)):
            checks.append(forgetting(tally, max(probation.test.gain, 0.0), self.config.gate))
        verdict = combine(checks)
        if verdict.decision == "reject":
            self.end_following(f"{step.version} would not do: {verdict.reason}")
            return False
        reason = (
            f"follows what learned {run.learned} events more: {run.won} won, {run.lost} lost "
            f"against {champion.version}"
        )
        self.registry.follow(
            step.version,
            keep=champion.version == probation.previous,
            actor=self.actor,
            reason=reason,
            expect_champion=champion.version,
        )
        self.metrics.follow_ups().inc()
        self.journal.write(
            "followed",
            version=step.version,
            champion=champion.version,
            proven=probation.previous,
            learned=run.learned,
            won=run.won,
            lost=run.lost,
            gain_points=round(probation.test.gain, 2),
            checks=[check.as_dict() for check in checks],
            examples=examples,
            seconds=round(time.monotonic() - began, 3),
            cpu_seconds=round(time.process_time() - cpu, 3),
        )
        run.stepped(step.version, self._clock.monotonic())
        probation.version = step.version
        self._step = step
        if run.steps % STEPS_KEPT == 0:
            self.tidy()
        return True

    def _answers_otherwise(self, recent: Examples, champion: Served) -> bool:
        """Whether what learns online, having learned them, says something else of an event."""
        online = self.state.online
        if online is None or not len(recent):
            return False
        recent = self._embedded(recent, champion)
        found = recent.embeddings
        if found is None:
            return True
        theirs = self._predict(champion, recent).predicted
        return not np.array_equal(online.judge(recent.inputs, found), theirs)

    def _make_step(self, champion: Served, follows: str) -> tuple[Served, list[Check], int]:
        """Publish what has learned online, open its INT8 file, and check it.

        Also how many events it has learned. Raises PatchError and LoadError if it is not sound.
        """
        state = self.state
        assert state.online is not None
        folder = self.trainer.folder / "step"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        labels = self._labels(champion)
        columns = np.array([state.classes.add(name) for name in labels])
        parent = self.registry.path(champion.version, verify=False)
        manifest = self.registry.version(champion.version).manifest
        write_step(state.online, labels, columns, parent, folder)
        run = state.following.first if state.following else None
        origin = lineage(state.met, run, follows, state.events, self.config.seed)
        recent = self._embedded(state.memory.recent(COMPARED), champion)
        metrics = {k: v for k, v in manifest.metrics.items() if k in INHERITED}
        metrics |= self._held_out(recent)
        draft = ManifestDraft(
            parent=follows,
            strategy="follow",
            rung="online",
            task=manifest.task,
            labels=labels,
            input_schema=manifest.input_schema,
            metrics=metrics,
            lineage={**origin, "excluded": [stretch.as_dict() for stretch in self._excluded()]},
        )
        version = self.registry.publish(folder, draft, actor=self.actor, given=True).id
        shutil.rmtree(folder, ignore_errors=True)
        step = self._open(version)
        step.step = True
        checks, measured = same_answers(step, parent, state.online, recent, state.scale)
        metrics |= measured
        return step, [*artefact_checks(metrics, self.config.gate, None), *checks], state.met.events

    def _held_out(self, recent: Examples) -> dict[str, float]:
        """How what learns online does on those of the events that it has not learned from."""
        online, scale = self.state.online, self.state.scale
        held = recent.take(self.state.memory.held_out(recent.ids))
        if online is None or held.embeddings is None or not len(held):
            return {}
        said = online.judge(held.inputs, held.embeddings)
        found = {"accuracy": float(right(scale, said, held.truth).mean())}
        return found if held.targets is None else found | errors(said, held.targets)

    # ---------------------------------------------------------------- probation

    def _judge_probation(self, champion: Served) -> bool:
        """Roll back if the new champion is shown worse than the old one; True if it was.

        A run that follows what learns online is proven as a whole: its present version is what the
        next ones are held against, and the probation goes on.
        """
        state = self.state
        probation = state.probation
        if probation is None:
            return False
        test = probation.test
        # What learns may be slower than a change for a moment: only what lasts is held against it.
        least = self.config.policy.settle_events if state.following else 0
        if test.verdict == "worse" and test.events >= least:
            reason = (
                f"probation: {probation.version} loses {-test.gain:.1f} points to "
                f"{probation.previous} on {test.events} events (e-value {test.worse:.3g})"
            )
            self.journal.write("probation-failed", version=probation.version, **test.as_dict())
            self.registry.attach(probation.version, "probation", test.as_dict())
            self.end_following(reason)
            self._roll_back(probation, reason)
            return True
        if test.verdict == "better" or test.events >= self.config.probation.events:
            self.journal.write("probation-passed", version=probation.version, **test.as_dict())
            self.registry.attach(probation.version, "probation", test.as_dict())
            state.probation, self.yardstick = None, None
            if state.following:
                state.following.proven += 1
                self._watch(champion, champion)
        return False

    def _watch(self, new: Served, old: Served) -> None:
        """``new`` is on probation against ``old``; of a run, ``old`` is what was proven last."""
        rung = self.registry.version(new.version).manifest.rung
        # What a student was allowed to lose before the gate is no reason to take it back.
        margin = margin_of(rung, self.config.gate)
        test = PairedTest(self.state.probation_alpha, margin=margin)
        self.state.probation = Probation(new.version, old.version, self.state.events, test)
        self.yardstick = old

    def _roll_back(self, probation: Probation, reason: str) -> None:
        state = self.state
        state.probation, self.yardstick = None, None
        try:
            # Worse here and now is no verdict for ever: the version may be recalled when its
            # regime returns, so it is not withdrawn, only barred until the next promotion.
            self.registry.rollback(
                to=probation.previous, actor=self.actor, reason=reason, withdraw=False
            )
        except RegistryError as error:
            log.error("the rollback of %s failed: %s", probation.version, error)
            self.journal.write("rollback-failed", version=probation.version, reason=str(error))
            self.metrics.errors("rollback").inc()
            return
        state.failed.append(probation.version)
        self.metrics.rollbacks("probation").inc()

    # ---------------------------------------------------------------- words

    def _incident_id(self) -> str | None:
        return self.state.incident.id if self.state.incident else None


def _brief(incident: Incident) -> dict[str, Any]:
    return {
        "incident": incident.id,
        "cause": incident.cause,
        "drift": incident.kind,
        "since_event": incident.since_event,
        "reference_accuracy": round(incident.reference_accuracy, 4),
        "severity": round(incident.severity, 3),
        "sentence": incident.sentence,
    }


def _named(diagnosis: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The diagnosis with classes by name beside their numbers."""
    for key in ("shares", "errors"):
        for entry in diagnosis.get(key) or ():
            label = entry["label"]
            entry["class"] = names[label] if 0 <= label < len(names) else "not seen before"
    return diagnosis


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def _latency_ratio(challenger: Session, champion: Session, state: State) -> float | None:
    """Median time of one item by the challenger over the champion's, in turn on the same items."""
    sample = state.memory.recent(LATENCY_ROUNDS, since=0).inputs
    if not len(sample):
        return None
    times: dict[int, list[float]] = {0: [], 1: []}
    for position in range(len(sample)):
        for side, session in enumerate((challenger, champion)):
            began = time.perf_counter()
            session.predict(sample[position : position + 1])
            times[side].append(time.perf_counter() - began)
    return float(np.median(times[0]) / np.median(times[1]))
