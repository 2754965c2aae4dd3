"""One version's INT8 graph, ready to answer: predictions and embeddings in one pass.

The same `Session` serves requests, scores the stream in the daemon and is judged by the gate.
A session runs on one thread; several threads may call it at once and share its weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from deploy.config import BatchConfig
from deploy.errors import LoadError
from deploy.onnx_bytes import pointing
from deploy.preprocess import Encoded, Feeds, Inputs, Preprocessor, load_preprocessor
from deploy.river_version import RIVER_FILE, RiverVersion

MODEL_FILE = "model.int8.onnx"
DESCRIPTION_FILE = "model.json"
QUANTISATION_FILE = "quantisation.json"  # of static activations
HEAD_FILE = "head.safetensors"
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
OUTPUTS = ("probabilities", "logits", "embedding")

# Touches every weight, as a full batch does; that one would keep requests waiting for four times
# as long, to save the first real one a few milliseconds.
_FEW = 8

# Of the largest logit: rounding stays far below it, a forgotten patch far above.
_HEAD_TOLERANCE = 1e-3


class Head(NamedTuple):
    """The last layer. weight: float32 [d, k]. bias: float32 [k]. logits = embeddings @ w + b."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of ``n`` items.

    probabilities, logits: float32 [n, k]; where a number is predicted, it is the only logit.
    embeddings: float32 [n, d].
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.probabilities)

    def take(self, index: Sequence[int] | NDArray[np.int64] | slice) -> Prediction:
        """The items at these positions."""
        return Prediction(self.probabilities[index], self.logits[index], self.embeddings[index])

    @classmethod
    def join(cls, parts: Sequence[Prediction]) -> Prediction:
        """All items of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.embeddings for part in parts]),
        )


class Session:
    """A graph with its preprocessor, labels and head. `open` makes one from a version's folder."""

    def __init__(
        self,
        model: Path,
        preprocessor: Preprocessor,
        labels: Sequence[str],
        head: Head,
        *,
        threads: int = 1,
        batch: BatchConfig | None = None,
        number: bool = False,
        tolerance: float = 0.0,
        mapped: bool = False,
    ) -> None:
        self.preprocessor = preprocessor
        self.labels = tuple(labels)
        #: Whether the only logit is a number that the model predicts, and there are no classes.
        self.number = number
        #: How far from the truth such a number is still right.
        self.tolerance = tolerance
        self.head = head
        self.path = model
        self.size_bytes = model.stat().st_size
        self._batch = batch or BatchConfig()
        self._runtime: onnxruntime.InferenceSession | RiverVersion
        self._fed: Head | None = None  # in place of the graph's own
        if model.name == RIVER_FILE:
            self._runtime, self._fed = RiverVersion.open(model), head
        else:
            self._runtime = _runtime(model, threads, mapped)

    @classmethod
    def open(
        cls,
        folder: Path,
        threads: int = 1,
        *,
        preprocessor: Preprocessor | None = None,
        batch: BatchConfig | None = None,
        mapped: bool = False,
    ) -> Self:
        """Open a version's folder. Digests are the registry's business, not checked here.

        A version of `deploy.river_version` has a model of river in the graph's place.

        ``preprocessor``: one already loaded from the same files, to save the time.
        ``mapped``: see `ServerConfig.map_files`.
        Raises `LoadError` if a file is absent or malformed, or if the parts do not fit.
        """
        model = model_file(folder)
        labels, head = read_head(folder)
        try:
            preprocessor = preprocessor or load_preprocessor(folder)
            model.stat()
            number, tolerance = predicts_number(folder), read_tolerance(folder)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LoadError("bad_files", f"cannot read version {folder}: {error!r}") from error
        return cls(
            model,
            preprocessor,
            labels,
            head,
            threads=threads,
            batch=batch,
            number=number,
            tolerance=tolerance,
            mapped=mapped,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that clients are shown; none where the model predicts a number."""
        return () if self.number else self.labels

    @property
    def river(self) -> RiverVersion | None:
        """The model of river that runs in a graph's place, if it is one."""
        return self._runtime if isinstance(self._runtime, RiverVersion) else None

    @property
    def graph(self) -> Session:
        """Itself: what runs the graph each time."""
        return self

    def on(self, model: Path) -> Session:
        """Another graph of the same version (its FP32 original), with all else alike."""
        return Session(
            model,
            self.preprocessor,
            self.labels,
            self.head,
            batch=self._batch,
            number=self.number,
            tolerance=self.tolerance,
        )

    def with_head(
        self, model: Path, preprocessor: Preprocessor, labels: Sequence[str], head: Head
    ) -> Session:
        """A version whose graph, ``model``, differs in the head only: it shares what runs."""
        other = copy.copy(self)
        other.path, other.size_bytes = model, model.stat().st_size
        other.preprocessor, other.labels, other.head = preprocessor, tuple(labels), head
        other._fed = head
        return other

    def predict(self, inputs: Inputs, head: Head | None = None) -> Prediction:
        """Predict ``n`` inputs, in their order; batched by length to save padding.

        ``head``: used instead of the graph's own, with any number of classes.
        Raises `InputError` naming the first item that is no valid input.
        """
        return self.run_all(self.preprocessor.encode(inputs), head)

    def run_all(self, encoded: Encoded, head: Head | None = None) -> Prediction:
        """As `predict`, from encoded items."""
        if len(encoded) == 0:
            return self._nothing(head)
        groups = list(batches(encoded.lengths, self._batch))
        done = Prediction.join([self.run(encoded.take(group), head) for group in groups])
        return done.take(np.argsort(np.concatenate(groups)))

    def run(self, encoded: Encoded, head: Head | None = None) -> Prediction:
        """One pass over all items as one batch."""
        return self.run_feeds(encoded.feeds(), head)

    def run_feeds(self, feeds: Feeds, head: Head | None = None) -> Prediction:
        """One pass over the graph's own inputs."""
        head = self._fed if head is None else head
        if head is not None:
            feeds = feeds | {HEAD_WEIGHT: head.weight, HEAD_BIAS: head.bias}
        return Prediction(*self._runtime.run(OUTPUTS, feeds))

    def warm(self, *sizes: int) -> None:
        """Run batches of these sizes, else of one item and of a few, and check what comes out.

        Raises `LoadError` if the graph does not run, answers nonsense, or holds another head
        than the version's folder states.
        """
        for n in sizes or (1, min(_FEW, self._batch.max_items)):
            sample = self.preprocessor.sample(n)
            try:
                answer = self.run(sample)
            except Exception as error:  # whatever the runtime raises, it cannot serve
                raise LoadError("bad_graph", f"the graph does not run: {error}") from error
            if answer.probabilities.shape != (n, len(self.labels)):
                raise LoadError(
                    "mismatch",
                    f"the graph answers {answer.probabilities.shape[1:]} classes for "
                    f"{len(self.labels)} labels",
                )
            if not np.isfinite(answer.logits if self.number else answer.probabilities).all():
                raise LoadError("bad_graph", "the graph answers values that are no numbers")
            stated = answer.embeddings @ self.head.weight + self.head.bias
            scale = max(1.0, float(np.abs(stated).max()))
            if np.abs(stated - answer.logits).max() > _HEAD_TOLERANCE * scale:
                raise LoadError(
                    "mismatch",
                    f"the head in {MODEL_FILE} is not the one in {HEAD_FILE}: patch the graph "
                    "with the version's head",
                )

    def _nothing(self, head: Head | None) -> Prediction:
        one = self.run(self.preprocessor.sample(1), head)
        return one.take(slice(0, 0))


def batches(lengths: NDArray[np.int64], limits: BatchConfig) -> Iterator[NDArray[np.int64]]:
    """Split items into batches of similar length.

    lengths: int64 [n]. Yields positions, each once; a batch has at most ``max_items`` items, and
    its longest item times its size is at most ``padding`` times the sum of its lengths.

    >>> limits = BatchConfig(max_items=2, padding=1.1)
    >>> [batch.tolist() for batch in batches(np.array([9, 2, 2, 9, 2]), limits)]
    [[1, 2], [4], [0, 3]]
    """
    order = np.argsort(lengths, kind="stable")
    start, total = 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        size = end - start + 1
        if size > 1 and (
            size > limits.max_items or length * size > limits.padding * (total + length)
        ):
            yield order[start:end]
            start, total = end, 0
        total += length
    if start < len(order):
        yield order[start:]


def run_graph(model: Path, feeds: Feeds) -> Prediction:
    """Open a graph and run it once."""
    return Prediction(*_runtime(model, 1).run(OUTPUTS, feeds))


def fused_graph(model: Path, out: Path) -> None:
    """Write to ``out`` what the runtime makes of a graph when it opens it, on any processor.

    Raises `LoadError`.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    _runtime(model, 1, options=options)


def _runtime(
    model: Path,
    threads: int,
    mapped: bool = False,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.parent)
    )
    try:
        return onnxruntime.InferenceSession(
            pointing(model) if mapped else str(model),
            options,
            providers=["CPUExecutionProvider"],
            # On dynamic INT8 this fusion stands in the way of better ones: 12 to 25 % slower.
            disabled_optimizers=["SkipLayerNormFusion"],
        )
    except Exception as error:  # the runtime raises its own, undocumented types
        raise LoadError("bad_graph", f"{model} cannot be opened: {error}") from error


def model_file(folder: Path) -> Path:
    """What runs of the version in ``folder``: its INT8 graph, or what a model of river learned."""
    river = folder / RIVER_FILE
    return river if river.exists() else folder / MODEL_FILE


def predicts_number(folder: Path) -> bool:
    """Whether the version in ``folder`` predicts a number instead of classes."""
    return bool(json.loads((folder / DESCRIPTION_FILE).read_bytes()).get("target") == "number")


def read_tolerance(folder: Path) -> float:
    """How far from the truth a number is still right, by the version in ``folder``; else 0."""
    scale = json.loads((folder / DESCRIPTION_FILE).read_bytes()).get("scale") or {}
    return float(scale.get("tolerance", 0.0))


def read_head(folder: Path) -> tuple[list[str], Head]:
    """The labels and the head of a version's folder, without opening its graph.

    Raises `LoadError` if a file is absent or malformed, or if the two do not fit.
    """
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_bytes())
        labels = [str(label) for label in description["labels"]]
        tensors = load_file(folder / HEAD_FILE)
        weight, bias = tensors["weight"], tensors["bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[1:]:
            raise ValueError(f"head of shapes {weight.shape} and {bias.shape}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise LoadError("bad_files", f"cannot read version {folder}: {error!r}") from error
    if len(bias) != len(labels):
        raise LoadError(
            "mismatch",
            f"{folder}: the head has {len(bias)} classes, the model {len(labels)} labels",
        )
    return labels, Head(weight.astype(np.float32), bias.astype(np.float32))
