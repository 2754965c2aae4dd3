"""Options that commands share, and what they stand for: a registry, a format, an actor."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from daemon.operating_config import OperatingConfig, load_operating
from registry import Invalid, Registry, RegistryConfig, moment, open_registry

DEFAULT_CONFIG = "driftd.yaml"

F = TypeVar("F", bound=Callable[..., Any])


def config_option(function: F) -> F:
    """``-c/--config FILE``."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=DEFAULT_CONFIG,
        envvar="DRIFTD_CONFIG",
        show_default=True,
        show_envvar=True,
        help="The configuration file.",
    )(function)


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        function
    )


def reason_option(function: F) -> F:
    """``--reason TEXT``, which must say something."""

    def check(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str:
        if value is None or not value.strip():
            raise click.UsageError(
                'Say why, for the journal: --reason "checkout errors since 14:00".', ctx
            )
        return value.strip()

    return click.option(
        "--reason", metavar="TEXT", callback=check, help="Why; goes to the journal. Required."
    )(function)


def at_time(ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """A callback for options that take a moment, UTC where no zone is named."""
    try:
        return None if value is None else moment(value)
    except Invalid as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


@dataclass(frozen=True, slots=True)
class Target:
    """What an operator's command acts on."""

    config: OperatingConfig
    path: Path

    def open(self) -> Registry:
        """The registry. Raises `registry.NotFound`."""
        return open_registry(self.config.registry)


def target_options(function: F) -> F:
    """``-c/--config`` and ``--registry PATH``; the command gets a ``target``."""

    @click.option(
        "--registry",
        "registry_path",
        metavar="PATH",
        help="The registry's folder; with it, no configuration file is needed.",
    )
    @config_option
    def command(*args: Any, config_path: Path, registry_path: str | None, **kwargs: Any) -> Any:
        return function(*args, target=_target(config_path, registry_path), **kwargs)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    parameters = getattr(function, "__click_params__", [])
    command.__click_params__ = [*parameters, *command.__click_params__]  # type: ignore[attr-defined]
    return command  # type: ignore[return-value]


def _target(config_path: Path, registry_path: str | None) -> Target:
    if registry_path is None:
        return Target(load_operating(config_path, os.environ), config_path)
    if config_path.exists():
        config = load_operating(config_path, os.environ)
        located = RegistryConfig(**{**config.registry.model_dump(), "path": registry_path})
        return Target(config.model_copy(update={"registry": located}), config_path)
    operating = OperatingConfig(registry=RegistryConfig(path=registry_path))
    return Target(operating, config_path)


def actor() -> str:
    """Who gives an order: ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
