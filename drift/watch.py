"""Runs e-processes over a stream: fixed blocks, a baseline that goes on learning, a ratchet.

`eprocess` has the arithmetic; here is what must be remembered between batches, as plain arrays.
`concept.error_rate` and `label.mix` each own one `Watch` and give its findings a meaning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from drift.eprocess import BLOCK, Advance, Baseline, Bets, Crossing, Floats, Integers, advance
from drift.signal import Kind, Signal, State

# Numbers a temporary array holds while catching up with a long batch: 512 KB, inside the cache.
CHUNK = 1 << 16
# After an alarm the baseline learns nothing for so many events: while a drift lasts, alarms follow
# one another sooner, and normal must not become what is wrong. A multiple of BLOCK.
PAUSE = 1_024


@dataclass(frozen=True, slots=True)
class Findings:
    """What one call of `Watch.take` saw.

    highest: the highest weighted evidence over the events taken, or the present one if there were
    none. at: positions, among the events taken, of those that crossed the threshold. evidence:
    float64 [c, g], each bet's, and rates: float64 [c], the baseline: at the last crossing, or
    after the last event if there was none.
    """

    highest: float
    at: list[int]
    evidence: Floats
    rates: Floats


@dataclass(slots=True)
class Ratchet:
    """Lowers the baseline after a proven fall, so that what was gained is guarded as well.

    A fall is proven by the mirrored test (``bets`` on falls, the same threshold). The new baseline
    is counted over the ``size`` events *after* the proof: those that proved it were selected for
    being good, and would promise too much. Until then the old baseline goes on guarding.
    """

    bets: Bets
    size: int
    carry: Floats = field(default_factory=lambda: np.zeros(0))
    fresh: Baseline | None = None


class Watch:
    """E-processes on ``c`` columns against a learned baseline."""

    def __init__(
        self, bets: Bets, threshold: float, learn_until: float, ratchet: Ratchet | None = None
    ) -> None:
        self.bets = bets
        self.threshold = threshold
        self.learn_until = learn_until
        self.ratchet = ratchet
        self._width = bets.shifts.size
        self.begin(Baseline(np.full(len(bets.shifts), 0.5), 1.0))

    def begin(self, baseline: Baseline) -> None:
        """Forget all evidence and guard ``baseline``."""
        self.baseline = baseline
        self._carry = np.zeros(self._width)
        self._pending: Integers = np.zeros(0, dtype=np.int64)
        self._standing = np.zeros(self._width)
        self._level = 0.0
        self._pause = 0
        if self.ratchet is not None:
            self.ratchet.carry = np.zeros(self.ratchet.bets.shifts.size)
            self.ratchet.fresh = None

    def take(self, fired: Integers) -> Findings:
        """Take in events [n], each the column that held or -1; what they amount to."""
        if len(fired) == 0:
            return Findings(self._level, [], self._shaped(self._standing), self.baseline.rates)
        old = len(self._pending)
        rest = np.concatenate([self._pending, fired])
        taken = -old  # position of rest[0] among the events given
        highest, at = 0.0, list[int]()
        last: tuple[Crossing, Floats] | None = None

        while len(rest) >= BLOCK:
            rates = self._rates(rest)
            done = self._blocks(rest, rates)
            length = len(done.values)
            highest = max(highest, _highest(done, taken))
            last = _report(done, taken, rates, at) or last
            self._learn(rest[:length], bool(done.crossings))
            rest = rest[length:]
            taken += length
            self._carry = self._standing = done.carry
            self._level = 0.0 if _ends_reset(done) else float(done.values[-1])

        self._pending = rest.copy()
        if len(rest):
            # Computed anew from the block's start each time: same block, same bits, same result.
            rates = self.baseline.rates[None]
            part = advance(self._carry, rest, rates, self.bets, self.threshold, first=False)
            highest = max(highest, _highest(part, taken))
            last = _report(part, taken, rates, at) or last
            self._standing = part.carry
            self._level = 0.0 if _ends_reset(part) else float(part.values[-1])
        if last is not None:
            crossing, crossed_rates = last
            return Findings(highest, at, crossing.evidence, crossed_rates)
        return Findings(highest, at, self._shaped(self._standing), self.baseline.rates)

    def signal(
        self, name: str, kind: Kind, found: Findings, seen: int, labelled: Integers, **more: object
    ) -> Signal:
        """What was found, as the signal of a detector; ``more`` is evidence of its own.

        seen: events before this batch. labelled: positions [n] in the batch of the events taken.
        """
        evidence = {
            "seen": seen,
            "at": labelled[found.at].tolist(),
            "events": len(labelled),
            **more,
            "learned_from": int(self.baseline.events) - 1,
        }
        score, threshold = math.log1p(found.highest), math.log1p(self.threshold)
        return Signal(name, kind, score, threshold, bool(found.at), evidence)

    def state(self) -> State:
        """Arrays from which `restore` goes on exactly here."""
        arrays: State = {
            "baseline_yes": self.baseline.yes.copy(),
            "baseline_events": np.array(self.baseline.events),
            "carry": self._carry.copy(),
            "pending": self._pending.astype(np.int32),
            "standing": self._standing.copy(),
            "level": np.array(self._level),
            "pause": np.array(self._pause, dtype=np.int64),
        }
        if self.ratchet is not None:
            arrays["ratchet_carry"] = self.ratchet.carry.copy()
            if self.ratchet.fresh is not None:
                arrays["ratchet_yes"] = self.ratchet.fresh.yes.copy()
                arrays["ratchet_events"] = np.array(self.ratchet.fresh.events)
        return arrays

    def restore(self, state: State) -> None:
        """Go on where `state` was taken; the bets must be the same."""
        self.begin(_baseline(state, "baseline"))
        self._carry = np.array(state["carry"], dtype=np.float64)
        self._pending = np.array(state["pending"], dtype=np.int64)
        self._standing = np.array(state["standing"], dtype=np.float64)
        self._level = float(state["level"].item())
        self._pause = int(state["pause"].item())
        if self.ratchet is not None:
            self.ratchet.carry = np.array(state["ratchet_carry"], dtype=np.float64)
            if "ratchet_yes" in state:
                self.ratchet.fresh = _baseline(state, "ratchet")

    def _rates(self, rest: Integers) -> Floats:
        """The baseline [blocks, c] of the next whole blocks: as many as may be taken at once."""
        blocks = min(len(rest) // BLOCK, max(1, CHUNK // (BLOCK * self._width)))
        if self.ratchet is not None and self.ratchet.fresh is not None:
            missing = self.ratchet.size - self.ratchet.fresh.events
            blocks = min(blocks, max(1, int(-(-missing // BLOCK))))
        yes, events = self.baseline.yes, self.baseline.events
        block = np.arange(blocks - 1) - self._pause // BLOCK
        learning = (block >= 0) & (events + BLOCK * block < self.learn_until)
        counts = self._counts(rest[: (blocks - 1) * BLOCK]) * learning[:, None]
        rates = np.empty((blocks, len(yes)))
        rates[0] = yes / events
        learned = BLOCK * np.add.accumulate(learning, dtype=np.float64)[:, None]
        rates[1:] = (yes + np.add.accumulate(counts, axis=0)) / (events + learned)
        return rates

    def _blocks(self, rest: Integers, rates: Floats) -> Advance:
        """Whole blocks up to the first one that changes how the next is judged."""
        whole = rest[: len(rates) * BLOCK]
        done = advance(self._carry, whole, rates, self.bets, self.threshold, first=True)
        ratchet = self.ratchet
        if ratchet is None:
            return done
        whole = whole[: len(done.values)]
        fall = advance(
            ratchet.carry,
            whole,
            rates[: len(whole) // BLOCK],
            ratchet.bets,
            self.threshold,
            first=True,
        )
        if len(fall.values) < len(whole):
            whole = whole[: len(fall.values)]
            rates = rates[: len(whole) // BLOCK]
            done = advance(self._carry, whole, rates, self.bets, self.threshold, first=True)
        ratchet.carry = fall.carry
        if ratchet.fresh is not None:
            yes = ratchet.fresh.yes + self._counts(whole).sum(axis=0)
            ratchet.fresh = Baseline(yes, ratchet.fresh.events + len(whole))
        elif fall.crossings:
            ratchet.fresh = Baseline(np.full(len(self.baseline.yes), 0.5), 1.0)
        return done

    def _learn(self, events: Integers, crossed: bool) -> None:
        """Let the baseline learn from whole blocks, and the ratchet click."""
        if self.baseline.events < self.learn_until:
            room = int(-(-(self.learn_until - self.baseline.events) // BLOCK)) * BLOCK
            learned = events[self._pause :][:room]
            self.baseline = Baseline(
                self.baseline.yes + self._counts(learned).sum(axis=0),
                self.baseline.events + len(learned),
            )
        self._pause = PAUSE if crossed else max(0, self._pause - len(events))
        ratchet = self.ratchet
        if ratchet is None or ratchet.fresh is None:
            return
        if crossed:
            ratchet.fresh = None  # it got worse before it was sure that it had become better
        elif ratchet.fresh.events >= ratchet.size:
            if ratchet.fresh.rates[0] < self.baseline.rates[0]:
                self.baseline = ratchet.fresh
            ratchet.fresh = None
            ratchet.carry = np.zeros_like(ratchet.carry)

    def _counts(self, events: Integers) -> Floats:
        """How often each column held in each whole block: float64 [blocks, c]."""
        blocks, columns = len(events) // BLOCK, len(self.bets.shifts)
        shaped = events.reshape(blocks, BLOCK)
        if columns == 1:
            alone: Floats = (shaped == 0).sum(axis=1, dtype=np.float64)[:, None]
            return alone
        block, event = np.nonzero(shaped >= 0)
        flat = block * columns + shaped[block, event]
        counts = np.bincount(flat, minlength=blocks * columns).astype(np.float64)
        return counts.reshape(blocks, columns)

    def _shaped(self, statistics: Floats) -> Floats:
        return statistics.reshape(self.bets.shifts.shape)


def _baseline(state: State, name: str) -> Baseline:
    yes = np.array(state[f"{name}_yes"], dtype=np.float64)
    return Baseline(yes, float(state[f"{name}_events"].item()))


def _highest(done: Advance, taken: int) -> float:
    new = done.values[max(0, -taken) :]
    return float(new.max()) if len(new) else 0.0


def _report(
    done: Advance, taken: int, rates: Floats, at: list[int]
) -> tuple[Crossing, Floats] | None:
    """Add the crossings at new events to ``at``; the last of them with its baseline."""
    found = None
    for crossing in done.crossings:
        if crossing.at + taken >= 0:
            at.append(crossing.at + taken)
            found = crossing, rates[crossing.at // BLOCK]
    return found


def _ends_reset(done: Advance) -> bool:
    return bool(done.crossings) and done.crossings[-1].at == len(done.values) - 1
