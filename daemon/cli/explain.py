"""``driftd explain``: an alarm in full, or why there is none.

An alarm is explained from its row in the journal, so it can be read long after. How far each
detector is from an alarm is asked of the running daemon.
"""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.options import Target, json_option, target_options
from daemon.cli.output import clock, console, facts, print_json, table
from daemon.cli.status import address, ask
from registry import Row


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
    rows = list(target.open().journal.rows(kinds=KINDS))
    found = find(rows, alarm)
    if found is None:
        wanted = f"no alarm {alarm}" if alarm else "no alarm yet"
        click.echo(f"driftd: {wanted}; `driftd journal --kind alarm --all` lists them", err=True)
        return 3
    later = [row for row in rows if row.seq > found.seq]
    story = _story(found, later)
    if as_json:
        print_json({**found.as_dict(), "story": [row.as_dict() for row in story]})
    else:
        _print(found, story)
    return 0


KINDS = (
    "alarm",
    "incident-opened",
    "recalled",
    "attempt-ended",
    "promote",
    "rollback",
    "incident-closed",
)


def find(rows: list[Row], wanted: str | None) -> Row | None:
    """The alarm of that row number, or the one that opened that incident; the last by default."""
    alarms = [row for row in rows if row.kind == "alarm"]
    if wanted is None:
        return alarms[-1] if alarms else None
    if wanted.isdigit():
        return next((row for row in alarms if row.seq == int(wanted)), None)
    opened = next(
        (r for r in rows if r.kind == "incident-opened" and r.fields.get("incident") == wanted),
        None,
    )
    if opened is None:
        return None
    return next((row for row in reversed(alarms) if row.seq < opened.seq), None)


def _story(alarm: Row, later: list[Row]) -> list[Row]:
    """What was done about it: the rows of the incident that it opened or added to."""
    incident = alarm.fields.get("incident")
    if incident is None:
        opened = next((row for row in later if row.kind in ("incident-opened", "alarm")), None)
        if opened is None or opened.kind == "alarm":
            return []
        incident = opened.fields.get("incident")
    told = []
    for row in later:
        if row.fields.get("incident") == incident and row.kind != "alarm":
            told.append(row)
            if row.kind == "incident-closed":
                break
    return told


def _print(alarm: Row, story: list[Row]) -> None:
    out = console()
    fields = alarm.fields
    found: dict[str, Any] = fields.get("diagnosis") or {}
    out.print(f"alarm {alarm.seq}, {clock(alarm.time)}, at event {fields.get('event', 0):,}")
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
            made.add_row(row.kind, f"{row.fields.get('event', 0):,}", _went(row))
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


def _went(row: Row) -> str:
    fields = row.fields
    if row.kind == "recalled":
        return ", ".join(f"{r['version']} {r['accuracy']:.1%}" for r in fields["recall"])
    words = [str(fields[name]) for name in ("rung", "outcome", "version") if fields.get(name)]
    reason = fields.get("reason") or ""
    return f"{' '.join(words)}: {reason}" if words and reason else " ".join(words) or str(reason)


def _why_not(target: Target, as_json: bool) -> int:
    url = address(target.config.http)
    daemon = ask(url)
    if daemon is None:
        click.echo(f"driftd: no daemon answers at {url}; `driftd run` starts it", err=True)
        return 3
    found = daemon.get("drift") or {}
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
