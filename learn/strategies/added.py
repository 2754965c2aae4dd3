"""Strategies that add a part to a frozen encoder: bottleneck adapter, prefix, prompt.

The part stays in the encoder (see `learn.parts`) and costs its share of every prediction.
"""

from __future__ import annotations

import torch

from learn import parts
from learn.config import LearnConfig
from learn.model import Model
from learn.strategies.encoder import EncoderStrategy, Moved


class Added(EncoderStrategy):
    """Trains the part ``part`` of ``size``, added where the encoder has none, and the head."""

    def __init__(
        self, config: LearnConfig, name: str, part: parts.Part, size: int, rate: float
    ) -> None:
        super().__init__(config)
        self.name, self.part, self.size, self.rate = name, part, size, rate

    def unfreeze(self, model: Model, seed: int) -> Moved:
        """The part's parameters. ValueError where the encoder has no place for it."""
        torch.manual_seed(seed)  # a new part begins at random
        model.add_part(self.part, self.size)
        return parts.parameters(model.module.encoder, self.part), self.rate


def adapter(config: LearnConfig) -> Added:
    """Bottleneck adapters (Houlsby et al. 2019)."""
    settings = config.training
    return Added(config, "adapter", "bottleneck", settings.adapter_width, settings.lora_rate)


def prefix(config: LearnConfig) -> Added:
    """Prefix tuning (Li & Liang 2021)."""
    settings = config.training
    return Added(config, "prefix", "prefix", settings.virtual_tokens, settings.prompt_rate)


def prompt(config: LearnConfig) -> Added:
    """Prompt tuning (Lester et al. 2021)."""
    settings = config.training
    return Added(config, "prompt", "prompt", settings.virtual_tokens, settings.prompt_rate)
