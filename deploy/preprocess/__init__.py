"""From inputs to feeds, without torch: one preprocessor for text, one for tables.

`load_preprocessor` opens what `save` wrote. Both kinds fulfil `Preprocessor`; `Encoded` is what
they make: items checked and encoded, but not yet padded, that queues hold and batches join.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.preprocess.contract import (
    FILE,
    Encoded,
    Feeds,
    Inputs,
    Preprocessor,
    Tensors,
    TensorSpec,
)
from deploy.preprocess.tabular import CUT, UNCUT, Feature, TabularPreprocessor
from deploy.preprocess.text import TextPreprocessor

__all__ = [
    "CUT",
    "UNCUT",
    "Encoded",
    "Feature",
    "Feeds",
    "Inputs",
    "Preprocessor",
    "TabularPreprocessor",
    "TensorSpec",
    "Tensors",
    "TextPreprocessor",
    "load_preprocessor",
]


def load_preprocessor(folder: Path) -> Preprocessor:
    """Open ``preprocess.json`` (and its tokenizer) in a version's folder.

    Raises ValueError, saying what is wrong, if the file is absent or malformed.
    """
    path = folder / FILE
    try:
        settings = json.loads(path.read_bytes())
        match settings["kind"]:
            case "text":
                return TextPreprocessor.load(folder, settings)
            case "tabular":
                return TabularPreprocessor.load(folder, settings)
            case kind:
                raise ValueError(f"unknown kind {kind!r}: expected text or tabular")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot use {path}: {error!r}") from error
