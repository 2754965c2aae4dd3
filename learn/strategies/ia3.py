"""IA3 (Liu et al. 2022) through peft: keys, values and hidden activations scaled, merged after."""

from __future__ import annotations

import numpy as np
import peft
from numpy.typing import NDArray

from learn.model import Model
from learn.strategies.encoder import EncoderStrategy, Moved
from learn.strategies.lora import adapters, linear_layers, merge


class Ia3(EncoderStrategy):
    """A factor for each key, value and feed-forward activation, and the head."""

    name = "ia3"

    def unfreeze(self, model: Model, seed: int) -> Moved:
        """The factors, put into the encoder; all of them begin at one."""
        encoder = model.module.encoder
        scaled = linear_layers(encoder, ("key", "value"))
        # The second layer of a feed-forward block takes what is scaled as its input.
        fed = [
            name
            for name in linear_layers(encoder, ("dense",))
            if name.endswith("output.dense") and "attention" not in name
        ]
        peft.inject_adapter_in_model(
            peft.IA3Config(target_modules=[*scaled, *fed], feedforward_modules=fed), encoder
        )
        return list(adapters(model, "ia3_").values()), self.config.training.ia3_rate

    def finish(self, model: Model) -> dict[str, NDArray[np.float32]] | None:
        """Multiply each layer by its factors and put the plain layer back in its place."""
        return merge(model, peft.tuners.ia3.IA3Layer, "ia3_")
