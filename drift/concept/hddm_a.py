"""HDDM_A: Hoeffding's bound on the mean error, before and after a cut.

Good for abrupt drift. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class HDDMA(ReplayedDetector):
    """Frías-Blanco et al., IEEE Transactions on Knowledge and Data Engineering 27(3), 2014."""

    name = "hddm_a"

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river.drift import binary

        detector: RiverDetector = binary.HDDMA()
        return detector
