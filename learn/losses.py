"""What a training step minimises: log loss, and two terms that are off unless asked for.

`Matching` is a student's: its teacher's embeddings and logits (Hinton, Vinyals & Dean 2015), for
which no label is needed, and the log loss beside them.

Distillation holds on to what the parent knows (Li & Hoiem 2016): on examples that it has right,
the new logits stay near its own. Its logits cost nothing, for its head and the embeddings are at
hand. The supervised contrastive term draws examples of a class together (Khosla et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from learn.config import TrainingConfig
from learn.examples import Examples
from learn.head import Head

TEMPERATURE = 2.0  # of distillation, as in the paper
CLOSENESS = 0.1  # temperature of the contrastive term, as in the paper

#: The loss of a batch: a scalar, of its embeddings [n, d], logits [n, k] and places [n].
Criterion = Callable[[torch.Tensor, torch.Tensor, NDArray[np.int64]], torch.Tensor]


class Loss:
    """The loss of batches of ``examples``, by their positions."""

    def __init__(self, examples: Examples, parent: Head, config: TrainingConfig) -> None:
        self.labels = torch.from_numpy(examples.labels)
        self.weights = torch.from_numpy(examples.weights)
        self.contrastive = config.contrastive
        self.distillation = config.distillation
        self.teacher: torch.Tensor | None = None
        if self.distillation and examples.embeddings is not None and parent.weight.any():
            logits = parent.logits(examples.embeddings)
            logits[~np.isfinite(logits)] = 0.0
            self.teacher = torch.from_numpy(logits)

    def __call__(
        self, embeddings: torch.Tensor, logits: torch.Tensor, index: NDArray[np.int64]
    ) -> torch.Tensor:
        """Scalar; embeddings [n, d] and logits [n, k] are those of the examples at ``index``."""
        device = logits.device
        labels, weights = self.labels[index].to(device), self.weights[index].to(device)
        losses = cross_entropy(logits, labels, reduction="none")
        if self.teacher is not None:
            teacher = self.teacher[index].to(device)
            knows = teacher.argmax(dim=1) == labels
            losses = losses + self.distillation * knows * distillation(logits, teacher)
        total = (losses * weights).sum() / weights.sum().clamp(min=1e-6)
        if self.contrastive:
            total = total + self.contrastive * contrastive(embeddings, labels)
        return total


class Matching:
    """What a student minimises on batches of ``examples``, by their positions.

    They have the teacher's embeddings, unit length; ``head`` is the teacher's. closeness: how much
    the cosine to these counts. A label counts by its example's weight, what the teacher says fully.
    """

    def __init__(self, examples: Examples, head: Head, closeness: float) -> None:
        assert examples.embeddings is not None
        self.closeness = closeness
        self.labels = torch.from_numpy(examples.labels)
        self.weights = torch.from_numpy(examples.weights)
        self.embeddings = torch.from_numpy(examples.embeddings)
        self.logits = torch.from_numpy(head.logits(examples.embeddings))

    def __call__(
        self, embeddings: torch.Tensor, logits: torch.Tensor, index: NDArray[np.int64]
    ) -> torch.Tensor:
        """Scalar; embeddings [n, d] and logits [n, k] are those of the examples at ``index``."""
        own = (self.labels, self.weights, self.embeddings, self.logits)
        labels, weights, target, teacher = (tensor[index].to(logits.device) for tensor in own)
        away = 1 - (embeddings * target).sum(dim=1)
        labelled = weights * cross_entropy(logits, labels, reduction="none")
        return (self.closeness * away + distillation(logits, teacher) + labelled).mean()


def distillation(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Float32 [n]: divergence of the softened answers [n, k] from the teacher's."""
    ours = log_softmax(logits / TEMPERATURE, dim=1)
    theirs = log_softmax(teacher / TEMPERATURE, dim=1)
    divergence = kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return TEMPERATURE**2 * divergence


def contrastive(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Scalar: how far examples of a class lie apart, against all of the batch; 0 without pairs."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None, :]) & others
    paired = same.any(dim=1)
    if not bool(paired.any()):
        return embeddings.sum() * 0.0
    closeness = (unit @ unit.T / CLOSENESS).masked_fill(~others, -torch.inf)
    shares = closeness - closeness.logsumexp(dim=1, keepdim=True)
    mean = shares.masked_fill(~same, 0.0).sum(dim=1)[paired] / same.sum(dim=1)[paired]
    return -mean.mean()
