"""The dashboards, by the name of their file.

Each answers one question: is it well, what drifts, was the training healthy, do clients get their
answers, how did the model come to be what it is, does the daemon keep up.
"""

from __future__ import annotations

from helm.builder.panels import (
    GREEN,
    GREY,
    JSON,
    NEUTRAL,
    NO_IS_BAD,
    RED,
    YELLOW,
    YES_IS_BAD,
    dashboard,
    graph,
    happened,
    mean,
    of,
    quantile,
    rate,
    stat,
    timeline,
)

YES_NO: dict[float, str] = {0: "no", 1: "yes"}
LOST = ((None, GREEN), (0.02, YELLOW), (0.05, RED))
SCORE = ((None, GREEN), (0.7, YELLOW), (1, RED))
STRATEGY = "{{strategy}}"

_WINDOWS = {
    "recent": "recent",
    "since the promotion": "since_promotion",
    "normal": "reference",
    "all time": "total",
}
_ACCURACY = {
    legend: "max(" + of("driftd_prequential_accuracy", f'window="{window}"') + ")"
    for legend, window in _WINDOWS.items()
}
_ESTIMATED = {
    f"{bound} without labels": of("driftd_estimated_accuracy", f'bound="{bound}"')
    for bound in ("estimate", "low", "high")
}
_FROZEN, _NOW = (
    "max(" + of("driftd_baseline_accuracy", f'of="{who}"') + ")" for who in ("frozen", "champion")
)
_RIVALS = {"{{rival}}": "max by (rival) (" + of("driftd_rival_accuracy") + ")"}
_FAILED = of("driftd_refreshes_total", 'outcome="failed"')
_DRIFT_NOW = f"{of('driftd_drift_score')} / {of('driftd_drift_threshold')}"
_CHAMPION = f"max by (version) ({of('driftd_champion_info')})"


def _accuracy(width: int) -> JSON:
    return graph(
        "Accuracy",
        _ACCURACY | {"first version, frozen": _FROZEN} | _RIVALS,
        "Each event is predicted first and learned from afterwards. Normal is what the drift "
        "monitors hold for it: the accuracy since the last repair, or when the watch began. "
        "The first version is asked a share of the events only. Rivals learn beside the model, "
        "where some are configured.",
        unit="percentunit",
        bounds=(None, 1),
        width=width,
    )


def _drift(width: int) -> JSON:
    return graph(
        "Drift: score relative to the alarm",
        {"{{detector}} ({{kind}})": _DRIFT_NOW},
        "1 is an alarm. After an alarm a detector starts again from nothing.",
        ranges=SCORE,
        width=width,
    )


