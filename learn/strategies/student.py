"""Distillation: a student of a tenth of the encoder's size, taught to answer as the model does.

Most of so small a text model is its table of words. It begins as the teacher's, turned to the few
directions in which words differ most, so that words that no example has keep their likeness to
others. Then one block of attention over it learns the teacher's embeddings and logits (Hinton,
Vinyals & Dean 2015) on the examples and on changed copies of them, which need no label.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from learn.config import LearnConfig, StudentConfig, TrainingConfig
from learn.curation.augment import augmented
from learn.examples import Examples
from learn.losses import Matching
from learn.model import PREFIX, Classifier, Model
from learn.strategy import Round, Start, Update
from learn.text import TextEncoder
from learn.training import Stage, fit_head, refit_head, train

STEP = 8  # widths are multiples of it, as processors like them
HEADS = 4
SPREAD = 0.05  # standard deviation of the table of words at the start
TEACHING = 0.5  # of the CPU-seconds, at most, for what the teacher says of changed copies
CHUNK = 256


class Student:
    """A new, narrow encoder in the place of the old one, and the head fitted to it."""

    name = "student"

    def __init__(self, config: LearnConfig) -> None:
        self.config = config

    def fit(
        self,
        start: Start,
        train_on: Examples,
        validation: Examples,
        report: Callable[[Round], None],
    ) -> Update:
        """See `Strategy.fit`. Raises ValueError for a table, and where no student fits."""
        began, settings = time.process_time(), self.config.student
        torch.set_num_threads(start.threads)
        teacher = start.load()
        if teacher.description["kind"] != "text":
            raise ValueError("a student needs a text model: a table's encoder is small already")
        teacher.set_head(fit_head(teacher, train_on, validation, start.head, self.config.l2))
        model = student_of(teacher, settings, start.seed)
        examples = _taught(teacher, train_on, settings.texts, start, began)
        head = teacher.head
        model.set_head(head)
        encoder = list(model.module.encoder.parameters())
        rounds, stopped, _ = train(
            [Stage(lambda: model, [(encoder, settings.rate)], settings.rounds)],
            start,
            examples,
            validation,
            _training(self.config.training, settings),
            report,
            Matching(examples, head, settings.closeness),
            _ended,
            began,
        )
        return Update(
            head=refit_head(model, train_on, validation, head, self.config.l2),
            encoder={
                PREFIX + name: tensor.detach().float().cpu().numpy().copy()
                for name, tensor in model.module.encoder.state_dict().items()
            },
            architecture={
                name: value
                for name, value in model.description.items()
                if value != teacher.description.get(name)
            },
            whole=True,
            parameters_touched=sum(p.numel() for p in encoder) + head.weight.size + head.bias.size,
            rounds=rounds,
            stopped=stopped,
        )


def student_of(teacher: Model, settings: StudentConfig, seed: int) -> Model:
    """A student that has learned nothing yet but the teacher's table of words, and its head.

    Raises ValueError where not even the narrowest has few enough parameters.
    """
    torch.manual_seed(seed)
    whole: Any = teacher.module.encoder
    words = whole.transformer.get_input_embeddings().weight.detach().float().cpu()
    positions = int(whole.transformer.config.max_position_embeddings)
    limit = settings.share * sum(p.numel() for p in whole.parameters())
    width = 0
    while width + STEP < teacher.dimension:
        with torch.device("meta"):
            wider = _encoder(len(words), width + STEP, positions, settings, teacher.dimension)
        if sum(p.numel() for p in wider.parameters()) > limit:
            break
        width += STEP
    if not width:
        raise ValueError(
            f"no student has {limit:,.0f} parameters or fewer, {settings.share:g} of the encoder's:"
            " raise learn.student.share"
        )
    encoder = _encoder(len(words), width, positions, settings, teacher.dimension)
    with torch.no_grad():
        table = encoder.transformer.get_input_embeddings().weight
        table.copy_(_directions(words, width))
    description = {**teacher.description, "encoder": encoder.transformer.config.to_dict()}
    if "parts" in description:
        description["parts"] = {}  # they were the teacher's
    classifier = Classifier(encoder, teacher.dimension, len(teacher.labels))
    return Model(classifier, description, teacher.preprocess, device=teacher.device)


def _encoder(
    words: int, width: int, positions: int, settings: StudentConfig, dimension: int
) -> TextEncoder:
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=settings.blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
        type_vocab_size=1,
        # So small a model has nothing to spare: with dropout it only learns more slowly.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return TextEncoder(BertModel(config), dimension)


def _directions(words: torch.Tensor, width: int) -> torch.Tensor:
    """The table [v, d] in the ``width`` directions in which it spreads most (PCA), [v, width]."""
    away = words - words.mean(dim=0)
    _, vectors = torch.linalg.eigh(away.T @ away)
    turned = away @ vectors[:, -width:]
    if turned.shape[1] < width:  # a teacher narrower than that has no more
        turned = torch.nn.functional.pad(turned, (0, width - turned.shape[1]))
    scaled: torch.Tensor = turned * (SPREAD / turned.std().clamp(min=1e-9))
    return scaled


def _taught(teacher: Model, examples: Examples, texts: int, start: Start, began: float) -> Examples:
    """The examples, and changed copies up to so many ``texts``, with the teacher's embeddings.

    Only as many copies as it has time for. Their labels do not count: words may have changed them.
    """
    own = len(examples)
    more = augmented(examples, math.ceil(max(texts - own, 0) / own), own + 1, start.seed)
    more.weights[own:] = 0.0
    found = more.embeddings
    unknown = np.full((len(more), teacher.dimension), np.nan, np.float32)
    found = unknown if found is None else found.copy()
    missing = np.flatnonzero(~np.isfinite(found).all(axis=1))
    given = missing[missing < own]
    found[given] = teacher.encode(more.inputs[given])
    made = np.random.default_rng(start.seed).permutation(missing[missing >= own])
    made = made[: max(texts - own, 0)]
    until = began + TEACHING * start.cpu_seconds
    for i in range(0, len(made), CHUNK):
        if time.process_time() > until:
            break
        index = made[i : i + CHUNK]
        found[index] = teacher.encode(more.inputs[index])
    said = np.flatnonzero(np.isfinite(found).all(axis=1))
    return more.with_embeddings(found).take(said)


def _training(training: TrainingConfig, settings: StudentConfig) -> TrainingConfig:
    return training.model_copy(
        update={
            "rounds": settings.rounds,
            "batch": settings.batch,
            "accumulate": 1,
            "class_focus": 0.0,
            "precision": "fp32",  # at this width there is nothing to win
        }
    )


def _ended(rounds: Sequence[Round], *_: object) -> str | None:
    """Why to end: not by gains, steps or gaps, for it begins far from where it is to go.

    Its training loss is a distance to the teacher; what counts in the end is the best round.
    """
    last = rounds[-1]
    fine = math.isfinite(last.train_loss) and math.isfinite(last.validation_loss)
    return None if fine else "diverged: the loss is no number"
