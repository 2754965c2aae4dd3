"""Progressive unfreezing (Howard & Ruder 2018): from the top down, only as far as needed.

Each round unfreezes one layer more, every layer at a lower rate than the one above it. It ends at
the accuracy that suffices, or where a round gains too little; the embedding table stays frozen.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numpy.typing import NDArray

from learn.model import Model
from learn.strategies.encoder import EncoderStrategy, numbered, parameters_of
from learn.training import Stage


class Progressive(EncoderStrategy):
    """The head, then with it the top layer, the top two, and so on down."""

    name = "progressive"

    def stages(self, model: Model, seed: int, inputs: NDArray[Any]) -> list[Stage]:
        """A round for each layer, with the layers below run once and kept."""
        settings = self.config.training
        head = (list(model.module.head.parameters()), settings.head_rate)
        layers = numbered(model)
        groups = [
            (parameters_of(model, [layer]), settings.encoder_rate / settings.layer_decay**depth)
            for depth, layer in enumerate(reversed(layers))
        ]
        return [
            Stage(
                partial(self.above, model, layers[-depth:], inputs),
                [head, *groups[:depth]],
                rounds=1,
            )
            for depth in range(1, len(layers) + 1)
        ]
