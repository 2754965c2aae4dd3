"""KSWIN: the last 30 errors against a sample of those before, by Kolmogorov-Smirnov.

Slow: a test an event. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector
from drift.concept.run_length import RunLengths


class KSWIN(ReplayedDetector):
    """Raab, Heusinger & Schleif, "Reactive Soft Prototype Computing", Neurocomputing 2020."""

    name = "kswin"
    parameter = "alpha"
    default = 0.005
    run_lengths = RunLengths(
        settings=(
            0.39298,
            0.2391,
            0.13502,
            0.070895,
            0.034584,
            0.015645,
            0.0065491,
            0.0025303,
            0.00089967,
            0.00029337,
            8.7387e-05,
        ),
        events=(
            (24_000_000, 24_000_000, 20_000, 340, 250, 250, 340),
            (24_000_000, 24_000_000, 100_000, 530, 300, 300, 510),
            (24_000_000, 24_000_000, 720_000, 990, 390, 390, 880),
            (24_000_000, 24_000_000, 4_000_000, 2_100, 570, 570, 1_800),
            (24_000_000, 24_000_000, 24_000_000, 5_700, 970, 940, 4_500),
            (24_000_000, 24_000_000, 24_000_000, 15_000, 1_800, 1_800, 13_000),
            (24_000_000, 24_000_000, 24_000_000, 57_000, 3_900, 3_800, 45_000),
            (24_000_000, 24_000_000, 24_000_000, 250_000, 10_000, 9_400, 170_000),
            (24_000_000, 24_000_000, 24_000_000, 1_000_000, 26_000, 26_000, 630_000),
            (24_000_000, 24_000_000, 24_000_000, 6_000_000, 82_000, 72_000, 3_400_000),
            (24_000_000, 24_000_000, 24_000_000, 6_000_000, 370_000, 320_000, 8_000_000),
        ),
        stepped=True,
    )
    # A tenth of a millisecond an event: what is replayed must stay short.
    warm_up = 200
    longest_tail = 4_096

    def create(self, setting: float) -> RiverDetector:
        """River's, its parameter set."""
        from river import drift

        # Any fixed seed: without one, a restart would draw other samples than the run it continues.
        detector: RiverDetector = drift.KSWIN(alpha=setting, seed=0)
        return detector

    def recent(self) -> int:
        """River's window of the newest observations."""
        return int(getattr(self._detector, "stat_size", 30))
