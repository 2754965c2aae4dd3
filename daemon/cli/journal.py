"""``driftd journal``: every decision, who or what made it, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from daemon.cli.options import Target, json_option, target_options
from daemon.cli.output import clock, console, print_json, short, table
from registry import Row

QUIET = frozenset({"actor", "reason", "event"})  # they have a column of their own, or are counts


@click.command()
@target_options
@click.option("-n", "--number", type=click.IntRange(min=1), default=20, show_default=True,
              help="How many of the last rows.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All rows instead.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new rows as they come.")
@click.option("--kind", "kinds", multiple=True, help="Only rows of this kind; may be repeated.")
@click.option("--since", type=click.IntRange(min=0), default=0, help="Only rows after this number.")
@json_option
def journal(
    target: Target,
    number: int,
    everything: bool,
    follow: bool,
    kinds: tuple[str, ...],
    since: int,
    as_json: bool,
) -> None:
    """Print the journal: every decision, and why.

    Alarms, refreshes, verdicts, promotions, rollbacks, operators' orders. With --json one object
    a line, so that it can be followed.

    \b
    Examples:
      driftd journal -n 50
      driftd journal --kind promote --kind rollback --all
      driftd journal -f --json | jq .
    """
    rows = target.open().journal.rows(since, kinds or None, None if everything else number, follow)
    if as_json:
        for row in rows:
            print_json(row.as_dict(), line=True)
    elif follow:
        _follow(rows)
    else:
        listed = table("#", "time", "kind", "what", right=("#",))
        for row in rows:
            listed.add_row(str(row.seq), clock(row.time), row.kind, describe(row))
        console().print(listed)


def _follow(rows: Iterator[Row]) -> None:
    out = console()
    for row in rows:
        out.print(f"{row.seq:>5} {clock(row.time)} {row.kind:<12} {describe(row)}", markup=False)


def describe(row: Row) -> str:
    """A row's fields in a sentence's place: the reason first, then who, then the rest."""
    fields: dict[str, Any] = row.fields
    parts = []
    reason = fields.get("reason") or fields.get("sentence")
    if reason:
        parts.append(str(reason))
    if fields.get("actor"):
        parts.append(f"by {fields['actor']}")
    rest = [
        f"{name}={_brief(value)}"
        for name, value in fields.items()
        if name not in QUIET and name != "sentence" and value not in (None, "", [], {})
    ]
    if rest:
        parts.append(" ".join(rest))
    if "event" in fields:
        parts.append(f"at event {fields['event']}")
    return "; ".join(parts)


def _brief(value: object) -> str:
    text = short(value)
    return text if len(text) <= 60 else text[:57] + "..."
