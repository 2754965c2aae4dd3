"""Anytime-valid evidence that event frequencies have moved: Shiryaev-Roberts e-detectors.

Each column is one yes/no fact about an event (the model was wrong; the label is class 7). The
detectors of `concept` and `label` bet on columns becoming more or less frequent; here is the bet.

For a column whose frequency was ``p``, and an alternative ``q``, an event multiplies the evidence
by ``L = q/p`` (yes) or ``(1-q)/(1-p)`` (no). The Shiryaev-Roberts statistic
``M_t = (M_{t-1} + 1) L_t`` sums the likelihood ratios of "it changed at event s" over every s.
While nothing changes, ``M_t - t`` is a martingale (a supermartingale when the frequency lies on the
far side of ``p``), so a weighted mean of any number of such statistics that is stopped on reaching
``A`` has run for at least ``A`` events in expectation: the threshold *is* the budget, without
simulation (Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change
detection", 2022). Mixing over a grid of alternatives costs the logarithm of its size, once.

``p`` is not known but learned: from the reference, and then from the stream itself (`Baseline`).
The learned ``p`` is the predictive probability of a Beta-Bernoulli model, so that the bound holds
on average over what the reference leaves open, with no safety margin to pay for in delay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# The stream is worked off in blocks of this many events, wherever batches are cut: all arithmetic
# depends on the position in the stream only, to the last bit. 64 keeps the products of a block's
# likelihood ratios (at most LARGEST_RATIO each) far inside the range of a float64.
BLOCK = 64
LARGEST_RATIO = 148.0  # e^5


@dataclass(frozen=True, slots=True)
class Baseline:
    """Counts that say how frequent each column is when nothing has changed.

    yes: float64 [c], how often each column held, plus its prior. events: how many events they
    were counted over, plus the prior's.
    """

    yes: Floats
    events: float

    @property
    def rates(self) -> Floats:
        """float64 [c], strictly between 0 and 1."""
        return self.yes / self.events


@dataclass(frozen=True, slots=True)
class Bets:
    """The alternatives: how far, and how strongly believed, each column may have moved.

    shifts: float64 [c, g], signed change of the frequency. weights: float64 [c, g], summing to 1;
    0 leaves an alternative out.
    """

    shifts: Floats
    weights: Floats

    def alternatives(self, rates: Floats) -> Floats:
        """Frequencies [..., c, g] for baseline frequencies [..., c], on the shift's side of them.

        A rise stops half way to 1 or at `LARGEST_RATIO` times the baseline, a fall at a quarter.
        """
        p = rates[..., None]
        highest = np.minimum((1 + p) / 2, LARGEST_RATIO * p)
        return np.minimum(np.maximum(p + self.shifts, p / 4), highest)


@dataclass(frozen=True, slots=True)
class Crossing:
    """The weighted evidence reached the threshold at event ``at`` of the blocks given.

    evidence: float64 [c, g], each alternative's statistic at that event, before it was reset.
    """

    at: int
    evidence: Floats


@dataclass(frozen=True, slots=True)
class Advance:
    """What `advance` found. values: float64 [n], the weighted evidence after each event.

    carry: float64 [c * g], the statistics after the last event, where the next blocks go on.
    """

    values: Floats
    carry: Floats
    crossings: list[Crossing]


def advance(
    carry: Floats, fired: Integers, rates: Floats, bets: Bets, threshold: float, *, first: bool
) -> Advance:
    """Take the statistics through ``fired``, events [n] that begin on a block boundary.

    fired: the column that held at each event, or -1 for none. rates: float64 [blocks, c], the
    baseline of each block of `BLOCK` events. Every crossing of ``threshold`` starts the statistics
    from zero. With ``first``, stops at the end of the block of the first crossing; ``values`` tells
    how far it got.
    """
    columns = rates.shape[1]
    width = bets.shifts.size
    alternatives = bets.alternatives(rates)
    yes = alternatives / rates[..., None]
    no = (1 - alternatives) / (1 - rates[..., None])

    values = np.empty(len(fired))
    crossings: list[Crossing] = []
    full = len(fired) // BLOCK
    weights = bets.weights.reshape(width)
    if full:
        # All whole blocks at once; only the carry goes from block to block.
        ratios = _ratios(fired[: full * BLOCK].reshape(full, BLOCK), yes[:full], no[:full])
        products, sums = _accumulate(ratios)
        starts = np.empty((full, width))
        # Beyond a crossing the numbers may overflow; they are thrown away below.
        with np.errstate(over="ignore"):
            for block in range(full):
                starts[block] = carry
                carry = products[block, -1] * (carry + sums[block, -1])
            statistics = products * (starts[:, None, :] + sums)
            levels = np.add.reduce(statistics * weights, axis=2)
        values[: full * BLOCK] = levels.reshape(-1)
        full_done = full
        if levels.max() >= threshold:
            full_done = int((levels >= threshold).any(axis=1).argmax())
            carry = starts[full_done]
        done = full_done * BLOCK
    else:
        done = 0

    # What is left: blocks from the first with a crossing on, and the block still incomplete.
    while done < len(fired):
        block = done // BLOCK
        piece = fired[done : done + BLOCK]
        ratios = _ratios(piece[None], yes[block : block + 1], no[block : block + 1])[0]
        begin = 0
        while begin < len(piece):
            products, sums = _accumulate(ratios[None, begin:])
            statistics = products[0] * (carry + sums[0])
            levels = np.add.reduce(statistics * weights, axis=1)
            over = levels >= threshold
            if not over.any():
                values[done + begin : done + len(piece)] = levels
                carry = statistics[-1]
                break
            hit = int(over.argmax())
            values[done + begin : done + begin + hit + 1] = levels[: hit + 1]
            crossings.append(Crossing(done + begin + hit, statistics[hit].reshape(columns, -1)))
            carry = np.zeros(width)
            begin += hit + 1
        done += len(piece)
        if first and crossings:
            break
    return Advance(values[:done], carry, crossings)


def _ratios(fired: Integers, yes: Floats, no: Floats) -> Floats:
    """Likelihood ratios [blocks, m, c * g] of events [blocks, m]."""
    blocks, length = fired.shape
    if yes.shape[1] == 1:
        held = fired[:, :, None] == 0
        return np.where(held, yes.reshape(blocks, 1, -1), no.reshape(blocks, 1, -1))
    ratios = np.repeat(no[:, None], length, axis=1)
    block, event = np.nonzero(fired >= 0)
    column = fired[block, event]
    ratios[block, event, column] = yes[block, column]
    return ratios.reshape(blocks, length, -1)


def _accumulate(ratios: Floats) -> tuple[Floats, Floats]:
    """Products G of the ratios, and sums of 1/G before each event: M = G (M_0 + sum)."""
    products = np.multiply.accumulate(ratios, axis=1)
    inverse = np.empty_like(products)
    inverse[:, 0] = 1.0
    np.divide(1.0, products[:, :-1], out=inverse[:, 1:])
    return products, np.add.accumulate(inverse, axis=1)
