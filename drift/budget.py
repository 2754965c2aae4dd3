"""The false-alarm budget: what the operator asked for, in events and with a reserve.

Detectors count in events. A budget per hour, day or week becomes one at the traffic of the
reference, and follows it: every new reference sets it anew.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from drift.signal import DriftError

SECONDS = {"hour": 3_600.0, "day": 86_400.0, "week": 604_800.0}
# What may be asked for: "2 per day". Fewer events for one false alarm cannot be calibrated to.
PER_TIME = rf"^[1-9][0-9]{{0,5}} per ({'|'.join(SECONDS)})$"
FEWEST, DEFAULT = 100, 20_000
# Thresholds rest on a finite reference, so what is measured scatters about what was asked for.
# Aiming at two thirds of it keeps single streams within the budget too, not only their average;
# it delays the discovery of a rise from 0.2 to 0.4 by log(1.5) / KL(0.4, 0.2) = 4 events of 73.
RESERVE = 1.5


class NoTraffic(DriftError):  # noqa: N818 - a state, not a mistake of the data
    """A budget per time was asked for, and the reference's times do not tell the traffic."""


def events_per_alarm(asked: int | str, times: NDArray[np.float64]) -> int:
    """The budget as the number of events for which one false alarm is accepted, at least 100.

    asked: that number, or ``"2 per day"``. times: float64 [n], the reference's event times in
    seconds. Raises NoTraffic when a budget per time is asked for and the times do not tell.

    >>> events_per_alarm("2 per day", np.arange(1_000) * 10.0)  # 8,640 events a day
    4320
    """
    if isinstance(asked, int):
        return asked
    count, _, unit = asked.split()
    return max(FEWEST, round(SECONDS[unit] * traffic(times) / int(count)))


def traffic(times: NDArray[np.float64]) -> float:
    """Events a second, from event times [n] in seconds: a few wrong clocks do not matter.

    Raises NoTraffic when there are too few or all are the same.
    """
    known = np.sort(times[np.isfinite(times)])
    # The middle nine tenths: a clock that is years off is at an end.
    first = len(known) // 20
    last = len(known) - 1 - first
    span = float(known[last] - known[first]) if last > first else 0.0
    if span <= 0:
        raise NoTraffic(
            f"drift.false_alarm is given per time, but the times of the reference's {len(times):,} "
            "events are missing or all the same. Name the field with the event's time "
            "(fields.time), or give false_alarm as a number of events."
        )
    return (last - first) / span


def aimed(budget: int) -> int:
    """The events for one false alarm that a detector is calibrated to, to keep ``budget``."""
    return math.ceil(RESERVE * budget)
