"""What commands print: JSON for programs; tables of at most 100 columns for people.

Colour and the terminal's own width only on a terminal, so that pipes and logs get plain text.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click
import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100


def console() -> Console:
    """A console on standard output."""
    terminal = sys.stdout.isatty()
    found = Console(highlight=False, soft_wrap=False, no_color=None if terminal else True)
    found.width = min(found.width, WIDTH) if terminal else WIDTH
    return found


def print_json(value: object, *, line: bool = False) -> None:
    """One JSON document; indented, or as a single ``line``."""
    option = 0 if line else orjson.OPT_INDENT_2
    click.echo(orjson.dumps(value, default=str, option=option).decode())


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; columns in ``right`` hold numbers. Long cells fold, nothing is cut off."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        number = column in right
        made.add_column(
            column,
            justify="right" if number else "left",
            no_wrap=number or column in ("version", "time", "kind"),
            overflow="fold",
        )
    return made


def facts(pairs: list[tuple[str, object]]) -> Table:
    """Names and values, one pair a line; pairs without a value are left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != "":
            made.add_row(name, value if isinstance(value, Text | Table) else Text(str(value)))
    return made


def clock(value: str | float | None) -> str:
    """A moment as ``2026-01-31 12:00:00`` in UTC; from ISO 8601 or seconds since the epoch."""
    if value in (None, "", 0, 0.0):
        return ""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value).astimezone(UTC)
        except ValueError:
            return value
    else:
        moment = datetime.fromtimestamp(float(value or 0), UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def ago(value: str | float | None) -> str:
    """How long ago a moment was, in the largest unit that tells: ``5 min``."""
    if value in (None, "", 0, 0.0):
        return ""
    try:
        if isinstance(value, str):
            seconds = datetime.now(UTC).timestamp() - datetime.fromisoformat(value).timestamp()
        else:
            seconds = datetime.now(UTC).timestamp() - float(value or 0)
    except ValueError:
        return ""
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A length of time in the largest unit that tells.

    >>> span(42.0), span(600), span(90_000)
    ('42 s', '10 min', '25 h')
    """
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(count: float) -> str:
    """A number of bytes.

    >>> size(900), size(22_500_000)
    ('900 B', '22.5 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def short(value: Any) -> str:
    """A value in few characters: floats to four digits, lists and mappings as JSON."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple | dict):
        return orjson.dumps(value, default=str).decode()
    return str(value)
