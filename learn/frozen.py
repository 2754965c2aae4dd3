"""What lies below the trained layers runs once: its output is kept and fed to the layers above.

Frozen layers give the same output in every round. Kept, a round over the top layers costs what
those layers cost: on a six-layer encoder a third to a half of the time.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from learn.model import Model, batches, lengths


class UpperLayers(Model):
    """A model whose encoder begins at a layer, for inputs that `upper_layers` has run to there.

    Parameters and head are those of the model that it was made from.
    """

    def __init__(self, model: Model, hidden: dict[str, NDArray[np.float32]], layer: int) -> None:
        self.whole = model
        self.hidden = hidden
        self.description, self.labels = model.description, model.labels
        self.preprocess, self.device = model.preprocess, model.device
        self.module = copy.copy(model.module)
        self.module._modules = dict(model.module._modules)
        self.module.encoder = _above(model.module.encoder, layer)

    def feeds(self, inputs: NDArray[Any]) -> dict[str, torch.Tensor]:
        """The hidden states [n, t, d] of ``inputs`` [n] in place of their tokens, and the mask."""
        rows = [self.hidden[text] for text in inputs]
        t = max(len(row) for row in rows)
        states = np.zeros((len(rows), t, rows[0].shape[1]), dtype=np.float32)
        mask = np.zeros((len(rows), t), dtype=np.int64)
        for i, row in enumerate(rows):
            states[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {
            "input_ids": torch.from_numpy(states).to(self.device),
            "attention_mask": torch.from_numpy(mask).to(self.device),
        }


def upper_layers(
    model: Model, names: set[str], inputs: NDArray[Any], max_bytes: int
) -> UpperLayers | None:
    """``model`` from the lowest layer on that holds one of the parameters ``names``.

    The layers below are run once over ``inputs`` [n]. None where that gains nothing or cannot be
    done: another kind of encoder, nothing frozen at the bottom, or more than ``max_bytes`` to keep.
    """
    encoder = model.module.encoder
    transformer = getattr(encoder, "transformer", None)
    stack = getattr(getattr(transformer, "encoder", None), "layer", None)
    known = isinstance(stack, nn.ModuleList) and hasattr(transformer, "embeddings")
    if not known or model.description.get("parts"):
        return None
    assert isinstance(stack, nn.ModuleList)
    trained = [layer.name for layer in model.layers() if names.intersection(layer.parameters)]
    numbers = [name.removeprefix("transformer.encoder.layer.") for name in trained]
    if not numbers or not all(number.isdigit() for number in numbers):
        return None
    lowest = min(int(number) for number in numbers)
    if lowest == 0:
        return None
    different = np.empty(len(seen := dict.fromkeys(inputs)), dtype=object)
    different[:] = list(seen)
    hidden = _run_below(model, stack[lowest], different, max_bytes)
    return UpperLayers(model, hidden, lowest) if hidden is not None else None


class _Reached(Exception):  # noqa: N818
    """The layer whose input was wanted has been reached; nothing above need run."""


@torch.inference_mode()
def _run_below(
    model: Model, layer: nn.Module, inputs: NDArray[Any], max_bytes: int
) -> dict[str, NDArray[np.float32]] | None:
    """What ``layer`` is given for each of ``inputs``, float32 [t, d], by input."""
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        caught.append(arguments[0])
        raise _Reached

    model.module.eval()
    hook = layer.register_forward_pre_hook(catch)
    hidden: dict[str, NDArray[np.float32]] = {}
    size = 0
    try:
        for index in batches(lengths(inputs), 32):
            feeds = model.feeds(inputs[index])
            with suppress(_Reached):
                model.module.encoder(**feeds)
            states = caught.pop().float().cpu().numpy()
            masks = feeds["attention_mask"].cpu().numpy().astype(np.bool_)
            for text, row, mask in zip(inputs[index], states, masks, strict=True):
                hidden[text] = row[mask]
                size += hidden[text].nbytes
            if size > max_bytes:
                return None
    finally:
        hook.remove()
    return hidden


class _Given(nn.Module):
    """Stands where the embeddings were: the hidden states are given as the token ids."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        """The hidden states [n, t, d] as they are."""
        return input_ids


def _above(encoder: Any, layer: int) -> nn.Module:
    """A view of a text encoder from ``layer`` on, with the same parameters."""
    transformer = _view(encoder.transformer)
    transformer.embeddings = _Given()
    transformer.encoder = _view(transformer.encoder)
    transformer.encoder.layer = transformer.encoder.layer[layer:]
    above = _view(encoder)
    above.transformer = transformer
    made: nn.Module = above
    return made


def _view(module: nn.Module) -> Any:
    """The same module in a shell of its own, so that a child can be replaced in it."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    return shell
