"""``driftd versions``, ``show`` and ``diff``: what was made, from what, and how it differs."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from daemon.cli.journal import describe
from daemon.cli.options import Target, at_time, json_option, target_options
from daemon.cli.output import ago, clock, console, facts, print_json, short, size, table

EVIDENCE_SHOWN = ("decision", "reason", "checks", "version")  # by lines of their own
ACCURACY = ("accuracy", "validation_accuracy")  # the manifest's metrics to list, by preference


@click.command()
@target_options
@click.option("-n", "--number", type=click.IntRange(min=1), help="Only the newest so many.")
@click.option("--at", metavar="TIME", callback=at_time, help="Only who served at that time.")
@json_option
def versions(target: Target, number: int | None, at: str | None, as_json: bool) -> None:
    """List the versions, oldest first, and who of them serves.

    With --at, the version that served at a past time instead, from the journal. Times are ISO
    8601, in UTC where they name no zone.

    \b
    Examples:
      driftd versions
      driftd versions --at 2026-01-31T14:00
      driftd versions --registry /var/lib/driftd/registry --json
    """
    if at is not None:
        _print_serving(target.ask("serving", at=at), as_json)
        return
    found = target.ask("versions", number=number)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No versions yet.")
        return
    listed = table(
        "version", "role", "made", "by", "parent", "examples", "accuracy", "size",
        right=("examples", "accuracy", "size"),
    )  # fmt: skip
    for version in found:
        serves = "champion" in version["role"].split(", ")
        listed.add_row(
            Text(version["version"], style="bold" if serves else ""),
            version["role"],
            ago(version["created"]),
            version["strategy"],
            version["parent"] or "-",
            short(version["lineage"].get("examples")),
            _accuracy(version["metrics"]),
            size(sum(entry["size"] for entry in version["files"].values())),
        )
    console().print(listed)


def _print_serving(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
    elif row["version"] is None:
        click.echo(f"Nothing served yet at {clock(row['at'])} UTC.")
    else:
        since = clock(row["time"])
        click.echo(f"{row['version']} served at {clock(row['at'])} UTC, since {since}.")
        console().print(f"  {row['kind']}: {describe(row)}", markup=False)


def _accuracy(metrics: dict[str, Any]) -> str:
    value = next((metrics[name] for name in ACCURACY if name in metrics), None)
    return f"{value:.1%}" if isinstance(value, float) else "-"


@click.command()
@click.argument("version")
@target_options
@json_option
def show(version: str, target: Target, as_json: bool) -> None:
    """Show one version: metrics, lineage, files, evidence.

    VERSION may be an alias: champion, challenger, previous.

    \b
    Examples:
      driftd show v0012
      driftd show champion --json
    """
    found = target.ask("show", version=version)
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(
        facts(
            [
                ("version", found["version"]),
                ("role", found["role"]),
                ("made", f"{clock(found['created'])} ({ago(found['created'])})"),
                ("by", f"{found['strategy']}, rung {found['rung']}"),
                ("parent", found["parent"]),
                ("task", found["task"]),
                ("labels", f"{len(found['labels'])}: {', '.join(found['labels'])}"),
            ]
        )
    )
    _print_mapping(out, "metrics", found["metrics"])
    _print_lineage(out, found["lineage"])
    files = table("file", "size", "sha256", right=("size",))
    for name, entry in found["files"].items():
        files.add_row(name, size(entry["size"]), entry["sha256"][:16])
    out.print(files)
    _print_evidence(out, found["evidence"])
    _print_history(out, found["history"])


def _print_mapping(out: Any, title: str, values: dict[str, Any]) -> None:
    if values:
        rows = table(title, "value", right=())
        for name, value in values.items():
            rows.add_row(name, short(value))
        out.print(rows)


def _print_lineage(out: Any, lineage: dict[str, Any]) -> None:
    ranges = lineage.get("trained_on") or []
    rest = {name: value for name, value in lineage.items() if name != "trained_on"}
    _print_mapping(out, "lineage", rest)
    if ranges:
        rows = table("trained on", "partition", "from", "to (excl.)",
                     right=("partition", "from", "to (excl.)"))  # fmt: skip
        for place in ranges[:20]:
            rows.add_row(place["topic"], *(str(place[k]) for k in ("partition", "start", "end")))
        if len(ranges) > 20:
            rows.add_row(f"... and {len(ranges) - 20} more ranges: see --json", "", "", "")
        out.print(rows)


def _print_evidence(out: Any, evidence: list[dict[str, Any]]) -> None:
    for row in evidence:
        found = row.get("evidence", {})
        title = f"{row.get('name', '?')}, {clock(row.get('time'))}"
        decision = found.get("decision")
        out.print(Text(f"{title}: {decision}" if decision else title, style="bold"))
        if found.get("reason"):
            out.print(f"  {found['reason']}", markup=False)
        checks = found.get("checks") or []
        if checks:
            rows = table("check", "outcome", "value", "limit", "why", right=("value", "limit"))
            for check in checks:
                rows.add_row(
                    str(check.get("name")),
                    str(check.get("outcome")),
                    short(check.get("value")),
                    short(check.get("limit")),
                    str(check.get("sentence")),
                )
            out.print(rows)
        for name, value in found.items():
            if name not in EVIDENCE_SHOWN:
                _print_evidence_part(out, name, value)


def _print_evidence_part(out: Any, name: str, value: Any) -> None:
    """A part of the evidence: a row, a list of facts, or a table of like things."""
    if not isinstance(value, dict):
        out.print(f"  {name}: {short(value)}", markup=False)
        return
    inner = [part for part in value.values() if isinstance(part, dict)]
    if not inner or len(inner) < len(value):
        _print_mapping(out, name, value)
        return
    columns = list(dict.fromkeys(key for part in inner for key in part))
    rows = table(name, *columns, right=tuple(columns))
    for key, part in value.items():
        rows.add_row(str(key), *(short(part.get(column)) for column in columns))
    out.print(rows)


def _print_history(out: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        history = table("time", "kind", "what")
        for row in rows[-10:]:
            history.add_row(clock(row["time"]), row["kind"], describe(row))
        out.print(history)


@click.command()
@click.argument("a")
@click.argument("b")
@target_options
@json_option
def diff(a: str, b: str, target: Target, as_json: bool) -> None:
    """Show what differs between versions A and B.

    Aliases will do.

    \b
    Examples:
      driftd diff previous champion
      driftd diff v0007 v0012 --json
    """
    found = target.ask("diff", a=a, b=b)
    if as_json:
        print_json(found)
        return
    rows = table("what", found["a"], found["b"])
    for name, (left, right) in found["differences"].items():
        if name in ("version", "schema_version"):
            continue
        for what, before, after in _differences(name, left, right):
            rows.add_row(what, before, after)
    console().print(rows)


def _differences(name: str, left: Any, right: Any) -> list[tuple[str, str, str]]:
    if name == "labels":
        gone = [label for label in left if label not in right]
        new = [label for label in right if label not in left]
        return [("labels", f"without {', '.join(new)}" if new else short(len(left)),
                 f"without {', '.join(gone)}" if gone else short(len(right)))]  # fmt: skip
    if name == "files":
        return [
            (f"files.{file}", _file(left.get(file)), _file(right.get(file)))
            for file in sorted({*left, *right})
            if left.get(file) != right.get(file)
        ]
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            (f"{name}.{key}", _brief(left.get(key)), _brief(right.get(key)))
            for key in {**left, **right}
            if left.get(key) != right.get(key)
        ]
    return [(name, _brief(left), _brief(right))]


def _file(entry: dict[str, Any] | None) -> str:
    return f"{size(entry['size'])} {entry['sha256'][:12]}" if entry else "-"


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} entries"
    text = short(value)
    return text if len(text) <= 80 else text[:77] + "..."
