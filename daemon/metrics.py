"""Every Prometheus metric of the daemon, in one table.

One `Metrics` object a daemon, with a registry of its own, so that several can live in one process
(tests do that). The names are a contract with dashboards and alert rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

M = TypeVar("M", Counter, Gauge, Histogram)
Family = Callable[..., M]

SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
BATCH = (1, 8, 32, 64, 128, 256, 512, 1024)
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The daemon's metrics; each attribute is called with its label values.

    >>> metrics = Metrics("intents")
    >>> metrics.events("labelled").inc(3)
    >>> b'driftd_events_total{model="intents",outcome="labelled"} 3.0' in metrics.exposition()
    True
    """

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.table: dict[str, Counter | Gauge | Histogram] = {}
        self._model = model
        # The stream.
        self.events = self._counter("events", "Events by what became of them.", "outcome")
        self.dead_letters = self._counter(
            "dead_letters", "Records that are no event, by reason.", "reason"
        )
        self.lag_events = self._gauge("lag_events", "Events waiting in the source.")
        self.lag_seconds = self._gauge(
            "lag_seconds", "Now minus the event time of the last event read; 0 where all is read."
        )
        self.learning_share = self._gauge(
            "learning_share", "Share of the labelled events that is learned from; 1 but if behind."
        )
        self.source_connected = self._gauge("source_connected", "1 while the source answers.")
        self.step_seconds = self._histogram(
            "step_seconds", "One turn of the loop that had events.", LATENCY
        )
        # The model in front of the stream.
        self.accuracy = self._gauge(
            "prequential_accuracy", "Test-then-learn accuracy, 0 to 1.", "window"
        )
        self.estimated_accuracy = self._gauge(
            "estimated_accuracy",
            "Accuracy that the model's confidence promises, labels not looked at.",
            "bound",
        )
        self.prequential_error = self._gauge(
            "prequential_error",
            "Of a number, test-then-learn, last 500 labelled: mae and rmse in its unit, r2.",
            "measure",
        )
        self.rival_accuracy = self._gauge(
            "rival_accuracy", "Test-then-learn accuracy of a rival, last 500 labelled.", "rival"
        )
        self.baseline_accuracy = self._gauge(
            "baseline_accuracy",
            "Accuracy on a sample, last 500: of the first version, frozen, or of the champion.",
            "of",
        )
        self.late_labels = self._counter(
            "late_labels", "Labels that came after the answer, by who gave it.", "answered"
        )
        for answered in ("champion", "earlier"):
            self.late_labels(answered)  # at 0 from the start, so that the first is an increase
        self.delayed_labels = self._counter(
            "delayed_labels",
            "Labels on a topic of their own, and events that never had one, by what became of"
            " them.",
            "outcome",
        )
        self.labels_pending = self._gauge("labels_pending", "Events that wait for their label.")
        self.labels_pending_bytes = self._gauge(
            "labels_pending_bytes", "Size of the events that wait for their label, on disk."
        )
        self.labels_held = self._gauge("labels_held", "Labels that wait for their event.")
        self.labels_oldest_pending = self._gauge(
            "labels_oldest_pending_seconds", "How long the first of the events has waited."
        )
        self.inference_seconds = self._histogram(
            "inference_seconds", "The daemon's forward pass of one batch.", LATENCY
        )
        self.batch_events = self._histogram("batch_events", "Events in one batch.", BATCH)
        self.champion_info = self._gauge("champion_info", "1 for the serving version.", "version")
        self.champion_since = self._gauge(
            "champion_since_timestamp_seconds", "When the champion began to serve."
        )
        self.new_classes = self._counter("new_classes", "Labels seen for the first time.")
        self.memory_events = self._gauge("memory_events", "Events in memory.", "part")
        # Labels that are held back.
        self.quarantined = self._counter("quarantined", "Labels held back.", "cause")
        self.quarantine_cases = self._gauge(
            "quarantine_cases", "Cases of labels held back that wait for an operator."
        )
        self.quarantine_events = self._gauge("quarantine_events", "Labelled events held back now.")
        # Drift.
        self.drift_score = self._gauge("drift_score", "A detector's score.", "detector", "kind")
        self.drift_threshold = self._gauge(
            "drift_threshold", "The score at which the detector alarms.", "detector", "kind"
        )
        self.alarms = self._counter("alarms", "Alarms.", "detector", "kind")
        self.incident_open = self._gauge("incident_open", "1 while damage is being repaired.")
        self.incidents = self._counter("incidents", "Incidents closed.", "kind", "outcome")
        # Refreshes.
        self.refreshes = self._counter("refreshes", "Refreshes ended.", "strategy", "outcome")
        self.refresh_seconds = self._histogram(
            "refresh_seconds", "Wall time of a refresh.", SECONDS, "strategy"
        )
        self.refresh_cpu_seconds = self._counter(
            "refresh_cpu_seconds", "CPU time spent on refreshes.", "strategy"
        )
        self.refresh_running = self._gauge("refresh_running", "1 while the trainer works.")
        # The training panel: one value a round of the refresh that ran last.
        self.gradient_norm = self._gauge(
            "training_gradient_norm", "Mean gradient norm of the round.", "strategy"
        )
        self.update_to_weight = self._gauge(
            "training_update_to_weight_ratio", "Healthy: 1e-3 to 1e-1.", "strategy"
        )
        self.loss_fall = self._gauge(
            "training_loss_fall", "Fall of the training loss in the round.", "strategy"
        )
        self.accuracy_gain = self._gauge(
            "training_accuracy_gain_points", "Validation points gained in the round.", "strategy"
        )
        self.gap = self._gauge(
            "training_validation_gap",
            "Validation loss minus training loss; healthy: below 0.2.",
            "strategy",
        )
        self.training_stopped = self._counter(
            "training_stopped", "Trainings that ended before their last round.", "strategy", "why"
        )
        # Decisions.
        self.verdicts = self._counter("gate_verdicts", "The gate's verdicts.", "verdict", "rung")
        self.trial_events = self._gauge("trial_events", "Unseen events judged in the open trial.")
        self.canary_share = self._gauge(
            "canary_share", "Share of the traffic that a challenger answers, 0 to 1."
        )
        self.promotions = self._counter("promotions", "Promotions.", "rung")
        self.follow_ups = self._counter(
            "follow_ups", "Versions that followed what learns online, after the first of a run."
        )
        self.following = self._gauge(
            "following", "1 while the champion follows what learns online."
        )
        self.rollbacks = self._counter("rollbacks", "Rollbacks.", "cause")
        self.probation = self._gauge("probation", "1 while a promotion is on probation.")
        self.paused = self._gauge("paused", "1 while learning is paused.")
        self.pinned = self._gauge("pinned", "1 while the champion is pinned.")
        # Daemons that share the model.
        self.leader = self._gauge("leader", "1 while this daemon leads: it trains and promotes.")
        self.leader_term = self._gauge("leader_term", "Term of the present leader, as last seen.")
        self.partitions = self._gauge("partitions", "Partitions that this daemon reads.")
        self.partition_moves = self._counter(
            "partition_moves", "Partitions that moved between daemons.", "what"
        )
        self.handovers = self._counter(
            "handovers", "Events handed over to the leader, and taken from the others.", "what"
        )
        self.members = self._gauge(
            "members", "Daemons that told the leader of themselves lately; the leader's to say."
        )
        # The daemon itself.
        self.checkpoint_timestamp = self._gauge(
            "checkpoint_timestamp_seconds", "When the last checkpoint was written."
        )
        self.checkpoint_bytes = self._gauge("checkpoint_bytes", "Size of the last checkpoint.")
        self.checkpoint_seconds = self._histogram(
            "checkpoint_seconds", "Time to write a checkpoint.", LATENCY
        )
        self.errors = self._counter("errors", "Errors that the loop survived.", "where")

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def champion(self, version: str | None, since: float) -> None:
        """``version`` serves since the time ``since`` (seconds since the epoch)."""
        self.table["champion_info"].clear()
        if version is not None:
            self.champion_info(version).set(1)
            self.champion_since().set(since)

    def _family(self, name: str, metric: M) -> Family[M]:
        self.table[name] = metric

        def labelled(*values: str) -> M:
            return metric.labels(self._model, *values)

        return labelled

    def _counter(self, name: str, text: str, *labels: str) -> Family[Counter]:
        names = ("model", *labels)
        return self._family(name, Counter(f"driftd_{name}", text, names, registry=self.registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Family[Gauge]:
        names = ("model", *labels)
        return self._family(name, Gauge(f"driftd_{name}", text, names, registry=self.registry))

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Family[Histogram]:
        names = ("model", *labels)
        metric = Histogram(f"driftd_{name}", text, names, buckets=buckets, registry=self.registry)
        return self._family(name, metric)