OVERVIEW = dashboard(
    "overview",
    "Overview",
    "Is it well? What serves, since when, how good is it, and what goes on.",
    {
        "Is it well?": [
            stat(
                "Accuracy now",
                _ACCURACY["recent"],
                "Share of right answers among the recent labelled events.",
                unit="percentunit",
            ),
            stat(
                "Lost against normal",
                f"{_ACCURACY['normal']} - {_ACCURACY['recent']}",
                "Accuracy that the monitors hold for normal, minus accuracy now.",
                unit="percentunit",
                steps=LOST,
            ),
            stat(
                "Gained on the first version",
                f"{_NOW} - {_FROZEN}",
                "Accuracy of the champion minus that of the first version, frozen, on the same "
                "events: what the refreshes since are worth.",
                unit="percentunit",
                steps=((None, YELLOW), (0, GREEN)),
            ),
            stat(
                "Drift now",
                f"max({_DRIFT_NOW})",
                "The highest score of any detector, relative to its alarm at 1.",
                unit="percentunit",
                steps=SCORE,
            ),
            stat(
                "Damage under repair",
                f"max({of('driftd_incident_open')}) or vector(0)",
                "Whether an incident is open.",
                steps=YES_IS_BAD,
                words=YES_NO,
            ),
            stat(
                "Servers ready",
                f"sum({of('driftd_server_ready')}) / count({of('driftd_server_ready')})",
                "Share of the inference servers that answer requests.",
                unit="percentunit",
                steps=((None, RED), (0.5, YELLOW), (1, GREEN)),
            ),
        ],
        "What serves": [
            stat(
                "Champion",
                _CHAMPION,
                "The version that serves, as the daemon sees it.",
                legend="{{version}}",
            ),
            stat(
                "Serves for",
                f"time() - max({of('driftd_champion_since_timestamp_seconds')})",
                "Time since the last promotion or rollback.",
                unit="s",
            ),
            stat(
                "On the servers",
                f"max by (version) ({of('driftd_server_champion_info')})",
                "What the servers serve; two names for longer than a moment: one of them is stuck.",
                legend="{{version}}",
            ),
            stat(
                "On probation",
                f"max({of('driftd_probation')}) or vector(0)",
                "Whether the last promotion is still compared with the version before.",
                width=3,
                steps=((None, GREEN), (1, YELLOW)),
                words=YES_NO,
            ),
            stat(
                "Learning paused",
                f"max({of('driftd_paused')})",
                "By an operator; the journal says why.",
                width=3,
                steps=((None, GREEN), (1, YELLOW)),
                words=YES_NO,
            ),
            stat(
                "Pinned",
                f"max({of('driftd_pinned')})",
                "By an operator: no promotion until unpinned.",
                width=3,
                steps=((None, GREEN), (1, YELLOW)),
                words=YES_NO,
            ),
            stat(
                "Source answers",
                f"min({of('driftd_source_connected')})",
                "Whether the daemon reaches its stream.",
                steps=NO_IS_BAD,
                words=YES_NO,
                width=3,
            ),
        ],
        "Over time": [
            _accuracy(12),
            _drift(12),
            graph(
                "Answers",
                {"{{code}}": f"sum by (code) ({rate('driftd_server_requests_total')})"},
                "Inference requests a second, by HTTP status.",
                unit="reqps",
                stacked=True,
            ),
            graph(
                "Latency",
                {
                    "half": quantile(0.5, "driftd_server_request_seconds"),
                    "99 of 100": quantile(0.99, "driftd_server_request_seconds"),
                },
                "Time from a request's first byte to its answer.",
                unit="s",
            ),
            graph(
                "Events",
                {"{{outcome}}": f"sum by (outcome) ({rate('driftd_events_total')})"},
                "Events a second, by what became of them.",
                unit="eps",
                stacked=True,
            ),
        ],
    },
)

DRIFT = dashboard(
    "drift",
    "Drift",
    "What moves, since when, and what came of it.",
    {
        "Now": [
            _drift(24),
            graph(
                "Score",
                {"{{detector}} ({{kind}})": of("driftd_drift_score")},
                "In the detector's own unit: nats of evidence, or standard deviations.",
                width=12,
            ),
            graph(
                "Threshold",
                {"{{detector}} ({{kind}})": of("driftd_drift_threshold")},
                "The score at which the detector alarms. All together keep drift.false_alarm.",
                width=12,
            ),
        ],
        "Alarms and damage": [
            graph(
                "Alarms an hour",
                {
                    "{{detector}} ({{kind}})": (
                        f"sum by (detector, kind) (increase({of('driftd_alarms_total')}[1h]))"
                    )
                },
                "covariate: inputs moved. label: the mix of classes moved. concept: the same "
                "inputs carry other labels. Alarms that go on say that the drift goes on.",
            ),
            graph(
                "Damage under repair",
                {"open": of("driftd_incident_open")},
                "1 while an incident is open.",
                bounds=(0, 1),
            ),
            graph(
                "Incidents closed",
                {"{{kind}}: {{outcome}}": of("driftd_incidents_total")},
                "Since the daemon started. harmless: too little was lost to train. unrepaired: no "
                "rung passed the gate, and what moved is the new normal.",
            ),
        ],
        "What it did to the model": [
            _accuracy(12),
            graph(
                "Accuracy estimated without labels",
                _ESTIMATED,
                "What the model's calibrated confidence promises, with a 95 % interval. It sees "
                "inputs that are hard for the model; it does not see labels that changed.",
                unit="percentunit",
                bounds=(None, 1),
                width=12,
            ),
            graph(
                "Labels seen for the first time",
                {"new labels": of("driftd_new_classes_total")},
                "Since the daemon started. Many at once: a wrong label field?",
                width=6,
            ),
            graph(
                "Memory",
                {"{{part}}": of("driftd_memory_events")},
                "Events that may be learned from (recent, replay) and that only judge (held_out).",
                width=6,
            ),
        ],
    },
    hours=24,
)

