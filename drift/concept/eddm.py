"""EDDM: the distance between two errors has become shorter.

Made for gradual drift; alarms often. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class EDDM(ReplayedDetector):
    """Baena-García et al., "Early Drift Detection Method", 2006."""

    name = "eddm"
    parameter = "beta"
    default = 0.9
    run_lengths = RunLengths(
        settings=(0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5),
        events=(
            (16_000, 3_100, 590, 150, 78, 53, 41),
            (17_000, 3_200, 620, 160, 84, 65, 190),
            (21_000, 3_700, 790, 940, 3_200, 7_000, 16_000),
            (23_000, 6_100, 3_800, 9_700, 57_000, 44_000, 2_000_000),
            (30_000, 9_000, 8_500, 30_000, 2_000_000, 66_000, 660_000),
            (30_000, 25_000, 13_000, 2_000_000, 660_000, 2_000_000, 2_000_000),
            (33_000, 40_000, 33_000, 660_000, 2_000_000, 2_000_000, 2_000_000),
            (50_000, 330_000, 500_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000),
            (280_000, 660_000, 660_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000),
        ),
    )

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river.drift import binary

        detector: RiverDetector = binary.EDDM(beta=setting, alpha=(1 + setting) / 2)
        return detector
