"""Admission: which labels of a batch count, and which go to the quarantine.

Between the prediction and everything that looks at labels. It asks the guard, keeps the quarantine,
and journals what it does; the loop only sees labels that count.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from daemon.config import Config
from daemon.guard import Agreement, Finding, Reason, Seen
from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.quarantine import Case
from daemon.served import Answer, Served
from daemon.state import State
from learn.examples import Examples

NAMED_IDS = 20  # of the events in a row of the journal


class Admission:
    """The guard at work on one model's stream."""

    def __init__(
        self, config: Config, state: State, journal: JournalWriter, metrics: Metrics
    ) -> None:
        self.config = config.guard
        named = config.fields.labeller is not None or config.guard.by_class
        self.active = named and not config.model.number  # it compares classes
        self._state = state
        self._journal = journal
        self._metrics = metrics
        self._agreement = Agreement()
        for reason in get_args(Reason):
            metrics.quarantined(reason)  # at 0 from the start, so that the first is an increase

    def admit(
        self,
        events: Examples,
        labellers: NDArray[np.object_] | None,
        answer: Answer,
        champion: Served,
    ) -> NDArray[np.bool_]:
        """Bool [n]: which of ``n`` labelled events count; the others are held.

        ``answer`` is the champion's, of the same events.
        """
        if not len(events) or not self.active:
            return np.ones(len(events), dtype=np.bool_)
        state = self._state
        names, quarantine = state.classes.names, state.quarantine
        self._expire()
        if labellers is None:
            labellers = np.full(len(events), None, dtype=object)
        agreed = self._agreement.of(
            answer,
            self._online(events, answer),
            state.memory,
            state.events,
            confidence=self.config.confidence,
        )
        seen = Seen(events.ids, labellers, events.labels, agreed, answer.embeddings)
        findings, lifted = state.guard.observe(seen, quarantine.cases, names)
        for key in lifted:
            self.release(quarantine.cases[key], champion, "others confirm it: a drift")
        for finding in findings:
            self._open(finding, champion)
        admitted = np.ones(len(events), dtype=np.bool_)
        found = list(quarantine.held_by(labellers, events.labels, seen.contradicted, names))
        for case, own in found:
            own = own & admitted
            case.hold(events.take(own), self.config.hold_most)
            self._metrics.quarantined(case.reason).inc(int(own.sum()))
            admitted &= ~own
        return admitted

    def _online(self, events: Examples, answer: Answer) -> NDArray[np.int64] | None:
        online = self._state.online
        return None if online is None else online.judge(events.inputs, answer.embeddings)

    def _open(self, finding: Finding, champion: Served) -> None:
        """A new case; what it gave since its contradictions began is taken out of the memory."""
        state = self._state
        case = state.quarantine.open(finding, state.events, champion.encoder)
        learned = state.memory.take_out(np.array(finding.ids, dtype=object))
        case.hold(learned, self.config.hold_most)
        self._metrics.quarantined(case.reason).inc(len(learned))
        if len(learned):
            # The online head has learned from them, step by step; it cannot unlearn them alone.
            state.restart_online(champion, anew=True)
        ids = learned.ids[:NAMED_IDS].tolist()
        self._journal.write("quarantined", **case.as_dict(), unlearned=len(learned), ids=ids)

    def release(self, case: Case, champion: Served, reason: str) -> None:
        """The labels were right: they are learned from, and the group is trusted again."""
        state = self._state
        held, encoder = case.held, state.memory.encoder or champion.encoder
        if case.encoder != encoder and len(held):
            unknown = np.full((len(held), len(champion.weight)), np.nan, dtype=np.float32)
            held = held.with_embeddings(unknown)
        state.memory.add(held, encoder)
        self._close(case, "quarantine-released", reason)

    def drop(self, case: Case, reason: str) -> None:
        """The labels were wrong: they are never learned; the group is judged anew."""
        self._close(case, "quarantine-dropped", reason)

    def _close(self, case: Case, kind: str, reason: str) -> None:
        self._journal.write(kind, **case.as_dict(), reason=reason)
        del self._state.quarantine.cases[case.key]
        self._state.guard.forget(case.key)

    def _expire(self) -> None:
        after = self.config.hold_events
        for case in list(self._state.quarantine.cases.values()):
            if self._state.events - case.opened_event >= after:
                self.drop(case, f"nobody released it for {after:,} events")
