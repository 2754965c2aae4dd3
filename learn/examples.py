"""Labelled events as columns: what strategies learn from, and where each one lay.

`lineage` compresses the positions to exact half-open offset ranges, for the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]

_PART = re.compile(r"@(text|ends|none)$")


@dataclass(frozen=True, slots=True)
class Examples:
    """``n`` labelled events.

    ids, topics: object [n] of str. times: float64 [n]. inputs: [n], object of str or structured.
    labels: int64 [n]. embeddings: float32 [n, d] or None; a row of NaN is not known. weights:
    float32 [n]. partitions: int32 [n]. offsets: int64 [n]. arrivals: int64 [n], event numbers.
    targets: float64 [n], the numbers to predict, where these are not classes: labels are 0 then.
    """

    ids: NDArray[np.object_]
    times: NDArray[np.float64]
    inputs: NDArray[np.generic]
    labels: NDArray[np.int64]
    embeddings: NDArray[np.float32] | None
    weights: NDArray[np.float32]
    topics: NDArray[np.object_]
    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    arrivals: NDArray[np.int64]
    targets: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def truth(self) -> NDArray[Any]:
        """What a model is to answer: the targets, else the labels."""
        return self.labels if self.targets is None else self.targets

    def take(self, index: NDArray[np.generic]) -> Examples:
        """The examples at ``index`` (positions or a mask), as new examples."""
        taken: dict[str, Any] = {}
        for f in fields(self):
            values = getattr(self, f.name)
            taken[f.name] = None if values is None else values[index]
        return Examples(**taken)

    def relabelled(self, labels: NDArray[np.int64]) -> Examples:
        """The same events with other labels."""
        return replace(self, labels=labels.astype(np.int64))

    def with_inputs(self, inputs: NDArray[np.generic]) -> Examples:
        """The same events with these inputs, [n]."""
        return replace(self, inputs=inputs)

    def with_embeddings(self, embeddings: NDArray[np.float32] | None) -> Examples:
        """The same events with these embeddings, float32 [n, d]."""
        return replace(self, embeddings=embeddings)

    def weighted(self, weights: NDArray[np.float32]) -> Examples:
        """The same events with these weights, float32 [n]."""
        return replace(self, weights=weights)

    def lineage(self) -> list[dict[str, str | int]]:
        """Where the examples lay: ``{topic, partition, start, end}``, ``end`` excluded.

        >>> one = Examples.empty().lineage()
        >>> one
        []
        """
        ranges: list[dict[str, str | int]] = []
        places = sorted(zip(self.topics, self.partitions, self.offsets, strict=True))
        for topic, partition, offset in places:
            last = ranges[-1] if ranges else None
            if last and last["topic"] == topic and last["partition"] == partition:
                if offset < last["end"]:
                    continue
                if offset == last["end"]:
                    last["end"] = int(offset) + 1
                    continue
            ranges.append(
                {
                    "topic": topic,
                    "partition": int(partition),
                    "start": int(offset),
                    "end": int(offset) + 1,
                }
            )
        return ranges

    @classmethod
    def empty(cls) -> Examples:
        """No examples."""
        strings: NDArray[np.object_] = np.empty(0, dtype=object)
        return cls(
            strings,
            np.empty(0),
            strings,
            np.empty(0, dtype=np.int64),
            None,
            np.empty(0, dtype=np.float32),
            strings,
            np.empty(0, dtype=np.int32),
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """All examples of all parts, in order; embeddings only where every part has them."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.empty()
        columns: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(part, f.name) for part in parts]
            known = all(value is not None for value in values)
            columns[f.name] = np.concatenate(values) if known else None
        return cls(**columns)

    def to_arrays(self) -> Arrays:
        """Numeric arrays only, for safetensors; the inverse of `from_arrays`."""
        arrays: Arrays = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                arrays |= {f"{f.name}{k}": a for k, a in _pack(value).items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Examples:
        """What `to_arrays` wrote."""
        columns: dict[str, Any] = {f.name: _unpack(f.name, arrays) for f in fields(cls)}
        return cls(**columns)


def _pack(values: NDArray[Any]) -> Arrays:
    """Strings as UTF-8 bytes and offsets, records field by field, numbers as they are."""
    if values.dtype.names is not None:
        packed: Arrays = {}
        # Numbered, for safetensors gives the arrays back in an order of its own.
        for i, name in enumerate(values.dtype.names):
            packed |= {f".{i:04d}.{name}{k}": a for k, a in _pack(values[name]).items()}
        return packed
    if values.dtype != object:
        return {"": values}
    encoded = [b"" if v is None else v.encode("utf-8", "surrogatepass") for v in values]
    ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    absent = np.array([v is None for v in values], dtype=np.bool_)
    text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return {"@text": text, "@ends": ends, "@none": absent}


def _unpack(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic] | None:
    if name in arrays:
        return arrays[name]
    if f"{name}@text" in arrays:
        text = arrays[f"{name}@text"].tobytes()
        ends = arrays[f"{name}@ends"].tolist()
        absent = arrays[f"{name}@none"].tolist()
        out: NDArray[np.object_] = np.empty(len(ends), dtype=object)
        start = 0
        for i, end in enumerate(ends):
            out[i] = None if absent[i] else text[start:end].decode("utf-8", "surrogatepass")
            start = end
        return out
    prefix = f"{name}."
    columns = [k.removeprefix(prefix) for k in arrays if k.startswith(prefix)]
    if not columns:
        return None
    names = sorted({_PART.sub("", column) for column in columns})
    found = {column: _unpack(prefix + column, arrays) for column in names}
    present = {k: v for k, v in found.items() if v is not None}
    length = len(next(iter(present.values())))
    record = np.empty(length, dtype=[(k[5:], v.dtype) for k, v in present.items()])
    for column, value in present.items():
        record[column[5:]] = value  # without its number and the dot
    return record
