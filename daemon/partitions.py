"""What moves with a partition: how far it was read, and what was learned from it, as one document.

Daemons that share a model keep it in the registry's store. Whoever is given the partition claims it
first, which makes its *epoch* one higher; a commit names the epoch of its claim and changes the
document by compare-and-swap. So one that was frozen, wakes and does not know that the partition is
another's cannot commit over its successor: it learns that it is *fenced* instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from daemon.sources.source import Partition
from learn.examples import Examples
from registry import StorageError, Store

FOLDER = "partitions"
DIGEST = 32  # bytes before the payload


@dataclass(frozen=True, slots=True)
class Held:
    """A partition as its document has it.

    position: the next offset; None where nothing was ever committed. labels: the names of the
    classes that the examples' numbers stand for. examples: without embeddings.
    """

    epoch: int
    owner: str
    position: int | None
    labels: tuple[str, ...]
    examples: Examples


NOTHING = Held(0, "", None, (), Examples.empty())


class Partitions:
    """The partitions of one daemon, ``owner``; it may only commit what it has claimed."""

    def __init__(self, store: Store, owner: str) -> None:
        self.owner = owner
        self._store = store
        self._tokens: dict[Partition, str] = {}
        self._epochs: dict[Partition, int] = {}

    def __contains__(self, place: Partition) -> bool:
        return place in self._epochs

    @property
    def epochs(self) -> dict[Partition, int]:
        """The epoch of each claim."""
        return dict(self._epochs)

    def read(self, place: Partition) -> tuple[Held, str | None]:
        """The partition as it stands, and the token of its document.

        Raises StorageError, for a damaged document too.
        """
        found = self._store.read(_name(place))
        if found is None:
            return NOTHING, None
        try:
            return _decoded(found.data), found.token
        except (ValueError, KeyError, SafetensorError) as error:
            where = f"{self._store.location}/{_name(place)}"
            raise StorageError(
                f"{where} is damaged ({error}): restore it from a backup, or remove it to begin the"
                " partition anew from source.start"
            ) from error

    def claim(self, place: Partition) -> Held:
        """Make the partition ours, whoever had it; what it was before. Raises StorageError."""
        while True:
            before, token = self.read(place)
            ours = replace(before, epoch=before.epoch + 1, owner=self.owner)
            if (written := self._swap(place, ours, token)) is not None:
                self._tokens[place], self._epochs[place] = written, ours.epoch
                return before

    def commit(
        self, place: Partition, position: int, examples: Examples, labels: tuple[str, ...]
    ) -> bool:
        """Keep how far it was read and what was learned; False if it is another's now (fenced).

        Raises StorageError; then the document before stands.
        """
        ours = Held(self._epochs[place], self.owner, position, labels, examples)
        written = self._swap(place, ours, self._tokens[place])
        if written is None:
            self.forget(place)
            return False
        self._tokens[place] = written
        return True

    def forget(self, place: Partition) -> None:
        """It is not ours any more."""
        self._tokens.pop(place, None)
        self._epochs.pop(place, None)

    def _swap(self, place: Partition, held: Held, token: str | None) -> str | None:
        """The new token, or None if the document was changed by another."""
        name, data = _name(place), _encoded(held)
        self._store.swap(name, data, token)
        # Read, not trusted: a swap that the network repeated may say no though it was done.
        found = self._store.read(name)
        return found.token if found is not None and found.data == data else None


def _name(place: Partition) -> str:
    topic, number = place
    return f"{FOLDER}/{quote(topic, safe='')}/{number}"


def _encoded(held: Held) -> bytes:
    values = {
        "epoch": held.epoch,
        "owner": held.owner,
        "position": held.position,
        "labels": held.labels,
        "examples": len(held.examples),
    }
    kept = held.examples.with_embeddings(None)
    arrays = {k: np.ascontiguousarray(a) for k, a in kept.to_arrays().items()} if len(kept) else {}
    # An empty file of tensors cannot carry what is said of it.
    arrays = arrays or {"none": np.zeros(1, dtype=np.uint8)}
    payload = save_arrays(arrays, metadata={"values": json.dumps(values)})
    return hashlib.sha256(payload).digest() + payload


def _decoded(data: bytes) -> Held:
    digest, payload = data[:DIGEST], data[DIGEST:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("digest mismatch")
    length = int.from_bytes(payload[:8], "little")
    values: Mapping[str, Any] = json.loads(
        json.loads(payload[8 : 8 + length])["__metadata__"]["values"]
    )
    examples = Examples.empty()
    if values["examples"]:
        examples = Examples.from_arrays(load_arrays(payload))
    labels = tuple(values["labels"])
    return Held(values["epoch"], values["owner"], values["position"], labels, examples)
