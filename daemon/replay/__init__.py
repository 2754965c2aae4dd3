"""Replay: what driftd, and what others would have done, with a recorded stream.

The very same loop runs over the events of the past, on their clock, once for each policy; what it
would have answered, repaired and cost is measured and put side by side. `read` makes a
`Recording`, `Replay` runs the policies on it, `measure` compares, `write` makes the report.
"""

from __future__ import annotations

from daemon.replay.measures import measure
from daemon.replay.policies import Policy, PolicyError, parse
from daemon.replay.recording import Delay, Recording, read
from daemon.replay.replaying import Progress, Replay, ReplayError
from daemon.replay.report import write

__all__ = [
    "Delay",
    "Policy",
    "PolicyError",
    "Progress",
    "Recording",
    "Replay",
    "ReplayError",
    "measure",
    "parse",
    "read",
    "write",
]
