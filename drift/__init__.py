"""Drift: detectors, their calibration under one false-alarm budget, and the diagnosis of an alarm.

Knows arrays; knows neither Kafka nor torch, and imports no other room. In the order of use:

    Reference   what normal is: the events a version was proven on, and their signature
    Monitors    the detectors of a DriftConfig on one budget: fit, observe, state, distances
    diagnose    the signals of an alarm and recent events -> Diagnosis: kind, damage, onset, why
    Slices      parts of a table that are judged on their own
    AccuracyEstimate   what the accuracy should be, while labels are on their way
    Signature   a regime in a few numbers; finds the known regime that came back

Detectors live in ``concept/``, ``covariate/`` and ``label/``, one file each, behind `Detector`.
"""

from drift.budget import NoTraffic
from drift.config import DriftConfig
from drift.diagnosis import Diagnosis, diagnose
from drift.ensemble import Distance, Monitors, SettingsChanged
from drift.estimate import AccuracyEstimate
from drift.measures import Interval
from drift.reference import Reference
from drift.signal import (
    UNLABELLED,
    Detector,
    DriftError,
    NotEnoughReference,
    NotFitted,
    Observations,
    ShapeMismatch,
    Signal,
    State,
)
from drift.signature import Signature
from drift.slices import Slices

__all__ = [
    "UNLABELLED",
    "AccuracyEstimate",
    "Detector",
    "Diagnosis",
    "Distance",
    "DriftConfig",
    "DriftError",
    "Interval",
    "Monitors",
    "NoTraffic",
    "NotEnoughReference",
    "NotFitted",
    "Observations",
    "Reference",
    "SettingsChanged",
    "ShapeMismatch",
    "Signal",
    "Signature",
    "Slices",
    "State",
    "diagnose",
]
