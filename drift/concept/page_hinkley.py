"""Page-Hinkley: a CUSUM of the errors against their own mean.

Watches for rises only. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class PageHinkley(ReplayedDetector):
    """Page, "Continuous Inspection Schemes", Biometrika 41, 1954."""

    name = "page_hinkley"
    parameter = "threshold"
    default = 50.0
    run_lengths = RunLengths(
        settings=(3.0, 8.0, 20.0, 40.0, 70.0, 110.0, 160.0, 220.0),
        events=(
            (17_000, 2_200, 290, 87, 62, 63, 85),
            (83_000, 17_000, 1_800, 510, 330, 330, 530),
            (2_000_000, 110_000, 17_000, 3_600, 2_200, 2_100, 2_800),
            (2_000_000, 2_000_000, 64_000, 14_000, 9_000, 9_500, 14_000),
            (2_000_000, 2_000_000, 2_000_000, 52_000, 28_000, 29_000, 46_000),
            (2_000_000, 2_000_000, 2_000_000, 220_000, 99_000, 79_000, 330_000),
            (2_000_000, 2_000_000, 2_000_000, 2_000_000, 400_000, 660_000, 2_000_000),
            (2_000_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000, 2_000_000),
        ),
    )

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river import drift

        detector: RiverDetector = drift.PageHinkley(threshold=setting, mode="up")
        return detector
