"""``driftd export-mlflow`` and ``import-mlflow``: versions to and from an MLflow registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from daemon.cli.options import Target, actor, json_option, target_options
from daemon.cli.output import print_json
from daemon.control import resolve
from registry import exchange

F = TypeVar("F", bound=Callable[..., Any])


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
