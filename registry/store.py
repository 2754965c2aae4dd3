"""Where a registry's bytes lie: the few primitives it needs, and the local folder that has them.

`Store` is small enough for an object store with conditional writes: documents that move by
compare-and-swap, one journal that only grows, and folders that appear whole or not at all.
Nothing above this file knows what a file system is beyond reading a published folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .durable import (
    Sound,
    copy_file,
    is_sound,
    make_folder,
    replace_file,
    sync_folder,
    take_file,
    write_file,
)
from .errors import explained
from .lock import locked, open_locked, still_named, try_lock
from .log import Entry, Log, Torn

VERSIONS = "versions"  # folders are published in this one
READ_ONLY = 0o444  # the kernel takes the umask off
_SPARE = ".twin"  # no file of a version begins with a dot
_MANY_FILES = 1000  # remembered as sound; a version has about eight
_FULL_FOLDER = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Document:
    """A document's bytes, and the token that a later `Store.swap` must present."""

    data: bytes
    token: str


class Stage(Protocol):
    """A folder in the making. Nobody sees it before `commit`; leaving it uncommitted undoes it."""

    def add(
        self, name: str, source: Path, twins: Mapping[tuple[str, int], str], given: bool
    ) -> tuple[str, int]:
        """Take in a file; its SHA-256 and size.

        ``twins`` names published files by (SHA-256, size): the store may share their bytes.
        ``given``: it may keep the file itself, which nobody writes again.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, replacing an earlier one of that name."""

    def commit(self, name: str) -> bool:
        """Publish everything as the folder ``name``, durably; False if that name is taken."""


class Store(Protocol):
    """Primitives that several processes use at once. Names are relative, with forward slashes.

    Every method raises `registry.errors.StorageError` when the storage refuses.
    """

    @property
    def location(self) -> str:
        """Where it is, in the operator's words; messages quote it."""

    @property
    def writable(self) -> bool:
        """Whether this process may change anything."""

    def exists(self) -> bool:
        """Whether there is a registry."""

    def create(self) -> None:
        """Make an empty one, if there is none."""

    def read(self, name: str) -> Document | None:
        """The document, or None if there is none."""

    def stamp(self, name: str) -> object:
        """A value that changes whenever the document does; cheap enough to poll."""

    def swap(self, name: str, data: bytes, token: str | None) -> bool:
        """Replace the document if it is still the one with ``token`` (None: if absent)."""

    def write(self, name: str, data: bytes) -> None:
        """Replace a document that has one writer only, without a lock."""

    def written(self, name: str) -> float:
        """When the document was written, by the storage's own clock: seconds since 1970."""

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, sorted; empty if there is no such folder."""

    def folder(self, name: str) -> Path | None:
        """A local folder with what was published under ``name``, or None."""

    def refetch(self, name: str, file: str) -> bool:
        """Get a damaged file of that folder anew; False where the folder is no mere copy."""

    def stage(self) -> AbstractContextManager[Stage]:
        """Begin a folder."""

    def remove(self, name: str) -> None:
        """Take a published folder away: first out of sight in one step, then its bytes."""

    def clean(self) -> list[str]:
        """Remove what dead processes left half-done; never what a live one is doing."""

    def last_row(self) -> int:
        """The number of the journal's last row, 0 if it is empty."""

    def rows(self, after: int) -> Iterator[Entry]:
        """The journal's rows numbered above ``after``, oldest first, as far as it goes now."""

    def append(self, make: Callable[[int], bytes], after: int | None = None) -> int | None:
        """Append the row that ``make(number)`` builds; its number.

        None, and nothing appended, if the journal needs `mend` first or, where ``after`` is
        given, if that is no longer the last row.
        """

    def mend(self) -> Torn | None:
        """Set aside a half-written last row, if a crash left one."""


