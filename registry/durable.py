"""Writing files so that they survive: whole or not at all, and on the disk when the call returns.

Everything that the local store writes goes through here. Each function syncs the file and
the folder that names it, because a rename is only durable once its folder is.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_CHUNK = 1 << 20
_SETTLED_NS = 1_000_000_000


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create the folder and its parents; nothing happens if it is there."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, for `os.write` may stop early."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that nobody reads yet. Its folder is the caller's to sync."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``path`` in one step: a reader sees the old or the new file.

    The new bytes wait in ``<path>.new``. Callers hold a lock, so one name is enough, and a
    killed writer leaves at most that file, which the next write removes.
    """
    make_folder(path.parent)
    waiting = path.with_name(path.name + ".new")
    try:
        write_file(waiting, data)
    except BaseException:
        with suppress(OSError):
            waiting.unlink()  # on a full disk these bytes are what others need
        raise
    os.replace(waiting, path)
    sync_folder(path.parent)


def copy_file(source: Path, target: Path, mode: int) -> tuple[str, int]:
    """Copy, and return the SHA-256 (hex) and size of exactly the bytes that were written."""
    digest, size = hashlib.sha256(), 0
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with source.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                write_all(out, chunk)
                digest.update(chunk)
                size += len(chunk)
        os.fsync(out)
    finally:
        os.close(out)
    return digest.hexdigest(), size


def take_file(source: Path, target: Path, mode: int) -> str | None:
    """Give a file its second name instead of copying it; its SHA-256 (hex), once it is on the disk.

    None, and nothing done, where that cannot be: another file system, or a file that has more
    names already and so is not only the giver's.
    """
    found = os.lstat(source)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return None
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return None
    fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
        os.fchmod(fd, mode)
        synced = beside.submit(os.fsync, fd)  # the disk is as slow as the digest
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        synced.result()
        return digest


def sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex. A symbolic link is refused with `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Sound(NamedTuple):
    """A file that was found to be what was published, and that nobody has written since."""

    device: int
    inode: int
    modified_ns: int
    sha256: str


def is_sound(path: Path, digest: str, sound: set[Sound] | None) -> bool:
    """Whether the file's SHA-256 is ``digest``.

    ``sound``: what this process has found sound before, added to here; a file in it that nobody
    has written since is not read again.
    """
    found = path.stat()  # before it is read: what is written meanwhile has another time
    known = Sound(found.st_dev, found.st_ino, found.st_mtime_ns, digest)
    if sound is not None and known in sound:
        return True
    if sha256(path) != digest:
        return False
    # Clocks of file systems are coarse: what is that young could be written again unseen.
    if sound is not None and time.time_ns() - found.st_mtime_ns > _SETTLED_NS:
        sound.add(known)
    return True
