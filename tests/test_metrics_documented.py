"""The metrics table of docs/daemon.md and the daemon's metrics are the same."""

import re
from pathlib import Path

from daemon.metrics import Metrics

PAGE = Path(__file__).resolve().parents[1] / "docs" / "daemon.md"


def exposed():
    """The names as they stand on /metrics; counters end in ``_total`` there."""
    families = [f for metric in Metrics("m").table.values() for f in metric.describe()]
    return {f.name + ("_total" if f.type == "counter" else "") for f in families}


def documented():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`(driftd_\w+)`", row)]


def test_every_metric_is_documented():
    assert exposed() - set(documented()) == set()


def test_every_documented_metric_exists_and_stands_once():
    names = documented()
    assert set(names) - exposed() == set()
    assert len(names) == len(set(names))
