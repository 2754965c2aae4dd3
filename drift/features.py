"""Named feature columns: what they may hold, and the way to and from plain arrays.

A numeric column is float64 [n], NaN where the value is missing. A categorical one is object [n] of
``str``, None where it is missing. Plain arrays hold categories as codes into a list of names, so
that nothing needs pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.generic]
Features = Mapping[str, Column]
NO_FEATURES: Features = {}

_CODES, _NAMES, _NUMBERS = "codes", "names", "numbers"


def categorical(column: Column) -> bool:
    """Whether a column holds categories (anything but numbers and booleans)."""
    return column.dtype.kind not in "fiub"


def numbers(column: Column) -> NDArray[np.float64]:
    """A numeric column as float64 [n]; what is not finite becomes NaN."""
    values = column.astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def packed(features: Features) -> dict[str, Column]:
    """Plain arrays, two for a categorical column; `unpacked` is the inverse.

    >>> column = np.array(["b", None, "b"], dtype=object)
    >>> unpacked(packed({"x": column}))["x"].tolist()
    ['b', None, 'b']
    """
    arrays: dict[str, Column] = {}
    for name, column in features.items():
        if categorical(column):
            codes, names = encoded(column)
            arrays[f"{_CODES}.{name}"] = codes
            text = json.dumps(names).encode()
            arrays[f"{_NAMES}.{name}"] = np.frombuffer(text, dtype=np.uint8)
        else:
            arrays[f"{_NUMBERS}.{name}"] = column.astype(np.float64)
    return arrays


def unpacked(arrays: Mapping[str, Column]) -> dict[str, Column]:
    """The columns that `packed` was given, in the order of their names."""
    features: dict[str, Column] = {}
    parts = [(name, role, key) for key in arrays for role, _, name in [key.partition(".")]]
    for name, role, key in sorted(parts):
        if role == _NUMBERS:
            features[name] = np.asarray(arrays[key], dtype=np.float64)
        elif role == _CODES:
            listed = json.loads(arrays[f"{_NAMES}.{name}"].tobytes())
            names = np.array([*listed, None], dtype=object)
            features[name] = names[arrays[key].astype(np.int64)]
    return features


def encoded(column: Column) -> tuple[NDArray[np.int32], list[str]]:
    """Codes int32 [n] into the names found, in order of appearance; -1 for a missing value."""
    index: dict[str, int] = {}
    codes = [-1 if v is None else index.setdefault(str(v), len(index)) for v in column.tolist()]
    return np.array(codes, dtype=np.int32), list(index)


def joined(parts: Sequence[tuple[Features, int]]) -> dict[str, Column]:
    """Columns of several batches, each with its number of events, one after another.

    A feature that a batch lacks is missing there. One that is numeric in some and categorical in
    others is taken for categorical.
    """
    names = dict.fromkeys(name for features, _ in parts for name in features)
    return {name: _joined(name, parts) for name in names}


def _joined(name: str, parts: Sequence[tuple[Features, int]]) -> Column:
    words = any(name in features and categorical(features[name]) for features, _ in parts)
    pieces: list[Column] = []
    for features, events in parts:
        column = features.get(name)
        if column is None:
            pieces.append(np.full(events, None if words else np.nan, object if words else float))
        elif words and not categorical(column):
            pieces.append(np.array([str(v) for v in column.tolist()], dtype=object))
        else:
            pieces.append(column)
    return np.concatenate(pieces)
