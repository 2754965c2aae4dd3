"""The repository API of the Open Inference Protocol, for a server that follows a registry.

Its index lists the registry's versions and what has become of them here. What serves is decided in
the registry, so loading or unloading any version by hand is refused, with the command that would.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, NoReturn

from deploy.answering import Answering
from deploy.errors import NotReadyError, RefusedError, UnknownModelError
from deploy.versions import Known, Versions

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
STATES = (READY, LOADING, UNAVAILABLE)

_WHY = {
    "champion": "champion",
    "previous": "kept warm",
    "challenger": "challenger: the routing gives it traffic",
}


class Entry(NamedTuple):
    """A row of the index."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """What the registry holds, beside what is in memory."""

    def __init__(self, versions: Versions, answering: Answering) -> None:
        self._versions = versions
        self._engine = answering.engine
        self._name = answering.config.name

    async def index(self, ready: bool = False) -> list[Entry]:
        """All versions, the newest first; only the ready ones if asked so.

        Raises `LoadError` if the registry cannot be read.
        """
        known = await asyncio.to_thread(self._versions.known)
        roles = self._engine.lineup.roles
        # A version may play two parts: the first counts.
        loaded = {each.version: role for role, each in reversed(roles.items())}
        names = [*(each for each in loaded if each not in known.names), *reversed(known.names)]
        entries = [self._entry(name, known, loaded) for name in names]
        return [entry for entry in entries if entry.state == READY] if ready else entries

    async def load(self, name: str, version: str | None = None) -> None:
        """Succeed if the version is loaded; by default the one that the registry wants to serve.

        Raises `UnknownModelError`; `NotReadyError` while it is being loaded; `RefusedError` where
        only a promotion would load it; `LoadError` if the registry cannot be read.
        """
        self._check(name)
        known = await asyncio.to_thread(self._versions.known)
        wanted = version or known.champion
        if wanted is None:
            raise RefusedError(
                "no version has been promoted: `driftd promote VERSION --reason ...` lets one serve"
            )
        if wanted in self._engine.lineup.versions:
            return
        if wanted in (known.champion, known.previous):
            raise NotReadyError(f"version {wanted} is being loaded; try again later")
        if wanted not in known.names:
            raise RefusedError(f"there is no version {wanted!r} in the registry")
        raise RefusedError(
            f"version {wanted} does not serve, and servers load what serves: "
            f"`driftd promote {wanted} --reason ...` lets it"
        )

    def unload(self, name: str) -> NoReturn:
        """Refuse, always. Raises `RefusedError` or `UnknownModelError`."""
        self._check(name)
        raise RefusedError(
            "a server keeps the version that the registry lets serve: "
            "`driftd rollback --reason ...` takes it back"
        )

    def _check(self, name: str) -> None:
        if name != self._name:
            raise UnknownModelError(f"no model {name!r} here: it is called {self._name!r}")

    def _entry(self, version: str, known: Known, loaded: dict[str, str]) -> Entry:
        if version in loaded:
            state, reason = READY, _WHY[loaded[version]]
        elif version == known.champion:
            state, reason = LOADING, "champion"
        elif version in known.withdrawn:
            state, reason = UNAVAILABLE, "withdrawn by an operator or by probation"
        elif version == known.challenger:
            state, reason = UNAVAILABLE, "challenger: the gate has not decided yet"
        else:
            state, reason = UNAVAILABLE, f"does not serve: `driftd promote {version}` lets it"
        return Entry(self._name, version, state, reason)