TRAINING = dashboard(
    "training",
    "Training",
    "The training panel: the rounds of the refresh that ran last, with the healthy ranges drawn.",
    {
        "The last refresh, round by round": [
            graph(
                "Update to weight",
                {STRATEGY: of("driftd_training_update_to_weight_ratio")},
                "How far a step moves the weights, relative to their size. Healthy: 1e-3 to 1e-1; "
                "below, nothing is learned; above, what was known is overwritten.",
                ranges=((None, YELLOW), (1e-3, GREEN), (1e-1, RED)),
                log=True,
            ),
            graph(
                "Gradient norm",
                {STRATEGY: of("driftd_training_gradient_norm")},
                "Before clipping. Above learn.training.clip (1) steps are scaled down; ten times "
                "that is a rate too high, or broken inputs.",
                ranges=((None, GREEN), (1, YELLOW), (10, RED)),
                log=True,
            ),
            graph(
                "Gap between validation and training loss",
                {STRATEGY: of("driftd_training_validation_gap")},
                "Healthy: below 0.2; above it the version learns its examples by heart.",
                ranges=((None, GREEN), (0.2, RED)),
                bounds=(None, None),
            ),
            graph(
                "Fall of the training loss",
                {STRATEGY: of("driftd_training_loss_fall")},
                "In the round. Below zero the training gets worse.",
                ranges=((None, RED), (0, GREEN)),
                bounds=(None, None),
                width=12,
            ),
            graph(
                "Validation points gained",
                {STRATEGY: of("driftd_training_accuracy_gain_points")},
                "In the round. Below learn.training.minimal_gain (0.5) training stops.",
                ranges=((None, YELLOW), (0.5, GREEN)),
                bounds=(None, None),
                width=12,
            ),
        ],
        "Price and yield": [
            stat(
                "Training now",
                f"max({of('driftd_refresh_running')}) or vector(0)",
                "Whether the trainer works.",
                words=YES_NO,
            ),
            stat(
                "CPU spent in this time",
                f"sum(increase({of('driftd_refresh_cpu_seconds_total')}[$__range]))",
                "Processor time of all refreshes in the time shown.",
                unit="s",
            ),
            stat(
                "Failed in this time",
                f"sum(increase({_FAILED}[$__range])) or vector(0)",
                "Refreshes that ended without a version in the time shown.",
                steps=YES_IS_BAD,
            ),
            graph(
                "Refreshes ended",
                {"{{strategy}}: {{outcome}}": of("driftd_refreshes_total")},
                "Since the daemon started, by strategy and outcome.",
                width=8,
            ),
            graph(
                "Stopped before the last round",
                {"{{strategy}}: {{why}}": of("driftd_training_stopped_total")},
                "Since the daemon started. gained and enough are well; diverged and overfitting "
                "want a look at the rates and the data; budget at policy.cpu_seconds_per_refresh.",
                width=8,
            ),
            graph(
                "Time of a refresh",
                {
                    STRATEGY: (
                        f"sum by (strategy) ({rate('driftd_refresh_seconds_sum')}) / "
                        f"sum by (strategy) ({rate('driftd_refresh_seconds_count')})"
                    )
                },
                "Mean wall time, where refreshes ended.",
                unit="s",
                width=8,
            ),
            graph(
                "The gate's verdicts",
                {"{{rung}}: {{verdict}}": of("driftd_gate_verdicts_total")},
                "Since the daemon started. A rung that is always rejected only costs: see "
                "policy.rungs.",
                width=12,
            ),
        ],
    },
    hours=24,
)

