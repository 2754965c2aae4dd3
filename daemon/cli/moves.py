"""The operators' orders: what serves, what may move, and what should be trained.

Each is one step on the registry's state or one request to the daemon, and each leaves a row in
the journal with who and why. All of them work whether or not the daemon runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click

from daemon.cli.options import (
    Target,
    at_time,
    json_option,
    reason_option,
    target_options,
)
from daemon.cli.output import console, facts, print_json, table
from daemon.policy_config import LADDER, UNTRAINED
from registry import MODES, Invalid, Routing, Stretch

F = TypeVar("F", bound=Callable[..., Any])


def _stretch(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else str(Stretch.parse(value))
    except Invalid as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


def _stretches(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    try:
        found = [Stretch.parse(value) for value in values]
    except Invalid as error:
        raise click.BadParameter(str(error), ctx, parameter) from error
    if any(stretch.end is None for stretch in found):
        raise click.BadParameter("a range needs an end, such as orders:0:1200-1400", ctx, parameter)
    return tuple(map(str, found))


def _order(function: F) -> F:
    return json_option(target_options(reason_option(function)))


def _answer(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(found["sentence"])


@click.command()
@click.argument("version")
@click.option("--force", is_flag=True, help="Even if serving is pinned or the version withdrawn.")
@_order
def promote(version: str, force: bool, target: Target, reason: str, as_json: bool) -> None:
    """Let VERSION serve; the champion becomes the previous one.

    \b
    Examples:
      driftd promote v0012 --reason "passed the shop's own test"
      driftd promote v0009 --force --reason "withdrawn by mistake"
    """
    _answer(target.order("promote", reason, version=version, force=force), as_json)


@click.command()
@click.option(
    "--to", "version", metavar="VERSION", help="The version to go back to; else the previous one."
)
@click.option(
    "--before-offset",
    metavar="TOPIC:PARTITION:OFFSET",
    callback=_stretch,
    help="The latest champion that had learned no event from this offset on.",
)
@click.option(
    "--before-time",
    metavar="TIME",
    callback=at_time,
    help="The latest champion that had learned no event from this time on.",
)
@_order
def rollback(
    version: str | None,
    before_offset: str | None,
    before_time: str | None,
    target: Target,
    reason: str,
    as_json: bool,
) -> None:
    """Take the champion back: the version before it serves again.

    What was taken back is withdrawn, with what lies between: the daemon promotes neither it, nor
    the same again, nor what was made from it. With --before-offset or --before-time that is every
    version that had learned from then on. A second rollback goes a further step back. Works while
    pinned.

    \b
    Examples:
      driftd rollback --reason "checkout errors since 14:00"
      driftd rollback --to v0007 --reason "last one before the new catalogue"
      driftd rollback --before-offset orders:0:120400 --reason "poisoned labels"
      driftd rollback --before-time 2026-01-31T14:00 --reason "labels are wrong since then"
    """
    if sum(given is not None for given in (version, before_offset, before_time)) > 1:
        raise click.UsageError("Give one of --to, --before-offset and --before-time.")
    found = target.order(
        "rollback", reason, to=version, before_offset=before_offset, before_time=before_time
    )
    _answer(found, as_json)


@click.command()
@click.argument("mode", type=click.Choice(["show", *MODES]), default="show")
@click.argument("version", required=False)
@click.option(
    "--share", type=click.FloatRange(0, 100, min_open=True), help="Percent; for a canary."
)
@click.option(
    "--slow-seconds",
    type=click.FloatRange(0, min_open=True),
    default=Routing().slow_seconds,
    show_default=True,
    help="From where on servers count a request as slow.",
)
@click.option("--reason", metavar="TEXT", help="Why; goes to the journal. Not for show.")
@target_options
@json_option
def route(
    mode: str,
    version: str | None,
    share: float | None,
    slow_seconds: float,
    reason: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """Let a challenger see live traffic before its promotion.

    In shadow it gets a copy of all requests, and nobody waits for it. As a canary it answers a
    share of them, always those of the same keys. It ends with off, and whenever the champion moves.
    Without a mode: what holds now, and what the servers have counted since it began.

    \b
    Examples:
      driftd route
      driftd route shadow v0012 --reason "look at it first"
      driftd route canary v0012 --share 5 --reason "a first step"
      driftd route off --reason "seen enough"
    """
    if mode == "show":
        _show_routing(target.ask("routing"), as_json)
        return
    if not (reason or "").strip():
        raise click.UsageError(f'Say why, for the journal: driftd route {mode} --reason "...".')
    if (version is None) != (mode == "off") or (share is None) != (mode != "canary"):
        raise click.UsageError(
            "Say `route off`, `route shadow VERSION` or `route canary VERSION --share PERCENT`."
        )
    found = target.order(
        "route", str(reason), mode=mode, version=version, share=share, slow_seconds=slow_seconds
    )
    _answer(found, as_json)


def _show_routing(routing: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(routing)
        return
    if routing["mode"] == "off":
        click.echo("No challenger sees traffic.")
        return
    share = f"{routing['share']:g} % of the requests"
    what = share if routing["mode"] == "canary" else "a copy of all"
    challenger, champion = routing["challenger"], routing["champion"]
    click.echo(f"{routing['mode']}: {challenger} sees {what}, beside {champion}.")
    click.echo(f"Since {routing['time']}, by {routing['actor']}: {routing['reason']}")
    rows = table("version", "requests", "errors", "slow", right=("requests", "errors", "slow"))
    for name, side in ((challenger, "challenger"), (champion, "champion")):
        counts = routing["traffic"][side]
        rows.add_row(name, *(f"{counts[key]:,}" for key in ("requests", "errors", "slow")))
    console().print(rows)


@click.command()
@click.argument("version", required=False)
@_order
def pin(version: str | None, target: Target, reason: str, as_json: bool) -> None:
    """Freeze what serves: no promotion until `unpin`.

    Learning and watching go on.

    With VERSION, that version is promoted first, unless it serves already.

    \b
    Examples:
      driftd pin --reason "sale until Monday"
      driftd pin v0007 --reason "audit of v0007"
    """
    _answer(target.order("pin", reason, version=version), as_json)


@click.command()
@_order
def unpin(target: Target, reason: str, as_json: bool) -> None:
    """Allow promotions again.

    \b
    Example:
      driftd unpin --reason "the sale is over"
    """
    _answer(target.order("unpin", reason), as_json)


@click.command()
@_order
def pause(target: Target, reason: str, as_json: bool) -> None:
    """Stop learning until `resume`.

    Events are still predicted, watched and counted; nothing is trained or remembered.

    \b
    Example:
      driftd pause --reason "labels are wrong since the import"
    """
    _answer(target.order("pause", reason), as_json)


@click.command()
@_order
def resume(target: Target, reason: str, as_json: bool) -> None:
    """Learn again after `pause`.

    \b
    Example:
      driftd resume --reason "labels are mended"
    """
    _answer(target.order("resume", reason), as_json)


@click.command()
@click.option("--rung", type=click.Choice(LADDER), help="Only this rung; else the policy chooses.")
@click.option(
    "--without-range",
    "without",
    metavar="TOPIC:PARTITION:START-END",
    multiple=True,
    callback=_stretches,
    help="Offsets never to learn from, END excluded; may be repeated.",
)
@click.option("--reason", metavar="TEXT", default="asked for by an operator", show_default=True)
@click.option(
    "--reproduce",
    metavar="VERSION",
    help="Train this version again from its lineage, here and now, and compare; publish nothing.",
)
@target_options
@json_option
def refresh(
    rung: str | None,
    without: tuple[Stretch, ...],
    reason: str,
    reproduce: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """Ask the daemon to train a challenger now.

    The gate decides whether it serves. The request stays until a daemon takes it up. Follow it
    with `driftd journal -f`.

    Events of a --without-range leave the daemon's memory for good. The challenger starts from the
    newest version that has learned from none of them.

    \b
    Examples:
      driftd refresh
      driftd refresh --rung lora --reason "new product lines"
      driftd refresh --without-range orders:0:120400-121900 --reason "poisoned labels"
      driftd refresh --reproduce v0012
    """
    if reproduce is not None:
        if rung or without:
            raise click.UsageError("--reproduce takes the rung and the events from the lineage.")
        _reproduce(reproduce, target, as_json)
        return
    if without and rung in UNTRAINED:
        raise click.UsageError(f"The rung {rung} trains nothing: it cannot leave events out.")
    _answer(target.order("refresh", reason, rung=rung, without=list(without)), as_json)


def _reproduce(version: str, target: Target, as_json: bool) -> None:
    from daemon.config import load_config
    from daemon.control import resolve
    from daemon.reproduce import CannotReproduce
    from daemon.reproduce import reproduce as train_again

    registry = target.open()
    config = load_config(target.path, os.environ)
    try:
        found = train_again(config, registry, resolve(registry.state(), version))
    except CannotReproduce as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(asdict(found))
        return
    rows: list[tuple[str, object]] = [
        ("version", f"{found.version}, {found.strategy}, {found.examples:,} events"),
        ("accuracy recorded", f"{found.recorded:.2%}"),
        ("accuracy now", f"{found.reproduced:.2%}"),
        ("CPU-seconds", f"{found.cpu_seconds:.1f}"),
    ]
    rows += [(f"{name} differs", f"{then}, now {now}") for name, then, now in found.code]
    console().print(facts(rows))


@click.command()
@click.argument("action", type=click.Choice(["list", "release", "drop"]), default="list")
@click.argument("case", required=False)
@click.option("--reason", metavar="TEXT", help="Why; goes to the journal. Not for list.")
@target_options
@json_option
def quarantine(
    action: str, case: str | None, reason: str | None, target: Target, as_json: bool
) -> int:
    """Show, release or drop the labels that are held back.

    A case of q0001 and so on is one labeller, or class, whose labels the guard does not trust.
    Released labels are learned; dropped ones never are; both judge the labeller anew. The list is
    the running daemon's: exits with 3 if it does not answer.

    \b
    Examples:
      driftd quarantine
      driftd quarantine release q0002 --reason "the new team's backlog"
      driftd quarantine drop q0003 --reason "account was stolen"
    """
    if action == "list":
        return _list(target, as_json)
    if case is None or not (reason or "").strip():
        raise click.UsageError(f"say which case and why: driftd quarantine {action} q0001 --reason")
    _answer(target.order(action, str(reason), case=case), as_json)
    return 0


def _list(target: Target, as_json: bool) -> int:
    cases = target.ask("quarantine")
    if as_json:
        print_json(cases)
        return 0
    rows = table("case", "cause", "group", "since event", "held", "why", right=("held",))
    for one in cases:
        names = ("case", "cause", "group", "opened_event", "held", "sentence")
        rows.add_row(*(str(one.get(name)) for name in names))
    console().print(rows if cases else "Nothing is held back.")
    return 0
