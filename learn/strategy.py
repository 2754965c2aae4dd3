"""The contract of an update strategy: from a starting version and examples to an update.

A strategy owns no file and moves no alias; it answers with the weights that changed and the
training panel that explains how it went.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from learn.examples import Examples
from learn.head import Head

if TYPE_CHECKING:
    from learn.model import Model


@dataclass(frozen=True, slots=True)
class Round:
    """One line of the training panel.

    gradient_norm: mean over the steps, before clipping. update_to_weight: mean of |step| / |weight|
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
    ``load`` for the whole model, which only strategies that train the encoder call."""

    labels: list[str]
    head: Head
    load: Callable[[], Model]
    seed: int
    threads: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Update:
    """What changed. encoder: FP32 parameters by name (LoRA merged in). stopped: why training
    ended before its time, if it did."""

    head: Head
    encoder: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    adapter: dict[str, NDArray[np.float32]] | None = None
    parameters_touched: int = 0
    rounds: list[Round] = field(default_factory=list)
    stopped: str | None = None


class Strategy(Protocol):
    """One way to update a model."""

    @property
    def name(self) -> str:
        """What the config and the journal call it."""

    @property
    def rung(self) -> Literal["head", "partial", "lora", "full"]:
        """Its rung of the ladder."""

    @property
    def trains_encoder(self) -> bool:
        """Whether it needs the whole model, not only the embeddings."""

    def fit(
        self,
        start: Start,
        train_on: Examples,
        validation: Examples,
        report: Callable[[Round], None],
    ) -> Update:
        """Learn from ``train_on`` (embeddings filled in), judge rounds on ``validation``."""