_ERRORS = rate("driftd_server_requests_total", 'code=~"5..|429"')

_ROUTED = rate("driftd_server_routed_requests_total", 'outcome!="dropped"')
_NOT_WELL = rate("driftd_server_routed_requests_total", 'outcome!="ok"')

SERVING = dashboard(
    "serving",
    "Serving",
    "Rate, errors and duration of the inference servers, and what they are made of.",
    {
        "Rate, errors, duration": [
            graph(
                "Requests",
                {
                    "{{protocol}} {{code}}": (
                        f"sum by (protocol, code) ({rate('driftd_server_requests_total')})"
                    )
                },
                "Requests a second. 499: the client left before the answer.",
                unit="reqps",
                stacked=True,
            ),
            graph(
                "Share of failures",
                {
                    "5xx and 429": (
                        f"sum({_ERRORS}) / sum({rate('driftd_server_requests_total')}) or vector(0)"
                    )
                },
                "Answers that are the server's fault, or that it had no room for.",
                unit="percentunit",
                ranges=((None, GREEN), (0.01, YELLOW), (0.05, RED)),
            ),
            graph(
                "Latency",
                {
                    "half": quantile(0.5, "driftd_server_request_seconds"),
                    "95 of 100": quantile(0.95, "driftd_server_request_seconds"),
                    "99 of 100": quantile(0.99, "driftd_server_request_seconds"),
                },
                "Time from a request's first byte to its answer.",
                unit="s",
            ),
            graph(
                "Errors by reason",
                {"{{reason}}": f"sum by (reason) ({rate('driftd_server_errors_total')})"},
                "The reasons are those of docs/deploy.md; bad_input is the client's.",
                unit="reqps",
            ),
            graph(
                "Latency by version",
                {
                    "{{version}}": (
                        quantile(0.99, "driftd_server_request_seconds", by="le, version")
                    )
                },
                "99 of 100 answers came within this. A new version that is slower shows here.",
                unit="s",
                width=16,
            ),
        ],
        "Saturation": [
            graph(
                "Waiting",
                {"{{pod}}{{instance}}": of("driftd_server_queue_items")},
                "Items waiting for a worker; at server.queue_limit requests are refused (429).",
            ),
            graph(
                "Time in the queue",
                {
                    "half": quantile(0.5, "driftd_server_queue_seconds"),
                    "99 of 100": quantile(0.99, "driftd_server_queue_seconds"),
                },
                "What waiting adds to the latency: more servers help against it.",
                unit="s",
            ),
            graph(
                "Time of one run of the model",
                {
                    "half": quantile(0.5, "driftd_server_inference_seconds"),
                    "99 of 100": quantile(0.99, "driftd_server_inference_seconds"),
                },
                "What the model itself takes; more servers do not help against it.",
                unit="s",
            ),
            graph(
                "Items in a run",
                {"mean": mean("driftd_server_batch_items")},
                "Grows with the load: the batcher takes what waits, and waits for nothing.",
            ),
            graph(
                "Items answered",
                {"items": f"sum({rate('driftd_server_batch_items_sum')})"},
                "Items a second, over all servers.",
                unit="ops",
            ),
            graph(
                "Size of what is loaded",
                {"{{version}}": f"max by (version) ({of('driftd_server_model_bytes')})"},
                "Graphs in the memory of a server: the champion and the version before.",
                unit="bytes",
            ),
        ],
        "A challenger's traffic": [
            graph(
                "Requests by version and role",
                {"{{version}} {{role}}": f"sum by (version, role) ({_ROUTED})"},
                "While a challenger sees traffic: who answered. shadow: copies nobody waited for.",
                unit="reqps",
            ),
            graph(
                "Failed and slow",
                {"{{role}}: {{outcome}}": f"sum by (role, outcome) ({_NOT_WELL})"},
                "What a canary's step is judged by; dropped are copies that found no room.",
                unit="reqps",
            ),
            graph(
                "A shadow's answers",
                {"{{outcome}}": f"sum by (outcome) ({rate('driftd_server_shadow_items_total')})"},
                "Items that the challenger labels as the champion does, or otherwise.",
                unit="ops",
            ),
            graph(
                "Loaded versions",
                {
                    "{{role}} {{version}}": (
                        f"count by (role, version) ({of('driftd_server_version_info')})"
                    )
                },
                "Servers that have a version in memory, by what it is to them.",
            ),
            graph(
                "Canary's share on the servers",
                {"{{pod}}{{instance}}": of("driftd_server_canary_share")},
                "Of the requests; 0 where the challenger is not loaded.",
                unit="percentunit",
                bounds=(0, 1),
            ),
            graph(
                "Reports to the registry",
                {
                    "{{outcome}}": (
                        f"sum by (outcome) ({rate('driftd_server_traffic_reports_total')})"
                    )
                },
                "The daemon judges a canary from them; failed: the server cannot write there.",
                unit="ops",
            ),
        ],
        "Prediction log": [
            graph(
                "Items by outcome",
                {"{{outcome}}": f"sum by (outcome) ({rate('driftd_server_logged_items_total')})"},
                "dropped: no room to wait for the broker; failed: it refused them.",
                unit="ops",
                width=12,
            ),
            graph(
                "Waiting for the broker",
                {"{{pod}}{{instance}}": of("driftd_server_log_queue_items")},
                "At server.prediction_log.queue_items further ones are dropped.",
                width=12,
            ),
        ],
        "Servers": [
            graph(
                "Ready",
                {"{{pod}}{{instance}}": of("driftd_server_ready")},
                "1 if the server answers requests.",
                bounds=(0, 1),
            ),
            graph(
                "Up for",
                {"{{pod}}{{instance}}": f"time() - {of('driftd_server_start_time_seconds')}"},
                "Time since the process started.",
                unit="s",
            ),
            graph(
                "Changes of the version",
                {"{{outcome}}": f"sum by (outcome) ({of('driftd_server_swaps_total')})"},
                "Since the servers started: done, failed, or superseded by a newer one meanwhile.",
            ),
            graph(
                "Time of a change",
                {"{{version}}": quantile(0.9, "driftd_server_swap_seconds", by="le, version")},
                "From noticing a moved champion to answering with it; the old one serves on.",
                unit="s",
                width=12,
            ),
            graph(
                "Versions that could not be loaded",
                {
                    "{{version}}: {{reason}}": (
                        f"sum by (version, reason) ({of('driftd_server_load_failures_total')})"
                    )
                },
                "Since the servers started. digest_mismatch, untrusted: not what was published.",
                width=12,
            ),
        ],
    },
)

