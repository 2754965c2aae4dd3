"""How long river's detectors run between two false alarms, and the setting that a budget asks for.

No formula gives it, so it was measured: `RunLengths`, one for each detector, beside it. A table and
not a simulation at every fit, because ten million events stand behind a figure of the table and a
fit could afford one million at most (of KSWIN, ten thousand).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drift.measures import Floats, Interval
from drift.signal import DriftError


class BudgetOutOfReach(DriftError):  # noqa: N818 - a limit of the detector, not a mistake
    """No setting of a detector raises as few false alarms as asked for."""

    def __init__(self, detector: str, budget: int, longest: int, rate: float) -> None:
        self.detector, self.budget, self.longest = detector, budget, longest
        super().__init__(
            f"{detector} cannot keep to one false alarm per {budget:,} events where {rate:.1%} of "
            f"the answers are wrong: even at its least sensitive it raises one per {longest:,}. "
            "Choose another detector, lower drift.false_alarm, or set drift.river_defaults."
        )


#: The error rates at which all tables were measured.
RATES = (0.002, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Events for one false alarm, [settings][rates], on independent errors without drift.

    settings: of the detector's one parameter that matters, the most sensitive first. Each figure
    comes from streams of 20,000 and of 100,000 events after the warm-up, whichever alarmed more
    often; one false alarm too many was counted, so that none found is not taken for never.
    stepped: the run length jumps somewhere between two settings, so that none in between is safe.
    """

    settings: tuple[float, ...]
    events: tuple[tuple[int, ...], ...]
    stepped: bool = False

    def at(self, rate: Interval) -> tuple[float, ...]:
        """The run length at each setting, at the worst error rate of the interval."""
        among = [r for r in RATES if rate.low < r < rate.high]
        asked = _logits(np.clip([rate.low, *among, rate.high], RATES[0], RATES[-1]))
        measured = _logits(np.array(RATES))
        logs = np.log(np.array(self.events, dtype=np.float64))
        worst = np.array([np.interp(asked, measured, row).min() for row in logs])
        # What a less sensitive setting does, a more sensitive one cannot do better.
        kept = np.minimum.accumulate(worst[::-1])[::-1]
        return tuple(np.exp(kept).tolist())

    def setting(self, budget: int, rate: Interval) -> float | None:
        """The most sensitive setting that keeps ``budget``, or None where none does.

        Between two measured settings both scales are logarithmic; `stepped` ones are taken as
        they are.
        """
        reached = self.at(rate)
        if reached[-1] < budget:
            return None
        if self.stepped:
            return self.settings[int(np.searchsorted(reached, budget))]
        between = np.interp(math.log(budget), np.log(reached), np.log(self.settings))
        return float(np.exp(between))


def _logits(rates: Floats) -> Floats:
    found: Floats = np.log(rates / (1 - rates))
    return found
