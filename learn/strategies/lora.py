"""LoRA (Hu et al. 2021) through peft: low-rank updates of attention, merged for serving."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch import nn

from learn.model import Model
from learn.strategies.encoder import EncoderStrategy, Moved


class Lora(EncoderStrategy):
    """Adapters over a frozen encoder, and the head."""

    name = "lora"

    def unfreeze(self, model: Model, seed: int) -> Moved:
        """The adapters, put into the encoder. ValueError where it has no layer to adapt."""
        settings = self.config.training
        adapted = peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules=linear_layers(model.module.encoder, settings.lora_targets),
        )
        torch.manual_seed(seed)  # the adapters begin at random
        # Injected in place: the module keeps its shape and its way through `forward`.
        peft.inject_adapter_in_model(adapted, model.module.encoder)
        return list(adapters(model, "lora_").values()), settings.lora_rate

    def finish(self, model: Model) -> dict[str, NDArray[np.float32]] | None:
        """Add each low-rank product to its layer and put the plain layer back in its place."""
        return merge(model, peft.tuners.lora.LoraLayer, "lora_")


def linear_layers(encoder: nn.Module, wanted: tuple[str, ...]) -> list[str]:
    """The linear layers of those names; all of them in an encoder that names none so."""
    linear = [name for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in linear if name.rpartition(".")[2] in wanted] or linear


def adapters(model: Model, mark: str) -> dict[str, nn.Parameter]:
    """The parameters that peft injected, by name: those whose name holds ``mark``."""
    return {n: p for n, p in model.module.named_parameters() if mark in n}


def merge(model: Model, kind: type[Any], mark: str) -> dict[str, NDArray[np.float32]]:
    """Merge peft's layers of this ``kind`` into plain ones; what the adapters were, by name."""
    found = {n: p.detach().cpu().numpy().copy() for n, p in adapters(model, mark).items()}
    modules = dict(model.module.encoder.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, kind):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, layer.get_base_layer())
    return found
