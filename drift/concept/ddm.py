"""DDM: the error rate is far above the lowest it has been.

Cheap, and slow to notice. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class DDM(ReplayedDetector):
    """Gama et al., "Learning with Drift Detection", SBIA 2004."""

    name = "ddm"
    parameter = "drift_threshold"
    default = 3.0
    run_lengths = RunLengths(
        settings=(1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0),
        events=(
            (490, 120, 50, 35, 33, 32, 31),
            (490, 120, 50, 49, 53, 62, 100),
            (490, 120, 68, 100, 270, 750, 670),
            (490, 140, 170, 680, 1_500, 3_000, 4_900),
            (490, 250, 1_400, 4_700, 17_000, 19_000, 21_000),
            (860, 1_300, 7_600, 16_000, 280_000, 400_000, 44_000),
            (940, 2_100, 16_000, 50_000, 2_000_000, 1_000_000, 500_000),
            (950, 5_600, 21_000, 500_000, 2_000_000, 1_000_000, 660_000),
            (1_100, 9_300, 66_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000),
            (1_100, 18_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000),
        ),
    )

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river.drift import binary

        detector: RiverDetector = binary.DDM(
            drift_threshold=setting, warning_threshold=setting * 2 / 3
        )
        return detector
