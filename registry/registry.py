"""The registry: immutable versions, the aliases that say which one serves, and the journal.

All aliases and controls live in one small document that moves by compare-and-swap, so that a
promotion is one step and exactly one of several contenders wins. The document carries the row of
its last move: a crash between the move and its journal row is mended by the next one to open it.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import RegistryConfig
from .durable import Sound, is_sound
from .errors import (
    Conflict,
    DigestMismatch,
    Invalid,
    NotFound,
    PinnedError,
    RegistryError,
    Repeated,
    StorageError,
    Superseded,
    Withdrawn,
)
from .journal import Journal, Row
from .lease import Lease
from .lineage import Stretch, alike, moment, newest_event
from .manifest import MANIFEST, RESERVED, SIGNATURE, FileEntry, Manifest, ManifestDraft
from .routing import MODES, ROUTING, TRAFFIC, Mode, Routing, Traffic
from .sealed import BrokenSeal, seal, unseal
from .signature import Signer, Trust
from .state import STATE, Control, Move, State
from .store import VERSIONS, Document, LocalStore, Store

log = logging.getLogger("driftd.registry")

EVIDENCE, REQUESTS, COLLECTED = "evidence", "requests", "collected"
REMEMBERED = 10_000  # rows back in the journal that an order's request id is looked for
#: Journal rows of a change of who serves.
CHAMPION_MOVES = ("promote", "follow", "rollback")
#: Steps of a run that stay when they are passed over: a server may just be loading one.
STEPS_KEPT = 3
LEASE = "leader.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    request_id: str | None = None


class Registry:
    """One model's versions and aliases. Safe for several processes at once."""

    def __init__(self, store: Store, config: RegistryConfig) -> None:
        self.config = config
        self.journal = Journal(store)
        self._store = store
        self._trust = Trust(config.trusted_keys) if config.trusted_keys else None
        self._manifests: dict[str, Manifest] = {}
        #: Where several daemons share the model: the term in which this process leads.
        self.term: int | None = None
        self._journalled: Move | None = None  # the newest move whose row is known to be there

    @property
    def store(self) -> Store:
        """Where it lies, for what daemons that share a model keep beside it."""
        return self._store

    # ---------------------------------------------------------------- versions

    def publish(
        self, folder: Path, draft: ManifestDraft, *, actor: str, given: bool = False
    ) -> Version:
        """Make the files in ``folder`` a version, whole and durable, and number it.

        Files that an earlier version has already are shared with it. ``given``: the registry may
        keep the files themselves, not copies, and nobody writes them again. Raises `Invalid` for
        file names that are none, `StorageError` if the disk says no; nothing is half published.
        """
        signer = self.signer()
        sources = sorted(path for path in folder.iterdir() if path.is_file())
        if not sources:
            raise Invalid(f"there is nothing to publish in {folder}")
        twins = self._twins()
        with self._store.stage() as stage:
            files = {}
            for source in sources:
                if source.name in RESERVED or not _NAME.fullmatch(source.name):
                    raise Invalid(f"{source.name!r} cannot be a file of a version")
                digest, size = stage.add(source.name, source, twins, given)
                files[source.name] = FileEntry(sha256=digest, size=size)
            number = self._next_number()
            while True:
                manifest = Manifest(
                    **draft.model_dump(),
                    version=f"v{number:04d}",
                    created=_now(),
                    files=files,
                )
                data = seal(manifest.model_dump(mode="json"), indent=True)
                stage.write(MANIFEST, data)
                if signer is not None:
                    stage.write(SIGNATURE, signer.sign(data))
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
            self._manifests[id] = self._parsed_manifest(id, self._manifest_document(id))
        return Version(id, self._manifests[id])

    def names(self) -> list[str]:
        """The ids of all versions, damaged ones included, oldest first."""
        return sorted(self._store.names(VERSIONS), key=_number)

    def versions(self) -> list[Version]:
        """All versions, oldest first; damaged ones are logged and left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.version(name))
            except RegistryError as error:
                log.error("%s", error)
        return found

    def signer(self) -> Signer | None:
        """What signs, if configured. Raises `Invalid` if its key cannot be used."""
        return Signer(self.config.signing_key) if self.config.signing_key else None

    def signed_by(self, id: str) -> str | None:
        """The id of the trusted key that signed the version; None if no keys are configured.

        Raises `Untrusted`.
        """
        return self._signed_by(id, self._manifest_document(id))

    def check_signature(self, id: str, manifest: bytes, signature: bytes | None) -> str | None:
        """As `signed_by`, for a manifest and a signature that are at hand."""
        return self._trust.check(id, manifest, signature) if self._trust else None

    def path(self, id: str, verify: bool = True, sound: set[Sound] | None = None) -> Path:
        """The version's folder; signature, and every file's size and SHA-256, are checked first.

        ``sound``: what this process has found sound before, added to here. A file in it that
        nobody has written since is not read again: versions share most of their bytes.

        Raises `DigestMismatch` naming the first file that is not what was published, `Untrusted`
        where keys are configured and none has signed.
        """
        folder = self._store.folder(f"{VERSIONS}/{id}")
        document = self._manifest_document(id)
        self._signed_by(id, document)
        # Read anew: what counts is what lies there now, not what was read when it was sound.
        manifest = self._manifests[id] = self._parsed_manifest(id, document)
        if folder is None:
            raise NotFound(f"there is no version {id} in {self._store.location}")
        if verify:
            for name, entry in manifest.files.items():
                try:
                    check_file(id, folder / name, entry, sound)
                except DigestMismatch:
                    if not self._store.refetch(f"{VERSIONS}/{id}", name):
                        raise
                    check_file(id, folder / name, entry, sound)
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

    def learned_from(self, id: str, stretches: Iterable[Stretch]) -> bool:
        """Whether the version, or one that it was made from, met an event of the stretches."""
        stretches = tuple(stretches)
        return any(
            stretch.touches(manifest) for manifest in self._ancestry(id) for stretch in stretches
        )

    def taken_back(self, id: str) -> str | None:
        """The withdrawn version that this one is, equals or descends from, if any.

        Equal: the same files, or made of the same events in the same way. What the champion
        descends from is no objection to it or to its descendants.
        """
        return self._taken_back(id, self.state())

    def collect(self, *, actor: str, spare: Collection[str | None] = ()) -> list[str]:
        """Remove old versions beyond ``keep``; never what an alias or the rollback chain needs.

        Steps of a run that `follow` passed over are not counted there: of them the newest
        `STEPS_KEPT` stay. ``spare``: versions to leave alone, as somebody is at work on them.
        Manifests stay, for the lineage of their descendants; a step's only where it has any.
        """
        versions = self.versions()
        steps = [version.id for version in versions if _is_step(version.manifest)]
        others = [version.id for version in versions if not _is_step(version.manifest)]
        old = [*others[: -self.config.keep], *steps[:-STEPS_KEPT]]

        def change(state: State) -> State:
            kept = state.chain[-self.config.history :]
            needed = {state.champion, state.challenger, *kept, *spare}
            return replace(state, removed=tuple(v for v in old if v not in needed))

        removed = change(self.state()).removed
        if removed:
            # Said in the state first: from then on nobody can promote what is about to go.
            reason = f"older than the newest {self.config.keep}, or passed over"
            removed = self._move("collected", actor, reason, change).removed
        parents = self._parents() if set(removed) & set(steps) else set()
        for version in removed:
            document = self._store.read(f"{VERSIONS}/{version}/{MANIFEST}")
            if document is not None and (version not in steps or version in parents):
                self._store.swap(f"{COLLECTED}/{version}.json", document.data, None)
            self._store.remove(f"{VERSIONS}/{version}")
            self._manifests.pop(version, None)
        self._store.clean()
        return list(removed)

    # ---------------------------------------------------------------- who serves

    def state(self) -> State:
        """Aliases and controls now. Raises `Corrupt` if the document is damaged."""
        return self._parsed(self._store.read(STATE))

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
        request_id: str | None = None,
    ) -> State:
        """Let ``version`` serve; the champion becomes the previous one.

        ``request_id``, here and in all other orders: `Repeated` if one with it was carried out.
        Raises `PinnedError` while pinned and `Withdrawn` for what was `taken_back`, both unless
        ``force``; `Conflict` if it serves already or the champion is not the expected one.
        """
        self.version(version)
        self.signed_by(version)

        def change(state: State) -> State:
            if state.champion == version:
                raise Conflict(f"{version} is the champion already")
            if expect_champion is not None and state.champion != expect_champion:
                raise Conflict(f"the champion is {state.champion} now, not {expect_champion}")
            if state.pinned and not force:
                raise PinnedError(
                    f"{state.champion} is pinned ({state.pinned.reason}): unpin first"
                )
            taken = self._taken_back(version, state)
            if taken and not force:
                like = "" if taken == version else f"is made from, or the same as, {taken}, which "
                raise Withdrawn(
                    f"{version} {like}was taken back once: use --force to promote it anyway"
                )
            chain = (*state.chain, state.champion) if state.champion else state.chain
            return replace(
                state,
                champion=version,
                chain=chain[-self.config.history :],
                challenger=None if state.challenger == version else state.challenger,
                withdrawn=tuple(v for v in state.withdrawn if v != version),
            )

        return self._move("promote", actor, reason, change, request_id)

    def follow(
        self, version: str, *, keep: bool, actor: str, reason: str, expect_champion: str
    ) -> State:
        """Let ``version`` serve in the place of the champion, as a further step of the same run.

        ``keep``: the champion is proven, and a rollback returns to it; otherwise it was a step on
        the way too and is passed over. Never forced: raises as `promote` does.
        """
        self.version(version)
        self.signed_by(version)

        def change(state: State) -> State:
            if state.champion != expect_champion:
                raise Conflict(f"the champion is {state.champion} now, not {expect_champion}")
            if state.pinned:
                raise PinnedError(
                    f"{state.champion} is pinned ({state.pinned.reason}): unpin first"
                )
            if taken := self._taken_back(version, state):
                raise Withdrawn(f"{version} is made from, or the same as, {taken}")
            chain = (*state.chain, expect_champion) if keep else state.chain
            return replace(state, champion=version, chain=chain[-self.config.history :])

        return self._move("follow", actor, reason, change)

    def rollback(
        self,
        *,
        to: str | None = None,
        before: Stretch | datetime | None = None,
        actor: str,
        reason: str,
        withdraw: bool = True,
        request_id: str | None = None,
    ) -> State:
        """Take the champion back: the previous version, or ``to``, serves again.

        ``before``: instead, the latest champion that had learned nothing from the stretch, or
        from that time on. A second rollback goes a further step back. ``withdraw``: what was
        taken back, whatever lies between, and with ``before`` every version that had learned
        from it, is not promoted again unless forced. Works while pinned: it is the way out of
        trouble.

        Raises `NotFound` for an unknown version, `Conflict` where there is nothing to go back to.
        """
        if to is not None:
            self.version(to)
        if before is not None and to is not None:
            raise Invalid("a version or a time before which it was made, not both")

        def change(state: State) -> State:
            tainted = self._tainted(before) if before is not None else ()
            target = to or (self._last_without(state, tainted) if before else state.previous)
            if target is None:
                raise Conflict("there is no earlier champion to go back to: name one with --to")
            if target == state.champion:
                raise Conflict(f"{target} is the champion already")
            self.signed_by(target)
            kept = state.chain
            if target in kept:
                kept = kept[: len(kept) - 1 - kept[::-1].index(target)]
            withdrawn = state.withdrawn
            if withdraw:
                passed = (*state.chain[len(kept) :], state.champion or target, *tainted)
                withdrawn = tuple(dict.fromkeys((*withdrawn, *passed)))
            withdrawn = tuple(v for v in withdrawn if v != target)
            chain = tuple(v for v in kept if v not in withdrawn)
            return replace(state, champion=target, chain=chain, withdrawn=withdrawn)

        return self._move("rollback", actor, reason, change, request_id)

    def lease(self, owner: str, seconds: float) -> Lease:
        """A contender for leading the daemons that share this model."""
        return Lease(self._store, LEASE, owner, seconds)

    def lead(self, term: int, *, actor: str) -> State:
        """Moves of this process count as the leader's of ``term``, and of no older one any more.

        Raises `Superseded` if a later term has begun.
        """
        self.term = term
        return self._move(
            "leader", actor, f"leads in term {term}", lambda state: replace(state, term=term)
        )

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
        request_id: str | None = None,
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
        looked = self._remembered_from() if request_id is not None else 0
        while True:
            if request_id is not None:
                looked = self._only_once(request_id, looked)
            document = self._store.read(ROUTING)
            before = Routing.parse(document.data, self._store.location) if document else Routing()
            if expect is not None and before != expect:
                raise Conflict(
                    f"the routing was changed by {before.actor or 'nobody'} meanwhile: "
                    f"{before.mode} of {before.challenger}"
                )
            state = self.state()
            self._fence(state)
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
                row: dict[str, Any] = {"challenger": challenger, "mode": mode, "share": share}
                if request_id is not None:
                    row["request_id"] = request_id
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
        """A server tells what it has counted since the routing's generation began, in total.

        ``server``: a name that no other process uses. Needs to write in the folder `TRAFFIC` only.
        """
        if not _NAME.fullmatch(server):
            raise Invalid(f"{server!r} cannot be a server's name: use letters, digits, . _ -")
        self._store.write(f"{TRAFFIC}/{server}.json", seal(traffic.as_dict()))

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

    def pin(self, *, actor: str, reason: str, request_id: str | None = None) -> State:
        """Freeze what serves: no promotion until `unpin`."""
        order = Control(_now(), actor, reason)

        def change(state: State) -> State:
            return replace(state, pinned=order)

        return self._move("pin", actor, reason, change, request_id)

    def unpin(self, *, actor: str, reason: str, request_id: str | None = None) -> State:
        """Undo `pin`."""

        def change(state: State) -> State:
            return replace(state, pinned=None)

        return self._move("unpin", actor, reason, change, request_id)

    def pause(self, *, actor: str, reason: str, request_id: str | None = None) -> State:
        """Stop learning; watching goes on."""
        order = Control(_now(), actor, reason)

        def change(state: State) -> State:
            return replace(state, paused=order)

        return self._move("pause", actor, reason, change, request_id)

    def resume(self, *, actor: str, reason: str, request_id: str | None = None) -> State:
        """Undo `pause`."""

        def change(state: State) -> State:
            return replace(state, paused=None)

        return self._move("resume", actor, reason, change, request_id)

    def serving_at(self, time: str | datetime) -> Row | None:
        """The journal's row of the move by which a version served at that time, if one did.

        Its ``version`` is who served. ``time`` in ISO 8601, in UTC where it names no zone.
        """
        when = moment(time) if isinstance(time, str) else time
        serving = None
        for row in self.journal.rows(kinds=CHAMPION_MOVES):
            if moment(row.time) > when:
                break
            serving = row
        return serving

    # ---------------------------------------------------------------- operators to the daemon

    def request(
        self,
        kind: str,
        body: dict[str, Any],
        *,
        actor: str,
        reason: str,
        request_id: str | None = None,
    ) -> Request:
        """Ask something of the daemon; it answers in the journal."""
        when = _now()
        if request_id is not None:
            self._only_once(request_id, self._remembered_from())
        for number in range(1000):
            name = f"{when.replace(':', '')}-{number:03d}"
            made = Request(name, kind, actor, reason, when, body, request_id)
            if self._store.swap(f"{REQUESTS}/{made.id}.json", seal(asdict(made)), None):
                row: dict[str, Any] = {"request": kind, "body": body, "id": name}
                if request_id is not None:
                    row["request_id"] = request_id
                self.journal.append("request", actor=actor, reason=reason, **row)
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

    def try_out(self) -> float:
        """Write, compare-and-swap, read and remove a document of its own, as every order does.

        Seconds by which the storage's clock is ahead of this machine's, to within about one.
        Raises `StorageError` if the storage refuses, or does not keep its word.
        """
        name, store = f"trial-{secrets.token_hex(8)}.json", self._store
        began = time.time()
        if not store.swap(name, b"{}", None):
            raise StorageError(f"{store.location} says that a document was there before it was")
        try:
            ahead = store.written(name) - (began + time.time()) / 2
            document = store.read(name)
            if document is None or document.data != b"{}":
                raise StorageError(f"{store.location} does not give back what was written")
            if not store.swap(name, b'{"second": 1}', document.token):
                raise StorageError(f"{store.location} refuses a write on the right condition")
            for token in (None, document.token):
                if store.swap(name, b'{"third": 1}', token):
                    raise StorageError(
                        f"{store.location} ignores the condition of a write: two daemons could"
                        " both move the champion. Use storage with conditional writes"
                    )
        finally:
            store.remove(name)
        return ahead

    def mend(self) -> None:
        """Finish what a crash interrupted: a torn journal row, a move without its row."""
        if not self._store.writable:
            return
        torn = self._store.mend()
        if torn:
            log.warning("a torn journal row was set aside as %s", torn.kept_as)
            self.journal.append("journal-mended", bytes=torn.size, kept_as=torn.kept_as)
        state = self.state()
        try:
            self._write_row(state)
        except StorageError as error:
            log.warning("the row of the last move may be missing: %s", error)

    def _move(
        self,
        kind: str,
        actor: str,
        reason: str,
        change: Callable[[State], State],
        request_id: str | None = None,
    ) -> State:
        if not reason.strip():
            raise Invalid("say why: an empty reason explains nothing in the journal")
        looked = self._remembered_from() if request_id is not None else 0
        while True:
            document = self._store.read(STATE)
            before = self._parsed(document)
            self._fence(before)
            self._write_row(before)
            if request_id is not None:
                # All moves up to ``before`` have their rows; one after it makes the swap fail.
                looked = self._only_once(request_id, looked)
            after = change(before)
            for version in (after.champion, after.challenger):
                if version in before.removed:
                    raise NotFound(f"{version} is being removed: too old to be kept")
            last = self._store.last_row()
            move = Move(
                kind, actor, reason, _now(), after.champion, before.champion, last, request_id
            )
            swapped = move if after.champion != before.champion else before.champion_move
            generation = before.generation + 1
            after = replace(after, generation=generation, move=move, champion_move=swapped)
            token = document.token if document else None
            if self._store.swap(STATE, after.to_bytes(), token):
                self._write_row(after)
                return after

    def _remembered_from(self) -> int:
        return max(0, self._store.last_row() - REMEMBERED)

    def _only_once(self, request_id: str, since: int) -> int:
        """The journal's last row; `Repeated` if one after ``since`` carries the request id."""
        for row in self.journal.rows(since):
            since = row.seq
            if row.fields.get("request_id") == request_id:
                raise Repeated(
                    f"{request_id} was carried out before: {row.kind} of {row.time}", row.as_dict()
                )
        return since

    def _fence(self, state: State) -> None:
        if self.term is not None and state.term > self.term:
            raise Superseded(
                f"another daemon leads in term {state.term}; this one did in term {self.term}"
            )

    def _write_row(self, state: State) -> None:
        """Make sure the journal has the row of the state's last move."""
        move = state.move
        if move is None or move == self._journalled:
            return
        while True:
            last = self._store.last_row()
            if any(
                (entry.fields or {}).get("generation") == state.generation
                for entry in self._store.rows(move.after)
            ):
                break
            row: dict[str, Any] = {
                "time": move.time,
                "kind": move.kind,
                "actor": move.actor,
                "reason": move.reason,
                "version": move.version,
                "previous": move.previous,
                "challenger": state.challenger,
                "generation": state.generation,
            }
            if move.request_id is not None:
                row["request_id"] = move.request_id
            if move.kind == "leader":
                row["term"] = state.term
            if move.kind == "collected":
                row["versions"] = list(state.removed)
            if self._store.append(lambda seq, row=row: seal({"seq": seq, **row}), after=last):  # type: ignore[misc]
                break
            self._store.mend()
        self._journalled = move

    def _manifest_document(self, id: str) -> Document:
        document = self._store.read(f"{VERSIONS}/{id}/{MANIFEST}") if _NAME.fullmatch(id) else None
        if document is None:
            known = ", ".join(self._store.names(VERSIONS)[-5:]) or "none yet"
            raise NotFound(f"there is no version {id} (the newest are: {known})")
        return document

    def _signed_by(self, id: str, manifest: Document) -> str | None:
        if self._trust is None:
            return None
        signature = self._store.read(f"{VERSIONS}/{id}/{SIGNATURE}")
        return self.check_signature(id, manifest.data, signature.data if signature else None)

    def _parsed_manifest(self, id: str, document: Document) -> Manifest:
        try:
            return Manifest(**unseal(document.data))
        except (BrokenSeal, ValidationError, TypeError) as error:
            raise DigestMismatch(
                f"{id}: {MANIFEST} is damaged: {error}", f"{VERSIONS}/{id}/{MANIFEST}"
            ) from error

    def _twins(self) -> dict[tuple[str, int], str]:
        return {
            (entry.sha256, entry.size): f"{VERSIONS}/{version.id}/{name}"
            for version in self.versions()
            for name, entry in version.manifest.files.items()
        }

    def _next_number(self) -> int:
        # A collected version's number is not given out again: evidence and journal speak of it.
        taken = [
            _number(name.removesuffix(".json"))
            for folder in (VERSIONS, EVIDENCE, COLLECTED)
            for name in self._store.names(folder)
        ]
        return max(taken, default=0) + 1

    def _parsed(self, document: Document | None) -> State:
        return State.from_bytes(document.data, self._store.location) if document else State()

    def _ancestry(self, id: str) -> Iterator[Manifest]:
        """The version's manifest, then its parent's, and so on, as far as they are known."""
        manifest: Manifest | None = self.version(id).manifest
        while manifest is not None:
            yield manifest
            manifest = self._remembered(manifest.parent) if manifest.parent else None

    def _parents(self) -> set[str | None]:
        """Every version that another was made from, as far as manifests tell."""
        gone = [name.removesuffix(".json") for name in self._store.names(COLLECTED)]
        found = [version.manifest for version in self.versions()]
        found += [manifest for id in gone if (manifest := self._remembered(id))]
        return {manifest.parent for manifest in found}

    def _remembered(self, id: str) -> Manifest | None:
        """The manifest of a version that may be collected, or even unknown."""
        try:
            return self.version(id).manifest
        except RegistryError:
            document = self._store.read(f"{COLLECTED}/{id}.json")
        if document is None:
            return None
        self._manifests[id] = self._parsed_manifest(id, document)
        return self._manifests[id]

    def _taken_back(self, id: str, state: State) -> str | None:
        manifest = self.version(id).manifest
        for ancestor in self._ancestry(id):
            if ancestor.version == state.champion:
                break
            if ancestor.version in state.withdrawn:
                return ancestor.version
        for name in state.withdrawn:
            other = self._remembered(name)
            if other is not None and alike(manifest, other):
                return name
        return None

    def _tainted(self, since: Stretch | datetime) -> tuple[str, ...]:
        """Every version that learned from the stretch, or from that time on."""
        return tuple(
            version.id
            for version in self.versions()
            if (
                self.learned_from(version.id, (since,))
                if isinstance(since, Stretch)
                else any(newest_event(manifest) >= since for manifest in self._ancestry(version.id))
            )
        )

    def _last_without(self, state: State, tainted: Collection[str]) -> str:
        """The latest champion that may serve again; of those before the chain, the newest."""
        if state.champion not in tainted:
            raise Conflict(f"{state.champion} has learned nothing of that: nothing to take back")
        moves = self.journal.rows(kinds=CHAMPION_MOVES)
        served = {row.fields.get("version") for row in moves}
        earlier = [version.id for version in self.versions() if version.id in served]
        barred = {*tainted, *state.withdrawn}
        for version in (*reversed(state.chain), *reversed(earlier)):
            if version not in barred:
                return version
        raise Conflict(
            "every version that ever served has learned from that: name one with --to, or "
            "retrain with `driftd refresh --without-range`"
        )


