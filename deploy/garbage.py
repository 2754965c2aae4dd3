"""Memory that is free: when Python looks for it in cycles, when it goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def collect_seldom(new_objects: int) -> None:
    """Look for it after so many new objects, and never again through what is there now.

    Modules and models stay, and are the most of all that Python would look through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects)


def give_back() -> None:
    """Have the C library return to the system what is free within its heap, some milliseconds.

    Does nothing where the C library has no such call.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
