"""The demo, several times: time, accuracy won back after the drift, cost of INT8, failed requests.

Each run is ``python -m examples.demo`` as ``make demo`` starts it, with a broker, a daemon and a
server of its own. ``--quick`` replays the stream nine times faster, so that the daemon has seen
more events by the time a refresh is trained: its figures are worse, and only show that it works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import Row, row

RUNS = 3
DRIFTED = "B"


def rows(quick: bool) -> Iterator[Row]:
    """Run it and read what each run left in ``summary.json``."""
    found = [_run(400.0 if quick else 45.0) for _ in range(1 if quick else RUNS)]
    phases = [run[DRIFTED] for run in found]
    gaps = [100 * (p["driftd"] - p["frozen"]) / (p["ceiling"] - p["frozen"]) for p in phases]
    yield _median("wall time", [run["wall_seconds"] for run in found], "s", "<= 300")
    for name in ("frozen", "driftd", "ceiling"):
        yield _median(f"accuracy after the drift: {name}", [100 * p[name] for p in phases], "%")
    yield _median("share of the gap recovered, median", gaps, "%", ">= 80")
    yield row("share of the gap recovered, worst", min(gaps), "%", ">= 80")
    back = [run["C"] for run in found]
    for name in ("frozen", "driftd", "ceiling"):
        yield _median(f"when the regime is back: {name}", [100 * p[name] for p in back], "%")
    for figure, key in (
        ("drift to alarm", "drift_to_alarm"),
        ("alarm to promotion", "alarm_to_promotion"),
    ):
        yield _median(figure, [run[key] for run in found if key in run], "events")
    yield _median("INT8 size over FP32", [r["size_ratio"] for r in found], "", "<= 0.26")
    error = median(run["parity_error"] for run in found)
    yield _median(
        "INT8 accuracy below FP32",
        [run["parity_points"] for run in found],
        "points",
        "<= 0.5",
        f"standard error {error:.2f}, on {found[0]['parity_events']:.0f} posts never learned",
    )
    failed = sum(run["failed_requests"] for run in found)
    answered = sum(run["requests"] for run in found)
    yield row("failed requests", failed, "", "<= 0", f"of {answered + failed:,}, swaps included")


def _median(
    figure: str, values: list[float], unit: str = "", target: str = "", note: str = ""
) -> Row:
    if not values:
        return Row(figure, None, unit, target, None, "no run got there")
    spread = f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else ""
    return row(figure, median(values), unit, target, "; ".join(filter(None, (note, spread))))


def _run(rate: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "demo")
        command = [sys.executable, "-m", "examples.demo", "--out", str(out), "--rate", str(rate)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return found
