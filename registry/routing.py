"""Which traffic a challenger sees before it is promoted: none, a copy of all, or a share.

One document beside the aliases, moved by compare-and-swap. It holds for the champion it was made
against and for no other: when the champion moves, by whoever, it is void without being touched.
Servers that follow it report what they counted, each in a document of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import Corrupt
from .sealed import BrokenSeal, seal, unseal

ROUTING = "routing.json"
TRAFFIC = "traffic"
Mode = Literal["off", "shadow", "canary"]
MODES: tuple[Mode, ...] = ("off", "shadow", "canary")


@dataclass(frozen=True, slots=True)
class Routing:
    """``shadow``: the challenger answers all requests too, and nobody sees it. ``canary``: it
    answers ``share`` percent of them. generation: counts the changes. slow_seconds: from where on
    a server shall count a request as slow.
    """

    generation: int = 0
    mode: Mode = "off"
    challenger: str | None = None
    champion: str | None = None
    share: float = 0.0
    slow_seconds: float = 0.25
    actor: str = ""
    reason: str = ""
    time: str = ""

    def against(self, champion: str | None) -> Routing:
        """What holds while ``champion`` serves: this, or nothing if it was made against another."""
        return self if champion == self.champion else Routing(self.generation)

    def as_bytes(self) -> bytes:
        """As it is stored."""
        return seal(asdict(self), indent=True)

    @classmethod
    def parse(cls, data: bytes, location: str) -> Routing:
        """What was stored. Raises `Corrupt`."""
        try:
            return cls(**unseal(data))
        except (BrokenSeal, TypeError) as error:
            raise Corrupt(
                f"{location}/{ROUTING} is damaged ({error}): remove it; no challenger sees traffic "
                "until one is routed again",
                f"{location}/{ROUTING}",
            ) from error


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests that one version answered, those that failed, and those that were slow."""

    requests: int = 0
    errors: int = 0
    slow: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests, self.errors + other.errors, self.slow + other.slow
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was counted of both versions since the routing of this generation began."""

    generation: int
    challenger: Counts = field(default_factory=Counts)
    champion: Counts = field(default_factory=Counts)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.generation, self.challenger + other.challenger, self.champion + other.champion
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Traffic:
        """The inverse of `as_dict`."""
        sides = (Counts(**values[side]) for side in ("challenger", "champion"))
        return cls(values["generation"], *sides)
