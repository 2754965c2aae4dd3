"""Parts that a strategy adds to an encoder and that stay in it: they cannot be merged into weights.

``model.json`` names them with their sizes, so that a version's encoder is built again with them;
its graph is exported anew when a part is added, and patched like any other from then on. Written
out here, for peft has no bottleneck adapter, and its prompts move every token's position and live
in a wrapper that no graph can be exported from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

Part = Literal["bottleneck", "prefix", "prompt"]
NOISE = 0.02  # standard deviation of what begins at random, as in BERT


class Adapted(nn.Linear):
    """A linear layer and, after it, a bottleneck with a residual path (Houlsby et al. 2019).

    A subclass, so that the layer's own parameters keep their names.
    """

    def __init__(self, base: nn.Linear, width: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.down = nn.Linear(base.out_features, width)
        self.up = nn.Linear(width, base.out_features)
        nn.init.normal_(self.down.weight, std=NOISE)
        # An adapter that does nothing yet: training begins at the parent's answers.
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.to(base.weight.device)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Float32 [..., out] for [..., in]."""
        found = super().forward(values)
        adapted: torch.Tensor = found + self.up(nn.functional.gelu(self.down(found)))
        return adapted


class Prefix:
    """Learned keys and values before the tokens' own, in every layer (Li & Liang 2021).

    Has the two methods of a cache that an attention layer of transformers calls.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers

    def get_seq_length(self, *_: Any) -> int:
        """The prefix takes no positions: the tokens keep those that they were pretrained with."""
        return 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the tokens, [n, heads, t, d], with those of the prefix before them."""
        own, n = self.layers[layer], key.shape[0]
        return (
            torch.cat([own.prefix_key.expand(n, -1, -1, -1), key], dim=2),
            torch.cat([own.prefix_value.expand(n, -1, -1, -1), value], dim=2),
        )


def attach(encoder: nn.Module, parts: Mapping[str, int]) -> None:
    """Add ``parts``, names to sizes, to an encoder that has none of them.

    bottleneck: the width of adapters after each block's output projections. prefix: virtual keys
    and values in each attention layer. prompt: virtual tokens before the text. Raises ValueError
    where the encoder has no place for a part.
    """
    for name, size in parts.items():
        if name == "bottleneck":
            _add_bottlenecks(encoder, size)
        elif name == "prefix":
            _add_prefix(encoder, size)
        elif name == "prompt":
            _add_prompt(encoder, size)
        else:
            raise ValueError(f"unknown part {name!r} in model.json: this driftd is too old for it")


def parameters(encoder: nn.Module, part: Part) -> list[nn.Parameter]:
    """The parameters that ``part`` brought into the encoder."""
    if part == "bottleneck":
        adapted = [m for m in encoder.modules() if isinstance(m, Adapted)]
        return [p for m in adapted for layer in (m.down, m.up) for p in layer.parameters()]
    ends = {"prefix": ("prefix_key", "prefix_value"), "prompt": ("prompt",)}[part]
    return [p for name, p in encoder.named_parameters() if name.rpartition(".")[2] in ends]


def attention(encoder: nn.Module) -> list[Any]:
    """The self-attention layers, bottom to top: what projects to keys and values."""
    return [m for m in encoder.modules() if hasattr(m, "key") and hasattr(m, "value")]


def _add_bottlenecks(encoder: nn.Module, width: int) -> None:
    places = list(_output_projections(encoder))
    if not places:
        raise ValueError("a bottleneck adapter needs an encoder with linear layers in its blocks")
    for parent, child in places:
        setattr(parent, child, Adapted(getattr(parent, child), width))


def _output_projections(encoder: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where a block gives back to its residual stream: transformers' ``output.dense``, or a
    table's blocks themselves."""
    for name, module in list(encoder.named_modules()):
        if name.endswith("output") and isinstance(getattr(module, "dense", None), nn.Linear):
            yield module, "dense"
        elif isinstance(module, nn.ModuleList):
            for child, layer in module.named_children():
                if isinstance(layer, nn.Linear):
                    yield module, child


def _add_prefix(encoder: nn.Module, size: int) -> None:
    layers = attention(encoder)
    if not layers or not all(hasattr(m, "num_attention_heads") for m in layers):
        raise ValueError("a prefix needs a text encoder whose attention is BERT's or RoBERTa's")
    for layer in layers:
        heads = layer.num_attention_heads
        for name in ("prefix_key", "prefix_value"):
            start = NOISE * torch.randn(1, heads, size, layer.key.out_features // heads)
            layer.register_parameter(name, nn.Parameter(start.to(layer.key.weight.device)))


def _add_prompt(encoder: nn.Module, size: int) -> None:
    transformer = getattr(encoder, "transformer", None)
    if transformer is None:
        raise ValueError("a prompt needs a text encoder: a table has no tokens to put it before")
    words = transformer.get_input_embeddings().weight.detach()
    # Real words are the better start (Lester et al. 2021).
    drawn = torch.randint(len(words), (size,))
    encoder.register_parameter("prompt", nn.Parameter(words[drawn].clone().unsqueeze(0)))
