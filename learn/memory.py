"""What may be learned from: the recent window, a replay reservoir, and a held-out split.

Bounded in events and bytes. Membership of the held-out split is a hash of the event's id, so that
no restart and no second reading can move an event from judging to training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from learn.config import MemoryConfig
from learn.examples import Arrays, Examples

_HASHES = float(2**64)

#: Topic, partition, first offset, and the first offset that no longer belongs to it.
Range = tuple[str, int, int, int]


class Memory:
    """Labelled events of one model.

    Labels are class numbers of the caller. Embeddings belong to one encoder; when another encoder
    comes, the old rows become NaN and are computed anew by whoever needs them.
    """

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self.encoder = ""
        self.excluded: tuple[Range, ...] = ()
        self._recent = Examples.empty()
        self._replay = Examples.empty()
        #: Held-out events of the first training, even over the classes: what not to forget.
        self.anchor = Examples.empty()
        self._pending: list[Examples] = []
        self._pending_rows = 0
        self._judging: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        self._settle()
        return len(self._recent) + len(self._replay)

    @property
    def labelled(self) -> int:
        """Labelled events in memory, the held-out ones counted in."""
        return len(self)

    def sizes(self) -> dict[str, int]:
        """Events by part: ``recent``, ``held_out`` (of the recent), ``replay`` and ``anchor``."""
        return {
            "recent": len(self._recent) + self._pending_rows,
            "held_out": int(self._judges().sum()),
            "replay": len(self._replay),
            "anchor": len(self.anchor),
        }

    def held_out(self, ids: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Bool [n]: which of the events, by id (object [n] of str), only ever judge."""
        limit = self.config.holdout
        return np.fromiter((_hash(i) / _HASHES < limit for i in ids), np.bool_, count=len(ids))

    def _judges(self) -> NDArray[np.bool_]:
        """Bool [n]: the held-out events of the recent window; hashed once for each window."""
        if self._judging is None:
            self._judging = self.held_out(self._recent.ids)
        return self._judging

    def add(self, examples: Examples, encoder: str) -> None:
        """Take in labelled events; ``encoder`` names what made their embeddings, if any.

        An id that is known already is the same event with a newer label.
        """
        if self.excluded:
            examples = examples.take(~self._barred(examples))
        if not len(examples):
            return
        if encoder != self.encoder:
            self._settle()
            self.encoder = encoder
            self._recent = self._recent.with_embeddings(_none(len(self._recent), examples))
            self._replay = self._replay.with_embeddings(_none(len(self._replay), examples))
            self.anchor = self.anchor.with_embeddings(_none(len(self.anchor), examples))
        self._pending.append(examples)
        self._pending_rows += len(examples)
        if self._pending_rows > self.config.recent // 2:
            self._settle()

    def exclude(self, ranges: Iterable[Range]) -> int:
        """Forget the events of these offset ranges, and never take one in; how many there were."""
        before = len(self)
        self.excluded = tuple(sorted({*self.excluded, *ranges}))
        self._recent = self._recent.take(~self._barred(self._recent))
        self._replay = self._replay.take(~self._barred(self._replay))
        self._judging = None
        return before - len(self)

    def adopt(
        self, ids: NDArray[np.object_], embeddings: NDArray[np.float32], encoder: str
    ) -> None:
        """Keep embeddings, float32 [n, d], that ``encoder`` made of the events ``ids``.

        So no event is encoded twice. Ids that are no longer in memory are passed over, and so is
        everything of an encoder other than the memory's, once it has one.
        """
        self._settle()
        if self.encoder not in ("", encoder):
            return
        self.encoder = encoder
        row = {event_id: position for position, event_id in enumerate(ids)}
        self._recent = _adopted(self._recent, row, embeddings)
        self._replay = _adopted(self._replay, row, embeddings)
        self.anchor = _adopted(self.anchor, row, embeddings)

    def take_out(self, ids: NDArray[np.object_]) -> Examples:
        """Forget the events of these ids, but for the anchor; what there was of them."""
        self._settle()
        wanted = set(ids.tolist())
        found = []
        parts = []
        for part in (self._recent, self._replay):
            mine = np.fromiter((i in wanted for i in part.ids), np.bool_, count=len(part))
            found.append(part.take(mine))
            parts.append(part.take(~mine))
        self._recent, self._replay = parts
        self._judging = None
        return Examples.concatenate(found)

    def recent(self, limit: int, since: int = 0, training: bool = False) -> Examples:
        """The newest events from arrival ``since`` on; ``training``: without the held-out ones."""
        self._settle()
        wanted = self._recent.arrivals >= since
        if training:
            wanted &= ~self._judges()
        found = self._recent.take(wanted)
        return found.take(np.arange(max(0, len(found) - limit), len(found)))

    def numbered(self, arrivals: Sequence[int]) -> Examples:
        """The recent events of these numbers, in that order; those not in memory are left out."""
        self._settle()
        place = {number: i for i, number in enumerate(self._recent.arrivals.tolist())}
        found = [place[number] for number in arrivals if number in place]
        return self._recent.take(np.array(found, dtype=np.int64))

    def training_set(self, since: int, replay: int, replay_weight: float, seed: int) -> Examples:
        """Events from arrival ``since`` on at weight 1, and a sample of older ones for replay.

        The replay is drawn evenly from the classes, at ``replay_weight`` an event.
        """
        fresh = self.recent(self.config.recent, since, training=True)
        older = self._recent.take((self._recent.arrivals < since) & ~self._judges())
        pool = Examples.concatenate([self._replay, older])
        chosen = pool.take(_balanced(pool.labels, replay, seed))
        weights = np.full(len(chosen), replay_weight, dtype=np.float32)
        return Examples.concatenate([chosen.weighted(weights), fresh])

    def unseen(self, since: int, cutoff: int, limit: int) -> Examples:
        """Events that a challenger trained up to arrival ``cutoff`` has not learned from.

        The held-out ones from ``since`` on, and all from ``cutoff`` on; the newest ``limit``.
        """
        self._settle()
        arrivals = self._recent.arrivals
        wanted = arrivals >= cutoff
        wanted |= (arrivals >= since) & self._judges()
        index = np.flatnonzero(wanted)
        return self._recent.take(index[-limit:])

    def set_anchor(self, since: int, seed: int) -> None:
        """Make the held-out events from arrival ``since`` on the anchor, even over the classes."""
        self._settle()
        held = self._recent.take(self._judges() & (self._recent.arrivals >= since))
        self.anchor = held.take(_balanced(held.labels, self.config.anchor, seed))

    def class_counts(self) -> dict[int, int]:
        """Training events by class number."""
        self._settle()
        counts: dict[int, int] = {}
        # The replay never holds a held-out event.
        for kept in (self._recent.labels[~self._judges()], self._replay.labels):
            for label, count in zip(*np.unique(kept, return_counts=True), strict=True):
                counts[int(label)] = counts.get(int(label), 0) + int(count)
        return counts

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        self._settle()
        name = np.frombuffer(self.encoder.encode(), dtype=np.uint8)
        excluded = np.frombuffer(json.dumps(self.excluded).encode(), dtype=np.uint8)
        parts: Arrays = {"encoder": name, "excluded": excluded}
        kept = {"recent": self._recent, "replay": self._replay, "anchor": self.anchor}
        for prefix, part in kept.items():
            if len(part):
                parts |= {f"{prefix}/{k}": a for k, a in part.to_arrays().items()}
        return parts

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on exactly where `state` was taken."""
        self.encoder = state["encoder"].tobytes().decode()
        excluded = state["excluded"].tobytes() if "excluded" in state else b"[]"
        self.excluded = tuple((t, p, start, end) for t, p, start, end in json.loads(excluded))
        self._pending, self._pending_rows = [], 0
        self._recent, self._judging = _part("recent/", state), None
        self._replay = _part("replay/", state)
        self.anchor = _part("anchor/", state)

    def _barred(self, examples: Examples) -> NDArray[np.bool_]:
        """Bool [n]: which of the examples lie in an excluded range."""
        barred = np.zeros(len(examples), dtype=np.bool_)
        for topic, partition, start, end in self.excluded:
            here = (examples.topics == topic) & (examples.partitions == partition)
            barred |= here & (examples.offsets >= start) & (examples.offsets < end)
        return barred

    def _settle(self) -> None:
        """Work the pending events in: newest label wins, then the bounds."""
        if not self._pending:
            return
        together = Examples.concatenate([self._recent, *self._pending])
        self._pending, self._pending_rows = [], 0
        last = {event_id: position for position, event_id in enumerate(together.ids)}
        if len(self._replay):
            stale = np.array([event_id in last for event_id in self._replay.ids])
            self._replay = self._replay.take(~stale)
        if len(last) < len(together):
            together = together.take(np.array(sorted(last.values())))
        keep = min(self.config.recent, _fitting(together, self.config.max_bytes))
        start = max(0, len(together) - keep)
        aged, self._recent = (
            together.take(np.arange(start)),
            together.take(np.arange(start, len(together))),
        )
        self._judging = None
        if len(aged) and self.config.replay:
            self._age(aged)

    def _age(self, aged: Examples) -> None:
        aged = aged.take(~self.held_out(aged.ids))
        pool = Examples.concatenate([self._replay, aged])
        if not len(pool):
            return
        share = max(1, self.config.replay // len(np.unique(pool.labels)))
        # The events with the smallest hashes of a class are a uniform sample of it, whatever the
        # order of arrival (bottom-k sampling); no random state is needed.
        order = np.argsort([_hash(f"replay:{event_id}") for event_id in pool.ids], kind="stable")
        kept = []
        for label in np.unique(pool.labels):
            mine = order[pool.labels[order] == label]
            kept.append(mine[:share])
        self._replay = pool.take(np.sort(np.concatenate(kept)))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _none(rows: int, like: Examples) -> NDArray[np.float32] | None:
    if like.embeddings is None:
        return None
    return np.full((rows, like.embeddings.shape[1]), np.nan, dtype=np.float32)


def _adopted(part: Examples, row: dict[str, int], embeddings: NDArray[np.float32]) -> Examples:
    found = np.array([row.get(event_id, -1) for event_id in part.ids], dtype=np.int64)
    mine = found >= 0
    if not mine.any():
        return part
    kept = part.embeddings
    if kept is None:
        kept = np.full((len(part), embeddings.shape[1]), np.nan, dtype=np.float32)
    kept = kept.copy()
    kept[mine] = embeddings[found[mine]]
    return part.with_embeddings(kept)


def _part(prefix: str, state: Mapping[str, NDArray[np.generic]]) -> Examples:
    arrays = {k.removeprefix(prefix): a for k, a in state.items() if k.startswith(prefix)}
    return Examples.from_arrays(arrays) if arrays else Examples.empty()


def _fitting(examples: Examples, limit: int) -> int:
    """How many of the newest events fit into ``limit`` bytes."""
    row = 64 + (examples.embeddings.shape[1] * 4 if examples.embeddings is not None else 0)
    if examples.inputs.dtype == object:
        sizes = np.fromiter((len(text) for text in examples.inputs), np.int64, len(examples))
    else:
        sizes = np.full(len(examples), examples.inputs.dtype.itemsize)
    total = np.cumsum((sizes + row)[::-1])
    return int(np.searchsorted(total, limit, side="right"))


def _balanced(labels: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """Positions of at most ``limit`` examples, as even over the classes as they allow."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        rank[mine] = np.arange(len(mine))
    return np.sort(np.argsort(rank, kind="stable")[:limit])
