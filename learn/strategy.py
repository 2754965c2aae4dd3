"""The contract of an update strategy: from a starting version and examples to an update.

A strategy owns no file and moves no alias; it answers with the weights that changed and the
training panel that explains how it went.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learn.examples import Examples
from learn.head import Head

if TYPE_CHECKING:
    from learn.model import Model


@dataclass(frozen=True, slots=True)
class Round:
    """One line of the training panel.

    gradient_norm: mean over the steps, before clipping. update_to_weight: median |step| / |weight|
    (healthy: 1e-3 to 1e-1). loss_fall: of the training loss against the round before.
    accuracy_gain: in validation points. gap: validation loss minus training loss (healthy: < 0.2).
    """

    number: int
    seconds: float
    gradient_norm: float
    update_to_weight: float
    train_loss: float
    validation_loss: float
    loss_fall: float
    validation_accuracy: float
    accuracy_gain: float
    gap: float


@dataclass(frozen=True, slots=True)
class Start:
    """Where a refresh begins: the new version's labels, the parent's head grown to them, and
    ``load`` for the whole model, which only strategies that train the encoder call.

    held: classes of which nothing new came, whose part of the head is held where it is. target:
    validation accuracy, 0 to 1, that suffices. keep: the file that a run leaves after each
    round, and goes on from if it is there.
    """

    labels: list[str]
    head: Head
    load: Callable[[], Model]
    seed: int
    threads: int
    cpu_seconds: float
    held: tuple[int, ...] = ()
    target: float | None = None
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What changed. encoder: FP32 parameters by name (LoRA merged in). architecture: the entries of
    ``model.json`` that are others now, for which no weights fit the parent's graph. whole: the
    encoder is a new one, and ``encoder`` is all of it. stopped: why training ended before its time,
    if it did; its kind, a colon, the sentence."""

    head: Head
    encoder: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    adapter: dict[str, NDArray[np.float32]] | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    parameters_touched: int = 0
    rounds: list[Round] = field(default_factory=list)
    stopped: str | None = None


class Strategy(Protocol):
    """One way to update a model."""

    @property
    def name(self) -> str:
        """What the config and the journal call it."""

    def fit(
        self,
        start: Start,
        train_on: Examples,
        validation: Examples,
        report: Callable[[Round], None],
    ) -> Update:
        """Learn from ``train_on`` (embeddings filled in), judge rounds on ``validation``."""
