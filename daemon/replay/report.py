"""The report of a replay: one page that works anywhere, and the same figures for programs.

``report.html`` carries everything in itself; ``report.json`` has all figures, decisions and
versions, ``policies.csv`` the table of policies and ``accuracy.csv`` accuracy over time.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from daemon.replay.measures import Comparison
from daemon.replay.page import page

CURVE_POINTS = 1_000


def write(found: Comparison, facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write the report into ``folder``; the files written.

    ``facts``: what was replayed, by name, as the page states it at its top.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / n for n in ("report.html", "report.json", "policies.csv", "accuracy.csv")]
    paths[0].write_text(page(found, facts), encoding="utf-8")
    paths[1].write_text(json.dumps(document(found, facts), indent=1) + "\n", encoding="utf-8")
    _policies(found, paths[2])
    _accuracy(found, paths[3])
    return paths


def document(found: Comparison, facts: dict[str, Any]) -> dict[str, Any]:
    """All of the report as plain values."""
    kept = ("served", "versions", "rows", "classes")
    return {
        "replayed": facts,
        "target": found.target,
        "target_reason": found.target_reason,
        "window": found.window,
        "yardsticks": found.yardsticks,
        "policies": {
            name: {
                **figures,
                "confusion_changed": found.confusion.get(name, []),
                **{key: getattr(found.outcomes[name], key) for key in kept},
            }
            for name, figures in found.figures.items()
        },
    }


def _policies(found: Comparison, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = [k for k in next(iter(found.figures.values())) if k != "refreshes_by_rung"]
        out.writerow(["policy", *names])
        for policy, figures in found.figures.items():
            out.writerow([policy, *("" if figures[k] is None else figures[k] for k in names)])
        for name, accuracy in found.yardsticks.items():
            out.writerow([name, len(found.positions), accuracy])


def _accuracy(found: Comparison, path: Path) -> None:
    count = len(found.positions)
    rows = np.unique(np.linspace(0, count - 1, min(count, CURVE_POINTS)).astype(np.int64))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["event", *found.rolling])
        for row in rows.tolist():
            values = (f"{curve[row]:.4f}" for curve in found.rolling.values())
            out.writerow([int(found.positions[row]), *values])
