"""LoRA (Hu et al. 2021) through peft: low-rank updates of attention, merged for serving."""

from __future__ import annotations

from typing import Literal

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch import nn

from learn.model import Model
from learn.strategies.encoder import EncoderStrategy


class Lora(EncoderStrategy):
    """Adapters over a frozen encoder, and the head."""

    name = "lora"
    rung: Literal["lora"] = "lora"

    def unfreeze(self, model: Model, seed: int) -> tuple[list[nn.Parameter], float]:
        """The adapters, put into the encoder. ValueError where it has no layer to adapt."""
        settings = self.config.training
        adapted = peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules=_targets(model.module.encoder, settings.lora_targets),
        )
        torch.manual_seed(seed)  # the adapters begin at random
        # Injected in place: the module keeps its shape and its way through `forward`.
        peft.inject_adapter_in_model(adapted, model.module.encoder)
        return list(_adapters(model).values()), settings.lora_rate

    def finish(self, model: Model) -> dict[str, NDArray[np.float32]] | None:
        """Add each low-rank product to its layer and put the plain layer back in its place."""
        adapter = {n: p.detach().cpu().numpy().copy() for n, p in _adapters(model).items()}
        modules = dict(model.module.encoder.named_modules())
        for name, layer in modules.items():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(modules[parent], child, layer.get_base_layer())
        return adapter


def _targets(encoder: nn.Module, wanted: tuple[str, ...]) -> list[str]:
    """The linear layers of those names; all of them in an encoder that names none so."""
    linear = [name for name, layer in encoder.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in linear if name.rpartition(".")[2] in wanted] or linear


def _adapters(model: Model) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.module.named_parameters() if "lora_" in n}
