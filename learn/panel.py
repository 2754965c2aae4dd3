"""The training panel acted on: from the rounds so far, why a run should end, if it should.

A run that diverges or learns by heart stops itself and says why; so does one that gains too
little to be worth its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from learn.config import TrainingConfig
from learn.strategy import Round


def verdict(
    rounds: Sequence[Round], start_loss: float, config: TrainingConfig, target: float | None = None
) -> str | None:
    """Why training should stop after ``rounds``; None to go on.

    start_loss: the validation loss before the first round. target: the validation accuracy, 0 to
    1, that suffices. The first word of the answer, up to the colon, is its kind: ``diverged``,
    ``overfitting``, ``enough`` or ``gained``.

    >>> verdict([Round(1, 1.0, 1.0, 0.2, 3.0, 3.0, 0.0, 0.5, 1.0, 0.0)], 3.0, TrainingConfig())
    'diverged: steps move the weights by 0.2 of their size, more than 0.1'
    """
    last = rounds[-1]
    before = rounds[-2].validation_loss if len(rounds) > 1 else start_loss
    if not math.isfinite(last.train_loss) or not math.isfinite(last.validation_loss):
        return "diverged: the loss is no number"
    if last.update_to_weight > config.max_update_ratio:
        return (
            f"diverged: steps move the weights by {last.update_to_weight:.2g} of their size, "
            f"more than {config.max_update_ratio:g}"
        )
    if len(rounds) > 1 and last.loss_fall < 0 and last.validation_loss > before:
        rise = f"{-last.loss_fall:.2g} in training"
        return f"diverged: both losses rose in round {last.number}, by {rise}"
    if last.gap > config.max_gap and last.validation_loss > before:
        return f"overfitting: validation loss is {last.gap:.2f} above training and rising"
    if target is not None and last.validation_accuracy >= target:
        return f"enough: {last.validation_accuracy:.1%} in validation, {target:.1%} suffice"
    if len(rounds) > 1 and last.accuracy_gain < config.minimal_gain:
        return f"gained: {last.accuracy_gain:.2f} points in round {last.number}, too few to go on"
    return None
