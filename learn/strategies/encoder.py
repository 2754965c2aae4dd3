"""What every strategy with encoder weights shares: head first, then train, keep the best round.

The head is fitted before the encoder moves, so that its first gradients do not distort features
that were good (Kumar et al. 2022), and again at the end. A strategy says which parameters move and
at which rate, and may finish the model afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from learn.config import LearnConfig
from learn.examples import Examples
from learn.frozen import upper_layers
from learn.model import Layer, Model
from learn.strategy import Round, Start, Update
from learn.training import Stage, changed, fit_head, refit_head, train

Moved = tuple[list[nn.Parameter], float]


class EncoderStrategy:
    """The frame; a subclass gives `unfreeze`, and `finish` where it changed the module."""

    def __init__(self, config: LearnConfig) -> None:
        self.config = config

    def unfreeze(self, model: Model, seed: int) -> Moved:
        """The encoder parameters to train, and their peak learning rate."""
        raise NotImplementedError

    def stages(self, model: Model, seed: int, inputs: NDArray[Any]) -> list[Stage]:
        """The course of training; ``inputs`` are all that it will run the model on."""
        settings = self.config.training
        head = list(model.module.head.parameters())
        groups = [self.unfreeze(model, seed), (head, settings.head_rate)]
        return [Stage(lambda: model, groups, settings.rounds)]

    def finish(self, model: Model) -> dict[str, NDArray[np.float32]] | None:
        """Give the module its plain shape back; the adapter by itself, if there was one."""
        return None

    def fit(
        self,
        start: Start,
        train_on: Examples,
        validation: Examples,
        report: Callable[[Round], None],
    ) -> Update:
        """See `Strategy.fit`."""
        model = start.load()
        model.set_head(fit_head(model, train_on, validation, start.head, self.config.l2))
        before = {k: v.clone() for k, v in model.module.state_dict().items()}
        parts = model.description.get("parts")
        inputs = Examples.concatenate([train_on, validation]).inputs
        stages = self.stages(model, start.seed, inputs)
        settings = self.config.training
        rounds, stopped, run = train(stages, start, train_on, validation, settings, report)
        touched = {id(p): p.numel() for s in stages for group, _ in s.groups for p in group}
        adapter = self.finish(model)
        head = refit_head(run or model, train_on, validation, model.head, self.config.l2)
        found = model.description.get("parts")
        return Update(
            head=head,
            encoder=changed(model, before),
            adapter=adapter,
            architecture={"parts": found} if found != parts else {},
            parameters_touched=sum(touched.values()),
            rounds=rounds,
            stopped=stopped,
        )

    def above(self, model: Model, layers: list[Layer], inputs: NDArray[Any]) -> Model:
        """``model`` from ``layers`` on, over what is kept of those below; whole if that fails."""
        names = {name for layer in layers for name in layer.parameters}
        limit = self.config.training.frozen_mb * 1024 * 1024
        return upper_layers(model, names, inputs, limit) or model


def numbered(model: Model) -> list[Layer]:
    """The layers above the embeddings, bottom to top."""
    return [layer for layer in model.layers() if layer.name != "embeddings"]


def parameters_of(model: Model, layers: list[Layer]) -> list[nn.Parameter]:
    """Their parameters, in the module's order."""
    wanted = {name for layer in layers for name in layer.parameters}
    return [p for name, p in model.module.named_parameters() if name in wanted]
