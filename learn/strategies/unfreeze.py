"""Unfreezing from the top: the last layers (`Partial`) or everything (`Full`), and the head."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from learn.model import Model
from learn.strategies.encoder import EncoderStrategy, Moved, numbered, parameters_of
from learn.training import Stage


class Partial(EncoderStrategy):
    """The top layers of the encoder and the head; what lies below stays, and runs only once."""

    name = "partial"

    def unfreeze(self, model: Model, seed: int) -> Moved:
        """Parameters of the last ``training.top_layers`` numbered layers."""
        settings = self.config.training
        top = numbered(model)[-settings.top_layers :]
        return parameters_of(model, top), settings.encoder_rate

    def stages(self, model: Model, seed: int, inputs: NDArray[Any]) -> list[Stage]:
        """One, over the kept output of the layers below."""
        top = numbered(model)[-self.config.training.top_layers :]
        [whole] = super().stages(model, seed, inputs)
        return [Stage(lambda: self.above(model, top, inputs), whole.groups, whole.rounds)]


class Full(EncoderStrategy):
    """All encoder weights and the head."""

    name = "full"

    def unfreeze(self, model: Model, seed: int) -> Moved:
        """Every encoder parameter."""
        return parameters_of(model, model.layers()), self.config.training.encoder_rate
