"""Grafana's JSON for the few kinds of panel that the dashboards use.

Plain functions that return plain dicts in the schema of Grafana 11. Every panel has a description,
which Grafana shows behind its (i); `dashboard` places panels from left to right, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JSON = dict[str, Any]
Steps = Sequence[tuple[float | None, str]]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
FILTER = 'namespace=~"$namespace",model="$model"'

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"
NEUTRAL: Steps = ((None, BLUE),)
YES_IS_BAD: Steps = ((None, GREEN), (1, RED))
NO_IS_BAD: Steps = ((None, RED), (1, GREEN))


def of(metric: str, *matchers: str) -> str:
    """The metric's series of the chosen namespace and model."""
    return f"{metric}{{{','.join([FILTER, *matchers])}}}"


def rate(metric: str, *matchers: str) -> str:
    """Its growth a second."""
    return f"rate({of(metric, *matchers)}[$__rate_interval])"


def quantile(q: float, histogram: str, by: str = "le") -> str:
    """A quantile of a histogram, over all pods."""
    return f"histogram_quantile({q}, sum by ({by}) ({rate(histogram + '_bucket')}))"


def mean(histogram: str) -> str:
    """The mean of what a histogram saw."""
    return f"sum({rate(histogram + '_sum')}) / sum({rate(histogram + '_count')})"


def stat(
    title: str,
    expr: str,
    says: str,
    *,
    unit: str = "none",
    steps: Steps = NEUTRAL,
    words: Mapping[float, str] | None = None,
    legend: str = "",
    width: int = 4,
) -> JSON:
    """One number, or with ``legend`` one name, in the colour of its state.

    words: what stands for a value, such as {0: "no", 1: "yes"}.
    """
    panel = _panel("stat", title, says, [(expr, legend)], width, 4, unit, steps)
    panel["targets"][0]["instant"] = True
    panel["targets"][0]["range"] = False
    panel["options"] = {
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "center",
        "textMode": "name" if legend else "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    if words:
        options = {f"{value:g}": {"text": text} for value, text in words.items()}
        panel["fieldConfig"]["defaults"]["mappings"] = [{"type": "value", "options": options}]
    return panel


def graph(
    title: str,
    queries: Mapping[str, str],
    says: str,
    *,
    unit: str = "none",
    bounds: tuple[float | None, float | None] = (0, None),
    ranges: Steps = (),
    log: bool = False,
    stacked: bool = False,
    width: int = 8,
) -> JSON:
    """Lines over time. queries: expressions by the legend of their lines.

    ranges: where values are healthy and where not; drawn as coloured areas behind the lines.
    """
    pairs = [(expr, legend) for legend, expr in queries.items()]
    panel = _panel("timeseries", title, says, pairs, width, 8, unit, ranges or NEUTRAL)
    defaults = panel["fieldConfig"]["defaults"]
    defaults |= {
        name: bound
        for name, bound in zip(("min", "max"), bounds, strict=True)
        if bound is not None and not log
    }
    defaults["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 20 if stacked else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "area" if ranges else "off"},
    }
    panel["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def timeline(title: str, expr: str, legend: str, says: str, *, width: int = 24) -> JSON:
    """Which states held when: one band for each series."""
    panel = _panel("state-timeline", title, says, [(expr, legend)], width, 6, "none", NEUTRAL)
    panel["fieldConfig"]["defaults"]["custom"] = {"lineWidth": 0, "fillOpacity": 70}
    panel["options"] = {
        "mergeValues": True,
        "showValue": "never",
        "alignValue": "left",
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel


def dashboard(
    name: str,
    title: str,
    says: str,
    rows: Mapping[str, Sequence[JSON]],
    *,
    hours: int = 6,
    marks: Sequence[JSON] = (),
) -> JSON:
    """A dashboard whose panels stand in named rows; links lead to the others.

    marks: of what happened, as `happened` makes them, beside each change of the champion.
    """
    return {
        "uid": f"driftd-{name}",
        "title": f"driftd / {title}",
        "description": says,
        "tags": ["driftd"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": f"now-{hours}h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": [_promotions(), *marks]},
        "links": [_links()],
        "panels": _placed(rows),
    }


def _panel(
    kind: str,
    title: str,
    says: str,
    queries: Sequence[tuple[str, str]],
    width: int,
    height: int,
    unit: str,
    steps: Steps,
) -> JSON:
    return {
        "type": kind,
        "title": title,
        "description": says,
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": expr,
                "legendFormat": legend or "__auto",
                "range": True,
            }
            for i, (expr, legend) in enumerate(queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "color": {"mode": "palette-classic" if kind == "timeseries" else "thresholds"},
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": color, "value": value} for value, color in steps],
                },
            },
            "overrides": [],
        },
    }


def _placed(rows: Mapping[str, Sequence[JSON]]) -> list[JSON]:
    placed: list[JSON] = []
    y = 0
    for title, panels in rows.items():
        bar = {"type": "row", "title": title, "collapsed": False, "panels": []}
        placed.append({**bar, "id": len(placed) + 1, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y, x, height = y + 1, 0, 0
        for panel in panels:
            size = panel["gridPos"]
            if x + size["w"] > WIDTH:
                y, x, height = y + height, 0, 0
            place = {"x": x, "y": y, **size}
            placed.append({"id": len(placed) + 1, **panel, "gridPos": place})
            x, height = x + size["w"], max(height, size["h"])
        y += height
    return placed


def _variables() -> list[JSON]:
    anyone = '{__name__=~"driftd_source_connected|driftd_server_ready"}'
    some = '{__name__=~"driftd_source_connected|driftd_server_ready",namespace=~"$namespace"}'
    return [
        {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
        _variable(
            "namespace", f"label_values({anyone}, namespace)", includeAll=True, allValue=".*"
        ),
        _variable("model", f"label_values({some}, model)"),
    ]


def _variable(name: str, query: str, **more: object) -> JSON:
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        **more,
    }


def happened(name: str, counter: str, label: str, color: str) -> JSON:
    """A mark in all graphs whenever the counter grows, or appears; it names the ``label``."""
    series = of(counter)
    grown = f"({series} unless {series} offset 1m) or increase({series}[1m])"
    return _mark(name, f"sum by ({label}) ({grown}) > 0", f"{name}: {{{{{label}}}}}", color)


def _promotions() -> JSON:
    since = of("driftd_champion_since_timestamp_seconds")
    version = f"max by (version) ({of('driftd_champion_info')})"
    expr = f"{version} and on () changes({since}[1m]) > 0"
    return _mark("Another champion", expr, "{{version}} serves", "purple")


def _mark(name: str, expr: str, title: str, color: str) -> JSON:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": color,
        "expr": expr,
        "titleFormat": title,
        "textFormat": "See the journal for who and why",
        "step": "60s",
    }


def _links() -> JSON:
    return {
        "type": "dashboards",
        "title": "driftd",
        "tags": ["driftd"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
