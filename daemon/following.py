"""Following: the champion keeps up with what learns online, in many small steps.

What learns online is put before the gate as a process: each of its answers is given before it
learned the label, and compared with the champion's. Once the gate is satisfied, a snapshot serves,
and further ones follow it without a trial of their own. None is trusted for that: each INT8 file
must answer as the head it was made of, none may have forgotten the anchor, and the run as a whole
stays on probation against the version that was proven last, until it is proven itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from daemon.events import EventBatch
from daemon.gate import Check
from daemon.online import Online
from daemon.policy_config import FollowConfig
from daemon.served import Served, right
from daemon.version_files import code_version, write_version
from deploy.measure import parity
from deploy.same_graph import same_but_head
from deploy.session import model_file
from learn.examples import Examples
from learn.head import Head
from learn.number_scale import NumberScale
from learn.strategy import Update

#: Recent events on which a step's INT8 file is compared with what learned.
COMPARED = 256
#: Answers of the two that must be equal at least; a tie of two classes may round either way.
AGREE = 0.95


@dataclass(slots=True)
class Following:
    """A run of versions, each in the place of the one before.

    first: its first version, which passed the gate. version: what serves now. began_event: when
    the run began. made: when ``version`` was, by a monotonic clock. learned: labelled events since;
    won, lost: where only what learns was right, or only ``version``. steps: versions after the
    first. proven: how often the run passed its probation. anchored: whether the anchor's labels
    still hold.
    """

    first: str
    version: str
    began_event: int
    made: float
    learned: int = 0
    won: int = 0
    lost: int = 0
    steps: int = 0
    proven: int = 0
    anchored: bool = True

    def covers(self, version: str) -> bool:
        """Whether it is of this run: only the run's versions have served since it began."""
        return _number(self.first) <= _number(version) <= _number(self.version)

    def due(self, settings: FollowConfig, now: float) -> bool:
        """Whether it is time for the next step."""
        return self.learned >= settings.events and now - self.made >= settings.seconds

    def observe(self, ours: NDArray[np.bool_], champion: NDArray[np.bool_]) -> None:
        """Count events, bool [n] each: where what learns was right, and where the champion was."""
        self.learned += len(ours)
        self.won += int((ours & ~champion).sum())
        self.lost += int((champion & ~ours).sum())

    def stepped(self, version: str, now: float) -> None:
        """``version`` serves now."""
        self.version, self.made = version, now
        self.learned = self.won = self.lost = 0
        self.steps += 1

    def values(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        found = asdict(self)
        del found["made"]  # of a clock that ends with the process
        return found

    @classmethod
    def restored(cls, values: Mapping[str, Any], now: float) -> Self:
        """The inverse of `values`."""
        return cls(**values, made=now)


@dataclass(slots=True)
class Met:
    """What the online learner has met since it began: as stretches that cover it, and how much.

    Events between that only judge lie in the stretches too.
    """

    stretches: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    events: int = 0
    newest: float = 0.0

    def add(self, events: EventBatch | Examples) -> None:
        """It learned these."""
        if not len(events):
            return
        self.events += len(events)
        self.newest = max(self.newest, float(events.times.max()))
        places = zip(events.topics.tolist(), events.partitions.tolist(), strict=True)
        keys = np.array([f"{partition}/{topic}" for topic, partition in places])
        for key in np.unique(keys).tolist():
            offsets = events.offsets[keys == key]
            partition, _, topic = key.partition("/")
            place = topic, int(partition)
            start, end = self.stretches.get(place, (int(offsets.min()), 0))
            self.stretches[place] = min(start, int(offsets.min())), max(end, int(offsets.max()) + 1)

    def lineage(self) -> list[dict[str, Any]]:
        """As lineages write stretches."""
        return [
            {"topic": topic, "partition": partition, "start": start, "end": end}
            for (topic, partition), (start, end) in sorted(self.stretches.items())
        ]

    def values(self) -> list[Any]:
        """Plain values, for the checkpoint."""
        return [
            [[*place, *ends] for place, ends in self.stretches.items()],
            self.events,
            self.newest,
        ]

    @classmethod
    def restored(cls, values: Sequence[Any]) -> Self:
        """The inverse of `values`."""
        stretches = {(topic, part): (start, end) for topic, part, start, end in values[0]}
        return cls(stretches, int(values[1]), float(values[2]))


def write_step(
    online: Online, labels: Sequence[str], columns: NDArray[np.int64], parent: Path, out: Path
) -> int:
    """Write what has learned online into ``out``, as a version made from ``parent``.

    labels: of the version; columns: int64 [k], their numbers among the daemon's classes. Returns
    how many parameters moved. Raises `deploy.PatchError` if one is not finite.
    """
    given = online.weights(columns)
    encoder = {name: array for name, array in given.items() if not name.startswith("head.")}
    update = Update(head=Head(given["head.weight"], given["head.bias"]), encoder=encoder)
    write_version(labels, update, parent, out, None)
    return sum(array.size for array in given.values())


def lineage(met: Met, run: str | None, follows: str, event: int, seed: int) -> dict[str, Any]:
    """Where a step comes from.

    run: the first of its run, None if it is that itself. follows: what was proven last. event: up
    to which it has learned.
    """
    newest = datetime.fromtimestamp(met.newest, UTC).isoformat()
    return {
        "seed": seed,
        "code_version": _code_version(),
        "trained_on": met.lineage(),
        "newest_event": newest,
        "examples": met.events,
        "run": run,
        "follows": follows,
        "event": event,
    }


def same_answers(
    step: Served, parent: Path, online: Online, recent: Examples, scale: NumberScale | None
) -> tuple[list[Check], dict[str, float]]:
    """Whether the step's file is what it was made of; and what INT8 costs, if that is new.

    parent: the folder whose graph was patched. recent: labelled events to compare on. Raises
    `deploy.LoadError` if the graph cannot be opened or does not run.
    """
    assert step.folder is not None
    file = "INT8 file" if step.session.graph.river is None else "its events learned anew"
    if same_but_head(model_file(parent), model_file(step.folder), step.session.head):
        sentence = f"{file}: byte for byte the champion's, but for the head"
        return [Check("agreement", "pass", sentence, 1.0, AGREE)], {}
    step.session.graph.warm(1)
    answer = step.answer(recent.inputs)
    fp32 = online.judge(recent.inputs, answer.embeddings)
    known = np.isin(fp32, step.columns) if scale is None else np.ones(len(fp32), np.bool_)
    int8, fp32, truth = answer.predicted[known], fp32[known], recent.truth[known]
    if not len(truth):
        return [], {}
    same = int8 == fp32 if scale is None else scale.right(int8, fp32)
    agreement = float(same.mean())
    sentence = f"{file}: {agreement:.1%} of {len(truth)} answers are those it was made of"
    check = Check("agreement", "pass" if agreement >= AGREE else "fail", sentence, agreement, AGREE)
    cost = parity(right(scale, int8, truth), right(scale, fp32, truth), np.ones(len(truth), bool))
    return [check], cost | {"agreement": agreement}


@cache
def _code_version() -> dict[str, str]:
    return code_version()


def _number(version: str) -> int:
    return int(version.removeprefix("v"))
