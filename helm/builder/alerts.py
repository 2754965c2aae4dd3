"""The alert rules: when somebody is told, and of what.

Every alert has a page docs/runbooks/NAME.md. Metrics that only some failure brings into being begin
at 1, where Prometheus' increase() sees no growth; `_grown` sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

BY = "namespace, model"
HEADER = "# Built by `python -m helm.builder` from helm/builder/alerts.py.\n"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. ``held``: how long the expression must hold, as Prometheus writes it."""

    name: str
    expr: str
    held: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    description: str

    def as_rule(self) -> dict[str, Any]:
        """As it stands in a rule file."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.held,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.description},
        }


def rule_file() -> str:
    """All alerts as a Prometheus rule file."""
    groups = [
        {"name": f"driftd-{name}", "rules": [alert.as_rule() for alert in alerts]}
        for name, alerts in GROUPS.items()
    ]
    body = yaml.safe_dump({"groups": groups}, sort_keys=False, width=100, allow_unicode=True)
    return HEADER + body


def _grown(series: str, window: str, by: str = BY) -> str:
    """By how much a counter grew; its first value counts where it was not there before."""
    return (
        f"sum by ({by}) (({series} unless {series} offset {window})"
        f" or increase({series}[{window}])) > 0"
    )


def _gone(metric: str) -> str:
    """Series of a model that were there in the last six hours, and are no longer."""
    return (
        f"count by ({BY}) (max_over_time({metric}[6h]))"
        f" unless count by ({BY}) (present_over_time({metric}[5m]))"
    )


def _trained(condition: str) -> str:
    """A training metric, only while a refresh ran lately: it keeps its last value for ever."""
    return f"({condition}) and on ({BY}) max_over_time(driftd_refresh_running[15m]) == 1"


def _window(name: str) -> str:
    return f'driftd_prequential_accuracy{{window="{name}"}}'


_REQUESTS = "rate(driftd_server_requests_total[5m])"
_FAILURES = 'rate(driftd_server_requests_total{code=~"5..|429"}[5m])'
#: Reasons not to load a version that say that it is not what its maker published.
_CHANGED = "digest_mismatch|untrusted"
_MODEL = "{{ $labels.model }}"

MODEL = (
    Alert(
        "DriftdAccuracyLost",
        f"max by ({BY}) ({_window('reference')}) - min by ({BY}) ({_window('recent')}) > 0.05",
        "15m",
        "critical",
        f"{_MODEL} has lost accuracy",
        "Recent answers are {{ $value | humanizePercentage }} of all events worse than normal.",
    ),
    Alert(
        "DriftdIncidentOpen",
        f"max by ({BY}) (driftd_incident_open) == 1",
        "2h",
        "warning",
        f"{_MODEL} has drifted and is not repaired yet",
        "An incident has been open for more than two hours.",
    ),
    Alert(
        "DriftdUnrepaired",
        _grown('driftd_incidents_total{outcome="unrepaired"}', "1h"),
        "0m",
        "warning",
        f"{_MODEL} could not be repaired",
        "Every rung was tried and none passed the gate; the damage is now taken for normal.",
    ),
    Alert(
        "DriftdRefreshFailing",
        _grown('driftd_refreshes_total{outcome="failed"}', "1h", f"{BY}, strategy"),
        "0m",
        "warning",
        f"Training of {_MODEL} fails",
        "{{ $labels.strategy }} ended without a version within the last hour.",
    ),
    Alert(
        "DriftdGateUndecided",
        f"max by ({BY}) (changes(driftd_trial_events[1h])) > 0"
        f" unless on ({BY}) ({_grown('driftd_gate_verdicts_total', '1h')})",
        "6h",
        "warning",
        f"The gate does not decide about a challenger of {_MODEL}",
        "A challenger has been compared for six hours without a verdict.",
    ),
    Alert(
        "DriftdRolledBack",
        _grown("driftd_rollbacks_total", "1h", f"{BY}, cause"),
        "0m",
        "warning",
        f"{_MODEL} was rolled back",
        "Cause: {{ $labels.cause }}. The version before serves again.",
    ),
    Alert(
        "DriftdProbationLong",
        # A run of versions that follow the online head is on probation for as long as it lasts.
        f"max by ({BY}) (driftd_probation) == 1 unless max by ({BY}) (driftd_following) == 1",
        "24h",
        "info",
        f"The probation of {_MODEL} does not end",
        "For a day, too few labelled events came to compare the champion with the one before.",
    ),
    Alert(
        "DriftdQuarantine",
        f"max by ({BY}) (driftd_quarantine_cases) > 0",
        "0m",
        "warning",
        f"Labels of {_MODEL} are held back",
        "{{ $value }} labellers or classes are not trusted; their labels wait for a decision.",
    ),
    Alert(
        "DriftdLabelsNever",
        f'sum by ({BY}) (increase(driftd_delayed_labels_total{{outcome="never"}}[6h]))'
        f" > sum by ({BY}) (increase("
        'driftd_delayed_labels_total{outcome=~"early|joined"}[6h]))',
        "30m",
        "warning",
        f"Most events of {_MODEL} are never labelled",
        "In six hours {{ $value | humanize }} events waited for a label until their window ended.",
    ),
    Alert(
        "DriftdHeld",
        f"max by ({BY}) (driftd_paused) == 1 or max by ({BY}) (driftd_pinned) == 1",
        "24h",
        "info",
        f"{_MODEL} has been paused or pinned for a day",
        "Nothing is learned, or nothing promoted, until an operator says so.",
    ),
)

TRAINING = (
    Alert(
        "DriftdUpdateRatio",
        _trained(
            "driftd_training_update_to_weight_ratio > 0.1"
            " or driftd_training_update_to_weight_ratio < 0.001"
        ),
        "1m",
        "info",
        f"Training of {_MODEL} takes steps of the wrong size",
        "Update to weight is {{ $value }} in {{ $labels.strategy }}; healthy: 1e-3 to 1e-1.",
    ),
    Alert(
        "DriftdOverfitting",
        _trained("driftd_training_validation_gap > 0.2"),
        "1m",
        "info",
        f"Training of {_MODEL} learns its examples by heart",
        "Validation loss is {{ $value }} above training loss in {{ $labels.strategy }}.",
    ),
    Alert(
        "DriftdGradients",
        _trained("driftd_training_gradient_norm > 10"),
        "1m",
        "info",
        f"Gradients of {_MODEL} are far above the clip",
        "Their mean norm is {{ $value }} in {{ $labels.strategy }}; steps are clipped at 1.",
    ),
)

DAEMON = (
    Alert(
        "DriftdDaemonGone",
        _gone("driftd_source_connected"),
        "5m",
        "critical",
        f"The daemon of {_MODEL} is gone",
        "Its metrics have disappeared: nothing watches the model.",
    ),
    Alert(
        "DriftdNoLeader",
        f"max by ({BY}) (driftd_leader) == 0",
        "5m",
        "critical",
        f"No daemon of {_MODEL} leads",
        "Several daemons share the model and none of them trains or promotes.",
    ),
    Alert(
        "DriftdSourceAway",
        f"max by ({BY}) (driftd_source_connected) == 0",
        "10m",
        "critical",
        f"The daemon of {_MODEL} does not reach its stream",
        "The source has not answered for ten minutes; the servers go on.",
    ),
    Alert(
        "DriftdLagging",
        f"max by ({BY}) (driftd_lag_seconds) > 300 and max by ({BY}) (driftd_lag_events) > 0",
        "15m",
        "warning",
        f"The daemon of {_MODEL} is behind",
        "The last event read is {{ $value | humanizeDuration }} old, and more are waiting.",
    ),
    Alert(
        "DriftdDeadLetters",
        f"sum by ({BY}) (rate(driftd_dead_letters_total[15m]))"
        f" / sum by ({BY}) (rate(driftd_events_total[15m])) > 0.01",
        "10m",
        "warning",
        f"Records of {_MODEL} are refused",
        "{{ $value | humanizePercentage }} of the records are no events.",
    ),
    Alert(
        "DriftdCheckpointOld",
        f"time() - max by ({BY}) (driftd_checkpoint_timestamp_seconds) > 600",
        "5m",
        "critical",
        f"The daemon of {_MODEL} cannot save its state",
        "The last checkpoint is {{ $value | humanizeDuration }} old.",
    ),
    Alert(
        "DriftdErrors",
        _grown("driftd_errors_total", "15m", f"{BY}, where"),
        "15m",
        "warning",
        f"The daemon of {_MODEL} keeps meeting errors",
        "Where: {{ $labels.where }}. It goes on; the log says what they are.",
    ),
)

SERVING = (
    Alert(
        "DriftdNoServer",
        f"max by ({BY}) (driftd_server_ready) == 0 or {_gone('driftd_server_ready')}",
        "2m",
        "critical",
        f"No server answers for {_MODEL}",
        "Not one inference server is ready.",
    ),
    Alert(
        "DriftdServerNotReady",
        "driftd_server_ready == 0",
        "10m",
        "warning",
        f"A server of {_MODEL} is not ready",
        "{{ $labels.pod }}{{ $labels.instance }} has not been ready for ten minutes.",
    ),
    Alert(
        "DriftdServerBehind",
        f"driftd_server_champion_info unless on ({BY}, version) driftd_champion_info"
        f" and on ({BY}) driftd_champion_info",
        "5m",
        "warning",
        f"A server of {_MODEL} serves another version than the champion",
        "It serves {{ $labels.version }}.",
    ),
    Alert(
        "DriftdDigestMismatch",
        _grown(
            f'driftd_server_load_failures_total{{reason=~"{_CHANGED}"}}', "1h", f"{BY}, version"
        ),
        "0m",
        "critical",
        f"Files of {_MODEL} are not what was published",
        "{{ $labels.version }} is damaged, was changed or is not signed; servers refuse it.",
    ),
    Alert(
        "DriftdVersionNotLoaded",
        _grown(
            f'driftd_server_load_failures_total{{reason!~"{_CHANGED}"}}',
            "15m",
            f"{BY}, version, reason",
        ),
        "5m",
        "warning",
        f"A version of {_MODEL} cannot be loaded",
        "{{ $labels.version }}: {{ $labels.reason }}. The version before serves on.",
    ),
    Alert(
        "DriftdSlow",
        f"histogram_quantile(0.99, sum by ({BY}, le)"
        " (rate(driftd_server_request_seconds_bucket[5m]))) > 0.5",
        "10m",
        "warning",
        f"{_MODEL} answers slowly",
        "One request in a hundred takes longer than {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "DriftdServerErrors",
        f"sum by ({BY}) ({_FAILURES}) / sum by ({BY}) ({_REQUESTS}) > 0.02",
        "5m",
        "critical",
        f"Requests to {_MODEL} fail",
        "{{ $value | humanizePercentage }} of the answers are 5xx or 429.",
    ),
)

GROUPS = {"model": MODEL, "training": TRAINING, "daemon": DAEMON, "serving": SERVING}
ALERTS = tuple(alert for alerts in GROUPS.values() for alert in alerts)
