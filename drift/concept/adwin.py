"""ADWIN: two parts of an adaptive window have different means.

Finds slow and fast changes, with a proven bound. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class ADWIN(ReplayedDetector):
    """Bifet & Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007."""

    name = "adwin"

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river import drift

        detector: RiverDetector = drift.ADWIN()
        return detector

    def recent(self) -> int:
        """The window that was left after the cut."""
        return int(getattr(self._detector, "width", 1))
