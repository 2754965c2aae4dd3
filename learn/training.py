"""The training loop that every rung with encoder weights shares, and its panel.

Bounded by rounds and CPU time; stops itself when a round gains too little, when the loss is no
number, or when training and validation part ways. The model is left at its best round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from learn.config import TrainingConfig
from learn.examples import Examples
from learn.head import Head, fit_softmax, score
from learn.model import Model, batches, lengths
from learn.strategy import Round, Start


def train(
    model: Model,
    groups: list[tuple[list[nn.Parameter], float]],
    start: Start,
    examples: Examples,
    validation: Examples,
    config: TrainingConfig,
    report: Callable[[Round], None],
) -> tuple[list[Round], str | None]:
    """Train the parameters of ``groups`` (each with its learning rate); all others are frozen.

    Leaves the model at its best round. Returns the panel, and why it stopped early, if it did.
    """
    torch.manual_seed(start.seed)
    torch.set_num_threads(start.threads)
    generator = np.random.default_rng(start.seed)
    trained = [parameter for parameters, _ in groups for parameter in parameters]
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups],
        weight_decay=config.weight_decay,
    )
    judge = validation if len(validation) else examples
    judge = judge.take(np.arange(min(len(judge), 512)))
    sizes = lengths(examples.inputs)
    per_round = math.ceil(math.ceil(len(examples) / config.batch) / config.accumulate)
    total = per_round * config.rounds
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _slope(total, config.warmup))
    before = score(model(judge.inputs), judge.labels)
    best, best_score = _copies(trained), before
    last_accuracy, last_train, last_loss = before.accuracy, math.nan, before.loss
    rounds: list[Round] = []
    stopped = None
    began = time.process_time()
    for number in range(1, config.rounds + 1):
        started = time.monotonic()
        losses, norms, ratios = [], [], []
        model.module.train()
        groups_of_batches = batches(sizes, config.batch, generator)
        for i in range(0, len(groups_of_batches), config.accumulate):
            part = groups_of_batches[i : i + config.accumulate]
            loss, norm, ratio = _step(model, optimiser, trained, examples, part, config.clip)
            schedule.step()
            losses.append(loss)
            norms.append(norm)
            ratios.append(ratio)
            if not math.isfinite(loss):
                stopped = "diverged: the loss is no number"
            elif time.process_time() - began > start.cpu_seconds:
                stopped = f"the budget of {start.cpu_seconds:g} CPU-seconds is spent"
            if stopped:
                break
        model.module.eval()
        if stopped and stopped.startswith("diverged"):
            break
        found = score(model(judge.inputs), judge.labels)
        loss = float(np.mean(losses))
        line = Round(
            number=number,
            seconds=round(time.monotonic() - started, 3),
            gradient_norm=float(np.mean(norms)),
            update_to_weight=float(np.mean(ratios)),
            train_loss=loss,
            validation_loss=found.loss,
            loss_fall=0.0 if math.isnan(last_train) else last_train - loss,
            validation_accuracy=found.accuracy,
            accuracy_gain=100 * (found.accuracy - last_accuracy),
            gap=found.loss - loss,
        )
        rounds.append(line)
        report(line)
        if (found.accuracy, -found.loss) > (best_score.accuracy, -best_score.loss):
            best, best_score = _copies(trained), found
        if stopped:
            break
        if line.gap > config.max_gap and found.loss > last_loss:
            stopped = f"overfitting: validation loss is {line.gap:.2f} above training and rising"
            break
        if number > 1 and line.accuracy_gain < config.minimal_gain:
            stopped = f"round {number} gained {line.accuracy_gain:.2f} points"
            break
        last_accuracy, last_train, last_loss = found.accuracy, loss, found.loss
    with torch.no_grad():
        for parameter, value in zip(trained, best, strict=True):
            parameter.copy_(value)
    return rounds, stopped


def refit_head(
    model: Model, examples: Examples, validation: Examples, head: Head, l2: float
) -> Head:
    """The better of ``head`` and a fresh fit on the model's own embeddings."""
    fitted = fit_softmax(
        model.encode(examples.inputs), examples.labels, examples.weights, head.classes, l2, head
    )
    if not len(validation):
        return fitted
    embeddings = model.encode(validation.inputs)
    ours = score(fitted.logits(embeddings), validation.labels)
    theirs = score(head.logits(embeddings), validation.labels)
    return fitted if (ours.accuracy, -ours.loss) >= (theirs.accuracy, -theirs.loss) else head


def changed(model: Model, before: dict[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    """Encoder parameters that differ from ``before`` (a state_dict), FP32, by name."""
    return {
        name: tensor.detach().float().cpu().numpy().copy()
        for name, tensor in model.module.state_dict().items()
        if name.startswith("encoder.") and not torch.equal(tensor, before[name])
    }


def _step(
    model: Model,
    optimiser: torch.optim.Optimizer,
    trained: list[nn.Parameter],
    examples: Examples,
    part: list[NDArray[np.int64]],
    clip: float,
) -> tuple[float, float, float]:
    """One optimiser step over some batches: loss, gradient norm, update-to-weight ratio."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for index in part:
        _, logits, _ = model.module(**model.feeds(examples.inputs[index]))
        target = torch.from_numpy(examples.labels[index]).to(logits.device)
        weights = torch.from_numpy(examples.weights[index]).to(logits.device)
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        loss = (losses * weights).sum() / weights.sum().clamp(min=1e-6) / len(part)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    norm = float(nn.utils.clip_grad_norm_(trained, clip))
    if not math.isfinite(norm):
        return math.nan, norm, math.nan
    with torch.no_grad():
        before = _copies(trained)
        optimiser.step()
        moved = math.sqrt(
            sum(float((p - b).pow(2).sum()) for p, b in zip(trained, before, strict=True))
        )
        size = math.sqrt(sum(float(b.pow(2).sum()) for b in before))
    return total, norm, moved / max(size, 1e-12)


def _copies(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _slope(total: int, warmup: float) -> Callable[[int], float]:
    rising = max(1, int(total * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (total - step) / max(1, total - rising))

    return factor
