"""The registry: immutable versions, the aliases that say which one serves, and the journal.

All aliases and controls live in one small document that moves by compare-and-swap, so that a
promotion is one step and exactly one of several contenders wins. The document carries the row of
its last move: a crash between the move and its journal row is mended by the next one to open it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import RegistryConfig
from .durable import sha256
from .errors import (
    Conflict,
    Corrupt,
    DigestMismatch,
    Invalid,
    NotFound,
    PinnedError,
    RegistryError,
    Withdrawn,
)
from .journal import Journal
from .manifest import SCHEMA, FileEntry, Manifest, ManifestDraft
from .routing import MODES, ROUTING, TRAFFIC, Mode, Routing, Traffic
from .sealed import BrokenSeal, seal, unseal
from .store import LocalStore, Store

log = logging.getLogger("driftd.registry")

STATE = "state.json"
MANIFEST = "manifest.json"
VERSIONS, EVIDENCE, REQUESTS = "versions", "evidence", "requests"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Control:
    """Something an operator ordered: since when, who, and why."""

    since: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """The last change of the state: what, by whom, why; ``previous`` and ``version`` serve."""

    kind: str
    actor: str
    reason: str
    time: str
    version: str | None = None
    previous: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Who serves. ``chain``: earlier champions, the latest last; rollback goes back along it.

    ``move`` is the last change of any kind, ``champion_move`` the last that changed who serves.
    """

    generation: int = 0
    champion: str | None = None
    challenger: str | None = None
    chain: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    pinned: Control | None = None
    paused: Control | None = None
    move: Move | None = None
    champion_move: Move | None = None

    @property
    def previous(self) -> str | None:
        """The version that a rollback returns to."""
        return self.chain[-1] if self.chain else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "previous": self.previous}


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: its id and its manifest."""

    id: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Request:
    """Something an operator asks of the daemon; it stays until the daemon has `done` it."""

    id: str
    kind: str
    actor: str
    reason: str
    time: str
    body: dict[str, Any] = field(default_factory=dict)


class Registry:
    """One model's versions and aliases. Safe for several processes at once."""

    def __init__(self, store: Store, config: RegistryConfig) -> None:
        self.config = config
        self.journal = Journal(store)
        self._store = store
        self._manifests: dict[str, Manifest] = {}

    # ---------------------------------------------------------------- versions

    def publish(self, folder: Path, draft: ManifestDraft, *, actor: str) -> Version:
        """Make the files in ``folder`` a version, whole and durable, and number it.

        Files that an earlier version has already are shared with it. Raises `Invalid` for file
        names that are none, `StorageError` if the disk says no; nothing is half published.
        """
        sources = sorted(path for path in folder.iterdir() if path.is_file())
        if not sources:
            raise Invalid(f"there is nothing to publish in {folder}")
        twins = self._twins()
        with self._store.stage() as stage:
            files = {}
            for source in sources:
                if source.name == MANIFEST or not _NAME.fullmatch(source.name):
                    raise Invalid(f"{source.name!r} cannot be a file of a version")
                digest, size = stage.add(source.name, source, twins)
                files[source.name] = FileEntry(sha256=digest, size=size)
            number = self._next_number()
            while True:
                manifest = Manifest(
                    **draft.model_dump(),
                    version=f"v{number:04d}",
                    created=_now(),
                    files=files,
                )
                stage.write(MANIFEST, seal(manifest.model_dump(mode="json"), indent=True))
                if stage.commit(f"{VERSIONS}/{manifest.version}"):
                    break
                number += 1
        self.journal.append(
            "published",
            actor=actor,
            version=manifest.version,
            parent=draft.parent,
            strategy=draft.strategy,
            metrics=draft.metrics,
        )
        return Version(manifest.version, manifest)

    def version(self, id: str) -> Version:
        """The version of that id. Raises `NotFound`, or `Corrupt` for a damaged manifest."""
        if id not in self._manifests:
            self._manifests[id] = self._read_manifest(id)
        return Version(id, self._manifests[id])

    def versions(self) -> list[Version]:
        """All versions, oldest first; damaged ones are logged and left out."""
        found = []
        for name in self._store.names(VERSIONS):
            try:
                found.append(self.version(name))
            except RegistryError as error:
                log.error("%s", error)
        return sorted(found, key=lambda version: _number(version.id))

    def path(self, id: str, verify: bool = True) -> Path:
        """The version's folder; every file's size and SHA-256 are checked first.

        Raises `DigestMismatch` naming the first file that is not what was published.
        """
        folder = self._store.folder(f"{VERSIONS}/{id}")
        manifest = self.version(id).manifest
        if folder is None:
            raise NotFound(f"there is no version {id} in {self._store.location}")
        if verify:
            for name, entry in manifest.files.items():
                file = folder / name
                if not file.is_file() or file.stat().st_size != entry.size:
                    raise DigestMismatch(f"{id}: {name} is missing or has another size", file)
                if sha256(file) != entry.sha256:
                    raise DigestMismatch(
                        f"{id}: {name} is not what was published (SHA-256 differs). Restore the "
                        "version from a backup or roll back to another one",
                        file,
                    )
        return folder

    def attach(self, id: str, name: str, evidence: dict[str, Any]) -> None:
        """Keep evidence about a version beside it: a gate's verdict, a probation's result."""
        self.version(id)
        body = seal({"time": _now(), "name": name, "evidence": evidence}, indent=True)
        taken = self._store.names(f"{EVIDENCE}/{id}")
        for number in range(len(taken) + 1, len(taken) + 100):
            if self._store.swap(f"{EVIDENCE}/{id}/{number:03d}-{name}.json", body, None):
                return
        raise Conflict(f"cannot attach evidence to {id}: too many writers at once")

    def evidence(self, id: str) -> list[dict[str, Any]]:
        """What was attached, oldest first: ``{time, name, evidence}``."""
        rows = []
        for name in self._store.names(f"{EVIDENCE}/{id}"):
            if not name.endswith(".json"):
                continue
            document = self._store.read(f"{EVIDENCE}/{id}/{name}")
            if document is not None:
                rows.append(unseal(document.data))
        return rows

    def diff(self, a: str, b: str) -> dict[str, Any]:
        """What differs between two manifests: ``{field: [in a, in b]}``."""
        one, two = (self.version(id).manifest.model_dump(mode="json") for id in (a, b))
        return {name: [one[name], two[name]] for name in one if one[name] != two[name]}

    def collect(self, *, actor: str) -> list[str]:
        """Remove old versions beyond ``keep``; never what an alias or the rollback chain needs."""
        state = self.state()
        needed = {state.champion, state.challenger, *state.chain[-self.config.history :]}
        versions = [version.id for version in self.versions()]
        removed = [v for v in versions[: -self.config.keep] if v not in needed]
        for version in removed:
            self._store.remove(f"{VERSIONS}/{version}")
            self._manifests.pop(version, None)
        if removed:
            self.journal.append("collected", actor=actor, versions=removed)
        self._store.clean()
        return removed

    # ---------------------------------------------------------------- who serves

    def state(self) -> State:
        """Aliases and controls now. Raises `Corrupt` if the document is damaged."""
        document = self._store.read(STATE)
        return _parse(document.data, self._store.location) if document else State()

    def generation(self) -> object:
        """A token that changes with every move; cheap enough to poll."""
        return self._store.stamp(STATE)

    def promote(
        self,
        version: str,
        *,
        actor: str,
        reason: str,
        expect_champion: str | None = None,
        force: bool = False,
    ) -> State:
        """Let ``version`` serve; the champion becomes the previous one.

        Raises `PinnedError` while pinned and `Withdrawn` for a version that was taken back, both
        unless ``force``; `Conflict` if it serves already or the champion is not the expected one.
        """
        self.version(version)

        def change(state: State) -> State:
            if state.champion == version:
                raise Conflict(f"{version} is the champion already")
            if expect_champion is not None and state.champion != expect_champion:
                raise Conflict(f"the champion is {state.champion} now, not {expect_champion}")
            if state.pinned and not force:
                raise PinnedError(
                    f"{state.champion} is pinned ({state.pinned.reason}): unpin first"
                )
            if version in state.withdrawn and not force:
                raise Withdrawn(f"{version} was taken back once: use --force to promote it anyway")
            chain = (*state.chain, state.champion) if state.champion else state.chain
            return replace(
                state,
                champion=version,
                chain=chain[-self.config.history :],
                challenger=None if state.challenger == version else state.challenger,
                withdrawn=tuple(v for v in state.withdrawn if v != version),
            )

        return self._move("promote", actor, reason, change)

    def rollback(
        self, *, to: str | None = None, actor: str, reason: str, withdraw: bool = True
    ) -> State:
        """Take the champion back: the previous version, or ``to``, serves again.

        A second rollback goes a further step back. ``withdraw``: what was taken back is not
        promoted again unless forced. Works while pinned: it is the way out of trouble.
        """
        if to is not None:
            self.version(to)

        def change(state: State) -> State:
            target = to or state.previous
            if target is None:
                raise Conflict("there is no earlier champion to go back to: name one with --to")
            if target == state.champion:
                raise Conflict(f"{target} is the champion already")
            chain = state.chain
            if target in chain:
                chain = chain[: len(chain) - 1 - chain[::-1].index(target)]
            withdrawn = state.withdrawn
            if withdraw and state.champion and state.champion not in withdrawn:
                withdrawn = (*withdrawn, state.champion)
            return replace(
                state,
                champion=target,
                chain=chain,
                withdrawn=tuple(v for v in withdrawn if v != target),
            )

        return self._move("rollback", actor, reason, change)

    def set_challenger(self, version: str | None, *, actor: str, reason: str) -> State:
        """Name the version that wants to serve, or none."""
        if version is not None:
            self.version(version)
        if self.state().challenger == version:
            return self.state()
        return self._move(
            "challenger", actor, reason, lambda state: replace(state, challenger=version)
        )

    def route(
        self,
        challenger: str | None,
        *,
        mode: Mode,
        share: float = 0.0,
        slow_seconds: float = 0.25,
        actor: str,
        reason: str,
        expect: Routing | None = None,
    ) -> Routing:
        """Let a challenger see traffic: a ``share`` in percent (canary), a copy (shadow), or none.

        It holds as long as the present champion serves. ``expect``: what `routing` gave; `Conflict`
        if somebody has changed it since. Raises `Invalid` for a mode or share that is none, and
        `PinnedError` for a canary while the champion is pinned.
        """
        if not reason.strip():
            raise Invalid("say why: an empty reason explains nothing in the journal")
        if mode not in MODES or (mode == "off") != (challenger is None):
            raise Invalid(f"{mode!r} with challenger {challenger}: off has none, the others one")
        if not 0.0 <= share <= 100.0 or (share > 0) != (mode == "canary"):
            raise Invalid(f"a canary has a share above 0 and up to 100 percent, not {share:g}")
        if challenger is not None:
            self.version(challenger)
        while True:
            document = self._store.read(ROUTING)
            before = Routing.parse(document.data, self._store.location) if document else Routing()
            if expect is not None and before != expect:
                raise Conflict(
                    f"the routing was changed by {before.actor or 'nobody'} meanwhile: "
                    f"{before.mode} of {before.challenger}"
                )
            state = self.state()
            champion = state.champion
            if mode == "canary" and state.pinned:
                raise PinnedError(f"{champion} is pinned ({state.pinned.reason}): unpin first")
            if challenger is not None and champion in (None, challenger):
                raise Conflict(f"{challenger} needs another champion beside it, not {champion}")
            after = Routing(
                before.generation + 1,
                mode,
                challenger,
                champion,
                share,
                slow_seconds,
                actor,
                reason,
                _now(),
            )
            if self._store.swap(ROUTING, after.as_bytes(), document.token if document else None):
                row = {"challenger": challenger, "mode": mode, "share": share}
                self.journal.append("route", actor=actor, reason=reason, champion=champion, **row)
                for name in self._store.names(TRAFFIC):
                    self._store.remove(f"{TRAFFIC}/{name}")
                return after

    def routing(self) -> Routing:
        """Which traffic a challenger sees now; off where the champion has moved since."""
        document = self._store.read(ROUTING)
        if document is None:
            return Routing()
        return Routing.parse(document.data, self._store.location).against(self.state().champion)

    def routing_stamp(self) -> object:
        """A token that changes with every `route`; cheap enough to poll, as `generation` is."""
        return self._store.stamp(ROUTING)

    def report(self, server: str, traffic: Traffic) -> None:
        """A server tells what it has counted since the routing's generation began, in total."""
        if not _NAME.fullmatch(server):
            raise Invalid(f"{server!r} cannot be a server's name: use letters, digits, . _ -")
        name = f"{TRAFFIC}/{server}.json"
        while True:
            document = self._store.read(name)
            token = document.token if document else None
            if self._store.swap(name, seal(traffic.as_dict()), token):
                return

    def traffic(self, generation: int) -> Traffic:
        """What all servers have counted for the routing of that generation."""
        total = Traffic(generation)
        for name in self._store.names(TRAFFIC):
            document = self._store.read(f"{TRAFFIC}/{name}")
            if document is None or not name.endswith(".json"):
                continue
            try:
                found = Traffic.from_dict(unseal(document.data))
            except (BrokenSeal, KeyError, TypeError) as error:
                log.error("the report %s is damaged (%s) and is left out", name, error)
                continue
            if found.generation == generation:
                total += found
        return total

    def pin(self, *, actor: str, reason: str) -> State:
        """Freeze what serves: no promotion until `unpin`."""
        order = Control(_now(), actor, reason)
        return self._move("pin", actor, reason, lambda state: replace(state, pinned=order))

    def unpin(self, *, actor: str, reason: str) -> State:
        """Undo `pin`."""
        return self._move("unpin", actor, reason, lambda state: replace(state, pinned=None))

    def pause(self, *, actor: str, reason: str) -> State:
        """Stop learning; watching goes on."""
        order = Control(_now(), actor, reason)
        return self._move("pause", actor, reason, lambda state: replace(state, paused=order))

    def resume(self, *, actor: str, reason: str) -> State:
        """Undo `pause`."""
        return self._move("resume", actor, reason, lambda state: replace(state, paused=None))

    def serving_at(self, time: str) -> str | None:
        """The version that served at ``time`` (ISO 8601, UTC), from the journal."""
        serving = None
        for row in self.journal.rows(kinds=("promote", "rollback")):
            if row.time > time:
                break
            serving = row.fields.get("version")
        return serving

    # ---------------------------------------------------------------- operators to the daemon

    def request(self, kind: str, body: dict[str, Any], *, actor: str, reason: str) -> Request:
        """Ask something of the daemon; it answers in the journal."""
        when = _now()
        for number in range(1000):
            made = Request(f"{when.replace(':', '')}-{number:03d}", kind, actor, reason, when, body)
            if self._store.swap(f"{REQUESTS}/{made.id}.json", seal(asdict(made)), None):
                self.journal.append("request", actor=actor, reason=reason, request=kind, **body)
                return made
        raise Conflict("too many requests at once")

    def requests(self) -> list[Request]:
        """What was asked and not yet done, oldest first."""
        found = []
        for name in self._store.names(REQUESTS):
            document = self._store.read(f"{REQUESTS}/{name}")
            if document is None or not name.endswith(".json"):
                continue
            try:
                found.append(Request(**unseal(document.data)))
            except (BrokenSeal, TypeError) as error:
                log.error("the request %s is damaged (%s) and is dropped", name, error)
                self._store.remove(f"{REQUESTS}/{name}")
        return found

    def done(self, request: Request) -> None:
        """The daemon has taken the request up."""
        self._store.remove(f"{REQUESTS}/{request.id}.json")

    # ---------------------------------------------------------------- inside

    def mend(self) -> None:
        """Finish what a crash interrupted: a torn journal row, a move without its row."""
        if not self._store.writable:
            return
        torn = self._store.mend()
        if torn:
            log.warning("a torn journal row was set aside as %s", torn.kept_as)
            self.journal.append("journal-mended", bytes=torn.size, kept_as=torn.kept_as)
        self._write_row(self.state())

    def _move(self, kind: str, actor: str, reason: str, change: Callable[[State], State]) -> State:
        if not reason.strip():
            raise Invalid("say why: an empty reason explains nothing in the journal")
        while True:
            document = self._store.read(STATE)
            before = _parse(document.data, self._store.location) if document else State()
            self._write_row(before)
            after = change(before)
            move = Move(kind, actor, reason, _now(), after.champion, before.champion)
            swapped = move if after.champion != before.champion else before.champion_move
            generation = before.generation + 1
            after = replace(after, generation=generation, move=move, champion_move=swapped)
            token = document.token if document else None
            if self._store.swap(
                STATE, seal({"schema": SCHEMA, **asdict(after)}, indent=True), token
            ):
                self._write_row(after)
                return after

    def _write_row(self, state: State) -> None:
        """Make sure the journal has the row of the state's last move."""
        move = state.move
        if move is None:
            return
        while True:
            last = self._store.last_row()
            # The newest rows have it as a rule; before it is written, all of them are asked.
            for since in (max(0, last - 1000), 0):
                for entry in self._store.rows(since):
                    if (entry.fields or {}).get("generation") == state.generation:
                        return
            row = {
                "time": move.time,
                "kind": move.kind,
                "actor": move.actor,
                "reason": move.reason,
                "version": move.version,
                "previous": move.previous,
                "challenger": state.challenger,
                "generation": state.generation,
            }
            if self._store.append(lambda seq, row=row: seal({"seq": seq, **row}), after=last):  # type: ignore[misc]
                return
            self._store.mend()

    def _read_manifest(self, id: str) -> Manifest:
        if not _NAME.fullmatch(id):
            raise NotFound(f"{id!r} is no version id")
        name = f"{VERSIONS}/{id}/{MANIFEST}"
        document = self._store.read(name)
        if document is None:
            known = ", ".join(self._store.names(VERSIONS)[-5:]) or "none yet"
            raise NotFound(f"there is no version {id} (the newest are: {known})")
        try:
            return Manifest(**unseal(document.data))
        except (BrokenSeal, ValidationError, TypeError) as error:
            raise DigestMismatch(f"{id}: {MANIFEST} is damaged: {error}", name) from error

    def _twins(self) -> dict[tuple[str, int], str]:
        return {
            (entry.sha256, entry.size): f"{VERSIONS}/{version.id}/{name}"
            for version in self.versions()
            for name, entry in version.manifest.files.items()
        }

    def _next_number(self) -> int:
        published = [_number(name) for name in self._store.names(VERSIONS)]
        # A collected version's number is not given out again: its evidence outlives it.
        published += [_number(name) for name in self._store.names(EVIDENCE)]
        rows = self.journal.rows(kinds=("published",), limit=1)
        published += [_number(str(row.fields.get("version"))) for row in rows]
        return max(published, default=0) + 1


