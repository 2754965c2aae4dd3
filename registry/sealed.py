"""JSON objects that carry their own checksum as their last field.

A flipped bit in a plain JSON file often leaves valid JSON that says something else. A sealed
object ends with ``"seal": "<16 hex digits>"`` over all bytes before it, and stays readable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

_SEAL = re.compile(rb',\s*"seal":\s*"([0-9a-f]{16})"\s*\}\s*\Z')
_LONGEST_SEAL = 64


class BrokenSeal(ValueError):  # noqa: N818
    """The bytes are no sealed object, or not the one that was written."""


def seal(body: Mapping[str, Any], *, indent: bool = False) -> bytes:
    """The object as JSON with its seal: one line, or indented for people. Needs a first field.

    numpy scalars and arrays are welcome; NaN and infinity become null, as JSON has none.

    >>> seal({"seq": 1, "kind": "note"})
    b'{"seq":1,"kind":"note","seal":"f41f427509ac42d6"}'
    """
    options = orjson.OPT_SERIALIZE_NUMPY | (orjson.OPT_INDENT_2 if indent else 0)
    text: bytes = orjson.dumps(dict(body), option=options)
    prefix = text.removesuffix(b"}").rstrip()
    mark = _digest(prefix)
    if indent:
        return prefix + b',\n  "seal": "' + mark + b'"\n}\n'
    return prefix + b',"seal":"' + mark + b'"}'


def unseal(data: bytes) -> dict[str, Any]:
    """The object without its seal; `BrokenSeal` if a byte of it has changed.

    >>> unseal(seal({"seq": 1, "kind": "note"}))
    {'seq': 1, 'kind': 'note'}
    >>> unseal(seal({"seq": 1}).replace(b"1", b"2", 1))
    Traceback (most recent call last):
    ...
    registry.sealed.BrokenSeal: the checksum does not match
    """
    start = max(0, len(data) - _LONGEST_SEAL)
    found = _SEAL.search(data[start:])
    if found is None:
        raise BrokenSeal("no checksum at the end")
    if _digest(data[: start + found.start()]) != found[1]:
        raise BrokenSeal("the checksum does not match")
    try:
        body: dict[str, Any] = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BrokenSeal(f"not JSON: {error}") from error
    del body["seal"]
    return body


def _digest(prefix: bytes) -> bytes:
    # 64 bits of SHA-256: this guards against decay and slips of the hand, not against an attacker.
    return hashlib.sha256(prefix).hexdigest()[:16].encode()
