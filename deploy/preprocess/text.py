"""Texts to token ids with the `tokenizers` library, without transformers or torch.

The tokenizer is a ``tokenizer.json``; its own padding and truncation settings are replaced, so
that a batch is padded to its longest text and no further. Pads are masked out in the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from deploy.errors import InputError
from deploy.preprocess.contract import FILE, Feeds, Inputs, Tensors, TensorSpec

TOKENIZER_FILE = "tokenizer.json"

# Text beyond this many characters a token cannot matter after truncation (a WordPiece token spans
# a handful); cutting it first keeps a megabyte of text from costing a second of tokenising.
_CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Texts as lists of token ids, each at least one long."""

    ids: list[list[int]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Int64 [n]: tokens of each text."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> TokenIds:
        """The texts at these positions."""
        return TokenIds([self.ids[i] for i in index])

    def join(self, others: Sequence[TokenIds]) -> TokenIds:
        """This batch followed by the others."""
        return TokenIds(list(chain(self.ids, *(other.ids for other in others))))

    def feeds(self) -> Feeds:
        """input_ids and attention_mask, int64 [n, longest]."""
        lengths = self.lengths
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.fromiter(chain.from_iterable(self.ids), np.int64, int(lengths.sum()))
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


class TextPreprocessor:
    """Tokenises; texts longer than ``max_length`` tokens are cut at the end.

    Raises ValueError if ``tokenizer_json`` is no tokenizer file.
    """

    kind: Literal["text", "tabular"] = "text"

    def __init__(self, tokenizer_json: Path, max_length: int) -> None:
        if max_length < 4:
            raise ValueError(f"max_length is {max_length}: a text needs at least 4 tokens")
        self._source = tokenizer_json.read_bytes()
        self.max_length = max_length
        try:
            self._tokenizer = Tokenizer.from_buffer(self._source)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{tokenizer_json} is no tokenizer file: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self.vocabulary = self._tokenizer.get_vocab_size()

    @classmethod
    def load(cls, folder: Path, settings: dict[str, object]) -> TextPreprocessor:
        """From a version's folder and its parsed ``preprocess.json``."""
        max_length = settings["max_length"]
        if not isinstance(max_length, int):
            raise ValueError(f"max_length must be a whole number, not {max_length!r}")
        return cls(folder / TOKENIZER_FILE, max_length)

    def __call__(self, inputs: Inputs) -> Feeds:
        """input_ids and attention_mask, int64 [n, longest], of an object array of str."""
        return self.encode(inputs).feeds()

    def lengths(self, inputs: Inputs) -> NDArray[np.int64]:
        """Int64 [n]: tokens of each text."""
        return self.encode(inputs).lengths

    def encode(self, inputs: Inputs) -> TokenIds:
        """Token ids of an object array of str; an empty text is an `InputError`."""
        if inputs.ndim != 1:
            raise InputError(f"texts must be one flat list, not of shape {list(inputs.shape)}")
        texts = [self._text(value, item) for item, value in enumerate(inputs.tolist())]
        return TokenIds([e.ids for e in self._tokenizer.encode_batch_fast(texts)])

    def rows(self, values: Sequence[object]) -> Inputs:
        """An object array of str."""
        for item, value in enumerate(values):
            self._text(value, item)
        return _objects(values)

    def read(self, tensors: Tensors) -> TokenIds:
        """From ``text`` (BYTES [n] or [n, 1]), or ``input_ids`` and ``attention_mask`` [n, t]."""
        names = set(tensors)
        if names == {"text"}:
            text = tensors["text"]
            if text.dtype != object:
                raise InputError("tensor 'text' must be of datatype BYTES")
            if text.ndim == 2 and text.shape[1] == 1:
                text = text[:, 0]
            return self.encode(text)
        if "input_ids" in names and names <= {"input_ids", "attention_mask"}:
            return self._read_ids(tensors["input_ids"], tensors.get("attention_mask"))
        raise InputError(
            f"unexpected tensors {sorted(names)}: send 'text' (BYTES), or 'input_ids' and "
            "'attention_mask' (INT64)"
        )

    def tensors(self) -> tuple[TensorSpec, ...]:
        """One tensor of texts."""
        return (TensorSpec("text", "BYTES", (-1,)),)

    def schema(self) -> dict[str, object]:
        """The kind and the longest text in tokens."""
        return {"kind": "text", "max_length": self.max_length}

    def sample(self, n: int) -> TokenIds:
        """Short texts of one length."""
        return self.encode(_objects(["a short text to warm up with"] * n))

    def save(self, folder: Path) -> None:
        """Write ``preprocess.json`` and ``tokenizer.json`` (the very bytes it was made from)."""
        (folder / TOKENIZER_FILE).write_bytes(self._source)
        (folder / FILE).write_text(json.dumps(self.schema(), indent=1) + "\n")

    def _text(self, value: object, item: int) -> str:
        if not isinstance(value, str):
            raise InputError(f"expected a text, got {type(value).__name__}", item)
        text = value.strip()[: _CHARACTERS_PER_TOKEN * self.max_length]
        if not text:
            raise InputError("the text is empty", item)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("the text is not valid Unicode", item) from error
        return text

    def _read_ids(self, ids: Inputs, mask: Inputs | None) -> TokenIds:
        if mask is None:
            mask = np.ones_like(ids)
        for name, tensor in (("input_ids", ids), ("attention_mask", mask)):
            if tensor.dtype.kind != "i" or tensor.ndim != 2:
                raise InputError(f"tensor {name!r} must be INT64 of shape [n, tokens]")
        if ids.shape != mask.shape:
            raise InputError(
                f"input_ids {list(ids.shape)} and attention_mask {list(mask.shape)} differ in shape"
            )
        lengths = mask.sum(axis=1)
        expected = np.arange(mask.shape[1]) < lengths[:, None]
        _refuse((mask != expected).any(axis=1), "attention_mask must be ones, then zeros")
        _refuse((lengths < 1) | (lengths > self.max_length), f"1 to {self.max_length} tokens")
        outside = ((ids < 0) | (ids >= self.vocabulary)) & (mask != 0)
        _refuse(outside.any(axis=1), f"token ids must lie in 0 to {self.vocabulary - 1}")
        return TokenIds([row[:n] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)])


def _objects(values: Iterable[object]) -> NDArray[np.object_]:
    values = list(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _refuse(bad: NDArray[np.bool_], message: str) -> None:
    if bad.any():
        raise InputError(message, int(bad.argmax()))
