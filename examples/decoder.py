"""A decoder of your own: records are lines like ``id=17 score=0.25 text=hello world``.

    source:
      kind: kafka
      topic: lines
      bootstrap_servers: localhost:9092
      format: plugin
      decoder: examples.decoder:decode

It is called with the bytes of one record and returns its fields by name; a ValueError says why a
record is no event. It runs in the daemon's loop: it should be quick, and keep nothing.
"""

from __future__ import annotations

import re

FIELD = re.compile(r"(\w+)=(.*?)(?=\s+\w+=|$)")
NUMBERS = frozenset({"score"})


def decode(value: bytes) -> dict[str, object]:
    """The fields of one line.

    >>> decode(b"id=17 score=0.25 text=hello world")
    {'id': '17', 'score': 0.25, 'text': 'hello world'}
    """
    fields: dict[str, object] = dict(FIELD.findall(value.decode("utf-8")))
    if not fields:
        raise ValueError("there is no name=value in the line")
    return {name: float(str(v)) if name in NUMBERS else v for name, v in fields.items()}
