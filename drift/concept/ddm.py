"""DDM: the error rate is far above the lowest it has been.

Cheap, and slow to notice. river's, through `replayed.ReplayedDetector`.
"""

from __future__ import annotations

from drift.concept.replayed import ReplayedDetector, RiverDetector


class DDM(ReplayedDetector):
    """Gama et al., "Learning with Drift Detection", SBIA 2004."""

    name = "ddm"

    def create(self) -> RiverDetector:
        """River's, at its own settings."""
        from river.drift import binary

        detector: RiverDetector = binary.DDM()
        return detector
