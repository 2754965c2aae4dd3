"""Who serves and what operators ordered: one small document that moves by compare-and-swap."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import Corrupt
from .manifest import SCHEMA
from .sealed import BrokenSeal, seal, unseal

STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Control:
    """Something an operator ordered: since when, who, and why."""

    since: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """The last change of the state: what, by whom, why; ``previous`` and ``version`` serve.

    ``after`` is the number of a journal row that was there before: the move's own row is behind.
    """

    kind: str
    actor: str
    reason: str
    time: str
    version: str | None = None
    previous: str | None = None
    after: int = 0
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Who serves. ``chain``: earlier champions, the latest last; rollback goes back along it.

    ``removed``: what retention is taking away; no alias can move there any more. ``move`` is the
    last change of any kind, ``champion_move`` the last that changed who serves.
    """

    generation: int = 0
    champion: str | None = None
    challenger: str | None = None
    chain: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    pinned: Control | None = None
    paused: Control | None = None
    move: Move | None = None
    champion_move: Move | None = None

    @property
    def previous(self) -> str | None:
        """The version that a rollback returns to."""
        return self.chain[-1] if self.chain else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "previous": self.previous}

    def to_bytes(self) -> bytes:
        """The document; the inverse of `from_bytes`."""
        return seal({"schema": SCHEMA, **asdict(self)}, indent=True)

    @classmethod
    def from_bytes(cls, data: bytes, location: str) -> State:
        """The state in the document of the registry at ``location``; `Corrupt` if damaged."""
        try:
            values = unseal(data)
            if values.pop("schema") != SCHEMA:
                raise ValueError("written by a newer driftd")
            for name in ("pinned", "paused"):
                values[name] = Control(**values[name]) if values[name] else None
            for name in ("move", "champion_move"):
                values[name] = Move(**values[name]) if values.get(name) else None
            for name in ("chain", "withdrawn", "removed"):
                values[name] = tuple(values.get(name, ()))
            return cls(**values)
        except (BrokenSeal, KeyError, TypeError, ValueError) as error:
            raise Corrupt(
                f"{location}/{STATE} is damaged ({error}): restore it from a backup, or remove it "
                "and promote the version that should serve (the journal says which one did)",
                f"{location}/{STATE}",
            ) from error
