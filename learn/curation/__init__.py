"""Cleaner data before training: duplicates, wrong labels, difficulty, few labels.

`curate` applies what `learn.curation` asks for, in that order, and says what it did. Only examples
that train are touched; those that judge are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn.config import CurationConfig
from learn.curation.augment import augmented
from learn.curation.duplicates import merged, near_duplicates
from learn.curation.noise import out_of_fold, suspects
from learn.curation.tiers import mixed
from learn.examples import Examples

__all__ = ["curate"]


def curate(
    examples: Examples,
    classes: int,
    config: CurationConfig,
    l2: float,
    seed: int,
    embed: Callable[[Examples], Examples],
) -> tuple[Examples, dict[str, int]]:
    """The examples to train on, and how many were ``duplicates``, ``noise``, and so on.

    ``embed`` fills in embeddings that are missing. What finds no ground to work on is passed over:
    labels are judged only where every fold has something to judge by.
    """
    report: dict[str, int] = {}

    def keep(found: Examples, name: str) -> Examples:
        report[name] = len(found) - len(examples)
        return found

    if config.duplicates:
        examples = keep(merged(examples), "duplicates")
    if config.near_duplicates and examples.embeddings is not None:
        again = near_duplicates(examples.embeddings, examples.labels, config.near_duplicates)
        examples = keep(examples.take(~again), "near_duplicates")
    if (config.noise != "off" or config.tiers) and _can_fold(examples, config.folds):
        assert examples.embeddings is not None
        probabilities = out_of_fold(
            examples.embeddings, examples.labels, classes, l2, config.folds, seed
        )
        wrong = np.zeros(len(examples), dtype=np.bool_)
        if config.noise != "off":
            wrong = suspects(probabilities, examples.labels, config.noise, config)
            examples = keep(examples.take(~wrong), "noise")
        if config.tiers:
            chance = probabilities[~wrong][np.arange(len(examples)), examples.labels]
            examples = keep(examples.take(mixed(chance, config.tiers, seed)), "tiers")
    if config.augment and examples.inputs.dtype == object:
        examples = keep(
            embed(augmented(examples, config.augment, config.augment_below, seed)), "augmented"
        )
    return examples, report


def _can_fold(examples: Examples, folds: int) -> bool:
    found: NDArray[Any] | None = examples.embeddings
    return found is not None and len(examples) >= 10 * folds and len(set(examples.labels)) > 1
