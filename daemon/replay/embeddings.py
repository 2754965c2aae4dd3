"""Embeddings that were computed once: by encoder and input, shared by all policies of a replay.

A policy that trains only heads never runs the encoder again; its answers are a matrix product on
what lies here. The graph that computes a missing embedding is the version's own INT8 file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from daemon.served import Classes, Served, encoder_digest
from deploy.preprocess import Preprocessor
from deploy.session import Head, Prediction, Session, read_head
from registry.manifest import Manifest

KEY_BYTES = 16
#: Encoders whose embeddings are kept.
TABLES = 8


class EmbeddingStore:
    """Embeddings by encoder, in memory and, once saved, in a folder.

    ``cpu_seconds``: what computing the missing ones has cost so far.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[str, _Table] = {}
        self.cpu_seconds = 0.0

    def open(self, folder: Path, manifest: Manifest, classes: Classes) -> Served:
        """Open a version as `Served.open` does, but answering from here: a `served.Opener`."""
        encoder = encoder_digest(manifest)
        session = StoredSession(folder, self, encoder)
        return Served(manifest.version, session, encoder, classes, folder)

    def find(self, encoder: str, inputs: NDArray[Any], session: StoredSession) -> NDArray[Any]:
        """Embeddings float32 [n, d] of ``inputs`` [n]; ``session`` computes what is missing."""
        # The latest last: a table's versions each have an encoder of their own, and pass.
        table = self._tables.pop(encoder, None) or _Table.read(self._path(encoder))
        self._tables[encoder] = table
        while len(self._tables) > TABLES:
            del self._tables[next(iter(self._tables))]
        keys = keys_of(inputs)
        places = table.places(keys)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            began = time.process_time()
            table.add([keys[i] for i in missing.tolist()], session.encode(inputs[missing]))
            self.cpu_seconds += time.process_time() - began
            places = table.places(keys)
        return table.vectors[places]

    def save(self) -> None:
        """Write what is new to the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for encoder, table in self._tables.items():
            table.write(self._path(encoder))

    def _path(self, encoder: str) -> Path:
        name = hashlib.sha256(encoder.encode()).hexdigest()[:16]
        return self._folder / f"{name}.safetensors"


class StoredSession:
    """A version that answers from an `EmbeddingStore`; its graph is opened only when needed."""

    def __init__(self, folder: Path, store: EmbeddingStore, encoder: str) -> None:
        self._folder = folder
        self._store = store
        self._encoder = encoder
        self._session: Session | None = None
        self._labels, self._head = read_head(folder)

    @property
    def labels(self) -> Sequence[str]:
        """The version's classes, in order."""
        return self._labels

    @property
    def head(self) -> Head:
        """The version's last layer."""
        return self._head

    @property
    def number(self) -> bool:
        """Never: replays are of classes."""
        return False

    @property
    def preprocessor(self) -> Preprocessor:
        """Makes the graph's feeds of inputs."""
        return self.graph.preprocessor

    @property
    def graph(self) -> Session:
        """The version's INT8 graph, which keeps nothing."""
        if self._session is None:
            self._session = Session.open(self._folder, threads=1)
        return self._session

    def encode(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Embeddings float32 [n, d] by the INT8 graph."""
        return self.graph.predict(inputs).embeddings

    def predict(self, inputs: NDArray[Any]) -> Prediction:
        """As `Session.predict`, to rounding: the graph's head works in FP32 too."""
        embeddings = self._store.find(self._encoder, inputs, self)
        logits = embeddings @ self._head.weight + self._head.bias
        return Prediction(softmax(logits, axis=1), logits, embeddings)


class _Table:
    """Keys of 16 bytes and their vectors, which grow together."""

    def __init__(self) -> None:
        self._place: dict[bytes, int] = {}
        self._vectors: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self._saved = 0

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Float32 [n, d]."""
        return self._vectors[: len(self._place)]

    def places(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The row of each key, int64 [m]; -1 where it is not known."""
        find = self._place.get
        return np.fromiter((find(key, -1) for key in keys), np.int64, count=len(keys))

    def add(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Take in rows; of equal keys, the first."""
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        fresh = list(first.values())
        start, count = len(self._place), len(fresh)
        if start + count > len(self._vectors) or not start:
            room = max(1024, 2 * (start + count))
            grown = np.empty((room, vectors.shape[1]), dtype=np.float32)
            if start:
                grown[:start] = self.vectors
            self._vectors = grown
        self._vectors[start : start + count] = vectors[fresh]
        self._place.update({keys[i]: start + n for n, i in enumerate(fresh)})

    @classmethod
    def read(cls, path: Path) -> _Table:
        """What `write` left; an empty table where nothing whole lies there."""
        table = cls()
        try:
            found = load_file(path)
        except (OSError, SafetensorError):
            return table
        rows = [key.tobytes() for key in found["keys"]]
        table._vectors = found["vectors"]
        table._place = {key: row for row, key in enumerate(rows)}
        table._saved = len(rows)
        return table

    def write(self, path: Path) -> None:
        """Write it whole, if it has grown."""
        if len(self._place) == self._saved:
            return
        keys = np.frombuffer(b"".join(self._place), dtype=np.uint8).reshape(-1, KEY_BYTES)
        partial = path.with_suffix(".partial")
        save_file({"keys": keys, "vectors": np.ascontiguousarray(self.vectors)}, partial)
        os.replace(partial, path)
        self._saved = len(self._place)


def keys_of(inputs: NDArray[Any]) -> list[bytes]:
    """A key of 16 bytes for each of ``inputs`` [n], by its content alone."""
    if inputs.dtype == object:
        rows = [str(value).encode("utf-8", "surrogatepass") for value in inputs.tolist()]
    elif inputs.dtype.hasobject:
        rows = [repr(value).encode("utf-8", "surrogatepass") for value in inputs.tolist()]
    else:
        size, whole = inputs.dtype.itemsize, np.ascontiguousarray(inputs).tobytes()
        rows = [whole[at : at + size] for at in range(0, len(whole), size)]
    return [hashlib.blake2b(row, digest_size=KEY_BYTES).digest() for row in rows]
