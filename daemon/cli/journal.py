"""``driftd journal``: every decision, who or what made it, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from daemon.cli.options import Target, json_option, target_options
from daemon.cli.output import clock, console, print_json, short, table
from daemon.control_form import MOST_ROWS

# They have a column of their own, stand first in the sentence, or are counts.
QUIET = frozenset({"seq", "time", "kind", "actor", "reason", "sentence", "event"})
PAGE_ROWS = 1000
FOLLOW_SECONDS = 0.5


@click.command()
@target_options
@click.option("-n", "--number", type=click.IntRange(1, MOST_ROWS), default=20, show_default=True,
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
    rows = _rows(target, since, kinds, None if everything else number, follow)
    if as_json:
        for row in rows:
            print_json(row, line=True)
    elif follow:
        _follow(rows)
    else:
        listed = table("#", "time", "kind", "what", right=("#",))
        for row in rows:
            listed.add_row(str(row["seq"]), clock(row["time"]), row["kind"], describe(row))
        console().print(listed)


def _rows(
    target: Target, since: int, kinds: Sequence[str], number: int | None, follow: bool
) -> Iterator[dict[str, Any]]:
    """The last ``number`` rows, or all of them page by page, and then those that come."""
    if number is not None:
        page = target.ask("journal", since=since, kinds=list(kinds), limit=number)
        yield from page["rows"]
        since = page["last"]
    while number is None or follow:
        page = target.ask("journal", since=since, kinds=list(kinds), limit=PAGE_ROWS, oldest=True)
        yield from page["rows"]
        if page["last"] == since:
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)
        since = page["last"]


def _follow(rows: Iterator[dict[str, Any]]) -> None:
    out = console()
    for row in rows:
        line = f"{row['seq']:>5} {clock(row['time'])} {row['kind']:<12} {describe(row)}"
        out.print(line, markup=False)


def describe(fields: dict[str, Any]) -> str:
    """A row's fields in a sentence's place: the reason first, then who, then the rest."""
    parts = []
    reason = fields.get("reason") or fields.get("sentence")
    if reason:
        parts.append(str(reason))
    if fields.get("actor"):
        parts.append(f"by {fields['actor']}")
    rest = [
        f"{name}={_brief(value)}"
        for name, value in fields.items()
        if name not in QUIET and value not in (None, "", [], {})
    ]
    if rest:
        parts.append(" ".join(rest))
    if "event" in fields:
        parts.append(f"at event {fields['event']}")
    return "; ".join(parts)


def _brief(value: object) -> str:
    text = short(value)
    return text if len(text) <= 60 else text[:57] + "..."
