"""A lock between processes (and threads) that a killed holder cannot leave behind.

`flock` on a file: the kernel lets go when the holder dies. Waiting has an end, so that a
process that was stopped while it held the lock makes the others complain, not hang.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StorageError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.01


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file ``path`` exclusively. `StorageError` after ``timeout`` seconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
        while not try_lock(fd):
            if time.monotonic() > deadline:
                raise StorageError(
                    f"another process has held {path} for {timeout:g} s: "
                    f"`fuser {path}` names it; end it if it hangs"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            yield
        finally:
            # Closing alone would not release it if a fork in another thread inherited the fd.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Take the lock if it is free."""
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def open_locked(path: Path) -> int | None:
    """Open an existing lock file and hold it; None if its owner lives or the file is gone.

    The caller closes the descriptor, and may unlink the file first: whoever opened it in the
    meantime sees, as this function does, that the name no longer leads to what was locked.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    if try_lock(fd) and still_named(fd, path):
        return fd
    os.close(fd)
    return None


def still_named(fd: int, path: Path) -> bool:
    """Whether ``path`` still leads to the open file."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)
