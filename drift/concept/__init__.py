"""Concept drift: P(y given x) moved, seen as a rise of the model's error rate.

`ErrorRate` is the default: an e-detector that provably keeps the false-alarm budget. The detectors
of the river library keep it by measurement (`run_length`), through `replayed.ReplayedDetector`. All
of them look at labelled events only, in the order in which they come.
"""

from drift.concept.error_rate import ErrorRate

__all__ = ["ErrorRate"]
