"""A class or a domain that no text of the reference has, entering at a share of the traffic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bench._drift_streams import (
    REFERENCE,
    Integers,
    Pool,
    alarms,
    config,
    unlabelled,
)
from drift import Monitors
from drift.signal import Observations

SHARES = (0.05, 0.1, 0.3)
SETTLED, HORIZON = 1_024, 5_120


@dataclass(frozen=True, slots=True)
class Entering:
    """One run, as positions in the pool: the reference, calm traffic, traffic at each share."""

    pool: Pool
    reference: Integers
    settled: Integers
    changed: dict[float, Integers]

    def delays(self, budget: int, *, labels: bool) -> dict[float, int | None]:
        """Events from the entrance to the first alarm, at each share.

        With ``labels``, of all default detectors, fed answers and labels as well; without, of
        `embedding` alone.
        """
        monitors = Monitors(config(budget) if labels else config(budget, "embedding"))

        def seen(index: Integers) -> Observations:
            events = self.pool.events.take(index)
            return events if labels else unlabelled(events.embeddings)

        monitors.fit(seen(self.reference))
        monitors.observe(seen(self.settled))
        before = monitors.state()
        found: dict[float, int | None] = {}
        for share, index in self.changed.items():
            monitors.restore(before)
            at = [a for each in alarms(monitors, seen(index)).values() for a in each]
            found[share] = min(at) + 1 if at else None
        return found


def entering(pool: Pool, runs: int, seed: int) -> Iterator[Entering]:
    """Runs that take one group after another for the one that enters."""
    random = np.random.default_rng(seed)
    order = random.permutation(int(pool.groups.max()) + 1)
    for run in range(runs):
        group = order[run % len(order)]
        known = np.flatnonzero(pool.groups != group)
        new = np.flatnonzero(pool.groups == group)
        changed = {}
        for share in SHARES:
            index = pool.draw(HORIZON, random, known)
            entered = random.random(HORIZON) < share
            index[entered] = pool.draw(int(entered.sum()), random, new)
            changed[share] = index
        reference = pool.draw(REFERENCE, random, known)
        settled = pool.draw(SETTLED, random, known)
        yield Entering(_ignorant(pool, new), reference, settled, changed)


def _ignorant(pool: Pool, new: Integers) -> Pool:
    """The pool, answered by a model that has never seen the new classes."""
    answers = pool.events.probabilities.copy()
    answers[:, np.unique(pool.events.labels[new])] = 0.0
    answers /= answers.sum(axis=1, keepdims=True)
    return Pool(replace(pool.events, probabilities=answers), pool.groups)
