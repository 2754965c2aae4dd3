"""Unfreezing from the top: the last layers (`Partial`) or everything (`Full`), and the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from learn.config import LearnConfig
from learn.examples import Examples
from learn.model import Model
from learn.strategy import Round, Start, Update
from learn.training import changed, refit_head, train


class _Unfreeze:
    trains_encoder = True

    def __init__(self, config: LearnConfig) -> None:
        self.config = config

    def names(self, model: Model) -> set[str]:
        """The encoder parameters to train."""
        raise NotImplementedError

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
        wanted = self.names(model)
        encoder = [p for name, p in model.module.named_parameters() if name in wanted]
        head = list(model.module.head.parameters())
        groups = [(encoder, settings.encoder_rate), (head, settings.head_rate)]
        done = train(model, groups, start, train_on, validation, settings, report)
        best = {**before, **{k: before[k].new_tensor(v) for k, v in done.weights.items()}}
        model.module.load_state_dict(best)
        fitted = refit_head(model, train_on, validation, model.head, self.config.l2)
        return Update(
            head=fitted,
            encoder=changed(model, before),
            parameters_touched=sum(p.numel() for p in [*encoder, *head]),
            rounds=done.rounds,
            stopped=done.stopped,
        )


class Partial(_Unfreeze):
    """The top layers of the encoder and the head; what lies below stays as it is."""

    name = "partial"
    rung: Literal["partial"] = "partial"

    def names(self, model: Model) -> set[str]:
        """Parameters of the last ``training.top_layers`` numbered layers."""
        layers = [layer for layer in model.layers() if layer.name != "embeddings"]
        return {
            name
            for layer in layers[-self.config.training.top_layers :]
            for name in layer.parameters
        }


class Full(_Unfreeze):
    """All encoder weights and the head."""

    name = "full"
    rung: Literal["full"] = "full"

    def names(self, model: Model) -> set[str]:
        """Every encoder parameter."""
        return {name for layer in model.layers() for name in layer.parameters}
