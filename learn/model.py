"""Encoder and head as one torch module, and the files it is saved as.

``forward(**feeds)`` gives (embedding [n, d], logits [n, k], probabilities [n, k]); parameters are
named ``encoder.*``, ``head.weight`` [d, k] and ``head.bias`` [k]. Preprocessing is injected, so
that training and serving share it without this room knowing the server's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from learn.config import ModelConfig
from learn.head import Head
from learn.parts import Part, attach

Feeds = dict[str, NDArray[Any]]
Preprocess = Callable[[NDArray[Any]], Feeds]

PREFIX = "encoder."


class Layer(NamedTuple):
    """A layer of the encoder: its name and the full names of its parameters."""

    name: str
    parameters: tuple[str, ...]


class LinearHead(nn.Module):
    """``logits = embedding @ weight + bias``, the weight stored as [d, k]."""

    def __init__(self, dimension: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension, classes))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Float32 [n, k] for float32 [n, d]."""
        return embedding @ self.weight + self.bias


class Classifier(nn.Module):
    """An encoder and the linear head over it."""

    def __init__(self, encoder: nn.Module, dimension: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = LinearHead(dimension, classes)

    def forward(self, **feeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedding, logits and probabilities."""
        embedding = self.encoder(**feeds)
        logits = self.head(embedding)
        return embedding, logits, torch.softmax(logits, dim=-1)


class Model:
    """A classifier with its labels, on a device."""

    def __init__(
        self,
        module: Classifier,
        description: dict[str, Any],
        preprocess: Preprocess,
        *,
        device: str = "cpu",
    ) -> None:
        self.module = module.to(device).eval()
        self.description = description
        self.labels: list[str] = list(description["labels"])
        self.preprocess = preprocess
        self.device = device

    @property
    def dimension(self) -> int:
        """``d``, the width of an embedding."""
        return self.module.head.weight.shape[0]

    def feeds(self, inputs: NDArray[Any]) -> dict[str, torch.Tensor]:
        """The module's keyword arguments for ``inputs`` [n]."""
        return {k: torch.from_numpy(a).to(self.device) for k, a in self.preprocess(inputs).items()}

    @torch.inference_mode()
    def encode(self, inputs: NDArray[Any], batch: int = 32) -> NDArray[np.float32]:
        """Embeddings, float32 [n, d], in the order of ``inputs`` [n]."""
        self.module.eval()
        out = np.empty((len(inputs), self.dimension), dtype=np.float32)
        for index in batches(lengths(inputs), batch):
            out[index] = self.module.encoder(**self.feeds(inputs[index])).float().cpu().numpy()
        return out

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, float32 [n, k]."""
        return self.head.logits(self.encode(inputs))

    @property
    def head(self) -> Head:
        """The head as arrays (a copy)."""
        head = self.module.head
        return Head(
            head.weight.detach().cpu().numpy().copy(), head.bias.detach().cpu().numpy().copy()
        )

    def set_head(self, head: Head) -> None:
        """Replace the head; the number of classes may change."""
        layer = LinearHead(*head.weight.shape).to(self.device)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(head.weight))
            layer.bias.copy_(torch.from_numpy(head.bias))
        self.module.head = layer

    def grow(self, labels: list[str]) -> None:
        """Take on ``labels``, which must begin with the present ones; logits of those stay."""
        if labels[: len(self.labels)] != self.labels:
            raise ValueError("a model grows at the end: the new labels must begin with the old")
        self.set_head(self.head.grow(len(labels)))
        self.labels = list(labels)
        self.description = {**self.description, "labels": self.labels}

    def add_part(self, name: Part, size: int) -> bool:
        """Add a part of `learn.parts` to the encoder; False if it has it already."""
        parts: dict[str, int] = self.description.get("parts", {})
        if name in parts:
            return False
        attach(self.module.encoder, {name: size})
        self.description = {**self.description, "parts": {**parts, name: size}}
        return True

    def layers(self) -> list[Layer]:
        """The encoder's layers, bottom to top."""
        groups: dict[str, list[str]] = {}
        for name, _ in self.module.encoder.named_parameters():
            parts = name.split(".")
            number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
            key = ".".join(parts[: number + 1]) if number is not None else "embeddings"
            groups.setdefault(key, []).append(PREFIX + name)
        return [Layer(name, tuple(names)) for name, names in groups.items()]

    def save(self, folder: Path) -> None:
        """Write ``model.json``, ``encoder.safetensors`` and ``head.safetensors``."""
        (folder / "model.json").write_text(json.dumps(self.description, indent=1))
        weights = {
            PREFIX + name: tensor.detach().cpu().contiguous()
            for name, tensor in self.module.encoder.state_dict().items()
        }
        save_file(weights, folder / "encoder.safetensors")
        head = self.module.head
        save_file(
            {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()},
            folder / "head.safetensors",
        )


def create_model(
    config: ModelConfig, labels: list[str], preprocess: Preprocess, seed: int = 0
) -> Model:
    """A new model with an empty head: a pretrained text encoder, or a fresh table encoder."""
    encoder: nn.Module
    if config.task == "text":
        from learn.text import pretrained_encoder

        encoder, architecture = pretrained_encoder(config.base)
    else:
        from learn.tabular import table_encoder

        encoder, architecture = table_encoder(config, preprocess, seed)
    width = int(architecture["dimension"])
    description = {"kind": config.task, "labels": list(labels), **architecture}
    return Model(Classifier(encoder, width, len(labels)), description, preprocess)


def load_model(folder: Path, preprocess: Preprocess, device: str = "cpu") -> Model:
    """The model of a version's folder: base weights, then what differs, then the head."""
    description = json.loads((folder / "model.json").read_text())
    head = load_file(folder / "head.safetensors")
    module = Classifier(_empty_encoder(description), *head["weight"].shape)
    weights = load_file(folder / "encoder.safetensors")
    if (folder / "delta.safetensors").exists():
        weights |= load_file(folder / "delta.safetensors")
    weights |= {"head.weight": head["weight"], "head.bias": head["bias"]}
    module.load_state_dict(weights)
    return Model(module, description, preprocess, device=device)


def _empty_encoder(description: dict[str, Any]) -> nn.Module:
    encoder: nn.Module
    if description["kind"] == "text":
        from learn import text

        encoder = text.empty_encoder(description)
    else:
        from learn import tabular

        encoder = tabular.empty_encoder(description)
    attach(encoder, description.get("parts", {}))
    return encoder


def lengths(inputs: NDArray[Any]) -> NDArray[np.int64]:
    """Int64 [n]: a cheap stand-in for the cost of an input, to batch alike with alike."""
    if inputs.dtype != object:
        return np.ones(len(inputs), dtype=np.int64)
    return np.fromiter((len(text) for text in inputs), np.int64, count=len(inputs))


def batches(
    sizes: NDArray[np.int64], batch: int, generator: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Positions in batches of similar size; with a generator, shuffled anew among equals."""
    jitter = generator.random(len(sizes)) if generator else np.zeros(len(sizes))
    order = np.lexsort((jitter, sizes // 32 if generator else sizes))
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    if generator:
        generator.shuffle(groups)
    return groups
