"""What every strategy with encoder weights shares: train, keep the best round, refit the head.

A strategy says which parameters move and at which rate, and may finish the model afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from learn.config import LearnConfig
from learn.examples import Examples
from learn.model import Model
from learn.strategy import Round, Start, Update
from learn.training import changed, refit_head, train


class EncoderStrategy:
    """The frame; a subclass gives `unfreeze`, and `finish` where it changed the module."""

    trains_encoder = True

    def __init__(self, config: LearnConfig) -> None:
        self.config = config

    def unfreeze(self, model: Model, seed: int) -> tuple[list[nn.Parameter], float]:
        """The encoder parameters to train, and their peak learning rate."""
        raise NotImplementedError

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
        settings = self.config.training
        model = start.load()
        model.set_head(start.head)
        before = {k: v.clone() for k, v in model.module.state_dict().items()}
        encoder, rate = self.unfreeze(model, start.seed)
        head = list(model.module.head.parameters())
        groups = [(encoder, rate), (head, settings.head_rate)]
        rounds, stopped = train(model, groups, start, train_on, validation, settings, report)
        touched = sum(p.numel() for p in [*encoder, *head])
        adapter = self.finish(model)
        fitted = refit_head(model, train_on, validation, model.head, self.config.l2)
        return Update(
            head=fitted,
            encoder=changed(model, before),
            adapter=adapter,
            parameters_touched=touched,
            rounds=rounds,
            stopped=stopped,
        )
