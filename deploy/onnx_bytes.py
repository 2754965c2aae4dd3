"""Where the values of a tensor lie in an ONNX file.

Reads just enough of ONNX's protobuf for that: a serving machine has no onnx, and writing a few
tensors in their places is faster than writing the whole message anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import BinaryIO, NamedTuple

# Field numbers of onnx.proto, which never change: ModelProto, GraphProto, TensorProto.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_KEY = 20  # bytes of a field's number and length together


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of a file."""

    start: int
    end: int


def tensor_places(file: BinaryIO, size: int, names: Collection[str]) -> dict[str, Span]:
    """Where the values of these initialisers lie, of those that are stored as plain bytes.

    size: of the file. Raises ValueError or IndexError for what is no ONNX.
    """
    wanted = {name.encode(): name for name in names}
    places: dict[str, Span] = {}
    for number, graph in _fields(file, Span(0, size)):
        if number != _GRAPH:
            continue
        for inner, tensor in _fields(file, graph):
            if inner != _INITIALIZER:
                continue
            parts = dict(_fields(file, tensor))
            name = parts.get(_NAME, Span(0, 0))
            file.seek(name.start)
            key = file.read(min(name.end - name.start, 1000))
            if key in wanted and _RAW_DATA in parts:
                places[wanted[key]] = parts[_RAW_DATA]
                if len(places) == len(wanted):
                    return places
    return places


def _fields(file: BinaryIO, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and place of each field of a message that has a length; others are passed over."""
    at = span.start
    while at < span.end:
        file.seek(at)
        head = file.read(_LONGEST_KEY)
        key, used = _varint(head, 0)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, used = _varint(head, used)
            yield number, Span(at + used, at + used + size)
            used += size
        elif kind == _VARINT:
            _, used = _varint(head, used)
        elif kind in (_FIXED64, _FIXED32):
            used += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        at += used


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
