"""Every metric of the inference server, in one table that documents and dashboards are held to.

`METRICS` is the table, `Metrics` the live objects in a registry of their own. Every metric about
inference carries the model's and the version's name.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Literal, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
NO_VERSION = "none"

# Series of versions long gone are dropped, or a year of refreshes would fill every scrape.
_KEPT_VERSIONS = 20

_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
_LOAD = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

M = TypeVar("M", Counter, Gauge, Histogram)


class Metric(NamedTuple):
    """One metric as it appears on ``/metrics``."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_INFERENCE = ("model", "version")

METRICS = (
    Metric(
        "driftd_server_requests_total",
        "counter",
        (*_INFERENCE, "protocol", "code"),
        "Inference requests answered, by HTTP status; 499: the client left before the answer.",
    ),
    Metric(
        "driftd_server_request_seconds",
        "histogram",
        (*_INFERENCE, "protocol"),
        "Time from a request's first byte to its answer.",
        _LATENCY,
    ),
    Metric(
        "driftd_server_queue_seconds",
        "histogram",
        _INFERENCE,
        "Time an item waited for a free worker.",
        _LATENCY,
    ),
    Metric(
        "driftd_server_inference_seconds",
        "histogram",
        _INFERENCE,
        "Time of one run of the model.",
        _LATENCY,
    ),
    Metric(
        "driftd_server_batch_items",
        "histogram",
        _INFERENCE,
        "Items in one run of the model; the sum is the items answered.",
        _BATCH,
    ),
    Metric("driftd_server_queue_items", "gauge", ("model",), "Items waiting for a worker."),
    Metric(
        "driftd_server_errors_total",
        "counter",
        (*_INFERENCE, "reason"),
        "Requests that got an error, by reason.",
    ),
    Metric("driftd_server_ready", "gauge", ("model",), "1 if the server answers requests."),
    Metric("driftd_server_champion_info", "gauge", _INFERENCE, "1 for the version that serves."),
    Metric(
        "driftd_server_version_info",
        "gauge",
        (*_INFERENCE, "role"),
        "1 for each loaded version: champion, previous, challenger.",
    ),
    Metric("driftd_server_model_bytes", "gauge", _INFERENCE, "Size of a loaded version's graph."),
    Metric(
        "driftd_server_canary_share",
        "gauge",
        ("model",),
        "Share of the requests that a loaded challenger answers, 0 to 1.",
    ),
    Metric(
        "driftd_server_routed_requests_total",
        "counter",
        (*_INFERENCE, "role", "outcome"),
        "Requests while a challenger sees traffic, by who answered (champion, challenger; shadow: "
        "a copy that nobody waited for): ok, slow, error, or dropped under load.",
    ),
    Metric(
        "driftd_server_shadow_items_total",
        "counter",
        (*_INFERENCE, "outcome"),
        "Items of copied requests that the challenger labels as the champion does: same or "
        "differs.",
    ),
    Metric(
        "driftd_server_traffic_reports_total",
        "counter",
        ("model", "outcome"),
        "Reports to the registry of what was counted while a challenger sees traffic: done or "
        "failed.",
    ),
    Metric(
        "driftd_server_swaps_total",
        "counter",
        (*_INFERENCE, "outcome"),
        "Changes of the serving version: done, failed, or superseded by a newer one meanwhile.",
    ),
    Metric(
        "driftd_server_swap_seconds",
        "histogram",
        _INFERENCE,
        "Time from noticing a moved champion to answering with it.",
        _LOAD,
    ),
    Metric(
        "driftd_server_load_failures_total",
        "counter",
        (*_INFERENCE, "reason"),
        "Versions that could not be loaded, by reason.",
    ),
    Metric(
        "driftd_server_start_time_seconds",
        "gauge",
        ("model",),
        "When the server started, in seconds since the epoch.",
    ),
)


class Metrics:
    """The live metrics of one server.

    >>> metrics = Metrics("intents")
    >>> metrics.counter("driftd_server_swaps_total", "v0001", "done").inc()
    >>> text = metrics.exposition().decode()
    >>> 'swaps_total{model="intents",outcome="done",version="v0001"} 1.0' in text
    True
    """

    def __init__(self, model: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._model = model
        self._families = {metric.name: self._family(metric) for metric in METRICS}
        self._growing = {m.name for m in METRICS if "version" in m.labels and m.type != "gauge"}
        self._series: OrderedDict[str, set[tuple[str, tuple[str, ...]]]] = OrderedDict()
        self._lock = threading.Lock()
        self.gauge("driftd_server_start_time_seconds").set(time.time())
        self.gauge("driftd_server_ready").set(0)

    def counter(self, name: str, *labels: str) -> Counter:
        """The counter of that name for these label values, the model's name left out."""
        return self._child(Counter, name, labels)

    def gauge(self, name: str, *labels: str) -> Gauge:
        """The gauge of that name for these label values, the model's name left out."""
        return self._child(Gauge, name, labels)

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The histogram of that name for these label values, the model's name left out."""
        return self._child(Histogram, name, labels)

    def serving(self, roles: dict[str, str], loaded: dict[str, int]) -> None:
        """Tell who serves: loaded versions by role, and their sizes in bytes by their name."""
        for name in ("champion_info", "version_info", "model_bytes"):
            self._families[f"driftd_server_{name}"].clear()
        self.gauge("driftd_server_champion_info", roles["champion"]).set(1)
        for role, version in roles.items():
            self.gauge("driftd_server_version_info", version, role).set(1)
        for version, size_bytes in loaded.items():
            self.gauge("driftd_server_model_bytes", version).set(size_bytes)
        with self._lock:
            for version in loaded:
                self._series.setdefault(version, set())
                self._series.move_to_end(version)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _family(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.type == "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=self.registry)
        if metric.type == "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)
        return Histogram(
            metric.name,
            metric.help,
            metric.labels,
            registry=self.registry,
            buckets=metric.buckets,
        )

    def _child(self, kind: type[M], name: str, labels: tuple[str, ...]) -> M:
        family = self._families[name]
        if not isinstance(family, kind):
            raise TypeError(f"{name} is no {kind.__name__.lower()}")
        if name in self._growing and labels[0] != NO_VERSION:
            self._remember(labels[0], name, labels)
        return family.labels(self._model, *labels)

    def _remember(self, version: str, name: str, labels: tuple[str, ...]) -> None:
        series = self._series.get(version)
        if series is not None and (name, labels) in series:
            return
        with self._lock:
            self._series.setdefault(version, set()).add((name, labels))
            if len(self._series) > _KEPT_VERSIONS:
                _, gone = self._series.popitem(last=False)
                for old, values in gone:
                    self._families[old].remove(self._model, *values)
