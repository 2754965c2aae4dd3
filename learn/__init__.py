"""learn: models, the ladder's update strategies, the online head and the memory. Knows torch.

config       every default of this room, with its reason
examples     labelled events as columns; lineage
memory       what may be learned from: recent window, replay reservoir, held-out split
head         softmax regression on embeddings, fitted to its optimum (no torch)
online       the head that learns with every batch (no torch)
ensemble     the model of a table that learns from the first event (no torch), of
             recursive, mixture, moments and random_features
past         the stream's own past as columns of a table (no torch)
strategy     the protocol of a strategy; strategies/ has one file each
model        encoder and head as a torch module; text and tabular models

Imports no other room. Nothing here imports torch until a model is made or loaded.
"""

from learn.config import LearnConfig, MemoryConfig, ModelConfig
from learn.examples import Examples
from learn.head import Head, fit_softmax
from learn.memory import Memory
from learn.online import OnlineHead

__all__ = [
    "Examples",
    "Head",
    "LearnConfig",
    "Memory",
    "MemoryConfig",
    "ModelConfig",
    "OnlineHead",
    "fit_softmax",
]
