"""What can go wrong in a registry, each error with the way out in its message.

Every failure that a caller may want to tell apart is a class of its own under `RegistryError`.
Operating system errors arrive as `StorageError`, in the words of an operator.
"""
# ruff: noqa: N818  (the names say what happened; they are part of the public vocabulary)

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RegistryError(Exception):
    """The root of everything that this room raises on purpose."""


class NotFound(RegistryError):
    """There is no such registry, version or request."""


class Invalid(RegistryError, ValueError):
    """The caller's argument makes no sense: an empty reason, a file name that is no file name."""


class Conflict(RegistryError):
    """Somebody else moved first, or the move would change nothing. Read the state, decide anew."""


class Repeated(RegistryError):
    """An order with this request id was carried out before; ``row`` is its row in the journal."""

    def __init__(self, message: str, row: dict[str, Any]) -> None:
        super().__init__(message)
        self.row = row


class PinnedError(RegistryError):
    """An operator has frozen what serves."""


class Withdrawn(RegistryError):
    """The version was taken back once and must not serve again by itself."""


class Corrupt(RegistryError):
    """A file is not what the registry wrote. ``file`` is its path."""

    def __init__(self, message: str, file: Path | str) -> None:
        super().__init__(message)
        self.file = str(file)


class DigestMismatch(Corrupt):
    """A file of a version is missing, was changed, or does not belong there."""


class Untrusted(RegistryError):
    """The version carries no valid signature of a trusted key."""


class StorageError(RegistryError):
    """The disk said no: full, read-only, not permitted, or locked for too long."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that says what to do.

    >>> with explained(Path("/data/registry")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    registry.errors.StorageError: disk full at /data/registry: free space or move registry.path
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"disk full at {path}: free space or move registry.path"
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = (
                f"not permitted at {path}: run as the user that owns the registry, "
                "or give this one access"
            )
        elif error.errno == errno.EROFS:
            message = f"read-only file system at {path}: mount it writable or move registry.path"
        else:
            message = f"cannot use {error.filename or path}: {error.strerror or error}"
        raise StorageError(message) from error
