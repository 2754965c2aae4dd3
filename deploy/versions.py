"""The registry as the server sees it: a token that moves, aliases, routing, verified folders.

The only module of this room that knows the registry. Whatever goes wrong there arrives as a
`LoadError` whose ``cause`` is a word for the metrics; the server goes on with what it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import registry
from deploy.errors import LoadError
from deploy.routing import Counted, Split

# An open registry, or the place where one is or will be.
Source: TypeAlias = registry.Registry | registry.RegistryConfig | str | Path


class Aliases(NamedTuple):
    """The names of the version that serves and of the one before it, if any."""

    champion: str | None
    previous: str | None


class Versions:
    """Reads one registry, which may not exist yet."""

    def __init__(self, source: Source) -> None:
        self._registry = source if isinstance(source, registry.Registry) else None
        self._source = source.config if isinstance(source, registry.Registry) else source
        config = self._source
        self._where = config.path if isinstance(config, registry.RegistryConfig) else str(config)

    def __str__(self) -> str:
        return self._where

    def token(self) -> object:
        """Something cheap that differs whenever the aliases may have moved; None if no registry.

        Raises `LoadError` if the registry cannot be read.
        """
        with _explained():
            opened = self._open()
            return None if opened is None else (opened.generation(), opened.routing_stamp())

    def aliases(self) -> Aliases:
        """Who should serve. Raises `LoadError` if the registry cannot be read."""
        with _explained():
            opened = self._open()
            if opened is None:
                return Aliases(None, None)
            state = opened.state()
            return Aliases(state.champion, state.previous)

    def split(self) -> Split | None:
        """Which traffic a challenger sees beside the present champion, if any.

        Raises `LoadError` if that cannot be read.
        """
        with _explained():
            opened = self._open()
            routing = opened.routing() if opened else registry.Routing()
        if routing.mode == "off" or routing.challenger is None:
            return None
        return Split(
            routing.generation,
            routing.mode,
            routing.challenger,
            routing.share,
            routing.slow_seconds,
        )

    def report(self, server: str, counted: Counted) -> None:
        """Tell what was counted. Raises `LoadError` if the registry cannot be written."""
        sides = (registry.Counts(*side) for side in (counted.challenger, counted.champion))
        with _explained():
            opened = self._open()
            if opened is not None:
                opened.report(server, registry.Traffic(counted.generation, *sides))

    def fetch(self, version: str) -> Path:
        """The version's folder, every file's size and digest verified. Raises `LoadError`."""
        with _explained():
            opened = self._open()
            if opened is None:
                raise LoadError("not_found", f"there is no registry at {self._where}")
            return opened.path(version, verify=True)

    def _open(self) -> registry.Registry | None:
        if self._registry is None:
            try:
                self._registry = registry.open_registry(self._source)
            except registry.NotFound:
                return None
        return self._registry


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except registry.DigestMismatch as error:
        raise LoadError("digest_mismatch", str(error)) from error
    except registry.Untrusted as error:
        raise LoadError("untrusted", str(error)) from error
    except registry.NotFound as error:
        raise LoadError("not_found", str(error)) from error
    except (registry.RegistryError, OSError) as error:
        raise LoadError("registry", str(error)) from error
