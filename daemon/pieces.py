"""Arrays cut into pieces by what they hold, so that two states that are alike share most pieces.

A cut falls where the bytes at a row's beginning say so, not at a fixed place: where old rows go at
the front and new ones come at the end, all between them is cut as before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 64 * 1024  # of a piece, about; at least a quarter and at most four times as many
_WINDOW = 8
_BLOCK = 1 << 20  # rows looked at in one go
# Odd numbers whose products spread over all bits, one for a row and each of those before it that
# count: a column of small numbers says too little in one row.
_MIX = [np.uint64(n | 1) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]


def cut(array: NDArray[np.generic]) -> list[memoryview]:
    """The array's bytes in pieces, in order.

    >>> [len(piece) for piece in cut(np.zeros(3))]
    [24]
    """
    flat = np.ascontiguousarray(array)
    data = flat.reshape(-1).view(np.uint8)
    if data.nbytes <= PIECE_BYTES:
        return [data.data] if data.nbytes else []
    row = data.nbytes // len(flat)
    per = max(1, PIECE_BYTES // row)
    shortest, longest = max(1, per // 4), per * 4
    cuts, begin = [0], 0
    for here in _candidates(data, row, per):
        while here - begin > longest:
            begin += longest
            cuts.append(begin)
        if here - begin >= shortest:
            begin = here
            cuts.append(begin)
    while len(flat) - begin > longest:
        begin += longest
        cuts.append(begin)
    ends = [*cuts[1:], len(flat)]
    return [data[a * row : b * row].data for a, b in zip(cuts, ends, strict=True) if b > a]


def _candidates(data: NDArray[np.uint8], row: int, per: int) -> list[int]:
    """Rows before which a cut may fall: about one of ``per``, by the bytes there."""
    rows = (len(data) - _WINDOW) // row + 1
    words: NDArray[np.uint64] = np.ndarray((rows,), np.uint64, buffer=data, strides=(row,))
    found = []
    for start in range(len(_MIX), rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        mixed = sum(words[start - i : stop - i] * mix for i, mix in enumerate(_MIX))
        # The highest bits of a product depend on all of its factor's.
        found.append(np.flatnonzero((mixed >> np.uint64(40)) % np.uint64(per) == 0) + start)
    return np.concatenate(found).tolist() if found else []


def levelled(array: NDArray[np.generic]) -> bool:
    """Whether an array is kept as differences: of counts that grow they are alike everywhere."""
    return array.dtype == np.int64 and array.ndim == 1 and array.nbytes > PIECE_BYTES


def level(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The differences, int64 [n], the first from 0; `np.cumsum` undoes it, overflow and all."""
    return np.diff(array, prepend=np.zeros(1, dtype=np.int64))
