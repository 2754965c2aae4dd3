"""More texts for classes with few: EDA (Wei & Zou 2019) without a list of synonyms.

Words are swapped, left out, and put in or replaced by words of the same class, so that it works in
any language that separates words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn.examples import Examples

CHANGED = 0.1  # share of a text's words that are changed, as in the paper


def augmented(examples: Examples, copies: int, below: int, seed: int) -> Examples:
    """The examples, and ``copies`` changed texts for each one of a class with fewer than ``below``.

    A copy has no embedding yet (NaN) and shares the lineage of its original. Texts of one word
    have none.
    """
    counts = np.bincount(examples.labels)
    few = np.flatnonzero(counts[examples.labels] < below)
    generator = np.random.default_rng(seed)
    words = {
        label: np.array(
            [w for i in few if examples.labels[i] == label for w in examples.inputs[i].split()],
            dtype=object,
        )
        for label in np.unique(examples.labels[few])
    }
    places, texts = [], []
    for i in few:
        if len(split := examples.inputs[i].split()) > 1:
            for _ in range(copies):
                places.append(i)
                texts.append(_changed(split, words[examples.labels[i]], generator))
    if not texts:
        return examples
    made = examples.take(np.array(places, dtype=np.int64))
    inputs = np.empty(len(texts), dtype=object)
    inputs[:] = texts
    unknown = None
    if examples.embeddings is not None:
        unknown = np.full((len(texts), examples.embeddings.shape[1]), np.nan, np.float32)
    return Examples.concatenate([examples, made.with_inputs(inputs).with_embeddings(unknown)])


def _changed(text: list[str], words: NDArray[Any], generator: np.random.Generator) -> str:
    found = list(text)
    for _ in range(max(1, round(CHANGED * len(text)))):
        place, other = generator.integers(len(found), size=2)
        match generator.integers(4):
            case 0:
                found[place], found[other] = found[other], found[place]
            case 1 if len(found) > 1:
                del found[place]
            case 2:
                found.insert(place, generator.choice(words))
            case _:
                found[place] = generator.choice(words)
    return " ".join(found)
