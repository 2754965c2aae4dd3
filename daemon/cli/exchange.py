"""``driftd export``, ``export-mlflow`` and ``import-mlflow``: versions leave, and come in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from daemon.cli.options import Target, actor, json_option, target_options
from daemon.cli.output import console, print_json, size, table
from daemon.control import resolve
from registry import exchange

F = TypeVar("F", bound=Callable[..., Any])


@click.command()
@click.argument("version")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="A new folder for all that serves it."
)
@click.option(
    "--activations",
    type=click.Choice(["dynamic", "static"]),
    help="Instead of export.activations of the configuration.",
)
@click.option("--publish", is_flag=True, help="Publish the result as a new version.")
@target_options
@json_option
def export(
    version: str,
    output: Path | None,
    activations: str | None,
    publish: bool,
    target: Target,
    as_json: bool,
) -> None:
    """Make VERSION's FP32 and INT8 graphs anew, and measure both.

    Events in the daemon's memory that no training has seen judge; with static activations the
    others fix the scales. A published result does not serve before somebody promotes it, or gives
    it traffic with `driftd route`. Needs the extra `daemon`, and the configuration file.

    \b
    Examples:
      driftd export champion -o exported
      driftd export v0012 --activations static --publish
    """
    from daemon.config import load_config
    from daemon.exporting import CannotExport
    from daemon.exporting import export as make
    from deploy.errors import DeployError

    if output is None and not publish:
        raise click.UsageError("Say where to: --output FOLDER, --publish, or both.")
    registry = target.open()
    config = load_config(target.path, os.environ)
    if activations is not None:
        changed = config.export.model_copy(update={"activations": activations})
        config = config.model_copy(update={"export": changed})
    name = resolve(registry.state(), version)
    try:
        done = make(config, registry, name, output, publisher=actor() if publish else None)
    except (CannotExport, DeployError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(asdict(done))
        return
    figures = table("", "FP32", "INT8", right=("FP32", "INT8"))
    for words, key, shown in (
        ("size", "size_bytes", size),
        ("accuracy", "accuracy", "{:.2%}".format),
        ("one item, ms", "latency_ms", "{:.2f}".format),
        ("items a second", "items_per_second", "{:,.0f}".format),
    ):
        figures.add_row(words, shown(done.metrics[f"fp32_{key}"]), shown(done.metrics[key]))
    console().print(figures)
    click.echo(
        f"{done.metrics['agreement']:.1%} of {done.events:,} answers are the same; "
        f"activations: {done.activations}."
    )
    if output is not None:
        click.echo(f"Written: {output}")
    if done.published is not None:
        click.echo(f"{done.published} is published; `driftd promote {done.published}` serves it.")


def _tracking(function: F) -> F:
    return click.option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        show_envvar=True,
        help="The MLflow server.",
    )(function)


@click.command("export-mlflow")
@click.argument("version")
@click.option("--model", metavar="NAME", required=True, help="The registered model there.")
@_tracking
@target_options
@json_option
def export_mlflow(
    version: str, model: str, tracking_uri: str | None, target: Target, as_json: bool
) -> None:
    """Copy VERSION into an MLflow model registry.

    Its files, manifest, metrics and evidence go along; the champion gets the alias champion.
    VERSION may be an alias. Needs the extra `mlflow`.

    \b
    Example:
      driftd export-mlflow champion --model orders --tracking-uri http://mlflow:5000
    """
    registry = target.open()
    name = resolve(registry.state(), version)
    made = exchange.export_version(registry, name, model, tracking_uri=tracking_uri)
    if as_json:
        print_json({"version": name, "model": model, "model_version": made})
    else:
        click.echo(f"{name} is version {made} of {model}.")


@click.command("import-mlflow")
@click.argument("model")
@click.argument("version")
@_tracking
@target_options
@json_option
def import_mlflow(
    model: str, version: str, tracking_uri: str | None, target: Target, as_json: bool
) -> None:
    """Publish VERSION of MODEL from an MLflow registry here.

    VERSION is a number there, or @ and an alias. Only what `driftd export-mlflow` made can come
    in; digests are checked, and the signature where registry.trusted_keys is set. It does not
    serve before somebody promotes it.

    \b
    Example:
      driftd import-mlflow orders @champion
    """
    made = exchange.import_version(
        target.open(), model, version, actor=actor(), tracking_uri=tracking_uri
    )
    if as_json:
        print_json({"version": made.id, "model": model, "model_version": version})
    else:
        click.echo(f"Version {version} of {model} is {made.id} here; `driftd promote` serves it.")