def open_registry(where: str | Path | RegistryConfig, *, create: bool = False) -> Registry:
    """Open the registry at a path, mending what a crash left; ``create`` makes an empty one.

    Raises `NotFound` if there is none, `StorageError` if it cannot be used.
    """
    config = where if isinstance(where, RegistryConfig) else RegistryConfig(path=str(where))
    store = _store(config)
    if not create and not store.exists():
        raise NotFound(
            f"there is no registry at {store.location}: start the daemon first, or set "
            "registry.path"
        )
    registry = Registry(store, config)
    if create:
        store.create()
        registry.signer()  # a key that cannot be used is better found now
    registry.mend()
    return registry


def _store(config: RegistryConfig) -> Store:
    if config.path.startswith("s3://"):
        from .s3 import S3Store

        return S3Store(config.path, config.cache.expanduser(), config.endpoint)
    return LocalStore(Path(config.path).expanduser(), config.lock_timeout)


def check_file(id: str, file: Path, entry: FileEntry, sound: set[Sound] | None = None) -> None:
    """Raise `DigestMismatch` unless the file of version ``id`` is what its manifest says.

    ``sound``: see `Registry.path`.
    """
    if not file.is_file() or file.stat().st_size != entry.size:
        raise DigestMismatch(f"{id}: {file.name} is missing or has another size", file)
    if not is_sound(file, entry.sha256, sound):
        raise DigestMismatch(
            f"{id}: {file.name} is not what was published (SHA-256 differs). Restore the version "
            "from a backup or roll back to another one",
            file,
        )


def _is_step(manifest: Manifest) -> bool:
    return "follows" in manifest.lineage


def _number(id: str) -> int:
    digits = id.removeprefix("v")
    return int(digits) if digits.isdigit() else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
