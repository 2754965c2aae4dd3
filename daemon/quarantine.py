"""Labels that are held back: neither learned nor judged with, until an operator or time decides.

A case is one finding of the guard and the labelled events that belong to it. It ends in one of four
ways: an operator releases or drops it, a drift explains it after all (released), or nobody says
anything for `guard.hold_events` (dropped).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.checkpoint import Arrays, prefixed, under
from daemon.guard import Finding, Reason
from learn.examples import Examples

Key = tuple[Reason, str]


@dataclass(slots=True)
class Case:
    """Why labels are held, since which event, and the events. encoder: of their embeddings."""

    id: str
    reason: Reason
    group: str
    sentence: str
    opened_event: int
    encoder: str
    held: Examples = field(default_factory=Examples.empty)
    #: Held once, and too many: what came first went first.
    overflowed: int = 0

    @property
    def key(self) -> Key:
        """What the guard knows it by."""
        return self.reason, self.group

    def hold(self, examples: Examples, most: int) -> None:
        """Keep these events too; at most ``most``, the newest."""
        together = Examples.concatenate([self.held, examples])
        self.overflowed += max(0, len(together) - most)
        self.held = together.take(np.arange(max(0, len(together) - most), len(together)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the journal and the status."""
        return {
            "case": self.id,
            "cause": self.reason,
            "group": self.group,
            "sentence": self.sentence,
            "opened_event": self.opened_event,
            "held": len(self.held),
            "overflowed": self.overflowed,
        }


class Quarantine:
    """The open cases."""

    def __init__(self) -> None:
        self.cases: dict[Key, Case] = {}
        self._opened = 0

    def __len__(self) -> int:
        return sum(len(case.held) for case in self.cases.values())

    def open(self, finding: Finding, event: int, encoder: str) -> Case:
        """A new case, empty yet."""
        self._opened += 1
        name = f"q{self._opened:04d}"
        case = Case(name, finding.reason, finding.group, finding.sentence, event, encoder)
        self.cases[case.key] = case
        return case

    def named(self, id: str) -> Case | None:
        """The open case of that id."""
        return next((case for case in self.cases.values() if case.id == id), None)

    def held_by(
        self,
        labellers: NDArray[np.object_],
        labels: NDArray[np.int64],
        contradicted: NDArray[np.bool_],
        names: list[str],
    ) -> Iterator[tuple[Case, NDArray[np.bool_]]]:
        """Each open case, and which of ``n`` labelled events, bool [n], are its own.

        All that a labeller gives; of a class only what contradicts high agreement.
        """
        for case in self.cases.values():
            if case.reason == "class":
                yield case, contradicted & (labels == names.index(case.group))
            else:
                yield case, np.asarray(labellers == case.group)

    def values(self) -> dict[str, Any]:
        """The JSON-able half of the checkpoint."""
        cases = [{**case.as_dict(), "encoder": case.encoder} for case in self.cases.values()]
        return {"opened": self._opened, "cases": cases}

    def arrays(self) -> Arrays:
        """The other half: arrays by name."""
        found: Arrays = {}
        for case in self.cases.values():
            if len(case.held):
                found |= prefixed(case.id, case.held.to_arrays())
        return found

    def restore(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Go on where `values` and `arrays` were taken."""
        self._opened, self.cases = values["opened"], {}
        for found in values["cases"]:
            columns = under(found["case"], arrays)
            case = Case(
                found["case"],
                found["cause"],
                found["group"],
                found["sentence"],
                found["opened_event"],
                found["encoder"],
                Examples.from_arrays(columns) if columns else Examples.empty(),
                found["overflowed"],
            )
            self.cases[case.key] = case
