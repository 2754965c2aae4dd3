"""EDDM: the distance between two errors has become shorter.

Made for gradual drift; alarms often. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class EDDM(ReplayedDetector):
    """Baena-García et al., "Early Drift Detection Method", 2006."""

    name = "eddm"

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river.drift import binary

        detector: RiverDetector = binary.EDDM()
        return detector
