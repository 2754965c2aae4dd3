"""One daemon among several of one model: who leads, and which partitions are whose.

Each daemon reads its partitions of the topic, predicts, watches and remembers. A lease says which
one also trains and promotes. A partition that moves takes along its position and what was learned
from it (`daemon.partitions`): whoever gets it goes on exactly there, and what the one before had
not committed is forgotten by it and read again by the other. So each event is learned once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daemon.events import EMPTY, EventBatch
from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.partitions import Held, Partitions
from daemon.served import Served
from daemon.sources.source import Partition, Source
from daemon.state import State
from learn.examples import Examples
from registry import Registry, StorageError, Superseded

if TYPE_CHECKING:
    from daemon.handover import Handover

log = logging.getLogger("driftd.sharing")


class Sharing:
    """This daemon's part in the group; ``owner`` names it, unlike any other process."""

    def __init__(
        self,
        registry: Registry,
        source: Source,
        state: State,
        journal: JournalWriter,
        metrics: Metrics,
        owner: str,
        lease_seconds: float,
        handover: Handover | None = None,
    ) -> None:
        self.owner = owner
        self.lease = registry.lease(owner, lease_seconds)
        self.partitions = Partitions(registry.store, owner)
        self._registry = registry
        self._source = source
        self._state = state
        self._journal = journal
        self._metrics = metrics
        #: To the leader, where there is a topic for it.
        self.handover = handover
        self._leads = False
        self._unclaimed: set[Partition] = set()
        #: The epochs of our claims when the checkpoint was taken that we began from.
        self._before: dict[Partition, int] = {}
        self._known: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        for what in ("sent", "taken"):
            metrics.handovers(what)
        for what in ("taken", "left", "fenced"):
            metrics.partition_moves(what)  # at 0 from the start: the first is an increase

    @property
    def leads(self) -> bool:
        """Whether this daemon may train and promote now."""
        return self._leads and self.lease.held

    # ---------------------------------------------------------------- the checkpoint

    def values(self) -> dict[str, Any]:
        """For the checkpoint: the epochs of our claims, and how far the handover was read."""
        epochs = [(*place, epoch) for place, epoch in sorted(self.partitions.epochs.items())]
        return {"epochs": epochs, "handover": self.handover and self.handover.values()}

    def restore(self, values: Mapping[str, Any] | None) -> None:
        """What our own checkpoint knows of partitions; whether it still counts, a claim tells."""
        values = values or {"epochs": ()}
        self._before = {(topic, number): epoch for topic, number, epoch in values["epochs"]}
        if self.handover is not None and values.get("handover"):
            self.handover.restore(values["handover"])
        self._known = dict(self._state.positions)
        self._state.positions.clear()  # none is ours before we have claimed it

    def hand_over(self) -> None:
        """Before a checkpoint: make sure that the leader gets what it should. Raises HandoverError.

        What a checkpoint says was read is not read again, and could not be handed over any more.
        """
        if self.handover is None:
            return
        score, watch = self._state.prequential, self._state.watch
        self.handover.tell(
            {
                "events": self._state.events,
                "labelled": score.labelled,
                "right": score.right,
                "partitions": len(self.partitions.epochs),
                "leads": self.leads,
                "drift": {s.detector: round(s.score / s.threshold, 4) for s in watch.signals},
            }
        )
        self.handover.flush()

    @property
    def full(self) -> bool:
        """Whether to read no more until `hand_over` succeeds."""
        return self.handover is not None and self.handover.full

    def offer(self, batch: EventBatch) -> None:
        """Events of our partitions were read; the leader reads no more of its own than others do.

        The leader's are handed over too, for the one that comes after it.
        """
        if self.handover is not None and len(batch):
            self._metrics.handovers("sent").inc(self.handover.send(batch))

    def guests(self, most: int) -> EventBatch:
        """Where this daemon leads: events of the others' partitions. Raises HandoverError."""
        if self.handover is None or not self.leads:
            return EMPTY
        found = self.handover.take(most, self.partitions.epochs)
        self._metrics.members().set(len(self.handover.members()))
        if len(found):
            # One that is new reads what the one before had read, and may have seen some itself.
            found = found.take(~self._state.memory.known(found.ids))
            self._metrics.handovers("taken").inc(len(found))
        return found

    def commit(self) -> None:
        """After a checkpoint: keep each partition's position with what was learned from it.

        Raises StorageError; then a successor goes on from the commit before.
        """
        for place in sorted(self.partitions.epochs):
            position = self._state.positions.get(place)
            if position is None or self._committed.get(place) == position:
                continue
            if self._commit(place, position):
                self._committed[place] = position
            else:
                self._fenced(place)

    def _commit(self, place: Partition, position: int) -> bool:
        examples = self._state.memory.lying_in(*place)
        names = tuple(self._state.classes.names)
        return self.partitions.commit(place, position, examples, names)

    # ---------------------------------------------------------------- each turn

    def turn(
        self,
        champion: Served | None,
        *,
        gained: Callable[[int], None],
        lost: Callable[[str], None],
    ) -> None:
        """Claim and let go of partitions; renew the lease, or look for one that has run out.

        ``gained`` is called with the term, ``lost`` with a reason. Raises RegistryError.
        """
        came, went = self._source.moves()
        self._unclaimed = (self._unclaimed - went) | came
        for place in sorted(went):
            self._let_go(place)
        try:
            self._lead(gained, lost)
        finally:
            for place in sorted(self._unclaimed):
                self._take(place, champion)
                self._unclaimed.discard(place)
        self._metrics.partitions().set(len(self.partitions.epochs))

    def close(self) -> None:
        """Give the lease back, so that another leads at once. Raises StorageError."""
        self._leads = False
        if self.handover is not None:
            self.handover.close()
        self.lease.release()

    def mine(self, batch: EventBatch) -> NDArray[np.bool_]:
        """Bool [n]: which events lie in partitions that are ours."""
        places = zip(batch.topics.tolist(), batch.partitions.tolist(), strict=True)
        return np.fromiter((place in self.partitions for place in places), np.bool_, len(batch))

    def _lead(self, gained: Callable[[int], None], lost: Callable[[str], None]) -> None:
        try:
            self.lease.step()
        finally:
            if self._leads and not self.lease.held:
                self._leads = False
                if self.handover is not None:
                    self.handover.rest()
                lost(f"the lease of term {self._registry.term} has run out")
                self._registry.term = None  # what operators order through this daemon is theirs
            self._metrics.leader().set(self.leads)
            self._metrics.leader_term().set(self.lease.term)
        if self.lease.held and not self._leads:
            try:
                self._registry.lead(self.lease.term, actor=self.owner)
            except Superseded as error:
                log.error("%s", error)
                self.lease.release()
                return
            self._leads = True
            self._metrics.leader().set(1)
            log.info("this daemon leads in term %d", self.lease.term)
            gained(self.lease.term)

    # ---------------------------------------------------------------- partitions

    def _take(self, place: Partition, champion: Served | None) -> None:
        state = self._state
        held = self.partitions.claim(place)
        ours = self._before.pop(place, None)
        known = self._known.pop(place, None)
        if known is not None and ours is not None and ours == held.epoch:
            position: int | None = known  # nobody had it meanwhile: our checkpoint is the newest
        else:
            position = held.position
            self._forget(place)
            self._adopt(held, champion)
        self._committed.pop(place, None)
        if position is not None:
            state.positions[place] = position
        self._source.begin(place, position)
        self._metrics.partition_moves("taken").inc()
        self._journal.write(
            "partition-taken",
            topic=place[0],
            partition=place[1],
            position=position,
            epoch=held.epoch + 1,
            before=held.owner or None,
            examples=len(held.examples),
        )

    def _let_go(self, place: Partition) -> None:
        """The group gave it to another: what it may still know is committed, if it is in time."""
        position = self._state.positions.get(place)
        if place not in self.partitions:
            return
        kept = False
        try:
            kept = position is not None and self._commit(place, position)
        except StorageError as error:
            log.warning("%s/%d is given away as it was at the last commit: %s", *place, error)
        self.partitions.forget(place)
        self._gone(place, "left" if kept else "fenced")

    def _fenced(self, place: Partition) -> None:
        """Another had claimed it before the group told us."""
        self._source.leave(place)
        self._gone(place, "fenced")

    def _gone(self, place: Partition, what: str) -> None:
        position = self._state.positions.pop(place, None)
        self._committed.pop(place, None)
        forgotten = 0
        if self.handover is not None and self.leads and position is not None:
            # The leader goes on with what it has learned, and is handed what comes after.
            self.handover.watermarks[place] = position
        else:
            forgotten = self._forget(place)
            if self.handover is not None:
                self.handover.forget(place)
        self._metrics.partition_moves(what).inc()
        self._journal.write(
            f"partition-{what}",
            topic=place[0],
            partition=place[1],
            position=position,
            examples=forgotten,
        )

    def _forget(self, place: Partition) -> int:
        memory = self._state.memory
        return len(memory.take_out(memory.lying_in(*place).ids))

    def _adopt(self, held: Held, champion: Served | None) -> None:
        """What another learned from the partition becomes our memory of it."""
        examples, state = held.examples, self._state
        if not len(examples):
            return
        numbers = np.array([state.classes.add(name) for name in held.labels], dtype=np.int64)
        examples = examples.relabelled(numbers[examples.labels])
        encoder = state.memory.encoder or (champion.encoder if champion else "")
        if champion is not None:
            unknown = np.full((len(examples), len(champion.weight)), np.nan, dtype=np.float32)
            examples = examples.with_embeddings(unknown)
        # They came before all that this daemon counts from here on.
        state.memory.add(_arrived(examples, 0), encoder)

    def status(self) -> Mapping[str, Any]:
        """Plain values, for the status."""
        return {
            "owner": self.owner,
            "leads": self.leads,
            "term": self.lease.term,
            "leader": self.lease.holder,
            "partitions": sorted(self.partitions.epochs),
            "members": self.handover.members() if self.handover and self.leads else None,
        }


def _arrived(examples: Examples, number: int) -> Examples:
    """The same events, as if each had been the ``number``-th to come."""
    return replace(examples, arrivals=np.full(len(examples), number, dtype=np.int64))
