"""Covariate drift: P(x) moved. Needs no labels.

`EmbeddingShift` watches the encoder's embeddings, and with them whatever the model is fed;
`FeatureShift` the columns of a table one by one. `KernelShift`, `ClassifierShift` and
`ReconstructionError` look at the embeddings, or at the numeric columns together, in other ways.
"""

from drift.covariate.classifier import ClassifierShift
from drift.covariate.embedding import EmbeddingShift
from drift.covariate.features import FeatureShift
from drift.covariate.mmd import KernelShift
from drift.covariate.reconstruction import ReconstructionError

__all__ = [
    "ClassifierShift",
    "EmbeddingShift",
    "FeatureShift",
    "KernelShift",
    "ReconstructionError",
]
