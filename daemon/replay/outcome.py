"""What one policy did with the recording: its answers, what served when, alarms and costs.

Plain arrays and lists, written beside the loop's checkpoint while a replay runs, and whole at its
end; the measures and the report are made from nothing else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

ARRAYS, REST = "outcome.safetensors", "outcome.json"


@dataclass(slots=True)
class Outcome:
    """One policy's run; positions count the recording's events from 0.

    predicted: int32 [n], indices into ``classes``; -1 for the warm-up and what has not come yet.
    arrived: positions up to which the replay has come. served: each champion with the position
    from which it served, how it came there and why. signals: (position, detector, score over
    threshold). rows: the journal's rows of decisions, each with its position. jobs: refreshes by
    rung. Costs are CPU-seconds: of training, and of the loop without the encoder.
    """

    policy: str
    predicted: NDArray[np.int32]
    arrived: int
    classes: list[str] = field(default_factory=list)
    served: list[dict[str, Any]] = field(default_factory=list)
    signals: list[tuple[int, str, float]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    training_cpu_seconds: float = 0.0
    loop_cpu_seconds: float = 0.0
    encoder_cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    held_out: dict[str, float] = field(default_factory=dict)
    versions: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        save_file({"predicted": self.predicted}, folder / ARRAYS)
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "predicted"}
        (folder / REST).write_text(json.dumps(rest))

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """What `write` left in ``folder``. Raises FileNotFoundError."""
        rest = json.loads((folder / REST).read_text())
        rest["signals"] = [tuple(row) for row in rest["signals"]]
        rest["steps"] = [tuple(row) for row in rest["steps"]]
        return cls(predicted=load_file(folder / ARRAYS)["predicted"], **rest)

    def position(self, event: int) -> int:
        """The position that had arrived when the loop had taken in ``event`` events."""
        if not self.steps:
            return event
        taken = np.array([row[0] for row in self.steps])
        place = min(int(np.searchsorted(taken, event)), len(self.steps) - 1)
        return self.steps[place][1]

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """The journal's rows of these kinds."""
        return [row for row in self.rows if row["kind"] in kinds]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values."""
        values = asdict(self)
        del values["predicted"], values["steps"]
        return values
