"""Pages that follow from code: the chart's README, docs/metrics.md and the index of runbooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from daemon.metrics import Metrics as DaemonMetrics
from deploy.metrics import METRICS as SERVER_METRICS
from helm.builder.alerts import ALERTS, GROUPS
from helm.builder.dashboards import DASHBOARDS
from helm.builder.values import read_values

NAME = re.compile(r"\bdriftd_\w+")
_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def chart_readme(values: str) -> str:
    """The chart's README, for the text of values.yaml."""
    rows = [
        f"| `{'.'.join(value.path)}` | `{_short(value.default)}` | {value.says} |"
        for value in read_values(values)
    ]
    return README.format(rows="\n".join(rows))


def metrics_page() -> str:
    """docs/metrics.md: every metric, and where it is shown and watched."""
    panels, alerts = _panels(), _alerts()
    tables = {}
    for part, metrics in (("daemon", daemon_metrics()), ("server", server_metrics())):
        tables[part] = "\n".join(
            f"| `{name}` | {kind} | {labels} | {says} | {_listed(panels.get(name, ()))} "
            f"| {_linked(alerts.get(name, ()))} |"
            for name, kind, labels, says in metrics
        )
    return METRICS_PAGE.format(**tables)


def runbooks_index() -> str:
    """docs/runbooks/README.md: the alerts by what they are about."""
    tables = {}
    for name, alerts in GROUPS.items():
        tables[name] = "\n".join(
            f"| [{alert.name}]({alert.name}.md) | {alert.severity} "
            f"| {'at once' if alert.held == '0m' else alert.held} | {_plain(alert.summary)} |"
            for alert in alerts
        )
    return RUNBOOKS_PAGE.format(**tables)


def daemon_metrics() -> Iterator[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of the daemon's metrics; `model`, which all have, left out."""
    for metric in DaemonMetrics("m").table.values():
        (family,) = metric.describe()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames if label != "model")
        suffix = "_total" if family.type == "counter" else ""
        yield family.name + suffix, family.type, labels, family.documentation


def server_metrics() -> Iterator[tuple[str, str, str, str]]:
    """The same of the server's."""
    for metric in SERVER_METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels if label != "model")
        yield metric.name, metric.type, labels, metric.help


def used(expr: str) -> set[str]:
    """The metrics in a PromQL expression; a histogram's parts count as the histogram."""
    return {_HISTOGRAM.sub("", name) for name in NAME.findall(expr)}


def _panels() -> dict[str, list[str]]:
    shown: dict[str, list[str]] = {}
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                for metric in used(target["expr"]):
                    shown.setdefault(metric, [])
                    if name not in shown[metric]:
                        shown[metric].append(name)
    return shown


def _alerts() -> dict[str, list[str]]:
    watched: dict[str, list[str]] = {}
    for alert in ALERTS:
        for metric in used(alert.expr):
            watched.setdefault(metric, []).append(alert.name)
    return watched


def _plain(summary: str) -> str:
    text = summary.replace("{{ $labels.model }}", "the model")
    return text[0].upper() + text[1:]


def _listed(names: Any) -> str:
    return ", ".join(names)


def _linked(names: Any) -> str:
    return ", ".join(f"[{name.removeprefix('Driftd')}](runbooks/{name}.md)" for name in names)


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


README = """\
# driftd on Kubernetes

Daemon, inference servers, dashboards and alerts. How to install, upgrade, back up and size it, and
its security model: [docs/kubernetes.md](../../docs/kubernetes.md).

```sh
helm install intents helm/driftd -f my-values.yaml
```

The least that `my-values.yaml` must say is where events come from ([more](ci/)):

```yaml
config:
  name: intents
  source:
    kind: kafka
    bootstrap_servers: [kafka-bootstrap.kafka:9092]
    topic: intents
```

## Values

<!-- built: python -m helm.builder -->
| key | default | what it does |
|---|---|---|
{rows}
"""

METRICS_PAGE = """\
# Metrics

<!-- built: python -m helm.builder -->
Every metric, the dashboards that show it (`helm/driftd/files/dashboards/`) and the alerts that
watch it. All carry the label `model`: the daemon's from `name`, the server's from `server.name`;
give both the same, as the chart does, and one dashboard shows both.

## The daemon, port 8081

| metric | type | labels | meaning | shown in | alerts |
|---|---|---|---|---|---|
{daemon}

## The server, port 8080

| metric | type | labels | meaning | shown in | alerts |
|---|---|---|---|---|---|
{server}
"""

RUNBOOKS_PAGE = """\
# Runbooks

<!-- built: python -m helm.builder -->
One page an alert: what it means, how to find out more, what to do. Any Prometheus can load the
rules, `helm/driftd/files/alerts.yaml`. For a daemon in a cluster, `driftd` goes through kubectl:

    driftd --context CONTEXT --namespace NAMESPACE --release RELEASE status

critical: clients or the model's state suffer now. warning: look today. info: look when there is
time.

## The model

| alert | severity | after | what it says |
|---|---|---|---|
{model}

## Training

| alert | severity | after | what it says |
|---|---|---|---|
{training}

## The daemon

| alert | severity | after | what it says |
|---|---|---|---|
{daemon}

## Serving

| alert | severity | after | what it says |
|---|---|---|---|
{serving}
"""
