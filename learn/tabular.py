"""Table encoders: random features for the ensemble, or a small residual network.

The preprocessor has brought the numbers near one and indexed the categories; the rest is in the
graph, the ensemble's running standardisation too.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from learn.config import ModelConfig
from learn.random_features import (
    CUT,
    HIGHEST,
    LOWEST,
    STEPS,
    Columns,
    RandomFeatures,
    columns_of,
)

CATEGORY_WIDTH = 8


class TableEncoder(nn.Module):
    """Standardised numbers and category indices to embeddings, float32 [n, d]."""

    def __init__(self, numbers: int, categories: list[int], dimension: int) -> None:
        super().__init__()
        self.categories = nn.ModuleList(nn.Embedding(n, CATEGORY_WIDTH) for n in categories)
        width = numbers + CATEGORY_WIDTH * len(categories)
        self.enter = nn.Linear(width, dimension)
        self.blocks = nn.ModuleList(nn.Linear(dimension, dimension) for _ in range(2))
        self.norm = nn.LayerNorm(dimension)

    def forward(
        self, numeric: torch.Tensor | None = None, category: torch.Tensor | None = None
    ) -> torch.Tensor:
        """numeric: float32 [n, f]. category: int64 [n, c]."""
        parts = [] if numeric is None else [numeric]
        if category is not None:
            parts += [table(category[:, i]) for i, table in enumerate(self.categories)]
        hidden = torch.relu(self.enter(torch.cat(parts, dim=1)))
        for block in self.blocks:
            hidden = hidden + torch.relu(block(hidden))
        embedding: torch.Tensor = self.norm(hidden)
        return embedding


class RandomFeatureEncoder(nn.Module):
    """The row and its random features, float32 [n, d]: the torch twin of `TabularEnsemble.embed`.

    shift, gain: float32 [f], the running standardisation of the numbers.
    """

    shift: torch.Tensor
    gain: torch.Tensor
    bounds: torch.Tensor

    def __init__(self, columns: Columns, features: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(columns.numbers))
        self.register_buffer("gain", torch.ones(columns.numbers))
        self.categories = nn.ModuleList(
            nn.Embedding(size, width)
            for size, width in zip(columns.categories, columns.widths, strict=True)
        )
        # Two constant columns, which weigh nothing, fix the range of the INT8 activations.
        self.register_buffer("bounds", torch.tensor([[LOWEST, HIGHEST]]))
        self.waves = nn.Linear(columns.width + 2, 2 * features)

    def forward(
        self, numeric: torch.Tensor | None = None, category: torch.Tensor | None = None
    ) -> torch.Tensor:
        """numeric: float32 [n, f]. category: int64 [n, c]."""
        parts = []
        if numeric is not None:
            parts.append(torch.clamp((numeric - self.shift) * self.gain, -CUT, CUT))
        if category is not None:
            parts += [table(category[:, i]) for i, table in enumerate(self.categories)]
        row = torch.cat(parts, dim=1)
        coarse = torch.clamp(torch.round(row * STEPS) / STEPS, LOWEST, HIGHEST)
        bounds = torch.zeros_like(row[:, :1]) + self.bounds
        waves = torch.cos(self.waves(torch.cat([coarse, bounds], dim=1)))
        return torch.cat([row, math.sqrt(2.0) * waves], dim=1)

    def put(self, random: RandomFeatures) -> None:
        """Take on these random features."""
        padded = np.pad(random.frequencies.T, ((0, 0), (0, 2)))
        weights = {"waves.weight": padded, "waves.bias": random.phases}
        weights |= {f"categories.{i}.weight": v for i, v in enumerate(random.vectors)}
        taken = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        self.load_state_dict(self.state_dict() | taken)


def table_encoder(
    config: ModelConfig, preprocess: Any, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """A fresh encoder for the preprocessor's columns, and its description."""
    feeds = preprocess.sample(1).feeds()
    numbers = feeds["numeric"].shape[1] if "numeric" in feeds else 0
    sizes = tuple(preprocess.category_sizes)
    if config.table == "network":
        description: dict[str, Any] = {"dimension": config.dimension, "numbers": numbers}
        description["categories"] = list(sizes)
        return empty_encoder(description), description
    lagged = config.lagged_labels
    named = 0 if config.number else lagged
    columns = Columns(numbers, sizes, (len(config.context) - named, named))
    description = {"dimension": columns.width + 2 * config.random_features, **asdict(columns)}
    description["random_features"] = config.random_features
    if config.number:
        description["target"] = config.target
    encoder = RandomFeatureEncoder(columns, config.random_features)
    encoder.put(RandomFeatures.draw(columns, config.random_features, seed))
    return encoder, description


def empty_encoder(description: dict[str, Any]) -> nn.Module:
    """An encoder of this description, randomly initialised."""
    if "random_features" in description:
        return RandomFeatureEncoder(columns_of(description), description["random_features"])
    return TableEncoder(
        description["numbers"], list(description["categories"]), description["dimension"]
    )
