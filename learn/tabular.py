"""Table encoders: numbers and category embeddings through a small residual network.

The preprocessor has standardised the numbers and indexed the categories; the rest is in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from learn.config import ModelConfig

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


def table_encoder(config: ModelConfig, preprocess: Any) -> tuple[TableEncoder, dict[str, Any]]:
    """A fresh encoder for the preprocessor's columns, and its description."""
    feeds = preprocess.sample(1).feeds()
    numbers = feeds["numeric"].shape[1] if "numeric" in feeds else 0
    description = {
        "dimension": config.dimension,
        "numbers": numbers,
        "categories": list(preprocess.category_sizes),
    }
    return empty_encoder(description), description


def empty_encoder(description: dict[str, Any]) -> TableEncoder:
    """An encoder of this description, randomly initialised."""
    return TableEncoder(
        description["numbers"], list(description["categories"]), description["dimension"]
    )
