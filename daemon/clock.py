"""What the loop calls now: the machine's clock, or that of a recorded stream.

Everything that decides by time asks a `Clock`, so that a replay can let months pass in minutes.
The module ``time`` is one; what only watches over the process itself goes on using it directly.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Two of the functions of the module ``time``."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
