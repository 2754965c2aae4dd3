"""When Python looks for garbage in cycles, in a process that makes next to none."""

from __future__ import annotations

import gc


def collect_seldom(new_objects: int) -> None:
    """Look for it after so many new objects, and never again through what is there now.

    Modules and models stay, and are the most of all that Python would look through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(new_objects)
