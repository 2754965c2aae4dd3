"""Each metric is shown or watched, and nothing is shown that is not there."""

import json
import re
from typing import Any

import pytest

from helm.builder.alerts import ALERTS
from helm.builder.dashboards import DASHBOARDS
from helm.builder.pages import daemon_metrics, server_metrics, used
from helm.builder.panels import WIDTH

METRICS = {name: (kind, labels) for name, kind, labels, _ in (*daemon_metrics(), *server_metrics())}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
EXPRESSIONS = [
    *(
        target["expr"]
        for dashboard in DASHBOARDS.values()
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ),
    *(alert.expr for alert in ALERTS),
]


def test_every_metric_is_in_a_panel_or_a_rule() -> None:
    assert METRICS.keys() - set().union(*map(used, EXPRESSIONS)) == set()


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_expressions_use_metrics_that_exist_in_the_way_of_their_type(expr: str) -> None:
    assert used(expr) <= METRICS.keys()
    for name in re.findall(r"\bdriftd_\w+", expr):
        part = re.search(r"_(bucket|sum|count)$", name)
        if name not in METRICS:
            assert part
            assert METRICS[name.removesuffix(part[0])][0] == "histogram"
        else:
            assert METRICS[name][0] != "histogram"


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_expressions_use_labels_that_exist(expr: str) -> None:
    target = {"namespace", "model", "le", "pod", "instance"}
    known = target.union(*(re.findall(r"\w+", METRICS[name][1]) for name in used(expr)))
    asked = re.findall(r"[{,](\w+)=?[=~!]+[\"']", expr)
    grouped = [n for names in re.findall(r"(?:by|on) \(([^)]*)\)", expr) for n in names.split(", ")]
    assert set(asked) | set(grouped) <= known


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    if panel["type"] == "row":
        return
    assert panel["description"]
    assert panel["targets"]
    assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert 'model="$model"' in target["expr"]
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            names = {n for m in used(target["expr"]) for n in re.findall(r"\w+", METRICS[m][1])}
            assert label in names | {"pod", "instance"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_lie_side_by_side(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    panels = DASHBOARDS[name]["panels"]
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_dashboards_can_be_told_apart() -> None:
    assert len({d["uid"] for d in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert all(len(d["uid"]) <= 40 for d in DASHBOARDS.values())


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_s_own_types_read_it_whole(name: str) -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    dashboard = DASHBOARDS[name]
    read = models.Dashboard.from_json(dashboard)
    written = json.loads(encoder.JSONEncoder().encode(read))
    # Its types do not know what only Prometheus' annotations have.
    ours = {**dashboard, "annotations": {}}
    assert contained(ours, written) == []
    assert contained({"panels": [{"titel": "x"}]}, {"panels": [{}]}) == [".panels[0].titel"]


def contained(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """What is in ours and has got lost in theirs, by its path."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            lost
            for key, value in ours.items()
            for lost in (
                contained(value, theirs[key], f"{path}.{key}")
                if key in theirs
                # Empty lists and texts are as good as absent.
                else ([f"{path}.{key}"] if value not in ("", [], {}, None, False) else [])
            )
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            lost
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for lost in contained(a, b, f"{path}[{i}]")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]
