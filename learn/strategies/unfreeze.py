"""Unfreezing from the top: the last layers (`Partial`) or everything (`Full`), and the head."""

from __future__ import annotations

from typing import Literal

from torch import nn

from learn.model import Layer, Model
from learn.strategies.encoder import EncoderStrategy


class Partial(EncoderStrategy):
    """The top layers of the encoder and the head; what lies below stays as it is."""

    name = "partial"
    rung: Literal["partial"] = "partial"

    def unfreeze(self, model: Model, seed: int) -> tuple[list[nn.Parameter], float]:
        """Parameters of the last ``training.top_layers`` numbered layers."""
        settings = self.config.training
        layers = [layer for layer in model.layers() if layer.name != "embeddings"]
        return _parameters(model, layers[-settings.top_layers :]), settings.encoder_rate


class Full(EncoderStrategy):
    """All encoder weights and the head."""

    name = "full"
    rung: Literal["full"] = "full"

    def unfreeze(self, model: Model, seed: int) -> tuple[list[nn.Parameter], float]:
        """Every encoder parameter."""
        return _parameters(model, model.layers()), self.config.training.encoder_rate


def _parameters(model: Model, layers: list[Layer]) -> list[nn.Parameter]:
    wanted = {name for layer in layers for name in layer.parameters}
    return [p for name, p in model.module.named_parameters() if name in wanted]
