"""Wrong labels, as a head sees them that was fitted without them, on embeddings at hand.

Three rules: another class is many times as likely (what wins back most accuracy, for it keeps hard
examples); it is more likely than usual for its own examples (confident learning, Northcutt et al.
2021); or simply likely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learn.config import CurationConfig
from learn.head import fit_softmax

NOISE = ("ratio", "confident", "threshold")


def out_of_fold(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    l2: float,
    folds: int,
    seed: int,
) -> NDArray[np.float32]:
    """Probabilities, float32 [n, k], of each example by a head fitted without its fold.

    embeddings: float32 [n, d]. labels: int64 [n]. The folds are even over the classes.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    found = np.empty((len(labels), classes), dtype=np.float32)
    for number in range(folds):
        out = fold == number
        head = fit_softmax(embeddings[~out], labels[~out], None, classes, l2)
        found[out] = head.probabilities(embeddings[out])
    return found


def suspects(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], rule: str, config: CurationConfig
) -> NDArray[np.bool_]:
    """Bool [n]: labels that look wrong by the rule, one of `NOISE`."""
    if rule == "ratio":
        return outdone(probabilities, labels, config.noise_ratio)
    if rule == "confident":
        return confident_errors(probabilities, labels)
    return unlikely(probabilities, labels, config.noise_threshold)


def outdone(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], ratio: float
) -> NDArray[np.bool_]:
    """Bool [n]: examples of which another class is ``ratio`` times as likely as their own.

    >>> outdone(np.float32([[0.95, 0.05], [0.8, 0.2]]), np.array([1, 1]), 10.0).tolist()
    [True, False]
    """
    own = probabilities[np.arange(len(labels)), labels]
    found: NDArray[np.bool_] = probabilities.max(axis=1) > ratio * own
    return found


def confident_errors(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Bool [n]: labels that the probabilities [n, k] confidently contradict.

    >>> sure = np.float32([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95]])
    >>> confident_errors(sure, np.array([0, 0, 1, 1, 0])).tolist()
    [False, False, False, False, True]
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    seen = np.bincount(labels, minlength=classes)
    # What a class usually gets from its own examples; one without examples is never confident.
    usual = np.bincount(labels, own, classes) / np.maximum(seen, 1)
    usual[seen == 0] = np.inf
    confident = np.where(probabilities >= usual, probabilities, -1.0)
    best = confident.argmax(axis=1)
    found: NDArray[np.bool_] = (confident.max(axis=1) >= 0) & (best != labels)
    return found


def unlikely(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    """Bool [n]: examples of which another class has at least the probability ``threshold``."""
    found: NDArray[np.bool_] = (probabilities.max(axis=1) >= threshold) & (
        probabilities.argmax(axis=1) != labels
    )
    return found
