"""What a preprocessor is: from inputs (texts, or rows of features) to the graph's feeds.

Training, gate and server all go through the same object, saved beside the model as
``preprocess.json``, so that the model sees in serving exactly what it saw in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Inputs = NDArray[Any]
Feeds = dict[str, NDArray[Any]]
Tensors = Mapping[str, NDArray[Any]]

FILE = "preprocess.json"


class TensorSpec(NamedTuple):
    """A tensor that clients may send: its name, its V2 datatype, its shape (-1: any)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Encoded(Protocol):
    """``n`` items ready for the graph, not yet padded: what queues hold and batches join."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Int64 [n]: each item's cost in the graph, in tokens (1 for a row of features)."""

    def __len__(self) -> int: ...

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> Self:
        """The items at these positions."""

    def join(self, others: Sequence[Self]) -> Self:
        """This batch followed by the others."""

    def feeds(self) -> Feeds:
        """The graph's inputs, padded to the longest item."""


class Preprocessor(Protocol):
    """Turns inputs into feeds. Inputs are one array whose first axis is the item."""

    kind: Literal["text", "tabular"]

    def __call__(self, inputs: Inputs) -> Feeds:
        """Feeds for all items at once, padded to the longest. Raises `InputError`."""

    def lengths(self, inputs: Inputs) -> NDArray[np.int64]:
        """Int64 [n]: see `Encoded.lengths`. Raises `InputError`."""

    def encode(self, inputs: Inputs) -> Encoded:
        """The items, checked and encoded. Raises `InputError` naming the first bad item."""

    def rows(self, values: Sequence[object]) -> Inputs:
        """Inputs from plain JSON values, one an item. Raises `InputError`."""

    def read(self, tensors: Tensors) -> Encoded:
        """Items from named tensors: either `tensors` or the graph's own feeds.

        Every tensor's first axis is the item. Raises `InputError`.
        """

    def tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors that clients send."""

    def schema(self) -> dict[str, object]:
        """What the inputs are, as JSON, for the version's manifest."""

    def sample(self, n: int) -> Encoded:
        """``n`` plausible items, to warm a session with."""

    def save(self, folder: Path) -> None:
        """Write ``preprocess.json`` and what belongs to it."""