LIFE = dashboard(
    "life",
    "A model's life",
    "Which versions served, what put them there, and what took them back.",
    {
        "Who served": [
            timeline(
                "Champion", _CHAMPION, "{{version}}", "Each version, in the time that it served."
            ),
            _accuracy(24),
            graph(
                "Error, where a number is predicted",
                {"{{measure}}": f"max by (measure) ({of('driftd_prequential_error')})"},
                "Of the last 500 labelled events: MAE and RMSE in the target's unit, and R2. "
                "Accuracy is then the share of events within the tolerance.",
                width=24,
            ),
        ],
        "Decisions": [
            stat(
                "Promotions",
                f"sum(increase({of('driftd_promotions_total')}[$__range])) or vector(0)",
                "In the time shown.",
                steps=NEUTRAL,
            ),
            stat(
                "Followed",
                f"sum(increase({of('driftd_follow_ups_total')}[$__range])) or vector(0)",
                "Versions in the time shown that followed the online head, within proven runs.",
                steps=NEUTRAL,
            ),
            stat(
                "Rollbacks",
                f"sum(increase({of('driftd_rollbacks_total')}[$__range])) or vector(0)",
                "In the time shown.",
                steps=((None, GREEN), (1, YELLOW)),
            ),
            stat(
                "Events judged in the trial",
                of("driftd_trial_events"),
                "Unseen labelled events on which the last challenger was compared.",
                steps=((None, GREY),),
            ),
            graph(
                "Promotions by rung",
                {"{{rung}}": of("driftd_promotions_total")},
                "Since the daemon started: which rungs of the ladder repair this stream.",
                width=12,
            ),
            graph(
                "The gate",
                {"{{verdict}}": f"sum by (verdict) ({of('driftd_gate_verdicts_total')})"},
                "Verdicts since the daemon started. An open trial is undecided.",
            ),
            graph(
                "Rollbacks by cause",
                {"{{cause}}": of("driftd_rollbacks_total")},
                "Since the daemon started: by a failed probation, or by an operator.",
            ),
            graph(
                "Labels held back",
                {
                    "cases": of("driftd_quarantine_cases"),
                    "events": of("driftd_quarantine_events"),
                    "since the start, by {{cause}}": of("driftd_quarantined_total"),
                },
                "A labeller or class whose labels contradict all others, or a flood of them. "
                "`driftd quarantine` says which.",
            ),
            graph(
                "Late labels, a minute",
                {
                    "answered by the {{answered}}": f"60 * {rate('driftd_late_labels_total')}",
                },
                "Labels that came after the answer. Those of an earlier version's answers say "
                "nothing of the champion.",
            ),
            graph(
                "Labels on their own topic",
                {"{{outcome}}": f"60 * {rate('driftd_delayed_labels_total')}"},
                "A minute, with source.labels. early, joined: learned. late: after the window, "
                "counted for who answered. never: events given up; unmatched: labels given up.",
            ),
            graph(
                "Waiting for the other half",
                {
                    "events": of("driftd_labels_pending"),
                    "labels": of("driftd_labels_held"),
                },
                "Events without their label, and labels without their event; bounded by "
                "source.labels.max_events.",
            ),
            graph(
                "Longest wait for a label",
                {"seconds": of("driftd_labels_oldest_pending_seconds")},
                "Of the events that wait; at source.labels.window_seconds they are given up.",
                unit="s",
            ),
            graph(
                "Events that wait, on disk",
                {"bytes": of("driftd_labels_pending_bytes")},
                "Bounded by source.labels.max_bytes.",
                unit="bytes",
            ),
            graph(
                "Trial and probation",
                {
                    "canary's share": of("driftd_canary_share"),
                    "on probation": of("driftd_probation"),
                    "following": of("driftd_following"),
                    "paused": of("driftd_paused"),
                    "pinned": of("driftd_pinned"),
                },
                "What stands between a challenger and a settled champion.",
                bounds=(0, 1),
            ),
        ],
    },
    marks=(
        happened("Gate", "driftd_gate_verdicts_total", "verdict", "blue"),
        happened("Rolled back", "driftd_rollbacks_total", "cause", "red"),
    ),
    hours=24 * 7,
)

