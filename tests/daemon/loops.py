"""A loop without a process around it."""

from __future__ import annotations

from typing import Any

from daemon.checkpoint import CheckpointStore
from daemon.config import Config
from daemon.dead_letters import open_dead_letters
from daemon.loop import Loop
from daemon.sources import open_source
from daemon.trainer import Trainer
from registry import open_registry


def loop_of(config: Config, **parts: Any) -> Loop:
    """Over what the configuration names, but for ``parts``; not started."""
    given = {
        "registry": lambda: open_registry(config.registry, create=True),
        "source": lambda: open_source(config),
        "dead_letters": lambda: open_dead_letters(config),
        "checkpoints": lambda: CheckpointStore(config.checkpoint.path / "checkpoints"),
        "trainer": lambda: Trainer(config.checkpoint.path / "jobs", config.trainer),
    }
    return Loop(
        config, **{name: make() for name, make in given.items() if name not in parts}, **parts
    )
