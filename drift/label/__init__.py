"""Label drift: P(y) moved.

`ClassMix` watches every class's share of the labels that have arrived, and classes that the
reference never saw; `Answers` does the same with what the model answered, and needs no labels.
"""

from drift.label.answers import Answers
from drift.label.class_mix import ClassMix

__all__ = ["Answers", "ClassMix"]
