"""``driftd status``: who serves, how well, and what is going on.

The registry answers who serves and what operators ordered, also while the daemon is down; the
daemon itself answers the rest over HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.request
from typing import Any

import click

from daemon.cli.options import Target, json_option, target_options
from daemon.cli.output import ago, console, facts, print_json, span, table
from daemon.policy_config import HttpConfig

TIMEOUT = 2.0


@click.command()
@target_options
@json_option
def status(target: Target, as_json: bool) -> int:
    """Show who serves, how accurate it is, and what goes on.

    Exits with 3 if there is neither a registry nor a daemon that answers.

    \b
    Examples:
      driftd status
      watch driftd status
      driftd status --json | jq .daemon.accuracy
    """
    found = target.ask("status")
    state, daemon, missing = found["registry"], found["daemon"], found["missing"]
    if as_json:
        print_json({"registry": state, "daemon": daemon})
    else:
        _print(state or {}, missing, daemon, target.place)
    return 3 if missing and daemon is None else 0


def address(config: HttpConfig) -> str:
    """Where the daemon's status is to be had."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    scheme = "http" if config.tls.certificate is None else "https"
    return f"{scheme}://{host}:{config.port}/status"


def ask(config: HttpConfig) -> dict[str, Any] | None:
    """The status of the daemon of this machine, or None if it does not answer with one."""
    request = urllib.request.Request(address(config))
    if token := os.environ.get("DRIFTD_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT, context=_trust(config)) as answer:
            found = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return found if isinstance(found, dict) else None


def _trust(config: HttpConfig) -> ssl.SSLContext | None:
    """Trust in the very certificate that the configuration names, under whatever name."""
    if config.tls.certificate is None:
        return None
    context = ssl.create_default_context(cafile=config.tls.certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _print(
    state: dict[str, Any], missing: str | None, daemon: dict[str, Any] | None, url: str
) -> None:
    out = console()
    out.print(
        facts(
            [
                ("registry", missing),
                ("champion", _champion(state)),
                ("challenger", state.get("challenger")),
                ("previous", state.get("previous")),
                ("pinned", _control(state.get("pinned"))),
                ("paused", _control(state.get("paused"))),
                ("withdrawn", ", ".join(state.get("withdrawn") or ())),
            ]
        )
    )
    out.print()
    if daemon is None:
        out.print(f"daemon: not reachable at {url}", markup=False)
        return
    out.print(facts(_daemon(daemon)))
    signals = (daemon.get("drift") or {}).get("signals") or []
    if signals:
        rows = table("detector", "drift", "score", "threshold", right=("score", "threshold"))
        for signal in signals:
            rows.add_row(
                str(signal.get("detector")),
                str(signal.get("kind")),
                _number(signal.get("score")),
                _number(signal.get("threshold")),
            )
        out.print(rows)


def _champion(state: dict[str, Any]) -> str:
    champion, move = state.get("champion"), state.get("champion_move")
    if champion is None:
        return "none yet"
    if move:
        return (
            f"{champion}, {move['kind']} {ago(move['time'])} by {move['actor']}: {move['reason']}"
        )
    return str(champion)


def _control(control: dict[str, str] | None) -> str | None:
    return (
        f"{ago(control['since'])} by {control['actor']}: {control['reason']}" if control else None
    )


def _daemon(found: dict[str, Any]) -> list[tuple[str, object]]:
    """The daemon's answer in an operator's order; what it leaves out is left out."""
    source, memory = found.get("source") or {}, found.get("memory") or {}
    age = found.get("checkpoint_age_seconds")
    return [
        ("daemon", _phase(found)),
        ("up since", ago(found.get("started"))),
        ("features", _features(found.get("features") or {})),
        ("events", _events(found)),
        ("accuracy", _accuracies(found.get("accuracy") or {})),
        ("baseline", _baseline(found.get("baseline"))),
        ("estimated", _estimated(found.get("estimated_accuracy"))),
        ("errors", _errors(found.get("errors") or {})),
        ("rivals", _rivals(found.get("rivals") or {})),
        ("source", _source(source) if source else None),
        ("sharing", _sharing(found.get("sharing"))),
        ("labels", _labels(found.get("delayed_labels"))),
        ("incident", _incident(found.get("incident"))),
        ("refresh", _refresh(found.get("refresh"))),
        ("trial", _trial(found.get("trial"))),
        ("probation", _probation(found.get("probation"))),
        ("memory", ", ".join(f"{count} {part}" for part, count in memory.items())),
        ("checkpoint", f"{span(age)} ago" if isinstance(age, int | float) else None),
    ]


def _baseline(found: dict[str, Any] | None) -> str | None:
    """What the refreshes since the first version are worth."""
    if not found:
        return None
    gain = 100 * (found["champion"] - found["frozen"])
    return (
        f"{gain:+.1f} points over the first version, {found['version']}, frozen:"
        f" {found['frozen']:.1%} on the same of {found['events']:,} events"
    )


def _estimated(found: dict[str, float] | None) -> str | None:
    if not found:
        return None
    low, high = found["low"], found["high"]
    return f"{found['estimate']:.1%} without labels (95 % interval {low:.1%} to {high:.1%})"


def _phase(found: dict[str, Any]) -> str:
    phase, reason = str(found.get("state", "?")), found.get("reason")
    return phase if found.get("ready") or not reason else f"{phase}, not ready: {reason}"


def _events(found: dict[str, Any]) -> str | None:
    if "events" not in found:
        return None
    return f"{found['events']:,}, {found.get('labelled', 0):,} of them scored with a label"


def _features(kinds: dict[str, str]) -> str | None:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or None


def _accuracies(values: dict[str, Any]) -> str | None:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.1%}"
        for name, value in values.items()
        if isinstance(value, int | float)
    )


