"""Whether two versions' graphs differ in nothing but the head.

Most updates move the head alone. Their graph is the old one with other bytes in two places, and
the session that runs the old one can run the new one: the head is an input too.
"""

from __future__ import annotations

import filecmp
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deploy.onnx_bytes import Span, tensor_places
from deploy.river_version import RIVER_FILE
from deploy.session import HEAD_BIAS, HEAD_WEIGHT, Head

_CHUNK = 512 * 1024  # fits a core's cache beside the other file's
_PROBES, _PROBE_BYTES = 64, 4096


def same_but_head(old: Path, new: Path, head: Head) -> bool:
    """Whether ``new`` is ``old`` with ``head`` in the head's place, byte for byte.

    A model of river has no head in its file. False as well where it cannot be told.
    """
    try:
        if RIVER_FILE in (old.name, new.name):
            return old.name == new.name and filecmp.cmp(old, new, shallow=False)
        found = old.stat()
        if new.stat().st_size != found.st_size:
            return False
        places = _head_places(old, found.st_size, found.st_mtime_ns)
        if len(places) != 2:
            return False
        with new.open("rb") as file, old.open("rb", buffering=0) as before:
            # Where all else is alike, the new graph's head lies where the old one's does.
            if not _holds(file, places, head) or _differ(before, file, found.st_size, places):
                return False
            file.seek(0)
            return _same_elsewhere(before, file, sorted(places.values()))
    except (OSError, ValueError, IndexError):
        return False


@lru_cache(maxsize=8)
def _head_places(graph: Path, size: int, modified_ns: int) -> dict[str, Span]:
    """Kept, as every new version is compared with the same few. Raises ValueError or IndexError."""
    with graph.open("rb") as file:
        return tensor_places(file, size, (HEAD_WEIGHT, HEAD_BIAS))


def _holds(file: BinaryIO, places: dict[str, Span], head: Head) -> bool:
    for name, array in ((HEAD_WEIGHT, head.weight), (HEAD_BIAS, head.bias)):
        start, end = places[name]
        file.seek(start)
        if file.read(end - start) != np.ascontiguousarray(array, "<f4").tobytes():
            return False
    return True


def _differ(old: BinaryIO, new: BinaryIO, size: int, but: dict[str, Span]) -> bool:
    """Whether a look here and there finds a difference: other weights show at once."""
    for at in range(0, size, max(1, size // _PROBES)):
        end = min(at + _PROBE_BYTES, size)
        if not any(start < end and at < stop for start, stop in but.values()):
            ours, theirs = (os.pread(f.fileno(), end - at, at) for f in (new, old))
            if ours != theirs:
                return True
    return False


def _same_elsewhere(old: BinaryIO, new: BinaryIO, but: list[Span]) -> bool:
    """Whether two files of one size agree outside these places."""
    ours, theirs, at = bytearray(_CHUNK), bytearray(_CHUNK), 0
    while n := new.readinto(ours):  # type: ignore[attr-defined]
        view, got = memoryview(theirs), 0
        while got < n:
            more = old.readinto(view[got:n])  # type: ignore[attr-defined]
            if not more:
                return False
            got += more
        for start, end in but:
            low, high = max(start - at, 0), min(end - at, n)
            if low < high:
                theirs[low:high] = ours[low:high]
        if ours != theirs and ours[:n] != theirs[:n]:
            return False
        at += n
    return True
