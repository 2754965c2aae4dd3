"""The chart's values.yaml as rows: path, default and what the comment above says.

The comment is the only place where a value is explained; README and schema take it from here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

_KEY = re.compile(r"^( *)([A-Za-z]\w*):")


@dataclass(frozen=True, slots=True)
class Value:
    """One value that a user may set; ``path`` from the top."""

    path: tuple[str, ...]
    default: Any
    says: str


def read_values(text: str) -> list[Value]:
    """The commented keys of values.yaml, in order. A key without a comment only groups others."""
    tree = yaml.safe_load(text)
    found: list[Value] = []
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        key = _KEY.match(line)
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip().removeprefix("#").strip())
        elif key:
            path = [*path[: len(key[1]) // 2], key[2]]
            if comment:
                found.append(Value(tuple(path), _at(tree, path), " ".join(comment)))
            comment = []
        else:
            comment = []
    return found


def _at(tree: Any, path: list[str]) -> Any:
    for step in path:
        tree = tree[step]
    return tree
