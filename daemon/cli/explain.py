"""``driftd explain``: an alarm in full, or why there is none.

An alarm is explained from its row in the journal, so it can be read long after. How far each
detector is from an alarm is asked of the running daemon.
"""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.options import Target, json_option, target_options
from daemon.cli.output import clock, console, facts, print_json, table


@click.command()
@click.argument("alarm", required=False)
@click.option("--why-not", is_flag=True, help="How far each detector is from an alarm instead.")
@target_options
@json_option
def explain(target: Target, alarm: str | None, why_not: bool, as_json: bool) -> int:
    """Explain an alarm: what moved, since when, and the repair.

    ALARM is the number of its row in the journal, or an incident's id; without it, the last one.
    Exits with 3 if there is no such alarm, or with --why-not no daemon that answers.

    \b
    Examples:
      driftd explain
      driftd explain i0003
      driftd explain --why-not
    """
    if why_not:
        return _why_not(target, as_json)
    found = target.ask("explain", alarm=alarm)
    if as_json:
        print_json(found)
    else:
        _print(found, found["story"])
    return 0


def _print(fields: dict[str, Any], story: list[dict[str, Any]]) -> None:
    out = console()
    found: dict[str, Any] = fields.get("diagnosis") or {}
    event = fields.get("event", 0)
    out.print(f"alarm {fields['seq']}, {clock(fields['time'])}, at event {event:,}")
    out.print(str(fields.get("sentence", "")), markup=False)
    out.print()
    lost = found.get("accuracy_lost")
    onset = found.get("onset") or {}
    out.print(
        facts(
            [
                ("kind", f"{found.get('kind')}: {found.get('rule')}"),
                ("shape", found.get("shape")),
                ("since", _since(onset)),
                ("raised by", ", ".join(found.get("alarms") or [])),
                ("severity", f"{found.get('severity', 0):.2f} of 1, from {_from(found)}"),
                ("accuracy lost", lost and _points(lost)),
                ("regime", _regime(found.get("recurrence"))),
            ]
        )
    )
    for title, key, columns in SECTIONS:
        listed = found.get(key) or []
        if not listed:
            continue
        made = table(title, *columns[1:], right=tuple(columns[2:]) if key != "features" else ())
        for entry in listed:
            made.add_row(*(_cell(column, entry) for column in columns))
        out.print(made)
    measures = found.get("measures") or {}
    if measures:
        made = table("test", "score", "effect", right=("score", "effect"))
        for name, measure in measures.items():
            made.add_row(name, f"{measure['score']:.1f}", f"{measure['effect']:.3f}")
        out.print(made)
        out.print("score: standard deviations away from chance; 3.1 counts as shown")
    if shown := fields.get("examples"):
        made = table("event that shows it", "label", "input")
        for example in shown:
            made.add_row(str(example["id"]), str(example["label"]), str(example.get("input", "")))
        out.print(made)
    if story:
        made = table("what was done", "at event", "how it went", right=("at event",))
        for row in story:
            made.add_row(row["kind"], f"{row.get('event', 0):,}", _went(row))
        out.print(made)


# Title of a section, its key in the diagnosis, and the columns with their keys.
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("class whose share moved", "shares", ("class", "reference", "recent")),
    ("class with more errors", "errors", ("class", "reference", "recent", "events")),
    ("feature that moved", "features", ("name", "measure", "description")),
    ("slice with more errors", "slices", ("slice", "reference", "recent", "events")),
)


def _cell(column: str, entry: dict[str, Any]) -> str:
    if column == "slice":
        return f"{entry['feature']} {entry['where']}"
    if column == "class":
        return str(entry.get("class", entry.get("label")))
    value = entry.get(column)
    if column in ("reference", "recent"):
        return "-" if value is None else f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _since(onset: dict[str, Any]) -> str:
    if not onset:
        return ""
    when = f" ({clock(onset['time'])})" if onset.get("time") else ""
    earlier = ", or earlier" if onset.get("before_window") else ""
    return f"{onset.get('events_ago', 0):,} events before the alarm{when}{earlier}"


def _from(found: dict[str, Any]) -> str:
    return str(found.get("severity_from", "nothing"))


def _points(lost: dict[str, float]) -> str:
    low, high = 100 * lost["low"], 100 * lost["high"]
    return f"{100 * lost['estimate']:.1f} points (95 % interval {low:.1f} to {high:.1f})"


def _regime(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    like = "the regime of" if found["same"] else "nearest to the regime of"
    return f"{like} {found['version']}, at distance {found['distance']:.2f}"


def _went(fields: dict[str, Any]) -> str:
    if fields["kind"] == "recalled":
        return ", ".join(f"{r['version']} {r['accuracy']:.1%}" for r in fields["recall"])
    words = [str(fields[name]) for name in ("rung", "outcome", "version") if fields.get(name)]
    reason = fields.get("reason") or ""
    return f"{' '.join(words)}: {reason}" if words and reason else " ".join(words) or str(reason)


def _why_not(target: Target, as_json: bool) -> int:
    found = target.ask("distances")
    if as_json:
        print_json(found)
        return 0
    out = console()
    if not found.get("watching"):
        gathered = found.get("reference_events", 0)
        out.print(f"not watching yet: {gathered:,} events gathered for what is normal")
        return 0
    if held := found.get("held_until"):
        out.print(f"alarms are held until event {held:,}: a repair was just finished")
    for distance in found.get("distances") or []:
        out.print(distance["sentence"], markup=False)
    return 0
