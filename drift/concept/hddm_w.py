"""HDDM_W: McDiarmid's bound on an exponentially weighted mean error.

Quick to notice gradual drift too. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class HDDMW(ReplayedDetector):
    """Frías-Blanco et al., IEEE Transactions on Knowledge and Data Engineering 27(3), 2014."""

    name = "hddm_w"

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river.drift import binary

        detector: RiverDetector = binary.HDDMW()
        return detector
