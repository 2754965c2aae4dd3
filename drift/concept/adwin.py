"""ADWIN: two parts of an adaptive window have different means.

Finds slow and fast changes, with a proven bound. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class ADWIN(ReplayedDetector):
    """Bifet & Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007."""

    name = "adwin"
    parameter = "delta"
    default = 0.002
    run_lengths = RunLengths(
        settings=(1.0, 0.6, 0.3, 0.1, 0.03, 0.01),
        events=(
            (53_000, 13_000, 6_200, 3_700, 3_900, 4_400, 6_700),
            (100_000, 30_000, 12_000, 8_300, 7_800, 8_600, 12_000),
            (440_000, 76_000, 30_000, 20_000, 21_000, 25_000, 30_000),
            (990_000, 260_000, 110_000, 57_000, 80_000, 120_000, 160_000),
            (2_000_000, 1_300_000, 570_000, 280_000, 280_000, 280_000, 800_000),
            (4_000_000, 1_300_000, 1_300_000, 1_300_000, 990_000, 990_000, 2_000_000),
        ),
    )

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river import drift

        detector: RiverDetector = drift.ADWIN(delta=setting)
        return detector

    def recent(self) -> int:
        """The window that was left after the cut."""
        return int(getattr(self._detector, "width", 1))