class LocalStore:
    """A folder on a local disk, shared by any number of processes.

    Documents and journal are written under one lock file (`flock`), documents by atomic
    rename; folders grow in ``staging/``, each under a lock of its own that tells the living
    from the dead, and appear by one rename. Any step may be the last one of its process.
    """

    def __init__(self, root: Path, lock_timeout: float) -> None:
        self.root = root.absolute()
        self._lock_timeout = lock_timeout
        self._log = Log(self.root / "journal.jsonl", self._locked)
        self._staging = self.root / "staging"
        self._sound: set[Sound] = set()

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def writable(self) -> bool:
        return os.access(self.root, os.W_OK | os.X_OK)

    def read(self, name: str) -> Document | None:
        path = self.root / name
        with explained(path):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return Document(data, hashlib.sha256(data).hexdigest())

    def exists(self) -> bool:
        return self.root.is_dir()

    def create(self) -> None:
        with explained(self.root):
            make_folder(self.root)

    def stamp(self, name: str) -> object:
        path = f"{self.root}/{name}"  # no Path: a server looks a hundred times a second
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            with explained(Path(path)):
                raise
        return found.st_ino, found.st_mtime_ns, found.st_size

    def swap(self, name: str, data: bytes, token: str | None) -> bool:
        with explained(self.root), self._locked():
            now = self.read(name)
            if (now.token if now else None) != token:
                return False
            replace_file(self.root / name, data)
            return True

    def write(self, name: str, data: bytes) -> None:
        with explained(self.root):
            replace_file(self.root / name, data)

    def written(self, name: str) -> float:
        with explained(self.root / name):
            return (self.root / name).stat().st_mtime

    def names(self, folder: str) -> list[str]:
        with explained(self.root / folder):
            try:
                return sorted(os.listdir(self.root / folder))
            except FileNotFoundError:
                return []

    def folder(self, name: str) -> Path | None:
        path = self.root / name
        return path if path.is_dir() else None

    def refetch(self, name: str, file: str) -> bool:
        return False

    @contextmanager
    def stage(self) -> Iterator[Stage]:
        with explained(self.root), self._place() as place:
            place.mkdir()
            if len(self._sound) > _MANY_FILES:
                self._sound.clear()
            yield _LocalStage(self.root, place, self._sound)

    def remove(self, name: str) -> None:
        with explained(self.root), self._place() as place, suppress(FileNotFoundError):
            os.rename(self.root / name, place)
            sync_folder((self.root / name).parent)

    def clean(self) -> list[str]:
        with explained(self.root):
            left = {name.removesuffix(".lock") for name in self.names("staging")}
            return sorted(name for name in left if self._clean(self._staging / name))

    def last_row(self) -> int:
        return self._log.last()

    def rows(self, after: int) -> Iterator[Entry]:
        return self._log.read(after)

    def append(self, make: Callable[[int], bytes], after: int | None = None) -> int | None:
        return self._log.append(make, after)

    def mend(self) -> Torn | None:
        return self._log.mend()

    def _locked(self) -> AbstractContextManager[None]:
        make_folder(self.root)
        return locked(self.root / "lock", self._lock_timeout)

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """A path in staging that is this process's until the block ends; then it is gone."""
        make_folder(self._staging)
        while True:
            place = self._staging / secrets.token_hex(8)
            lock = _lock_of(place)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            # A cleaner may have taken the lock, and the file, between its birth and this line.
            if try_lock(fd) and still_named(fd, lock):
                break
            os.close(fd)
        try:
            yield place
        finally:
            _discard(place)
            lock.unlink(missing_ok=True)
            os.close(fd)

    def _clean(self, place: Path) -> bool:
        lock = _lock_of(place)
        fd = open_locked(lock)
        if fd is None and lock.exists():
            return False  # its owner lives
        found = place.exists()
        _discard(place)
        if fd is not None:
            lock.unlink(missing_ok=True)
            os.close(fd)
        return found


class _LocalStage:
    def __init__(self, root: Path, place: Path, sound: set[Sound]) -> None:
        self._root = root
        self._place = place
        self._sound = sound

    def add(
        self, name: str, source: Path, twins: Mapping[tuple[str, int], str], given: bool
    ) -> tuple[str, int]:
        target = self._place / name
        own = self._published_already(source, twins)
        if own is not None and self._link(self._root / own[1], target, own[0]):
            return own[0], source.stat().st_size
        taken = take_file(source, target, READ_ONLY) if given else None
        if taken is not None:
            digest, size = taken, target.stat().st_size
        else:
            digest, size = copy_file(source, target, READ_ONLY)
        twin, spare = twins.get((digest, size)), self._place / _SPARE
        if twin is not None and self._link(self._root / twin, spare, digest):
            os.replace(spare, target)
        return digest, size

    def write(self, name: str, data: bytes) -> None:
        write_file(self._place / name, data, READ_ONLY)

    def commit(self, name: str) -> bool:
        target = self._root / name
        make_folder(target.parent)
        sync_folder(self._place)
        try:
            os.rename(self._place, target)
        except OSError as error:
            if error.errno in _FULL_FOLDER:
                return False
            raise
        sync_folder(target.parent)
        return True

    def _published_already(
        self, source: Path, twins: Mapping[tuple[str, int], str]
    ) -> tuple[str, str] | None:
        """Digest and name of the published file that ``source`` is a hard link to, if it is one."""
        found = source.stat()
        if found.st_nlink < 2:
            return None
        for (digest, size), twin in twins.items():
            if size == found.st_size:
                with suppress(OSError):
                    if os.path.samestat(found, os.lstat(self._root / twin)):
                        return digest, twin
        return None

    def _link(self, twin: Path, target: Path, digest: str) -> bool:
        try:
            os.link(twin, target, follow_symlinks=False)
        except OSError:
            return False  # just collected, too many links, or a file system without them: copy
        if is_sound(target, digest, self._sound):
            return True
        target.unlink()  # the twin has decayed on the disk; what comes in is sound
        return False


def _lock_of(place: Path) -> Path:
    return place.with_name(place.name + ".lock")


def _discard(place: Path) -> None:
    if place.is_file():
        place.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