def _errors(found: dict[str, dict[str, float | None]]) -> str | None:
    """Of a number: MAE, RMSE and R2, of late and of all."""
    return "; ".join(
        f"{window} "
        + ", ".join(
            f"{measure.upper()} {value:.4g}"
            for measure, value in values.items()
            if value is not None
        )
        for window, values in found.items()
    )


def _rivals(rivals: dict[str, Any]) -> str | None:
    return "; ".join(
        f"{name} {found['accuracy']:.1%}, the champion {found['accuracy_other']:.1%} on the same"
        f" {found['events']:,} events ({found['verdict']})"
        for name, found in rivals.items()
    )


def _source(source: dict[str, Any]) -> str:
    lag = source.get("lag_events")
    behind = "lag unknown" if lag is None else f"{lag:,} events behind"
    return f"{'connected' if source.get('connected') else 'away'}, {behind}"


def _sharing(sharing: dict[str, Any] | None) -> str | None:
    """Of several daemons."""
    if not sharing:
        return None
    leader = "leads" if sharing.get("leads") else f"follows {sharing.get('leader') or 'nobody'}"
    numbers = ", ".join(str(place[1]) for place in sharing.get("partitions") or ()) or "none"
    return f"{leader} in term {sharing.get('term', 0)}; partitions: {numbers}"


def _labels(labels: dict[str, Any] | None) -> str | None:
    """Of a topic of their own."""
    if not labels:
        return None
    ends = ("early", "joined", "late", "never", "corrected", "repeated", "unmatched")
    counts = ", ".join(f"{labels[end]:,} {end}" for end in ends if labels.get(end))
    waits = f"{labels.get('pending', 0):,} events wait, {labels.get('held', 0):,} labels"
    return f"{waits}; {counts}" if counts else waits


def _incident(incident: dict[str, Any] | None) -> str | None:
    if not incident:
        return None
    tried = [
        f"{attempt.get('rung')} ({attempt.get('outcome')})"
        for attempt in incident.get("attempts") or []
    ]
    what = incident.get("sentence") or f"{incident.get('kind')} drift"
    return f"{what}; tried: {', '.join(tried) or 'nothing yet'}"


def _refresh(refresh: dict[str, Any] | None) -> str | None:
    if not refresh:
        return None
    return f"{refresh.get('rung')}, running for {span(refresh.get('seconds') or 0)}"


def _trial(trial: dict[str, Any] | None) -> str | None:
    if not trial:
        return None
    return f"{trial.get('version')}: {trial.get('decision')}; {trial.get('reason')}"


def _probation(probation: dict[str, Any] | None) -> str | None:
    if not probation:
        return None
    return (
        f"{probation.get('version')} against {probation.get('previous')},"
        f" {probation.get('events', 0)} events so far"
    )


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"
