"""What the columns of a table are, where nobody declared them: found in its first events.

Pure functions of parsed events; `daemon.undeclared` collects these and remembers the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.stream_config import FieldsConfig
from learn.config import FeatureConfig

#: A column is numeric where so many of its values are; the others are refused as if declared so.
MOSTLY = 0.95
#: From so many values on, a text that is another one nearly every time is an id or prose.
JUDGED = 20
UNIQUE = 0.9
#: More different texts than that, and than a fifth of the values, are too many to list.
LISTED = 50
SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Inferred:
    """The columns found in ``events`` events, and what a person should know of the rest."""

    features: tuple[FeatureConfig, ...]
    notes: tuple[str, ...]
    events: int

    @property
    def listed(self) -> list[dict[str, str]]:
        """The columns as the configuration would declare them."""
        return [{"name": f.name, "kind": f.kind} for f in self.features]

    @property
    def sentence(self) -> str:
        """The columns on one line."""
        listed = ", ".join(f"{f.name} ({f.kind})" for f in self.features)
        return f"{listed or 'none'}; inferred from {self.events} events"


def infer(events: Sequence[Mapping[str, Any]], fields: FieldsConfig) -> Inferred:
    """The features of a table in the order in which its fields appear.

    A field of a nested object is named by its path, ``customer.country``; one that ``fields`` maps
    has the name given there. Label, prediction and the like are none, nor are lists.

    >>> shop = [{"amount": 3, "country": "DE", "label": "a"}, {"amount": 4.5, "label": "b"}]
    >>> infer(shop, FieldsConfig()).sentence
    'amount (numeric), country (categorical); inferred from 2 events'
    """
    columns: dict[str, list[Any]] = {}
    lists: dict[str, None] = {}
    for event in events:
        for path, value in _leaves(event):
            if isinstance(value, list):
                lists[path] = None
            else:
                columns.setdefault(path, []).append(value)
    mapped = (fields.label, fields.id, fields.time, fields.labeller)
    taken = {*mapped, fields.prediction, fields.version}
    names = {path: name for name, path in fields.features.items()}
    found, notes = [], [f"{path} holds lists: left out" for path in lists if path not in taken]
    for path, values in columns.items():
        if path in taken or path in lists:
            continue
        name = names.get(path, path)
        if "~" in name:
            notes.append(f"{name} is left out: names with '~' are for columns that driftd adds")
            continue
        kind, note = _kind([v for v in values if v is not None and v != ""])
        if kind is not None:
            found.append(FeatureConfig.model_validate({"name": name, "kind": kind}))
        if note:
            notes.append(f"{name} {note}")
    return Inferred(tuple(found), tuple(notes), len(events))


def _leaves(event: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in event.items():
        path = f"{before}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _kind(known: list[Any]) -> tuple[str | None, str]:
    """The kind of a column with these values, None where it is no feature; and a note, if any."""
    count = len(known)
    if not count:
        return None, "has no value: left out"
    if all(type(value) is bool for value in known):
        return "boolean", ""
    numbers = sum(map(_is_number, known))
    if numbers >= MOSTLY * count:
        odd = count - numbers
        share = f"is no number in {odd} of {count} events: such events are refused" if odd else ""
        return "numeric", share
    different = len({str(value) for value in known})
    if count >= JUDGED and different >= UNIQUE * count:
        return None, "is another text nearly every time: left out"
    if different > LISTED and different > SHARE * count:
        return "hashed", ""
    return "categorical", ""


def _is_number(value: Any) -> bool:
    """Whether a numeric column could hold it; a text of digits after a zero is a code instead."""
    if isinstance(value, str):
        digits = value.strip().lstrip("+-")
        if "_" in value or (digits[:1] == "0" and digits[1:2].isdigit()):
            return False
        try:
            return math.isfinite(float(value))
        except ValueError:
            return False
    return isinstance(value, bool | int | float)
