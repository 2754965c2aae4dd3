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

from daemon.cli.options import Target, actor, json_option, reason_option, target_options
from daemon.cli.output import console, facts, print_json
from daemon.policy_config import LADDER
from registry import State

F = TypeVar("F", bound=Callable[..., Any])


def _order(function: F) -> F:
    return json_option(target_options(reason_option(function)))


def _answer(state: State, as_json: bool, sentence: str) -> None:
    if as_json:
        print_json(state.as_dict())
    else:
        click.echo(sentence)


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
    state = target.open().promote(version, actor=actor(), reason=reason, force=force)
    _answer(state, as_json, f"{state.champion} serves now; {state.previous or 'nothing'} before.")


@click.command()
@click.option(
    "--to", "version", metavar="VERSION", help="The version to go back to; else the previous one."
)
@_order
def rollback(version: str | None, target: Target, reason: str, as_json: bool) -> None:
    """Take the champion back: the version before it serves again.

    What was taken back is withdrawn: the daemon does not promote it again. A second rollback goes
    a further step back. Works while pinned.

    \b
    Examples:
      driftd rollback --reason "checkout errors since 14:00"
      driftd rollback --to v0007 --reason "last one before the new catalogue"
    """
    registry = target.open()
    before = registry.state().champion
    state = registry.rollback(to=version, actor=actor(), reason=reason)
    _answer(state, as_json, f"{state.champion} serves again; {before} is withdrawn.")


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
    registry = target.open()
    if version is not None and registry.state().champion != version:
        registry.promote(version, actor=actor(), reason=reason)
    state = registry.pin(actor=actor(), reason=reason)
    _answer(state, as_json, f"Pinned: {state.champion or 'nothing'} goes on serving until unpin.")


@click.command()
@_order
def unpin(target: Target, reason: str, as_json: bool) -> None:
    """Allow promotions again.

    \b
    Example:
      driftd unpin --reason "the sale is over"
    """
    state = target.open().unpin(actor=actor(), reason=reason)
    _answer(state, as_json, "Unpinned: promotions are allowed again.")


@click.command()
@_order
def pause(target: Target, reason: str, as_json: bool) -> None:
    """Stop learning until `resume`.

    Events are still predicted, watched and counted; nothing is trained or remembered.

    \b
    Example:
      driftd pause --reason "labels are wrong since the import"
    """
    state = target.open().pause(actor=actor(), reason=reason)
    _answer(state, as_json, "Paused: nothing is learned until resume.")


@click.command()
@_order
def resume(target: Target, reason: str, as_json: bool) -> None:
    """Learn again after `pause`.

    \b
    Example:
      driftd resume --reason "labels are mended"
    """
    state = target.open().resume(actor=actor(), reason=reason)
    _answer(state, as_json, "Resumed: learning goes on.")


@click.command()
@click.option("--rung", type=click.Choice(LADDER), help="Only this rung; else the policy chooses.")
@click.option("--reason", metavar="TEXT", default="asked for by an operator", show_default=True)
@click.option(
    "--reproduce",
    metavar="VERSION",
    help="Train this version again from its lineage, here and now, and compare; publish nothing.",
)
@target_options
@json_option
def refresh(
    rung: str | None, reason: str, reproduce: str | None, target: Target, as_json: bool
) -> None:
    """Ask the daemon to train a challenger now.

    The gate decides whether it serves. The request stays until a daemon takes it up. Follow it
    with `driftd journal -f`.

    \b
    Examples:
      driftd refresh
      driftd refresh --rung lora --reason "new product lines"
      driftd refresh --reproduce v0012
    """
    if reproduce is not None:
        _reproduce(reproduce, target, as_json)
        return
    request = target.open().request("refresh", {"rung": rung}, actor=actor(), reason=reason)
    if as_json:
        print_json({"id": request.id, "kind": request.kind, **request.body})
    else:
        click.echo(f"Asked for a refresh ({rung or 'rung by policy'}): request {request.id}.")


def _reproduce(version: str, target: Target, as_json: bool) -> None:
    from daemon.cli.versions import resolve
    from daemon.config import load_config
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
