"""LoRA (Hu et al. 2021) through peft: low-rank updates of attention, merged for serving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import peft
import torch
from torch import nn

from learn.config import LearnConfig
from learn.examples import Examples
from learn.strategy import Round, Start, Update
from learn.training import changed, refit_head, train


class Lora:
    """Adapters over a frozen encoder, and the head."""

    name = "lora"
    rung: Literal["lora"] = "lora"
    trains_encoder = True

    def __init__(self, config: LearnConfig) -> None:
        self.config = config

    def fit(
        self,
        start: Start,
        train_on: Examples,
        validation: Examples,
        report: Callable[[Round], None],
    ) -> Update:
        """See `Strategy.fit`. Raises ValueError where the encoder has no layer to adapt."""
        settings = self.config.training
        model = start.load()
        model.set_head(start.head)
        before = {k: v.clone() for k, v in model.module.state_dict().items()}
        adapted = peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules=list(settings.lora_targets),
        )
        torch.manual_seed(start.seed)  # the adapters begin at random
        # Injected in place: the module keeps its shape and its way through `forward`.
        peft.inject_adapter_in_model(adapted, model.module.encoder)
        adapter = {n: p for n, p in model.module.named_parameters() if "lora_" in n}
        head = list(model.module.head.parameters())
        groups = [(list(adapter.values()), settings.lora_rate), (head, settings.head_rate)]
        done = train(model, groups, start, train_on, validation, settings, report)
        parameters = dict(model.module.named_parameters())
        for name, value in done.weights.items():
            parameters[name].data.copy_(parameters[name].new_tensor(value))
        saved = {n: p.detach().cpu().numpy().copy() for n, p in adapter.items()}
        touched = sum(p.numel() for p in [*adapter.values(), *head])
        _merge(model.module.encoder)
        fitted = refit_head(model, train_on, validation, model.head, self.config.l2)
        return Update(
            head=fitted,
            encoder=changed(model, before),
            adapter=saved,
            parameters_touched=touched,
            rounds=done.rounds,
            stopped=done.stopped,
        )


def _merge(encoder: nn.Module) -> None:
    """Add each low-rank product to its layer and put the plain layer back in its place."""
    modules = dict(encoder.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, layer.get_base_layer())
