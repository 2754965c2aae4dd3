"""Memory that is free: when Python looks for it in cycles, when it goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_LARGE_BLOCK_BYTES = 128 * 1024


def collect_seldom(new_objects: int) -> None:
    """Look for it after so many new objects, and never again through what is there now.

    Modules and models stay, and are the most of all that Python would look through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects)


def give_large_blocks_back() -> None:
    """Have the C library return large freed blocks to the system at once.

    Otherwise it keeps the holes that unloaded versions leave, and after a hundred swaps the
    process is twice as large.
    """
    _c_library("mallopt", _M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def give_back() -> None:
    """Have the C library return to the system what is free within its heap, some milliseconds."""
    _c_library("malloc_trim", 0)


def _c_library(name: str, *arguments: int) -> None:
    """Call a function of the C library; nothing where it has none of that name."""
    with contextlib.suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), name)(*arguments)
