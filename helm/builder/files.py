"""Which files are built, and from what."""

from __future__ import annotations

import json
from pathlib import Path

from helm.builder.alerts import rule_file
from helm.builder.dashboards import DASHBOARDS
from helm.builder.pages import chart_readme, metrics_page, runbooks_index
from helm.builder.schema import values_schema

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "driftd"


def built() -> dict[Path, str]:
    """The text of every built file, by its path."""
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    files = {
        CHART / "files" / "dashboards" / f"{name}.json": _json(dashboard)
        for name, dashboard in DASHBOARDS.items()
    }
    return files | {
        CHART / "files" / "alerts.yaml": rule_file(),
        CHART / "values.schema.json": _json(values_schema(values)),
        CHART / "README.md": chart_readme(values),
        ROOT / "docs" / "metrics.md": metrics_page(),
        ROOT / "docs" / "runbooks" / "README.md": runbooks_index(),
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
