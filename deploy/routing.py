"""Which requests a challenger answers, and what became of them.

A `Split` is the registry's order, a `Trial` that order at work in one server, with its counts. The
share is cut by a keyed hash: the same key gets the same version in every process and on every
step, and the next challenger meets other keys first. Counts belong to one generation of the order.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from deploy.errors import ClientGoneError, DeadlineError, DeployError, InferenceError

if TYPE_CHECKING:
    from deploy.engine import Loaded

Outcome = Literal["ok", "slow", "error"]

_KEY_BYTES = 64  # of a challenger's name; blake2b takes no longer key
_RANGE = 2.0**64


class Split(NamedTuple):
    """``shadow``: the challenger sees a copy of all requests. ``canary``: it answers ``share``
    percent of them. generation: of the order. slow_seconds: from where on a request is slow.
    """

    generation: int
    mode: Literal["shadow", "canary"]
    challenger: str
    share: float
    slow_seconds: float

    def chooses(self, key: str) -> bool:
        """Whether the challenger answers the requests of this key; by chance where it is empty.

        >>> Split(1, "canary", "v0002", 100, 0.25).chooses("anna")
        True
        >>> half = Split(1, "canary", "v0002", 50, 0.25)
        >>> [half.chooses(name) for name in ("anna", "anna", "bob", "carol")]
        [True, True, False, False]
        """
        if self.mode != "canary":
            return False
        if not key:
            return random.random() * 100 < self.share
        salt = self.challenger.encode()[:_KEY_BYTES]
        digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8, key=salt).digest()
        return int.from_bytes(digest, "big") / _RANGE * 100 < self.share

    def outcome(self, error: DeployError | None, seconds: float) -> Outcome | None:
        """What a request that took so long counts as; None: it says nothing about the version."""
        if isinstance(error, InferenceError | DeadlineError):
            return "error"
        slow = seconds >= self.slow_seconds
        if error is None:
            return "slow" if slow else "ok"
        # A client that would not wait any longer; other errors are the client's or the queue's.
        return "slow" if slow and isinstance(error, ClientGoneError) else None


class Counts(NamedTuple):
    """Requests of one version, those that failed, and those that were slow."""

    requests: int = 0
    errors: int = 0
    slow: int = 0

    def counting(self, outcome: Outcome) -> Counts:
        """These and one more."""
        return Counts(
            self.requests + 1, self.errors + (outcome == "error"), self.slow + (outcome == "slow")
        )


class Counted(NamedTuple):
    """What a server reports: the counts since the order of this generation began."""

    generation: int
    challenger: Counts
    champion: Counts


@dataclass(eq=False, slots=True)
class Trial:
    """A split at work. loaded: the challenger; None where it cannot be loaded."""

    split: Split
    loaded: Loaded | None
    challenger: Counts = field(default=Counts())
    champion: Counts = field(default=Counts())

    def chosen(self, key: str) -> Loaded | None:
        """The challenger, if it answers this key.

        A request that it should have answered and cannot counts as its error.
        """
        if not self.split.chooses(key):
            return None
        if self.loaded is None:
            self.challenger = self.challenger.counting("error")
        return self.loaded

    def count(self, by_challenger: bool, outcome: Outcome) -> None:
        """One request more. Only the event loop's thread counts."""
        if by_challenger:
            self.challenger = self.challenger.counting(outcome)
        else:
            self.champion = self.champion.counting(outcome)

    def counted(self) -> Counted:
        """The counts now."""
        return Counted(self.split.generation, self.challenger, self.champion)