def open_registry(where: str | Path | RegistryConfig, *, create: bool = False) -> Registry:
    """Open the registry at a path, mending what a crash left; ``create`` makes an empty one.

    Raises `NotFound` if there is none, `StorageError` if it cannot be used.
    """
    config = where if isinstance(where, RegistryConfig) else RegistryConfig(path=str(where))
    root = Path(config.path).expanduser()
    if not root.is_dir() and not create:
        raise NotFound(
            f"there is no registry at {root}: start the daemon first, or set registry.path"
        )
    store = LocalStore(root, config.lock_timeout)
    if create:
        store.create()
    registry = Registry(store, config)
    registry.mend()
    return registry


def _parse(data: bytes, location: str) -> State:
    try:
        values = unseal(data)
        if values.pop("schema") != SCHEMA:
            raise ValueError("written by a newer driftd")
        for name in ("pinned", "paused"):
            values[name] = Control(**values[name]) if values[name] else None
        for name in ("move", "champion_move"):
            values[name] = Move(**values[name]) if values.get(name) else None
        for name in ("chain", "withdrawn"):
            values[name] = tuple(values[name])
        return State(**values)
    except (BrokenSeal, KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f"{location}/{STATE} is damaged ({error}): restore it from a backup, or remove it and "
            "promote the version that should serve (the journal says which one did)",
            f"{location}/{STATE}",
        ) from error


def _number(id: str) -> int:
    digits = id.removeprefix("v")
    return int(digits) if digits.isdigit() else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
