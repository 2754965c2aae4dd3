"""The decoder's short way: a whole poll of unremarkable records at once, column by column.

Most polls hold nothing but events as the configuration describes them. Those are read here by
functions that loop in C; wherever anything is out of the ordinary, in a single record, the poll is
left to `daemon.decode`, which looks at each record by itself. Both ways give the same columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, Literal, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

# Below the bound a number counts that unit; 1e11 seconds is the year 5138, 1e11 ms March 1973.
BOUNDS, UNITS = np.array([1e11, 1e14, 1e17]), np.array([1.0, 1e3, 1e6, 1e9])
FIRST_SECOND, LAST_SECOND = -62_135_596_800.0, 253_402_300_800.0  # the years 1 to 9999

TEXT, TEXT_OR_NONE = frozenset({str}), frozenset({str, type(None)})
NUMBER = frozenset({int, float})

Column = Sequence[Any]


class Feature(Protocol):
    """A declared feature of a table."""

    @property
    def name(self) -> str:
        """The feature's name in the model."""

    @property
    def kind(self) -> Literal["numeric", "boolean", "categorical", "hashed"]:
        """What its values are."""


class NotPlain(Exception):  # noqa: N818 - no error: the other way is taken
    """Something in the poll is out of the ordinary."""


def events_of(values: Sequence[bytes | None], limit: int, fields: Sequence[str]) -> list[Column]:
    """The values of each field, [n], of records that are all JSON objects and have them all.

    Raises:
        NotPlain: one is none, or larger than ``limit`` bytes, or lacks a field.
    """
    try:
        if max(map(len, values)) > limit:  # type: ignore[arg-type]
            raise NotPlain
        # One after the other, so that each object is gone before the next is made: thousands of
        # them at once cost as much again. A field is found in nothing but an object.
        events = map(orjson.loads, values)  # type: ignore[arg-type]
        if len(fields) == 1:
            return [list(map(itemgetter(fields[0]), events))]
        return list(zip(*map(itemgetter(*fields), events), strict=True))
    except (TypeError, ValueError, KeyError):
        raise NotPlain from None


def texts(column: Column, longest: int | None = None, *, visible: bool = False) -> Column:
    """Texts, none of them empty; at most ``longest`` characters; ``visible``: more than blanks."""
    if set(map(type, column)) != TEXT or not all(column):
        raise NotPlain
    if longest is not None and max(map(len, column)) > longest:
        raise NotPlain
    if visible and any(map(str.isspace, column)):
        raise NotPlain
    return column


def among(column: Column, known: set[str]) -> Column:
    """Texts that are known, or None."""
    if not set(map(type, column)) <= TEXT_OR_NONE or not set(column) - {None} <= known:
        raise NotPlain
    return column


def seconds(column: Column) -> NDArray[np.float64]:
    """Seconds since the epoch, float64 [n], of epoch numbers or ISO 8601 texts with a zone."""
    kinds = set(map(type, column))
    try:
        if kinds <= NUMBER:
            size = np.array(column, dtype=np.float64)
            size /= UNITS[np.searchsorted(BOUNDS, np.abs(size), side="right")]
        elif kinds == TEXT:
            moments = list(map(datetime.fromisoformat, column))
            if None in {moment.tzinfo for moment in moments}:
                raise NotPlain
            size = np.fromiter(map(datetime.timestamp, moments), np.float64, count=len(moments))
        else:
            raise NotPlain
    except (ValueError, OverflowError):
        raise NotPlain from None
    if not ((size >= FIRST_SECOND) & (size < LAST_SECOND)).all():
        raise NotPlain
    return size


def rows(
    columns: Sequence[Column], features: Sequence[Feature], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The table, [n] of ``dtype``; numbers are numbers, booleans booleans, categories texts."""
    table = np.empty(len(columns[0]), dtype=dtype)
    for column, feature in zip(columns, features, strict=True):
        kinds = set(map(type, column))
        if feature.kind in ("categorical", "hashed"):
            table[feature.name] = texts(column)
            continue
        if not (kinds <= NUMBER if feature.kind == "numeric" else kinds == {bool}):
            raise NotPlain
        try:
            table[feature.name] = column
        except OverflowError:
            raise NotPlain from None
        if not np.isfinite(table[feature.name]).all():
            raise NotPlain
    return table


def names(topics: Column, partitions: Column, offsets: Column) -> Column:
    """The ids of events that have none of their own."""
    return list(map("{}:{}:{}".format, topics, partitions, offsets))


def objects(items: Column) -> NDArray[np.object_]:
    """A column of Python objects, object [n]."""
    return np.fromiter(items, dtype=object, count=len(items))
