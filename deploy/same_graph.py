"""Whether two versions' graphs differ in nothing but the head.

Most updates move the head alone. Their graph is the old one with other bytes in two places, and
the session that runs the old one can run the new one: the head is an input too. Reads just enough
of ONNX's protobuf to find these places, as a serving machine has no onnx.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from deploy.session import HEAD_BIAS, HEAD_WEIGHT, Head

# Field numbers of onnx.proto, which never change: ModelProto, GraphProto, TensorProto.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_KEY = 20  # bytes of a field's number and length together

_CHUNK = 512 * 1024  # fits a core's cache beside the other file's


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of a file."""

    start: int
    end: int


def same_but_head(old: Path, new: Path, head: Head) -> bool:
    """Whether ``new`` is ``old`` with ``head`` in the head's place, byte for byte.

    False as well where it cannot be told.
    """
    try:
        size = new.stat().st_size
        if old.stat().st_size != size:
            return False
        with new.open("rb") as file, old.open("rb", buffering=0) as before:
            places = _head_places(file, size)
            if len(places) != 2 or not _holds(file, places, head):
                return False
            file.seek(0)
            return _same_elsewhere(before, file, sorted(places.values()))
    except (OSError, ValueError, IndexError):
        return False


def _holds(file: BinaryIO, places: dict[bytes, Span], head: Head) -> bool:
    for name, array in ((HEAD_WEIGHT, head.weight), (HEAD_BIAS, head.bias)):
        start, end = places[name.encode()]
        file.seek(start)
        if file.read(end - start) != np.ascontiguousarray(array, "<f4").tobytes():
            return False
    return True


def _same_elsewhere(old: BinaryIO, new: BinaryIO, but: list[Span]) -> bool:
    """Whether two files of one size agree outside these places."""
    ours, theirs, at = bytearray(_CHUNK), bytearray(_CHUNK), 0
    while n := new.readinto(ours):  # type: ignore[attr-defined]
        view, got = memoryview(theirs), 0
        while got < n:
            more = old.readinto(view[got:n])  # type: ignore[attr-defined]
            if not more:
                return False
            got += more
        for start, end in but:
            low, high = max(start - at, 0), min(end - at, n)
            if low < high:
                theirs[low:high] = ours[low:high]
        if ours != theirs and ours[:n] != theirs[:n]:
            return False
        at += n
    return True


def _head_places(file: BinaryIO, size: int) -> dict[bytes, Span]:
    """Where the values of the head's two tensors lie. Raises ValueError for what is no ONNX."""
    wanted = (HEAD_WEIGHT.encode(), HEAD_BIAS.encode())
    places: dict[bytes, Span] = {}
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
                places[key] = parts[_RAW_DATA]
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
