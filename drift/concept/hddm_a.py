"""HDDM_A: Hoeffding's bound on the mean error, before and after a cut.

Good for abrupt drift. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class HDDMA(ReplayedDetector):
    """Frías-Blanco et al., IEEE Transactions on Knowledge and Data Engineering 27(3), 2014."""

    name = "hddm_a"
    parameter = "drift_confidence"
    default = 0.001
    run_lengths = RunLengths(
        settings=(0.5, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0002),
        events=(
            (440, 96, 23, 16, 72, 2_700, 1_100),
            (330_000, 18_000, 860, 84, 170, 250, 3_900),
            (370_000, 20_000, 1_100, 290, 270, 790, 13_000),
            (500_000, 22_000, 1_100, 460, 400, 860, 20_000),
            (330_000, 22_000, 6_800, 630, 800, 1_700, 33_000),
            (1_000_000, 1_000_000, 16_000, 2_100, 970, 4_400, 120_000),
            (1_500_000, 1_500_000, 37_000, 3_600, 2_100, 6_900, 300_000),
            (1_000_000, 1_000_000, 28_000, 10_000, 4_800, 10_000, 1_000_000),
            (1_500_000, 1_500_000, 370_000, 18_000, 10_000, 23_000, 1_500_000),
            (1_000_000, 1_000_000, 500_000, 99_000, 43_000, 110_000, 1_000_000),
            (1_500_000, 1_500_000, 1_500_000, 250_000, 74_000, 180_000, 1_500_000),
            (1_500_000, 1_500_000, 1_500_000, 1_500_000, 370_000, 750_000, 1_500_000),
        ),
        stepped=True,
    )

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river.drift import binary

        detector: RiverDetector = binary.HDDMA(drift_confidence=setting)
        return detector
