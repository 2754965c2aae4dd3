"""The events that a daemon's newest checkpoint remembers, for what is done beside the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from daemon.checkpoint import under
from daemon.config import Config
from daemon.stored_checkpoint import open_checkpoints
from learn.examples import Examples
from learn.memory import Memory
from registry import Registry


class Remembered(NamedTuple):
    """classes: the daemon's, which the labels in ``memory`` index into."""

    memory: Memory
    classes: list[str]

    @classmethod
    def read(cls, config: Config, registry: Registry) -> Self | None:
        """What the newest checkpoint holds; None where there is no checkpoint yet."""
        found = open_checkpoints(config, registry).load()
        if found is None:
            return None
        memory = Memory(config.memory)
        memory.restore(under("memory", found.arrays))
        return cls(memory, found.values["classes"])

    def labelled(self, examples: Examples, names: Sequence[str]) -> Examples:
        """The examples with labels that index into ``names``; -1 for other classes."""
        place = {name: i for i, name in enumerate(names)}
        columns = np.array([place.get(name, -1) for name in self.classes], dtype=np.int64)
        return examples.relabelled(columns[examples.labels])
