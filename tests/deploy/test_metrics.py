"""The table of metrics is what is exposed, and series of versions long gone disappear."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.metrics import METRICS, Metrics


def samples(metrics, name):
    return [
        sample
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if sample.name == name
    ]


def touch(metrics, metric):
    labels = ["x"] * (len(metric.labels) - 1)
    if metric.type == "counter":
        metrics.counter(metric.name, *labels).inc()
    elif metric.type == "gauge":
        metrics.gauge(metric.name, *labels).set(1)
    else:
        metrics.histogram(metric.name, *labels).observe(1)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_of_the_table_is_exposed(metric):
    metrics = Metrics("m")
    touch(metrics, metric)
    name = metric.name + ("_count" if metric.type == "histogram" else "")
    (sample,) = samples(metrics, name)
    assert set(sample.labels) == set(metric.labels)
    assert sample.labels["model"] == "m"


def test_names_follow_the_rules():
    for metric in METRICS:
        assert metric.name.startswith("driftd_server_")
        assert metric.labels[0] == "model"
        assert (metric.type == "counter") == metric.name.endswith("_total")


def test_the_page_lists_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    for metric in METRICS:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{metric.name}` |")]
        for label in metric.labels:
            assert f"`{label}`" in row, (metric.name, label)
        assert f"| {metric.type} |" in row


def test_series_of_old_versions_go():
    metrics = Metrics("m")
    name = "driftd_server_batch_items"
    for i in range(50):
        metrics.serving({"champion": f"v{i:04d}"}, {f"v{i:04d}": 1})
        metrics.histogram(name, f"v{i:04d}").observe(1)
    versions = {sample.labels["version"] for sample in samples(metrics, f"{name}_count")}
    assert len(versions) == 20
    assert "v0049" in versions
    assert len(samples(metrics, "driftd_server_champion_info")) == 1


def test_the_serving_version_stays_however_old():
    metrics = Metrics("m")
    name = "driftd_server_batch_items"
    for i in range(50):
        metrics.histogram(name, f"v{i:04d}").observe(1)
        metrics.histogram(name, "v0000").observe(1)
        metrics.serving({"champion": "v0000"}, {"v0000": 1})
    versions = {sample.labels["version"] for sample in samples(metrics, f"{name}_count")}
    assert "v0000" in versions


def test_a_wrong_kind_is_refused():
    with pytest.raises(TypeError):
        Metrics("m").gauge("driftd_server_swaps_total", "v0001", "done")
