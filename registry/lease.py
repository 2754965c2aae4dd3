"""Who leads: one document under compare-and-swap, with a term that only grows.

The holder renews it; a candidate takes it over once it has not changed for the whole lease *by the
candidate's own clock*. No clock of another machine is believed, and nobody's clock is compared.
A holder that could not renew for that long does not hold it any more, by its own clock: it stops
before another may begin, as the candidate waits longer. Where a holder was frozen in the middle of
an act, the term is the fence: see `Registry.lead`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from .store import Store

#: What a candidate waits beyond the lease: more than clocks drift apart in it.
PATIENCE = 1.25
#: Parts of the lease after which it is renewed, and looked at by a candidate.
RENEW, LOOK = 1 / 3, 1 / 10


class Lease:
    """One contender for the lease in the document ``name``. Not thread-safe.

    ``owner`` must be unlike any other, of an earlier process too. ``seconds``: how long it holds
    without being renewed. Taken over after ``seconds * (PATIENCE + LOOK)`` at most; at once when
    it was released.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        owner: str,
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = owner
        self.seconds = seconds
        self.term = 0  # of the last lease that was seen or held
        self.holder: str | None = None  # whoever held it when it was last looked at
        self._store = store
        self._name = name
        self._monotonic = monotonic
        self._token: str | None = None  # of our own document, while we hold
        self._renewed = 0.0
        self._beat = 0
        self._seen: str | None = None
        self._since = 0.0
        self._looked = float("-inf")

    @property
    def held(self) -> bool:
        """Whether this contender may act as the leader now."""
        return self._token is not None and self._monotonic() - self._renewed < self.seconds

    def step(self) -> bool:
        """Renew, or look whether it can be taken; whether it is held. To be called often.

        Raises `StorageError`; what is held then is held until it runs out.
        """
        now = self._monotonic()
        if self._token is not None:
            if now - self._renewed < self.seconds * RENEW:
                return True
            if now - self._renewed < self.seconds:
                return self._renew(now)
            self._lose()
        if now - self._looked < self.seconds * LOOK:
            return False
        self._looked = now
        return self._try(now)

    def release(self) -> None:
        """Give it back, so that another need not wait. Raises `StorageError`."""
        token, self._token = self._token, None
        if token is not None:
            self._store.swap(self._name, self._document(None), token)

    def _renew(self, now: float) -> bool:
        self._beat += 1
        return self._write(now, self._token)

    def _try(self, now: float) -> bool:
        found = self._store.read(self._name)
        if found is None:
            self.term, self._beat = 1, 0
            return self._write(now, None)
        values: dict[str, Any] = json.loads(found.data)
        self.term, self.holder = int(values["term"]), values["owner"]
        if self.holder is not None and found.token != self._seen:
            self._seen, self._since = found.token, now
            return False
        if self.holder is not None and now - self._since < self.seconds * PATIENCE:
            return False
        self.term, self._beat = self.term + 1, 0
        return self._write(now, found.token)

    def _write(self, now: float, token: str | None) -> bool:
        data = self._document(self.owner)
        self._store.swap(self._name, data, token)
        # Read, not trusted: a swap that was repeated by the network may say no though it was done.
        found = self._store.read(self._name)
        if found is None or found.data != data:
            self._lose()
            return False
        self._token, self._renewed, self.holder = found.token, now, self.owner
        return True

    def _lose(self) -> None:
        self._token, self._seen = None, None

    def _document(self, owner: str | None) -> bytes:
        return json.dumps({"term": self.term, "owner": owner, "beat": self._beat}).encode()
