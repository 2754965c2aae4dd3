"""Checkpoints in the registry's store, for a daemon whose own disk need not survive.

A checkpoint is an *index*: the values, and where each piece of each array lies in *packs*. Only
pieces that no pack has yet are written, so that a large memory costs little each time; packs that
are mostly out of date are written anew, so that there are few and a restart reads at most about
twice the state. Packs and indexes are named by their SHA-256, which is checked when they are read.
One document says which checkpoints there are. It moves by compare-and-swap and names the daemon
that claimed it, so that one that was thought dead cannot write over its successor.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from daemon.checkpoint import (
    FORMAT,
    KEPT,
    Arrays,
    Checkpoint,
    CheckpointError,
    Checkpoints,
    CheckpointStore,
    CheckpointTaken,
)
from daemon.config import Config
from daemon.pieces import cut, level, levelled
from registry import Registry, StorageError, Store, open_registry
from registry.sealed import BrokenSeal, seal, unseal

log = logging.getLogger("driftd.checkpoint")

FOLDER = "checkpoints"
MOST_PACKS = 32
LEAST_USED = 0.5  # of a pack, or what is used of it is written anew

Place = tuple[str, int, int]  # pack, start, length


@dataclass(frozen=True, slots=True)
class _Known:
    """The document as it stands. kept: the newest last, each (sequence, index)."""

    epoch: int
    owner: str
    kept: tuple[tuple[int, str], ...]
    token: str | None

    def encoded(self) -> bytes:
        kept = [list(one) for one in self.kept]
        return seal({"format": FORMAT, "epoch": self.epoch, "owner": self.owner, "kept": kept})


def open_checkpoints(config: Config, registry: Registry | None = None) -> Checkpoints:
    """Where the configuration says that checkpoints lie.

    Raises CheckpointError, and RegistryError where the ``registry`` is wanted and must be opened.
    """
    if config.checkpoint.store == "folder":
        return CheckpointStore(config.checkpoint.path / "checkpoints")
    store = (registry or open_registry(config.registry)).store
    return StoredCheckpoints(store, config.checkpoint_name or "daemon")


class StoredCheckpoints:
    """The checkpoints of the daemon ``name``; who saves must have claimed them first."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{quote(name, safe='')}"
        self._claimed: _Known | None = None
        #: Of each index that is kept and whole: its packs, and their sizes.
        self._packs: dict[str, dict[str, int]] = {}
        self._broken: set[str] = set()
        #: Where pieces lie already, by their digests.
        self._places: dict[bytes, Place] = {}

    def claim(self, owner: str, patience: float = 0.0) -> None:
        """From here on nobody else's `save` succeeds. Raises CheckpointError.

        Where another than ``owner`` has them, not before they have lain still for ``patience``
        seconds: then it is gone, or cut off. If it writes meanwhile, it runs, and keeps them.
        """
        try:
            self._await_silence(owner, patience)
            while True:
                found = self._known()
                ours = _Known(found.epoch + 1, owner, found.kept, found.token)
                if (claimed := self._swapped(ours)) is not None:
                    break
            self._claimed = claimed
            self._take_stock(claimed)
        except StorageError as error:
            raise CheckpointError(str(error)) from error

    def _await_silence(self, owner: str, patience: float) -> None:
        before = self._known()
        end = time.monotonic() + patience
        while before.owner not in ("", owner) and time.monotonic() < end:
            time.sleep(min(1.0, patience))
            if self._known().kept != before.kept:
                raise CheckpointError(
                    f"another daemon, {before.owner}, runs on {self._where}: stop it, or give this"
                    " one a name of its own (checkpoint.name)"
                )

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there has been none yet.

        Raises:
            CheckpointError: there are some, but none is whole, or the store is away.
        """
        try:
            while True:
                known = self._known()
                found, broken = self._newest(known)
                if found is not None or not known.kept:
                    return found
                if self._known().kept == known.kept:  # else its daemon has just removed them
                    break
        except StorageError as error:
            raise CheckpointError(str(error)) from error
        raise CheckpointError(
            f"no whole checkpoint in {self._where} ({'; '.join(broken)}). Restore it from a backup,"
            " or remove it to start over from source.start"
        )

    def save(self, values: Mapping[str, Any], arrays: Arrays) -> int:
        """Make this the current checkpoint; its size in bytes.

        Raises:
            CheckpointTaken: another daemon has claimed them.
            CheckpointError: the store refuses, or is away; the checkpoint before is intact.
        """
        assert self._claimed is not None, "claim first"
        try:
            return self._save(self._claimed, values, arrays)
        except StorageError as error:
            raise CheckpointError(
                f"cannot write a checkpoint: {error}. Nothing is lost: the last one is intact"
            ) from error

    # ---------------------------------------------------------------- writing

    def _save(self, known: _Known, values: Mapping[str, Any], arrays: Arrays) -> int:
        table = {name: _Column.of(array) for name, array in arrays.items()}
        digests = {d: piece for column in table.values() for d, piece in column.pieces}
        places = self._reusable(digests)
        fresh = [digest for digest in digests if digest not in places]
        sizes = {pack: self._sizes[pack] for pack, _, _ in places.values()}
        if fresh:
            pack = b"".join(digests[digest] for digest in fresh)
            name = self._write("packs", pack)
            sizes[name] = len(pack)
            start = 0
            for digest in fresh:
                places[digest] = (name, start, len(digests[digest]))
                start += len(digests[digest])
        order = sorted(sizes)
        numbers = {name: n for n, name in enumerate(order)}
        index = {
            "values": values,
            "packs": [(name, sizes[name]) for name in order],
            "arrays": {
                name: column.listed(
                    (numbers[pack], start, length)
                    for pack, start, length in (places[d] for d, _ in column.pieces)
                )
                for name, column in table.items()
            },
        }
        data = json.dumps(index).encode()
        written = self._write("indexes", data)
        sequence = known.kept[-1][0] + 1 if known.kept else 1
        whole = (one for one in known.kept if one[1] not in self._broken)
        kept = (*whole, (sequence, written))[-KEPT:]
        self._claimed = self._moved(known, kept)
        self._places = places
        self._packs[written] = sizes
        self._forget(self._packs.keys() - {name for _, name in kept})
        return len(data) + sum(map(len, digests.values()))

    def _reusable(self, digests: Mapping[bytes, memoryview]) -> dict[bytes, Place]:
        """Where those of the pieces lie that need not be written again."""
        found = {d: self._places[d] for d in digests if d in self._places}
        used: dict[str, int] = defaultdict(int)
        for pack, _, length in found.values():
            used[pack] += length
        sizes = self._sizes
        full = sorted((p for p in used if used[p] >= LEAST_USED * sizes[p]), key=used.__getitem__)
        good = set(full[-(MOST_PACKS - 1) :])
        return {digest: place for digest, place in found.items() if place[0] in good}

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: size for packs in self._packs.values() for name, size in packs.items()}

    def _write(self, kind: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._store.write(f"{self._folder}/{kind}/{digest}", data)
        return digest

    def _moved(self, known: _Known, kept: tuple[tuple[int, str], ...]) -> _Known:
        """The document with these checkpoints. Raises CheckpointTaken."""
        while True:
            wanted = _Known(known.epoch, known.owner, kept, known.token)
            if (moved := self._swapped(wanted)) is not None:
                return moved
            found = self._known()
            if (found.epoch, found.owner) != (known.epoch, known.owner):
                raise CheckpointTaken(
                    f"{found.owner} has taken over the checkpoints in {self._where}: another daemon"
                    " of this name runs. Give each its own checkpoint.name"
                )
            known = found  # ours: a write of which we were told that it failed

    def _swapped(self, wanted: _Known) -> _Known | None:
        data = wanted.encoded()
        self._store.swap(self._document, data, wanted.token)
        # Read, not trusted: a swap that the network repeated may say no though it was done.
        found = self._store.read(self._document)
        if found is None or found.data != data:
            return None
        return _Known(wanted.epoch, wanted.owner, wanted.kept, found.token)

    def _forget(self, indexes: set[str]) -> None:
        """Remove what only these had; what cannot be removed now, the next `claim` removes."""
        gone = {name for index in indexes for name in self._packs.pop(index)} - self._sizes.keys()
        try:
            for name in indexes:
                self._store.remove(f"{self._folder}/indexes/{name}")
            for name in gone:
                self._store.remove(f"{self._folder}/packs/{name}")
        except StorageError as error:
            log.warning("an old checkpoint could not be removed: %s", error)

    def _take_stock(self, known: _Known) -> None:
        """Learn what is kept, and remove what a daemon before left half-done."""
        for _, name in known.kept:
            with suppress(ValueError):
                self._packs[name] = dict(self._index(name)["packs"])
        if len(self._packs) < len(known.kept):
            return  # what a damaged one used is not known: leave it for now
        for kind, used in (("indexes", self._packs), ("packs", self._sizes)):
            for name in set(self._store.names(f"{self._folder}/{kind}")) - used.keys():
                self._store.remove(f"{self._folder}/{kind}/{name}")

    # ---------------------------------------------------------------- reading

    def _known(self) -> _Known:
        """Raises StorageError, for a damaged document too."""
        found = self._store.read(self._document)
        if found is None:
            return _Known(0, "", (), None)
        try:
            body = unseal(found.data)
        except BrokenSeal as error:
            raise StorageError(
                f"{self._store.location}/{self._document} is damaged ({error}): restore it from a"
                " backup, or remove it to start over from source.start"
            ) from error
        if body["format"] != FORMAT:
            raise StorageError(
                f"{self._where} has format {body['format']}, this driftd reads {FORMAT}"
            )
        kept = tuple((sequence, name) for sequence, name in body["kept"])
        return _Known(body["epoch"], body["owner"], kept, found.token)

    def _newest(self, known: _Known) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with those after it."""
        broken: list[str] = []
        for sequence, name in reversed(known.kept):
            try:
                values, arrays = self._read(name)
            except ValueError as error:
                log.error("checkpoint %d is corrupt (%s), trying the one before", sequence, error)
                broken.append(f"{sequence}: {error}")
                self._broken.add(name)
                continue
            return Checkpoint(values, arrays, sequence, "; ".join(broken) or None), broken
        return None, broken

    def _read(self, name: str) -> tuple[dict[str, Any], Arrays]:
        """Values and arrays of an index. Raises ValueError where a byte of it is not as it was."""
        index = self._index(name)
        names = [pack for pack, _ in index["packs"]]
        packs = [self._checked("packs", pack) for pack in names]
        arrays: Arrays = {}
        for array, (dtype, shape, differences, places) in index["arrays"].items():
            parts = [packs[pack][start : start + length] for pack, start, length in places]
            for (pack, start, length), part in zip(places, parts, strict=True):
                where = names[pack], start, length
                self._places.setdefault(hashlib.sha256(part).digest(), where)
            flat = np.frombuffer(b"".join(parts), dtype=dtype)
            flat = np.cumsum(flat) if differences else flat.copy()
            arrays[array] = flat.reshape(shape)
        return index["values"], arrays

    def _index(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._checked("indexes", name))
        return found

    def _checked(self, kind: str, name: str) -> bytes:
        found = self._store.read(f"{self._folder}/{kind}/{name}")
        if found is None:
            raise ValueError(f"{kind}/{name[:16]} is missing")
        if hashlib.sha256(found.data).hexdigest() != name:
            raise ValueError(f"digest mismatch of {kind}/{name[:16]}")
        return found.data

    @property
    def _document(self) -> str:
        return f"{self._folder}/current.json"

    @property
    def _where(self) -> str:
        return f"{self._store.location}/{self._folder}"


@dataclass(frozen=True, slots=True)
class _Column:
    """An array as it is written: its pieces, each with its digest."""

    dtype: str
    shape: tuple[int, ...]
    differences: bool
    pieces: list[tuple[bytes, memoryview]]

    @classmethod
    def of(cls, array: NDArray[np.generic]) -> _Column:
        differences = levelled(array)
        pieces = cut(level(array) if differences else array)
        digests = [(hashlib.sha256(piece).digest(), piece) for piece in pieces]
        return cls(array.dtype.str, array.shape, differences, digests)

    def listed(self, places: Iterable[tuple[int, int, int]]) -> list[Any]:
        """For the index."""
        return [self.dtype, self.shape, self.differences, list(places)]
