"""Label drift: P(y) moved. Looks at the labels that have arrived, not at the model's answers.

`ClassMix` watches every class's share of the traffic, and classes that the reference never saw.
"""

from drift.label.class_mix import ClassMix

__all__ = ["ClassMix"]
