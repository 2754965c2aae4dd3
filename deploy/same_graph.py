"""Whether two versions' graphs differ in nothing but the head.

Most updates move the head alone. Their graph is the old one with other bytes in two places, and
the session that runs the old one can run the new one: the head is an input too. Reads just enough
of ONNX's protobuf to find these places, as a serving machine has no onnx.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy.session import HEAD_BIAS, HEAD_WEIGHT, Head

# Field numbers of onnx.proto, which never change: ModelProto, GraphProto, TensorProto.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of a file."""

    start: int
    end: int


def same_but_head(old: Path, new: Path, head: Head) -> bool:
    """Whether ``new`` is ``old`` with ``head`` in the head's place, byte for byte.

    False as well where it cannot be told.
    """
    try:
        if old.stat().st_size != new.stat().st_size:
            return False
        data = new.read_bytes()
        places = _head_places(data)
        if len(places) != 2:
            return False
        before = bytearray(old.read_bytes())
    except (OSError, ValueError, IndexError):
        return False
    for name, array in ((HEAD_WEIGHT, head.weight), (HEAD_BIAS, head.bias)):
        start, end = places[name.encode()]
        if data[start:end] != np.ascontiguousarray(array, "<f4").tobytes():
            return False
        before[start:end] = data[start:end]
    return before == data


def _head_places(data: bytes) -> dict[bytes, Span]:
    """Where the values of the head's two tensors lie. Raises IndexError for what is no ONNX."""
    wanted = (HEAD_WEIGHT.encode(), HEAD_BIAS.encode())
    places: dict[bytes, Span] = {}
    for number, graph in _fields(data, Span(0, len(data))):
        if number != _GRAPH:
            continue
        for inner, tensor in _fields(data, graph):
            if inner != _INITIALIZER:
                continue
            parts = dict(_fields(data, tensor))
            name = parts.get(_NAME, Span(0, 0))
            key = data[name.start : name.end]
            if key in wanted and _RAW_DATA in parts:
                places[key] = parts[_RAW_DATA]
    return places


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and place of each field of a message that has a length; others are passed over."""
    at = span.start
    while at < span.end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            yield number, Span(at, at + size)
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