DAEMON = dashboard(
    "daemon",
    "The daemon",
    "Does it keep up with the stream, and is its state safe?",
    {
        "Stream": [
            graph(
                "Behind, in events",
                {"events": of("driftd_lag_events")},
                "Events waiting in the source.",
            ),
            graph(
                "Behind, in time",
                {"seconds": of("driftd_lag_seconds")},
                "Now minus the event time of the last event read; 0 where all is read.",
                unit="s",
            ),
            graph(
                "Learned from",
                {"share": of("driftd_learning_share")},
                "Below 1 while the stream is ahead by more than events.behind_events.",
                unit="percentunit",
            ),
            graph(
                "Dead letters",
                {"{{reason}}": f"sum by (reason) ({rate('driftd_dead_letters_total')})"},
                "Records a second that are no event; docs/configuration.md explains the reasons.",
                unit="eps",
            ),
            graph(
                "Events in a batch",
                {"mean": mean("driftd_batch_events")},
                "Small when the daemon waits for events, at most 256 when events wait for it.",
            ),
            graph(
                "A turn of the loop",
                {
                    "half": quantile(0.5, "driftd_step_seconds"),
                    "99 of 100": quantile(0.99, "driftd_step_seconds"),
                },
                "Predict, watch, judge, learn, repair and checkpoint; turns without events left "
                "out.",
                unit="s",
            ),
            graph(
                "Forward pass",
                {
                    "half": quantile(0.5, "driftd_inference_seconds"),
                    "99 of 100": quantile(0.99, "driftd_inference_seconds"),
                },
                "The model's share of a turn: one pass for prediction and embedding.",
                unit="s",
            ),
        ],
        "Several daemons": [
            graph(
                "Leads",
                {"{{pod}}{{instance}}": of("driftd_leader")},
                "With sharing.enabled: 1 for the daemon that trains and promotes. Never two.",
            ),
            graph(
                "Term",
                {"{{pod}}{{instance}}": of("driftd_leader_term")},
                "Grows by one whenever another daemon leads.",
            ),
            graph(
                "Partitions",
                {"{{pod}}{{instance}}": of("driftd_partitions")},
                "How the topic is shared out.",
            ),
            graph(
                "Partitions that moved",
                {"{{what}}": f"sum by (what) ({of('driftd_partition_moves_total')})"},
                "fenced: another had claimed it first; what was not committed was learned there.",
            ),
        ],
        "Handover": [
            graph(
                "Events handed over to the leader",
                {"{{what}}": f"sum by (what) ({rate('driftd_handovers_total')})"},
                "A second, with sharing.topic: the sample that is sent, and what the leader took.",
                unit="eps",
            ),
            graph(
                "Daemons that the leader hears of",
                {"daemons": f"max({of('driftd_members')})"},
                "Those that told of themselves within a minute.",
            ),
        ],
        "State": [
            stat(
                "Last checkpoint",
                f"time() - max({of('driftd_checkpoint_timestamp_seconds')})",
                "What a crash would have to read again.",
                unit="s",
                steps=((None, GREEN), (120, YELLOW), (600, RED)),
                width=6,
            ),
            stat(
                "Size of a checkpoint",
                f"max({of('driftd_checkpoint_bytes')})",
                "Grows with the memory, up to memory.max_bytes.",
                unit="bytes",
                width=6,
            ),
            graph(
                "Writing a checkpoint",
                {
                    "half": quantile(0.5, "driftd_checkpoint_seconds"),
                    "99 of 100": quantile(0.99, "driftd_checkpoint_seconds"),
                },
                "The loop waits for it: a slow disk shows here.",
                unit="s",
                width=12,
            ),
            graph(
                "Errors that the loop survived",
                {"{{where}}": f"sum by (where) ({rate('driftd_errors_total')})"},
                "The log says what they were.",
                width=12,
            ),
        ],
    },
)

DASHBOARDS: dict[str, JSON] = {
    "overview": OVERVIEW,
    "drift": DRIFT,
    "training": TRAINING,
    "serving": SERVING,
    "life": LIFE,
    "daemon": DAEMON,
}
