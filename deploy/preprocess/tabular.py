"""Rows of named features to two matrices: standardised numbers, and indices of categories.

A missing number becomes the training mean, a missing category index 0; an unseen one too, or,
where there are many, one of a few indices by its hash, the same on every machine. Numbers are cut
at ten standard deviations, so that one wild value cannot saturate the model; a model that
standardises anew as the stream moves cuts for itself, and is given them uncut.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from deploy.errors import InputError
from deploy.preprocess.contract import FILE, Feeds, Inputs, Tensors, TensorSpec

Kind = Literal["numeric", "boolean", "categorical", "hashed"]

CUT = 10.0
UNCUT = 1e6
# The most frequent categories keep an index of their own.
_MOST_CATEGORIES = 1000
# With so many categories, others are to be expected: they share indices by a hash of their name.
_MANY, _BUCKETS = 16, 64
# Of a column that is all hashed: twenty values share an index where there are twenty thousand.
_HASHED = 1024


@dataclass(frozen=True, slots=True)
class Feature:
    """One column: numbers become ``(value - mean) / scale``; categories their index + 1.

    Other categories become one of ``buckets`` further indices, or 0 where there are none.
    """

    name: str
    kind: Kind
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()
    buckets: int = 0

    @property
    def named(self) -> bool:
        """Whether its values are names rather than numbers."""
        return self.kind in ("categorical", "hashed")

    @property
    def indices(self) -> int:
        """How many indices a category may become, 0 included."""
        return len(self.categories) + 1 + self.buckets

    def hashed(self, value: str | None) -> int:
        """The index of a category that has none of its own."""
        if value is None or not self.buckets:
            return 0
        digest = zlib.crc32(value.encode("utf-8", "surrogatepass"))
        return len(self.categories) + 1 + digest % self.buckets


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows ready for the graph. numeric: float32 [n, f]. category: int64 [n, c]."""

    numeric: NDArray[np.float32]
    category: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ones, int64 [n]: all rows cost the same."""
        return np.ones(len(self), np.int64)

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> Rows:
        """The rows at these positions."""
        return Rows(self.numeric[index], self.category[index])

    def join(self, others: Sequence[Rows]) -> Rows:
        """These rows followed by the others."""
        return Rows(
            np.concatenate([self.numeric, *(other.numeric for other in others)]),
            np.concatenate([self.category, *(other.category for other in others)]),
        )

    def feeds(self) -> Feeds:
        """``numeric`` and ``category``, those that have a column."""
        feeds: Feeds = {}
        if self.numeric.shape[1]:
            feeds["numeric"] = self.numeric
        if self.category.shape[1]:
            feeds["category"] = self.category
        return feeds


class TabularPreprocessor:
    """Standardises and indexes, as learned by `fit` or as read from a file."""

    kind: Literal["text", "tabular"] = "tabular"

    def __init__(self, features: Sequence[Feature], cut: float = CUT) -> None:
        if not features:
            raise ValueError("a table needs at least one feature")
        if len({f.name for f in features}) != len(features):
            raise ValueError("two features have the same name")
        self.features = tuple(features)
        self.cut = cut
        self._numbers = [f for f in self.features if not f.named]
        self._categories = [f for f in self.features if f.named]
        self._mean = np.array([f.mean for f in self._numbers])
        self._scale = np.array([f.scale for f in self._numbers])
        if not (np.isfinite(self._mean).all() and (self._scale > 0).all()):
            raise ValueError("means must be finite and scales above zero")
        self._index = [
            {category: i for i, category in enumerate(f.categories, start=1)}
            for f in self._categories
        ]

    @classmethod
    def fit(
        cls, inputs: Inputs, kinds: Mapping[str, Kind], cut: float = CUT
    ) -> TabularPreprocessor:
        """Learn means, scales and categories from a structured array [n].

        ``kinds`` names every feature, in order. Booleans are 0 and 1 and become -1 and 1.
        """
        features = []
        for name, kind in kinds.items():
            column = inputs[name]
            if kind == "boolean":
                features.append(Feature(name, kind, 0.5, 0.5))
            elif kind == "numeric":
                known = column[np.isfinite(column)]
                mean = float(known.mean()) if len(known) else 0.0
                spread = float(known.std()) if len(known) else 0.0
                features.append(Feature(name, kind, mean, spread if spread > 0 else 1.0))
            elif kind == "hashed":
                features.append(Feature(name, kind, buckets=_HASHED))
            else:
                seen = Counter(value for value in column.tolist() if value is not None)
                # Ties in order of the name: the same events give the same file.
                common = sorted(seen, key=lambda value: (-seen[value], value))[:_MOST_CATEGORIES]
                buckets = _BUCKETS if len(seen) >= _MANY else 0
                features.append(Feature(name, kind, categories=tuple(common), buckets=buckets))
        return cls(features, cut)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, object]) -> TabularPreprocessor:
        """From a version's parsed ``preprocess.json``."""
        del folder
        listed = settings["features"]
        if not isinstance(listed, list):
            raise ValueError("features must be a list")
        cut = settings.get("cut", CUT)
        if not isinstance(cut, int | float) or not cut > 0:
            raise ValueError("cut must be a number above zero")
        return cls([_feature(value) for value in listed], float(cut))

    @property
    def numeric_features(self) -> int:
        """Columns of the feed ``numeric`` (numbers and booleans)."""
        return len(self._numbers)

    @property
    def category_sizes(self) -> tuple[int, ...]:
        """For each column of the feed ``category``: how many indices it has, index 0 included."""
        return tuple(f.indices for f in self._categories)

    def __call__(self, inputs: Inputs) -> Feeds:
        """``numeric`` float32 [n, f] and ``category`` int64 [n, c] of a structured array."""
        return self.encode(inputs).feeds()

    def lengths(self, inputs: Inputs) -> NDArray[np.int64]:
        """Ones: all rows cost the same."""
        return np.ones(len(inputs), np.int64)

    def encode(self, inputs: Inputs) -> Rows:
        """Rows of a structured array with one field a feature; infinity is an `InputError`."""
        names = inputs.dtype.names or ()
        self._same_names(names)
        n = len(inputs)
        numbers = np.empty((n, len(self._numbers)))
        for column, feature in enumerate(self._numbers):
            numbers[:, column] = inputs[feature.name]
        category = np.zeros((n, len(self._categories)), np.int64)
        for column, (feature, index) in enumerate(zip(self._categories, self._index, strict=True)):
            values = inputs[feature.name].tolist()
            category[:, column] = [
                index[value] if value in index else feature.hashed(value) for value in values
            ]
        return Rows(self._standardise(numbers), category)

    def rows(self, values: Sequence[object]) -> Inputs:
        """A structured array of JSON objects: numbers, true/false, strings; null is missing."""
        for item, value in enumerate(values):
            if not isinstance(value, dict):
                kind = type(value).__name__
                raise InputError(f"expected an object of features, got {kind}", item)
            self._same_names(value, item)
        rows = cast("Sequence[dict[str, object]]", values)
        return self._structured({f.name: [row[f.name] for row in rows] for f in self.features})

    def read(self, tensors: Tensors) -> Rows:
        """From one tensor a feature ([n] or [n, 1]), or the feeds ``numeric``, ``category``."""
        names = {f.name for f in self.features}
        feeds = {"numeric"} if self._numbers else set()
        feeds |= {"category"} if self._categories else set()
        if set(tensors) == feeds and feeds != names:
            return self._read_feeds(tensors)
        self._same_names(tensors)
        columns: dict[str, list[object]] = {}
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and tensor.shape[1] == 1:
                tensor = tensor[:, 0]
            if tensor.ndim != 1:
                raise InputError(f"tensor {name!r} must be of shape [n] or [n, 1]")
            columns[name] = tensor.tolist()
        return self.encode(self._structured(columns))

    def tensors(self) -> tuple[TensorSpec, ...]:
        """One tensor a feature."""
        datatypes = {"numeric": "FP64", "boolean": "BOOL"}
        return tuple(
            TensorSpec(f.name, datatypes.get(f.kind, "BYTES"), (-1,)) for f in self.features
        )

    def schema(self) -> dict[str, object]:
        """Every feature's name and kind."""
        return {
            "kind": "tabular",
            "features": [{"name": f.name, "kind": f.kind} for f in self.features],
        }

    def sample(self, n: int) -> Rows:
        """Average rows."""
        numeric = np.zeros((n, len(self._numbers)), np.float32)
        return Rows(numeric, np.zeros((n, len(self._categories)), np.int64))

    def save(self, folder: Path) -> None:
        """Write ``preprocess.json``."""
        features = [asdict(f) for f in self.features]
        content = {"kind": "tabular", "cut": self.cut, "features": features}
        (folder / FILE).write_text(json.dumps(content, indent=1) + "\n")

    def _standardise(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        infinite = np.isinf(numbers)
        if infinite.any():
            item, column = np.argwhere(infinite)[0]
            raise InputError(f"feature {self._numbers[column].name!r} is infinite", int(item))
        # Values near float64's end may overflow on the way; the cut brings them back.
        with np.errstate(over="ignore"):
            standard: NDArray[np.float64] = np.clip(
                (numbers - self._mean) / self._scale, -self.cut, self.cut
            )
        standard[np.isnan(standard)] = 0.0
        return standard.astype(np.float32)

    def _same_names(self, names: Collection[str], item: int | None = None) -> None:
        given, wanted = set(names), {f.name for f in self.features}
        if missing := sorted(wanted - given):
            raise InputError(
                f"feature {missing[0]!r} is missing (send null where it is not known)", item
            )
        if unknown := sorted(given - wanted):
            raise InputError(
                f"unknown feature {unknown[0]!r}: the model knows {sorted(wanted)}", item
            )

    def _structured(self, columns: Mapping[str, Sequence[object]]) -> Inputs:
        n = len(columns[self.features[0].name])
        dtype = [(f.name, "O" if f.named else "<f8") for f in self.features]
        table = np.empty(n, np.dtype(dtype))
        for feature in self.features:
            values = columns[feature.name]
            if len(values) != n:
                raise InputError(f"feature {feature.name!r} has {len(values)} values, not {n}")
            check = _category if feature.named else _number
            table[feature.name] = [check(v, feature, i) for i, v in enumerate(values)]
        return table

    def _read_feeds(self, tensors: Tensors) -> Rows:
        first = next(iter(tensors.values()))
        n = len(first)
        numeric = tensors.get("numeric", np.empty((n, 0), np.float32))
        category = tensors.get("category", np.empty((n, 0), np.int64))
        if numeric.shape != (n, len(self._numbers)) or numeric.dtype.kind != "f":
            raise InputError(f"tensor 'numeric' must be FP32 of shape [n, {len(self._numbers)}]")
        if category.shape != (n, len(self._categories)) or category.dtype.kind != "i":
            width = len(self._categories)
            raise InputError(f"tensor 'category' must be INT64 of shape [n, {width}]")
        bad = ~np.isfinite(numeric).all(axis=1)
        if bad.any():
            raise InputError("tensor 'numeric' must be finite", int(bad.argmax()))
        outside = ((category < 0) | (category >= np.array(self.category_sizes, int))).any(axis=1)
        if outside.any():
            sizes = list(self.category_sizes)
            raise InputError(f"category indices must lie below {sizes}", int(outside.argmax()))
        return Rows(numeric.astype(np.float32), category.astype(np.int64))


def _number(value: object, feature: Feature, item: int) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, (bool, int, float)):
        number = _to_float(value)
        if feature.kind == "boolean":
            if number in (0.0, 1.0) or number != number:
                return number
        elif not isinstance(value, bool):
            return number
    wanted = "true or false" if feature.kind == "boolean" else "a number"
    raise InputError(f"feature {feature.name!r} must be {wanted}, not {_shown(value)}", item)


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _category(value: object, feature: Feature, item: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"feature {feature.name!r} must be a string, not {_shown(value)}", item)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _feature(value: object) -> Feature:
    if not isinstance(value, dict):
        raise ValueError("a feature must be an object")
    if value.get("kind") not in get_args(Kind):
        raise ValueError(
            f"feature {value.get('name')!r} has the unknown kind {value.get('kind')!r}"
        )
    return Feature(
        name=str(value["name"]),
        kind=value["kind"],
        mean=float(value["mean"]),
        scale=float(value["scale"]),
        categories=tuple(str(category) for category in value["categories"]),
        buckets=int(value.get("buckets", 0)),
    )
