"""Where the values of a tensor lie in an ONNX file, and a graph that only points at them.

Knows just enough of ONNX's protobuf for that: a serving machine has no onnx, and writing a few
tensors in their places is faster than writing the whole message anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

# Field numbers of onnx.proto, which never change: ModelProto, GraphProto, TensorProto.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_KEY = 20  # bytes of a field's number and length together

_LARGE = 64 * 1024  # bytes: what is smaller saves nothing by lying elsewhere


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of a file."""

    start: int
    end: int


class Field(NamedTuple):
    """A field of a message: its number, all of it, and what it holds, if that has a length."""

    number: int
    whole: Span
    inner: Span | None


def tensor_places(file: BinaryIO, size: int, names: Collection[str]) -> dict[str, Span]:
    """Where the values of these initialisers lie, of those that are stored as plain bytes.

    size: of the file. Raises ValueError or IndexError for what is no ONNX.
    """
    wanted = {name.encode(): name for name in names}
    places: dict[str, Span] = {}
    for graph in _inner(file, Span(0, size), _GRAPH):
        for tensor in _inner(file, graph, _INITIALIZER):
            parts = {field.number: field.inner for field in _fields(file, tensor)}
            raw = parts.get(_RAW_DATA)
            name = _read(file, parts.get(_NAME) or Span(0, 0))
            if name in wanted and raw is not None:
                places[wanted[name]] = raw
                if len(places) == len(wanted):
                    return places
    return places


def pointing(path: Path) -> bytes:
    """The graph without its large tensors' values: it says where they lie in the file itself.

    A runtime maps them into memory, where it would copy what a graph holds.
    Raises ValueError or IndexError for what is no ONNX.
    """
    parts = []
    with path.open("rb") as file:
        for field in _fields(file, Span(0, path.stat().st_size)):
            if field.number != _GRAPH or field.inner is None:
                parts.append(_read(file, field.whole))
                continue
            graph = [
                _bytes_field(_INITIALIZER, _tensor(file, each.inner, path.name))
                if each.number == _INITIALIZER and each.inner is not None
                else _read(file, each.whole)
                for each in _fields(file, field.inner)
            ]
            parts.append(_bytes_field(_GRAPH, b"".join(graph)))
    return b"".join(parts)


def _tensor(file: BinaryIO, span: Span, location: str) -> bytes:
    """A tensor, with its place in the file instead of its values if there are many."""
    parts = []
    for field in _fields(file, span):
        raw = field.inner
        if field.number != _RAW_DATA or raw is None or raw.end - raw.start < _LARGE:
            parts.append(_read(file, field.whole))
            continue
        place = {"location": location, "offset": raw.start, "length": raw.end - raw.start}
        for key, value in place.items():
            entry = _bytes_field(1, key.encode()) + _bytes_field(2, str(value).encode())
            parts.append(_bytes_field(_EXTERNAL_DATA, entry))
        parts.append(_as_varint(_DATA_LOCATION << 3 | _VARINT) + _as_varint(_EXTERNAL))
    return b"".join(parts)


def _inner(file: BinaryIO, span: Span, number: int) -> Iterator[Span]:
    for field in _fields(file, span):
        if field.number == number and field.inner is not None:
            yield field.inner


def _read(file: BinaryIO, span: Span) -> bytes:
    file.seek(span.start)
    return file.read(span.end - span.start)


def _fields(file: BinaryIO, span: Span) -> Iterator[Field]:
    """The fields of a message, in their order."""
    at = span.start
    while at < span.end:
        file.seek(at)
        head = file.read(_LONGEST_KEY)
        key, used = _varint(head, 0)
        number, kind = key >> 3, key & 7
        inner = None
        if kind == _BYTES:
            size, used = _varint(head, used)
            inner = Span(at + used, at + used + size)
            used += size
        elif kind == _VARINT:
            _, used = _varint(head, used)
        elif kind in (_FIXED64, _FIXED32):
            used += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        yield Field(number, Span(at, at + used), inner)
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


def _bytes_field(number: int, data: bytes) -> bytes:
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(data)) + data


def _as_varint(value: int) -> bytes:
    """
    >>> _as_varint(300).hex()
    'ac02'
    """
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
