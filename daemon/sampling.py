"""A share of the events by a hash of their id: whoever asks again chooses alike."""

from __future__ import annotations

import hashlib


def unit_hash(purpose: str, name: str) -> float:
    """Where ``name`` lies in [0, 1), evenly, and elsewhere for each purpose.

    A share of all names are those that lie below it.

    >>> unit_hash("pace", "a") == unit_hash("pace", "a") != unit_hash("baseline", "a")
    True
    """
    digest = hashlib.blake2b(f"{purpose}:{name}".encode("utf-8", "surrogatepass"), digest_size=4)
    return int.from_bytes(digest.digest(), "little") / 2**32
