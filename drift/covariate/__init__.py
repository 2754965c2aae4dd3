"""Covariate drift: P(x) moved. Needs no labels.

`EmbeddingShift` watches the encoder's embeddings, and with them whatever the model is fed.
"""

from drift.covariate.embedding import EmbeddingShift

__all__ = ["EmbeddingShift"]
