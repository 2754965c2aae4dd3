"""Recent stretches of many lengths beside a baseline: what the window detectors share.

A detector turns events into statistics and blocks of them into sums; `Windows` keeps the sums,
compares the last 1, 2, 4, ... blocks with what is normal and remembers everything in plain arrays.
`Chance` and `simulated_threshold` find out from the reference what such comparisons do by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from drift.signal import Kind, Signal, State

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = NDArray[Any]
# (level, recent sums [b, c], baseline sums [b, c], baseline events [b]) -> scores [b], effects [b].
# A stretch of level l holds BLOCK << l events. Scores are not negative.
Score = Callable[[int, Floats, Floats, Floats], tuple[Floats, Floats]]
# (recent sums [b, c], events of each, baseline sums [b, c], baseline events [b]) -> [b, f].
Roots = Callable[[Floats, int, Floats, Floats], Floats]

# Events are taken in blocks of this many, wherever batches are cut. It is also the shortest
# stretch that is looked at: about the least in which a strong change of topic can be told.
BLOCK = 32
# The simulated drift-free streams: so many, each so many blocks long. 100,000 blocks in all place
# a threshold of one alarm in 2,000 blocks to within a tenth of its rate, in about half a second.
STREAMS, LENGTH = 400, 256
# Fewer where the statistics are many: about so many numbers are simulated in all.
NUMBERS = 10_000_000
# Blocks drawn from the reference for the simulation to compose its streams of.
POOL = 8_192
# Baselines drawn from it to find out what chance makes of distances.
BASELINES = 64
# Blocks worked off at once: their sums stay inside the cache.
CHUNK = 256


def levels_of(window: int) -> int:
    """How many stretches of 1, 2, 4, ... blocks there are up to ``window`` events."""
    return max(1, int(math.log2(window // BLOCK)) + 1)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The last ``events`` events beside the baseline: sums [c] of both, score and effect.

    ``level`` as `Score` has it; with 0 events, nothing has been looked at since the last alarm.
    """

    score: float
    level: int
    effect: float
    events: int
    sums: Floats
    base: Floats
    base_events: float


