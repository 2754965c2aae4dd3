"""What a benchmark yields, how it is printed, and what of it is kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "driftd",
    "numpy",
    "scipy",
    "torch",
    "transformers",
    "peft",
    "onnx",
    "onnxruntime",
    "river",
    "kafka-python",
    "uvicorn",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. target: what it should be, in words such as ``<= 0.26``; empty: only reported.

    met: whether it is, None where there is no target or it could not be measured. note: what a
    reader must know to take the figure rightly, such as the spread.
    """

    figure: str
    value: float | int | str | None
    unit: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""


def row(figure: str, value: float, unit: str = "", target: str = "", note: str = "") -> Row:
    """A row whose target, if any, is ``<= x`` or ``>= x`` in the figure's own unit.

    >>> row("size ratio", 0.2551, target="<= 0.26").met
    True
    """
    met = None
    if target:
        sign, _, limit = target.partition(" ")
        met = value <= float(limit) if sign == "<=" else value >= float(limit)
        if sign not in ("<=", ">="):
            raise ValueError(f"a target begins with <= or >=, not {target!r}")
    return Row(figure, value, unit, target, met, note)


def show(name: str, rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("figure", "value", "unit", "target", "met", "note", title=f"bench {name}")
    words = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for r in rows:
        table.add_row(r.figure, shown(r.value), r.unit, r.target, words[r.met], r.note)
    Console().print(table)


def shown(value: float | int | str | None) -> str:
    """A figure with four digits that matter.

    >>> shown(1234567.8), shown(0.25512), shown(3), shown(None)
    ('1,234,568', '0.2551', '3', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return f"{value:,}" if isinstance(value, int) else value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def save(name: str, rows: Sequence[Row], seconds: float, part: str | None = None) -> Path:
    """Write ``results/NAME.json``: the rows, and what they were measured with.

    With ``part``, whose figures begin with its name and a colon, the rows of other parts stay,
    and ``parts`` says when and with what each was measured.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    body: dict[str, Any] = {
        "bench": name,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "machine": machine(),
        "versions": versions(),
    }
    kept: list[dict[str, Any]] = []
    if part is not None:
        before = json.loads(path.read_text()) if path.exists() else {}
        made = {key: body[key] for key in ("date", "seconds", "versions")}
        kept = [r for r in before.get("rows", []) if not r["figure"].startswith(f"{part}:")]
        body["parts"] = {**before.get("parts", {}), part: made}
        body["seconds"] = sum(one["seconds"] for one in body["parts"].values())
    body["rows"] = [*kept, *(asdict(r) for r in rows)]
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What it ran on, as far as it matters for speed."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system()}


def versions() -> dict[str, str]:
    """Python and the packages that shape a figure."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
