"""KSWIN: the last 30 errors against a sample of those before, by Kolmogorov-Smirnov.

Slow: a test an event. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class KSWIN(ReplayedDetector):
    """Raab, Heusinger & Schleif, "Reactive Soft Prototype Computing", Neurocomputing 2020."""

    name = "kswin"
    # A tenth of a millisecond an event: what is replayed must stay short.
    warm_up = 200
    longest_tail = 4_096

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river import drift

        # Any fixed seed: without one, a restart would draw other samples than the run it continues.
        detector: RiverDetector = drift.KSWIN(seed=0)
        return detector

    def recent(self) -> int:
        """River's window of the newest observations."""
        return int(getattr(self._detector, "stat_size", 30))
