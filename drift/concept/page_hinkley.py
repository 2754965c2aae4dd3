"""Page-Hinkley: a CUSUM of the errors against their own mean.

Watches for rises only. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class PageHinkley(ReplayedDetector):
    """Page, "Continuous Inspection Schemes", Biometrika 41, 1954."""

    name = "page_hinkley"

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river import drift

        detector: RiverDetector = drift.PageHinkley(mode="up")
        return detector
