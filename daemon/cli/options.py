"""Options that commands share, and what they stand for: where to act, a format, an actor."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from daemon.cli.remote import Client
from daemon.control import Desk, Order
from daemon.control_form import VERBS, carry_out
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


def at_time(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback for options that take a moment, UTC where no zone is named."""
    try:
        return None if value is None else moment(value).isoformat()
    except Invalid as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A daemon that is not here: its URL, or where its Service is to be found in a cluster."""

    url: str | None
    token_file: Path | None
    ca_file: Path | None
    context: str | None
    namespace: str | None
    release: str | None
    explicit: bool  # said on the command line, not by the environment

    @contextmanager
    def reached(self) -> Iterator[Client]:
        """Its control API, as long as the block lasts."""
        token = self._token()
        if self.url is not None:
            yield Client(self.url, token=token, ca_file=self.ca_file)
            return
        from daemon.cli.cluster import forwarded

        with forwarded(self.context, self.namespace, self.release) as forward:
            yield Client(
                forward.url, token=token, ca_file=self.ca_file, server_name=forward.server_name
            )

    def _token(self) -> str | None:
        if self.token_file is not None:
            return self.token_file.read_text(encoding="utf-8").strip()
        return os.environ.get("DRIFTD_TOKEN") or None


@dataclass(frozen=True, slots=True)
class Target:
    """What an operator's command acts on: a registry here, or a daemon elsewhere."""

    config: OperatingConfig
    path: Path
    client: Client | None = None

    def open(self) -> Registry:
        """The registry, for what can only be done where it lies. Raises `registry.NotFound`."""
        if self.client is not None:
            raise click.UsageError("this works where the registry lies only: leave --url out")
        return open_registry(self.config.registry)

    def ask(self, verb: str, **given: Any) -> Any:
        """The answer of a verb that looks. Raises the registry's errors."""
        if self.client is not None:
            return self.client.ask(verb, given)
        return carry_out(self._desk(), VERBS[verb], given)

    def order(self, verb: str, reason: str, **given: Any) -> Any:
        """The answer of a verb that orders. Raises the registry's errors."""
        if self.client is not None:
            return self.client.order(verb, given, Order(actor(), reason))
        return carry_out(self._desk(), VERBS[verb], given, Order(actor(), reason))

    @property
    def place(self) -> str:
        """Where the daemon is asked."""
        from daemon.cli.status import address

        return self.client.url if self.client is not None else address(self.config.http)

    def _desk(self) -> Desk:
        from daemon.cli.status import ask

        return Desk(self.open, lambda: ask(self.config.http), self.place)


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
    root = click.get_current_context().find_root()
    elsewhere: Elsewhere | None = root.obj
    if elsewhere is not None and elsewhere.explicit and registry_path is not None:
        raise click.UsageError("give either --registry, or a daemon elsewhere")
    if elsewhere is not None and registry_path is None:
        client = root.with_resource(elsewhere.reached())
        return Target(OperatingConfig(), config_path, client)
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
