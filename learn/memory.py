"""What may be learned from: the recent window, a replay reservoir, and two parts that only judge.

The held-out split is a hash of the event's id, so that no restart and no second reading can move
an event from judging to training. The anchor is held-out events of the first training, kept for
good: it shows what has been forgotten since. All parts are bounded in events and bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn.config import MemoryConfig
from learn.examples import Arrays, Examples

_HASHES = float(2**64)
_MOST = 10.0
# Of memory.max_bytes.
_SHARES = {"recent": 0.65, "replay": 0.25, "anchor": 0.1}

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
        self._anchor = Examples.empty()
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
            "anchor": len(self._anchor),
        }

    @property
    def size_bytes(self) -> int:
        """Bytes that the kept events take, by `memory.max_bytes`'s measure."""
        self._settle()
        return sum(int(_sizes(part).sum()) for part in (self._recent, self._replay, self._anchor))

    @property
    def anchor(self) -> Examples:
        """Held-out events of the first training, even over the classes: what not to forget."""
        self._settle()
        return self._anchor

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
            self._anchor = self._anchor.with_embeddings(_none(len(self._anchor), examples))
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
        self._anchor = self._anchor.take(~self._barred(self._anchor))
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
        self._anchor = _adopted(self._anchor, row, embeddings)

    def known(self, ids: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Bool [n]: which of these events are in memory."""
        self._settle()
        have = {*self._recent.ids.tolist(), *self._replay.ids.tolist(), *self._anchor.ids.tolist()}
        return np.fromiter((i in have for i in ids), np.bool_, count=len(ids))

    def lying_in(self, topic: str, partition: int) -> Examples:
        """The recent and replayed events of one partition, in order of arrival."""
        self._settle()
        pool = Examples.concatenate([self._replay, self._recent])
        return pool.take((pool.topics == topic) & (pool.partitions == partition))

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

    def relabel(self, labels: Mapping[str, int]) -> int:
        """Correct the labels of events by their id; how many of them are in memory."""
        self._settle()
        found: set[str] = set()

        def corrected(part: Examples) -> Examples:
            mine = [i for i, event_id in enumerate(part.ids) if event_id in labels]
            if not mine:
                return part
            truth = part.labels.copy()
            truth[mine] = [labels[part.ids[i]] for i in mine]
            found.update(part.ids[mine])
            return part.relabelled(truth)

        self._recent = corrected(self._recent)
        self._replay = corrected(self._replay)
        self._anchor = corrected(self._anchor)
        return len(found)

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

        The replay is drawn evenly from the classes, at ``replay_weight`` an event. A class of which
        nothing came since is known from its replay alone: that has the weight, all together, of
        what came of another class, at most ten an event.
        """
        fresh = self.recent(self.config.recent, since, training=True)
        older = self._recent.take((self._recent.arrivals < since) & ~self._judges())
        pool = Examples.concatenate([self._replay, older])
        chosen = pool.take(_balanced(pool.labels, replay, seed))
        weights = replay_weights(chosen.labels, fresh.labels, replay_weight)
        return Examples.concatenate([chosen.weighted(weights), fresh])

    def at(self, ranges: Iterable[Mapping[str, Any]]) -> Examples:
        """The training events that lay in these ranges of `Examples.lineage`, in order of arrival.

        Those that are no longer in memory are left out.
        """
        self._settle()
        pool = Examples.concatenate([self._replay, self._recent.take(~self._judges())])
        wanted = np.zeros(len(pool), dtype=np.bool_)
        for place in ranges:
            wanted |= (
                (pool.topics == place["topic"])
                & (pool.partitions == place["partition"])
                & (pool.offsets >= place["start"])
                & (pool.offsets < place["end"])
            )
        found = pool.take(wanted)
        return found.take(np.argsort(found.arrivals, kind="stable"))

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
        chosen = held.take(_balanced(held.labels, self.config.anchor, seed))
        fitting = _fitting(chosen, int(_SHARES["anchor"] * self.config.max_bytes))
        self._anchor = chosen.take(np.arange(len(chosen) - fitting, len(chosen)))

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
        kept = {"recent": self._recent, "replay": self._replay, "anchor": self._anchor}
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
        self._anchor = _part("anchor/", state)

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
        self._relabel_anchor()
        together = Examples.concatenate([self._recent, *self._pending])
        self._pending, self._pending_rows = [], 0
        last = {event_id: position for position, event_id in enumerate(together.ids)}
        if len(self._replay):
            stale = np.array([event_id in last for event_id in self._replay.ids])
            self._replay = self._replay.take(~stale)
        if len(last) < len(together):
            together = together.take(np.array(sorted(last.values())))
        limit = int(_SHARES["recent"] * self.config.max_bytes)
        keep = min(self.config.recent, _fitting(together, limit))
        start = max(0, len(together) - keep)
        aged, self._recent = (
            together.take(np.arange(start)),
            together.take(np.arange(start, len(together))),
        )
        self._judging = None
        if len(aged) and self.config.replay:
            self._age(aged)

    def _relabel_anchor(self) -> None:
        if not len(self._anchor):
            return
        newer = {
            event_id: label
            for part in self._pending
            for event_id, label in zip(part.ids, part.labels.tolist(), strict=True)
        }
        labels = zip(self._anchor.ids, self._anchor.labels.tolist(), strict=True)
        found = np.array([newer.get(event_id, label) for event_id, label in labels], np.int64)
        self._anchor = self._anchor.relabelled(found)

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
        chosen = np.concatenate(kept)
        # Over the bound in bytes, every class gives up its largest hashes first.
        rank = np.concatenate([np.arange(len(part)) for part in kept])
        chosen = chosen[np.argsort(rank, kind="stable")]
        total = np.cumsum(_sizes(pool.take(chosen)))
        limit = _SHARES["replay"] * self.config.max_bytes
        fitting = np.searchsorted(total, limit, side="right")
        self._replay = pool.take(np.sort(chosen[:fitting]))


def replay_weights(
    replayed: NDArray[np.int64], fresh: NDArray[np.int64], weight: float
) -> NDArray[np.float32]:
    """Float32 [n] for the labels [n] of replayed examples, given those of the fresh ones.

    ``weight``; more for a class of which nothing fresh came, as `Memory.training_set` says.
    """
    weights = np.full(len(replayed), weight, dtype=np.float32)
    if len(fresh) and len(replayed) and weight > 0:
        came = np.unique(fresh)
        _, place, counts = np.unique(replayed, return_inverse=True, return_counts=True)
        level = np.clip(len(fresh) / len(came) / counts[place], weight, _MOST)
        absent = ~np.isin(replayed, came)
        weights[absent] = level[absent]
    return weights


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
    return int(np.searchsorted(np.cumsum(_sizes(examples)[::-1]), limit, side="right"))


def _sizes(examples: Examples) -> NDArray[np.int64]:
    """Int64 [n]: about the bytes that each event takes."""
    row = 64 + (examples.embeddings.shape[1] * 4 if examples.embeddings is not None else 0)
    n = len(examples)
    if examples.inputs.dtype != object:
        return np.full(n, examples.inputs.dtype.itemsize + row, dtype=np.int64)
    # Characters beyond Latin-1 take two or four bytes each.
    return np.fromiter((sys.getsizeof(text) for text in examples.inputs), np.int64, count=n) + row


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
