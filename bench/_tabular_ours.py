"""The tabular ensemble on a stream: test, then learn; and as the INT8 file that serves."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.loop import MAX_EVENTS
from learn.blas import one_blas_thread
from learn.config import ModelConfig
from learn.ensemble import TabularEnsemble
from learn.past import Past
from learn.random_features import Columns, RandomFeatures

# Events handed over at once, as the daemon reads them; the answers are those of one by one.
BLOCK = MAX_EVENTS
# With delayed labels a block is answered before any of it is learned, so its events wait a little
# longer than the delay.
DELAYED_BLOCK = 20

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """right: bool [n]. cpu_seconds: all of it, the columns of the past too."""

    right: NDArray[np.bool_]
    cpu_seconds: float
    size_bytes: int

    @property
    def accuracy(self) -> float:
        """Per cent."""
        return 100.0 * float(self.right.mean())

    @property
    def events_per_second(self) -> float:
        """Events a CPU-second."""
        return len(self.right) / self.cpu_seconds


@dataclass(frozen=True, slots=True)
class Setting:
    """What the ensemble is given of the stream's past."""

    relative: bool = True
    lagged_labels: int = 0
    number: bool = False

    def config(self, features: int) -> ModelConfig:
        """The model section for a table of so many numbers."""
        return ModelConfig.model_validate(
            {
                "task": "tabular",
                "features": [{"name": f"f{i}"} for i in range(features)],
                "relative": self.relative,
                "lagged_labels": self.lagged_labels,
                "target": "number" if self.number else "class",
            }
        )


@one_blas_thread()
def run(
    x: Floats, y: Labels, setting: Setting, seed: int, *, delay: int = 0, block: int = BLOCK
) -> Outcome:
    """Prequential, from the first event: float64 [n, f], int64 [n]."""
    config = setting.config(x.shape[1])
    inputs, names = structured(x), y.astype(str).astype(object)
    past, model = Past(config), ensemble(config, int(y.max()) + 1, seed)
    waiting: list[tuple[dict[str, NDArray[Any]], Labels]] = []
    right = np.zeros(len(y), dtype=np.bool_)
    size = DELAYED_BLOCK if delay else block
    began = time.process_time()
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        rows = feeds(past.extend(inputs[part], names[part]), config)
        if not delay:
            right[part] = model.learn(rows, y[part]).argmax(axis=1) == y[part]
            continue
        right[part] = model.logits(rows).argmax(axis=1) == y[part]
        waiting.append((rows, y[part]))
        if len(waiting) * size > delay:
            model.learn(*waiting.pop(0))
    return Outcome(right, time.process_time() - began, model.size_bytes)


def structured(x: Floats) -> NDArray[Any]:
    """A table [n] of the columns f0, f1, ..."""
    table = np.empty(len(x), [(f"f{i}", "<f8") for i in range(x.shape[1])])
    for i, column in enumerate(x.T):
        table[f"f{i}"] = column
    return table


def feeds(table: NDArray[Any], config: ModelConfig) -> dict[str, NDArray[Any]]:
    """The ensemble's inputs; from the first event, so with no fitted preprocessor before it."""
    numbers = [c.name for c in config.columns if c.kind == "numeric"]
    labels = [c.name for c in config.columns if c.kind == "categorical"]
    numeric = np.column_stack([table[name] for name in numbers]).astype(np.float32)
    found: dict[str, NDArray[Any]] = {"numeric": np.nan_to_num(numeric)}
    if labels:
        index = [[0 if v is None else int(v) + 1 for v in table[name]] for name in labels]
        found["category"] = np.array(index, dtype=np.int64).T
    return found


def ensemble(config: ModelConfig, classes: int, seed: int) -> TabularEnsemble:
    """One that knows nothing yet."""
    named = 0 if config.number else config.lagged_labels
    numbers = len(config.columns) - named
    context = (len(config.context) - named, named)
    columns = Columns(numbers, (classes + 1,) * named, context)
    random = RandomFeatures.draw(columns, config.random_features, seed)
    return TabularEnsemble(columns, random, classes, number=config.number)


def int8_agreement(x: Floats, y: Labels, seed: int, events: int) -> tuple[float, float]:
    """Per cent of equal decisions of a version's INT8 file and of the ensemble it was made of.

    One by one, and in the batches of a server; see `int8_logits`.
    """
    found = [each.argmax(axis=1) for each in int8_logits(x, y, Setting(), seed, events)]
    expected, singly, batched = found
    return 100 * float((expected == singly).mean()), 100 * float((expected == batched).mean())


def int8_logits(
    x: Floats, y: NDArray[Any], setting: Setting, seed: int, events: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Logits, float32 [events, k], of an ensemble; of its INT8 file one by one; and in batches.

    The version is made half-way through the stream, by way of its own preprocessor, and asked
    the next ``events``.
    """
    import torch

    from deploy.export import export_onnx, quantize_int8
    from deploy.patch import patch_weights
    from deploy.preprocess import UNCUT, TabularPreprocessor
    from deploy.session import Session
    from learn.model import create_model

    torch.set_num_threads(1)
    config = setting.config(x.shape[1])
    table = Past(config).extend(structured(x), y.astype(str).astype(object))
    half = len(y) // 2
    labels = ["value"] if config.number else [str(k) for k in range(int(y.max()) + 1)]
    kinds = {column.name: column.kind for column in config.columns}
    preprocess = TabularPreprocessor.fit(table[:500], kinds, UNCUT)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        preprocess.save(folder)
        model = create_model(config, labels, preprocess, seed)
        model.save(folder)
        export_onnx(model.module, preprocess.sample(2).feeds(), folder / "fp32.onnx")
        graph = folder / "model.int8.onnx"
        quantize_int8(folder / "fp32.onnx", graph)
        learned = TabularEnsemble.of(folder, len(labels))
        assert learned is not None
        learned.learn(preprocess(table[:half]), y[:half])
        head = learned.head
        patch_weights(
            graph,
            {"head.weight": head.weight, "head.bias": head.bias, **learned.standardisation},
            graph,
        )
        model.set_head(head)
        model.save(folder)
        session = Session.open(folder)
        later = table[half : half + events]
        expected = learned.logits(preprocess(later))
        batched = session.predict(later).logits
        singly = [session.predict(later[i : i + 1]).logits for i in range(len(later))]
    return expected, np.concatenate(singly), batched
