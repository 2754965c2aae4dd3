"""Head refit: the last layer, solved to its optimum on embeddings that are at hand. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from learn.config import LearnConfig
from learn.ensemble import PRIOR
from learn.examples import Examples
from learn.head import Head, fit_number, fit_softmax, score
from learn.number_scale import errors
from learn.strategy import Round, Start, Update


class HeadRefit:
    """One convex fit; its panel has a single round."""

    name = "head"

    def __init__(self, config: LearnConfig) -> None:
        self.config = config

    def fit(
        self,
        start: Start,
        train_on: Examples,
        validation: Examples,
        report: Callable[[Round], None],
    ) -> Update:
        """See `Strategy.fit`. Raises ValueError without examples or embeddings."""
        if train_on.embeddings is None:
            raise ValueError("a head refit needs embeddings")
        if train_on.targets is not None:
            return _number(start, train_on, validation, report)
        began = time.monotonic()
        classes = len(start.labels)
        judge = validation if len(validation) and validation.embeddings is not None else train_on
        assert judge.embeddings is not None
        before = score(start.head.logits(judge.embeddings), judge.labels)
        head = fit_softmax(
            train_on.embeddings,
            train_on.labels,
            train_on.weights,
            classes,
            self.config.l2,
            start.head,
            pull=pull_of(start, self.config.hold),
        )
        after = score(head.logits(judge.embeddings), judge.labels)
        on_train = score(head.logits(train_on.embeddings), train_on.labels)
        old = score(start.head.logits(train_on.embeddings), train_on.labels)
        size = float(np.linalg.norm(start.head.weight))
        moved = float(np.linalg.norm(head.weight - start.head.weight))
        line = Round(
            number=1,
            seconds=round(time.monotonic() - began, 3),
            gradient_norm=0.0,
            update_to_weight=moved / size if size else math.nan,
            train_loss=on_train.loss,
            validation_loss=after.loss,
            loss_fall=old.loss - on_train.loss,
            validation_accuracy=after.accuracy,
            accuracy_gain=100 * (after.accuracy - before.accuracy),
            gap=after.loss - on_train.loss,
        )
        report(line)
        touched = head.weight.size + head.bias.size
        return Update(head=head, parameters_touched=touched, rounds=[line])


def _number(
    start: Start, train_on: Examples, validation: Examples, report: Callable[[Round], None]
) -> Update:
    """The same for a number. In the panel a loss is the share of the variance left, accuracy R2."""
    began = time.monotonic()
    assert train_on.embeddings is not None
    assert train_on.targets is not None
    head = fit_number(train_on.embeddings, train_on.targets, train_on.weights, PRIOR)
    size = float(np.linalg.norm(start.head.weight))
    moved = float(np.linalg.norm(head.weight - start.head.weight))
    on_train, old = _r2(head, train_on), _r2(start.head, train_on)
    judge = validation if len(validation) else train_on
    after, before = _r2(head, judge), _r2(start.head, judge)
    line = Round(
        number=1,
        seconds=round(time.monotonic() - began, 3),
        gradient_norm=0.0,
        update_to_weight=moved / size if size else math.nan,
        train_loss=1 - on_train,
        validation_loss=1 - after,
        loss_fall=on_train - old,
        validation_accuracy=after,
        accuracy_gain=100 * (after - before),
        gap=on_train - after,
    )
    report(line)
    return Update(head=head, parameters_touched=head.weight.size + 1, rounds=[line])


def _r2(head: Head, examples: Examples) -> float:
    assert examples.embeddings is not None
    assert examples.targets is not None
    return errors(head.logits(examples.embeddings)[:, 0], examples.targets)["r2"]


def pull_of(start: Start, hold: float) -> NDArray[np.float32]:
    """Float32 [k]: how firmly each class of the head is held to the parent's."""
    pull = np.zeros(len(start.labels), dtype=np.float32)
    pull[list(start.held)] = hold
    return pull
