"""HDDM_W: McDiarmid's bound on an exponentially weighted mean error.

Quick to notice gradual drift too. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class HDDMW(ReplayedDetector):
    """Frías-Blanco et al., IEEE Transactions on Knowledge and Data Engineering 27(3), 2014."""

    name = "hddm_w"
    parameter = "drift_confidence"
    default = 0.001
    run_lengths = RunLengths(
        settings=(
            0.1,
            0.07,
            0.05,
            0.02,
            0.005,
            0.002,
            0.001,
            0.0003,
            0.0001,
            3e-05,
            1e-05,
            1e-06,
            1e-07,
        ),
        events=(
            (1_000_000, 500_000, 1_600, 110, 110, 140, 270),
            (1_000_000, 1_000_000, 14_000, 160, 130, 170, 350),
            (1_000_000, 1_000_000, 200_000, 250, 150, 210, 420),
            (1_000_000, 1_000_000, 1_000_000, 680, 270, 310, 910),
            (1_000_000, 1_000_000, 1_000_000, 2_500, 590, 650, 2_700),
            (1_000_000, 1_000_000, 1_000_000, 6_500, 980, 970, 6_800),
            (1_000_000, 1_000_000, 1_000_000, 10_000, 1_300, 1_400, 12_000),
            (1_000_000, 1_000_000, 1_000_000, 62_000, 2_700, 2_600, 41_000),
            (1_000_000, 1_000_000, 1_000_000, 240_000, 5_400, 5_200, 160_000),
            (1_000_000, 1_000_000, 1_000_000, 1_000_000, 11_000, 9_500, 330_000),
            (1_000_000, 1_000_000, 1_000_000, 1_000_000, 21_000, 20_000, 1_000_000),
            (1_000_000, 1_000_000, 1_000_000, 1_000_000, 110_000, 120_000, 1_000_000),
            (1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000),
        ),
        stepped=True,
    )

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river.drift import binary

        detector: RiverDetector = binary.HDDMW(drift_confidence=setting)
        return detector
