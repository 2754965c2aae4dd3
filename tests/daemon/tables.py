"""Tables as files of events, for the tests of several models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_turning(path: Path, rows: int, turn: int) -> None:
    """What ``x`` and ``kind`` mean for ``label`` turns over at event ``turn``, and for ``size``.

    Every eleventh ``x`` is missing.
    """
    random = np.random.default_rng(2)
    lines = []
    for i in range(rows):
        x, kind = random.normal(), str(random.choice(["p", "q"]))
        truth = ((x > 0) == (kind == "p")) != (i >= turn)
        row = {"x": x if i % 11 else None, "kind": kind, "label": "yes" if truth else "no"}
        row["size"] = 10.0 * truth + 0.1 * x
        lines.append(json.dumps({"id": f"e{i}", "at": 1_700_000_000 + i, **row}))
    path.write_text("\n".join(lines) + "\n")
