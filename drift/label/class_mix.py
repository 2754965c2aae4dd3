"""The mix of labels moved: one class more or less frequent, or a class never seen before.

The default label detector: `mix.Mix` on the labels that have arrived.
"""

from __future__ import annotations

from drift.eprocess import Integers
from drift.label.mix import Mix
from drift.signal import Observations


class ClassMix(Mix):
    """E-detector for a change of the label frequencies; ``false_alarm`` counts labelled events."""

    name = "class_mix"
    what = "labelled events"

    def classes_of(self, observations: Observations) -> Integers:
        """The labels; events without one do not count."""
        return observations.labels