class Windows:
    """Block sums [c] of a stream, and the comparisons that reached the threshold.

    ``summed`` maps rows [b, BLOCK, w] to sums [b, c]; ``score`` judges. The baseline goes on being
    learned from events that have left the longest stretch, up to ``baseline_events``. After an
    alarm, everything before it is forgotten: the next must rest on new events.
    """

    def __init__(
        self,
        levels: int,
        baseline_events: int,
        summed: Callable[[Rows], Floats],
        score: Score,
    ) -> None:
        self._levels = levels
        self._longest = 1 << (levels - 1)
        self._baseline_events = baseline_events
        self._summed, self._score = summed, score
        self.begin(math.inf, np.zeros(0), 0.0, np.zeros((0, 0)))

    def begin(self, threshold: float, base: Floats, events: float, rows: Rows) -> None:
        """Forget what was observed; rows: [0, w], of the kind that `take` will be given."""
        self.threshold = threshold
        self._base, self._base_events = base, events
        self.pending = rows
        self._blocks = np.zeros((0, len(base)))
        self._standing = (0.0, 0, 0.0)

    def take(self, rows: Rows) -> tuple[list[int], Stretch]:
        """Take in rows [n, w]: which of them completed an alarming block, and the highest stretch.

        With no block completed, the stretch says where things stand.
        """
        before = len(self.pending)
        if len(rows):
            rows = np.concatenate([self.pending, rows])
        else:
            rows = self.pending
        full = len(rows) // BLOCK
        if not full:
            self.pending = rows
            return [], self._now()
        at: list[int] = []
        best: Stretch | None = None
        for begin in range(0, full, CHUNK):
            end = min(full, begin + CHUNK)
            shaped = rows[begin * BLOCK : end * BLOCK].reshape(end - begin, BLOCK, -1)
            alarms, highest = self._advance(self._summed(shaped))
            at += [(begin + block + 1) * BLOCK - 1 - before for block in alarms]
            if best is None or highest.score > best.score:
                best = highest
        assert best is not None  # a chunk holds at least one block
        self.pending = rows[full * BLOCK :].copy()
        return at, best

    def signal(
        self,
        name: str,
        kind: Kind,
        found: tuple[list[int], Stretch],
        seen: int,
        usable: Integers,
        events: int,
        **more: object,
    ) -> Signal:
        """What `take` found, as the signal of a detector; ``more`` is evidence of its own.

        seen: events before this batch. usable: positions [n] of the rows among its ``events``.
        """
        completed, best = found
        at = usable[completed].tolist()
        evidence = {
            "seen": seen,
            "at": at,
            "events": len(usable),
            "skipped": events - len(usable),
            "window": best.events,
            **more,
        }
        return Signal(name, kind, best.score, self.threshold, bool(at), evidence)

    def state(self) -> State:
        """Plain arrays: at most BLOCK - 1 rows, a sum for every block of the longest stretch."""
        return {
            "threshold": np.array(self.threshold),
            "base": self._base.copy(),
            "base_events": np.array(self._base_events),
            "pending": self.pending.copy(),
            "blocks": self._blocks.copy(),
            "standing": np.array(self._standing),
        }

    def restore(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        self.threshold = float(state["threshold"].item())
        self._base = np.array(state["base"], dtype=np.float64)
        self._base_events = float(state["base_events"].item())
        self.pending = np.array(state["pending"])
        self._blocks = np.array(state["blocks"], dtype=np.float64)
        score, events, effect = np.asarray(state["standing"], dtype=np.float64).tolist()
        self._standing = (score, int(events), effect)

    def _now(self) -> Stretch:
        score, events, effect = self._standing
        if not events:
            nothing = np.zeros_like(self._base)
            return Stretch(score, 0, effect, 0, nothing, self._base, self._base_events)
        level = (events // BLOCK).bit_length() - 1
        base = self._base, self._base_events
        return _stretch(score, level, effect, self._blocks, len(self._blocks), *base)

    def _advance(self, sums: Floats) -> tuple[list[int], Stretch]:
        """Take in block sums [b, c]: which of them alarmed, and the highest stretch."""
        alarms: list[int] = []
        best: Stretch | None = None
        begin = 0
        while begin < len(sums):
            history = np.concatenate([self._blocks, sums[begin:]])
            old = len(self._blocks)
            bases, events = self._bases(history, old)
            scores, effects = self._scores(history, old, bases, events)
            over = scores.max(axis=1) >= self.threshold
            end = int(over.argmax()) + 1 if over.any() else len(over)
            block, level = divmod(int(scores[:end].argmax()), self._levels)
            if best is None or scores[block, level] > best.score:
                found = float(scores[block, level]), level, float(effects[block, level])
                base = bases[block].copy(), float(events[block])
                best = _stretch(*found, history, old + block + 1, *base)
            if over.any():
                alarms.append(begin + end - 1)
                self._blocks = np.zeros((0, sums.shape[1]))
                self._standing = (0.0, 0, 0.0)
            else:
                self._blocks = history[-self._longest :].copy()
                last = int(scores[-1].argmax())
                self._standing = (float(scores[-1, last]), BLOCK << last, float(effects[-1, last]))
            self._base, self._base_events = bases[end - 1].copy(), float(events[end - 1])
            begin += end
        assert best is not None  # there was at least one block
        return alarms, best

    def _bases(self, history: Floats, old: int) -> tuple[Floats, Floats]:
        """The sum [b, c] and number [b] of events that say what is normal, at each new block.

        A block counts once the longest window has left it behind.
        """
        new = len(history) - old
        left = np.zeros((new, history.shape[1]))
        gone = np.arange(old, len(history)) - self._longest
        counts = gone >= 0
        room = math.ceil((self._baseline_events - self._base_events) / BLOCK)
        counts &= np.cumsum(counts) <= room
        left[counts] = history[gone[counts]]
        left[0] += self._base
        sums: Floats = np.add.accumulate(left, axis=0)
        events: Floats = self._base_events + BLOCK * np.cumsum(counts).astype(np.float64)
        return sums, events

    def _scores(
        self, history: Floats, old: int, bases: Floats, events: Floats
    ) -> tuple[Floats, Floats]:
        """Score and effect [b, levels] of every stretch at each new block; 0 where too long."""
        new = len(history) - old
        scores, effects = np.zeros((new, self._levels)), np.zeros((new, self._levels))
        for level, sums in enumerate(window_sums(history, self._levels)):
            lacking = max(0, len(history) - len(sums) - old)  # new blocks with too little behind
            if lacking >= new:
                break
            recent = sums[len(sums) - (new - lacking) :]
            scores[lacking:, level], effects[lacking:, level] = self._score(
                level, recent, bases[lacking:], events[lacking:]
            )
        return scores, effects


def _stretch(
    score: float,
    level: int,
    effect: float,
    history: Floats,
    end: int,
    base: Floats,
    base_events: float,
) -> Stretch:
    sums: Floats = np.add.reduce(history[end - (1 << level) : end], axis=0)
    return Stretch(score, level, effect, BLOCK << level, sums, base, base_events)


@dataclass(frozen=True, slots=True)
class Chance:
    """What chance makes of distances, and by that how many standard deviations one is away from it.

    A distance is given as a *root*: times the square root of ``pooled_events``, so that chance
    makes about the same of it however many events there are. median, spread: float64
    [2, levels, f], with the first and the last of the ``baselines`` (events behind them; between
    the two, by their inverse). Scores map the median to 0 and the 99 % point to the normal
    distribution's: what is compared across features and lengths is their tails. squares: bool [f],
    whether the squared root is a sum of squares (else a maximum or a mean).
    """

    median: Floats
    spread: Floats
    baselines: Floats
    squares: NDArray[np.bool_]

    @classmethod
    def drawn(
        cls,
        pool: Floats,
        baselines: tuple[int, int],
        levels: int,
        roots: Roots,
        squares: NDArray[np.bool_],
        least: Callable[[float], Floats],
        random: np.random.Generator,
    ) -> Self:
        """From block sums [POOL, c], windows as well as baselines (of so many blocks).

        least: the smallest spread [f] to count in, by the pooled events: about what one odd event
        does among ever the same ones (a constant column has no chance to measure).
        """
        first, last = baselines[0], max(baselines)
        shape = (2, levels, len(squares))
        median, spread = np.zeros(shape), np.zeros(shape)
        windows = pool
        for level in range(levels):
            events = BLOCK << level
            if level:
                windows = windows + windows[random.permutation(len(windows))]
            for end, blocks in enumerate((first, last)):
                drawn = [
                    roots(part, events, *_baseline(pool, blocks, random))
                    for part in np.array_split(windows, BASELINES)
                ]
                low, high = np.quantile(np.concatenate(drawn), (0.5, 0.99), axis=0)
                pooled = 1 / (1 / events + 1 / (BLOCK * blocks))
                wide = (high - low) / NormalDist().inv_cdf(0.99)
                median[end, level], spread[end, level] = low, np.maximum(wide, least(pooled))
        return cls(median, spread, BLOCK * np.array([first, last], dtype=np.float64), squares)

    def scores(
        self, level: int, roots: Floats, base_events: Floats, floors: Floats | float = 0.0
    ) -> Floats:
        """Scores [b, f] of roots [b, f] against baselines of ``base_events`` [b].

        Of differences beyond ``floors`` [b, f], roots as well.
        """
        median = self._at(self.median, level, base_events)
        spread = self._at(self.spread, level, base_events)
        # A mean or a maximum moves by all of the difference, a sum of squares by its square, and
        # then also varies more.
        floor, middle = np.square(floors), np.square(median)
        centre = np.where(self.squares, np.sqrt(middle + floor), median + floors)
        wider = np.sqrt((middle + 2 * floor + 1e-30) / (middle + floor + 1e-30))
        score: Floats = (roots - centre) / (spread * np.where(self.squares, wider, 1.0))
        return np.maximum(score, 0.0)

    def single(
        self, level: int, roots: Floats, base_events: Floats, floor: float
    ) -> tuple[Floats, Floats]:
        """Score and effect [b] of a single distance's roots [b, 1]; see `Score`.

        Of differences beyond ``floor``, in the distance's own unit.
        """
        floors = floor * np.sqrt(pooled_events(BLOCK << level, base_events))[:, None]
        scores = self.scores(level, roots, base_events, floors)
        return scores[:, 0], self.effects(level, roots, base_events)[:, 0]

    def effects(self, level: int, roots: Floats, base_events: Floats) -> Floats:
        """Distances [b, f] behind the roots, less what chance makes."""
        middle = np.square(self._at(self.median, level, base_events))
        beyond = np.maximum(np.square(roots) - middle, 0.0)
        effect: Floats = np.sqrt(beyond / pooled_events(BLOCK << level, base_events)[:, None])
        return effect

    def state(self) -> State:
        """Plain arrays for `from_state`."""
        return {
            "median": self.median,
            "spread": self.spread,
            "baselines": self.baselines,
            "squares": self.squares,
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        """What `state` describes."""
        return cls(
            np.array(state["median"], dtype=np.float64),
            np.array(state["spread"], dtype=np.float64),
            np.array(state["baselines"], dtype=np.float64),
            np.array(state["squares"], dtype=np.bool_),
        )

    def _at(self, values: Floats, level: int, base_events: Floats) -> Floats:
        first, last = 1 / self.baselines
        share = np.clip((1 / base_events - last) / max(first - last, 1e-30), 0.0, 1.0)[:, None]
        mixed: Floats = values[1, level] + share * (values[0, level] - values[1, level])
        return mixed


def pooled_events(events: int, base_events: Floats) -> Floats:
    """The events [b] with which chance does as much as with two samples of these sizes."""
    return 1 / (1 / events + 1 / base_events)


def block_pool(rows: Rows, summed: Callable[[Rows], Floats], random: np.random.Generator) -> Floats:
    """Sums [POOL, c] of blocks drawn from rows [n, w]."""
    parts = [
        summed(rows[random.integers(len(rows), size=(512, BLOCK))]) for _ in range(0, POOL, 512)
    ]
    return np.concatenate(parts)


def simulated_threshold(
    pool: Floats,
    base_blocks: int,
    levels: int,
    score: Score,
    false_alarm: int,
    random: np.random.Generator,
) -> float:
    """The score that drift-free streams of blocks from ``pool`` reach once per ``false_alarm``.

    What a reference says is off by chance, in one way for a whole stream: each stream is judged by
    a reference of its own.
    """
    length = max(LENGTH, 2 << (levels - 1))
    numbers = NUMBERS // (pool.shape[1] * length)
    streams = max(50, min(STREAMS * LENGTH // length, numbers))
    highest = np.zeros(streams)
    for stream in range(streams):
        base = _baseline(pool, base_blocks, random)
        blocks = pool[random.integers(len(pool), size=length)]
        for level, sums in enumerate(window_sums(blocks, levels)):
            highest[stream] = max(highest[stream], score(level, sums, *base)[0].max())
    return threshold_of(highest, length, false_alarm)


def _baseline(
    pool: Floats, blocks: int, random: np.random.Generator
) -> tuple[Floats, NDArray[np.float64]]:
    drawn = pool[random.integers(len(pool), size=blocks)].sum(axis=0)
    return drawn[None], np.array([float(blocks * BLOCK)])


def threshold_of(highest: Floats, length: int, false_alarm: int) -> float:
    """The threshold by the highest scores [s] of simulated streams of ``length`` blocks.

    Never below what a single look needs: a constant reference has no chance to simulate.
    """
    simulated = _tail_quantile(highest, -math.expm1(-length * BLOCK / false_alarm))
    return max(simulated, NormalDist().inv_cdf(max(0.9, 1 - BLOCK / false_alarm)))


def window_sums(blocks: Floats, levels: int) -> list[Floats]:
    """Sums over the last 1, 2, 4, ... blocks, each [b - window + 1, c], for as many as fit.

    Each doubles the one before, so the order of additions depends on the blocks alone.
    """
    sums = [blocks]
    for level in range(levels - 1):
        half, last = 1 << level, sums[-1]
        if len(last) <= half:
            break
        sums.append(last[half:] + last[:-half])
    return sums


def _tail_quantile(maxima: Floats, probability: float) -> float:
    """The level that a maximum exceeds with ``probability``.

    Read off where the simulation has ten cases beyond; further out, the tail of a squared normal
    score is exponential, with the mean excess of the top fifth.
    """
    if probability * len(maxima) >= 10:
        return float(np.quantile(maxima, 1 - probability, method="higher"))
    squared = np.sort(maxima) ** 2
    top = squared[-len(squared) // 5 :]
    excess = float((top - top[0]).mean())
    return math.sqrt(top[0] + excess * math.log(0.2 / probability))
