"""Tensors as bytes, as the binary form of the Open Inference Protocol has them.

Little-endian and row-major; a BYTES item is its length in four bytes, then itself. HTTP appends
such tensors to the JSON of a body, gRPC carries them as raw contents.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import InputError

_LENGTH = struct.Struct("<I")

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


def unpack(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> NDArray[Any]:
    """The tensor ``name`` from its bytes; BYTES as texts. Raises `InputError`.

    >>> unpack("x", "FP32", [2], bytes.fromhex("0000803f00000040")).tolist()
    [1.0, 2.0]
    >>> unpack("x", "BYTES", [2], pack_texts(["hi", "bye"])).tolist()
    ['hi', 'bye']
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _texts(name, count, raw).reshape(shape)
    dtype = _DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InputError(
            f"tensor {name!r}: {len(raw)} bytes for {count} values of {datatype}, "
            f"which take {count * dtype.itemsize}"
        )
    array: NDArray[Any] = np.frombuffer(raw, dtype).reshape(shape)
    if datatype == "BOOL":
        if array.size and array.max() > 1:
            raise InputError(f"tensor {name!r}: BOOL bytes must be 0 or 1")
        array = array.view(np.bool_)
    return array


def pack(array: NDArray[np.float32]) -> bytes:
    """An FP32 tensor as bytes."""
    return np.ascontiguousarray(array, "<f4").tobytes()


def pack_texts(texts: Iterable[str]) -> bytes:
    """A BYTES tensor as bytes."""
    parts: list[bytes] = []
    for text in texts:
        data = text.encode()
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def _texts(name: str, count: int, raw: bytes) -> NDArray[Any]:
    if count * _LENGTH.size > len(raw):  # before memory is taken for a shape that cannot be
        raise InputError(f"tensor {name!r}: {len(raw)} bytes are too few for {count} BYTES items")
    texts = np.empty(count, object)
    at = 0
    try:
        for i in range(count):
            (length,) = _LENGTH.unpack_from(raw, at)
            at += _LENGTH.size
            if at + length > len(raw):
                raise InputError(f"tensor {name!r}: BYTES item {i} is longer than its tensor")
            texts[i] = raw[at : at + length].decode()
            at += length
    except struct.error as error:
        raise InputError(f"tensor {name!r}: the bytes end before BYTES item {i}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"tensor {name!r}: BYTES item {i} is not UTF-8") from error
    if at != len(raw):
        raise InputError(f"tensor {name!r}: {len(raw) - at} bytes are left over")
    return texts
