"""The training loop that every rung with encoder weights shares, and its panel.

Bounded by rounds and CPU time; `learn.panel` says after each round whether to go on. The model is
left at its best round. A run that was cut off goes on after its last whole round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from learn.config import TrainingConfig
from learn.examples import Examples
from learn.head import Head, fit_softmax, score
from learn.losses import Criterion, Loss
from learn.model import Model, batches, lengths
from learn.panel import verdict
from learn.resume import State, load, restore_optimiser, save
from learn.strategy import Round, Start

Verdict = Callable[[Sequence[Round], float, TrainingConfig, float | None], str | None]

JUDGES = 512  # validation examples that a round is judged on


@dataclass(frozen=True, slots=True)
class Stage:
    """Rounds that train the same parameters: each group with its peak rate, all others frozen.

    model: opens what is run, the whole model or its `learn.frozen.UpperLayers`.
    """

    model: Callable[[], Model]
    groups: list[tuple[list[nn.Parameter], float]]
    rounds: int


def train(
    stages: Sequence[Stage],
    start: Start,
    examples: Examples,
    validation: Examples,
    config: TrainingConfig,
    report: Callable[[Round], None],
    loss: Criterion | None = None,
    stop: Verdict = verdict,
    began: float | None = None,
) -> tuple[list[Round], str | None, Model | None]:
    """Train through the stages, and leave the parameters at their best round.

    loss: what is minimised, if not `Loss`. stop: says after each round why to end, if at all.
    began: this process's CPU time from which on the budget is counted, if not now. Returns the
    panel, why it stopped early, if it did, and the model that was run last, if any.
    """
    torch.set_num_threads(start.threads)
    judge = validation if len(validation) else examples
    judge = judge.take(np.arange(min(len(judge), JUDGES)))
    trained = list({id(p): p for s in stages for group, _ in s.groups for p in group}.values())
    moments: Mapping[str, torch.Tensor] = {}
    state: State | None = None
    model: Model | None = None
    if start.keep is not None and start.keep.exists():
        state, moments = load(start.keep, trained)
    loss = loss or Loss(examples, start.head, config)
    stopped = None
    until = (time.process_time() if began is None else began) + start.cpu_seconds
    for number, stage in enumerate(stages):
        if state is not None and (state.stage, state.in_stage) >= (number, stage.rounds):
            continue
        model = stage.model()
        if state is None:
            found = score(model(judge.inputs), judge.labels)
            before = (found.accuracy, -found.loss)
            state = State(before, before, _copies(trained))
        if state.stage != number:
            state.stage, state.in_stage, moments = number, 0, {}
        steps = _Steps(model, stage, loss, examples, config, start.seed)
        restore_optimiser(steps.optimiser, trained, moments)
        moments = {}
        while state.in_stage < stage.rounds and not stopped:
            line = steps.round(state, judge, until)
            if line is None:
                stopped = "diverged: the loss is no number"
                break
            state.rounds.append(line)
            state.in_stage += 1
            report(line)
            standing = (line.validation_accuracy, -line.validation_loss)
            if standing > state.best_score:
                state.best, state.best_score = _copies(trained), standing
            stopped = stop(state.rounds, -state.before[1], config, start.target)
            if not stopped and time.process_time() > until:
                stopped = f"budget: {start.cpu_seconds:g} CPU-seconds are spent"
            if not stopped and start.keep is not None:
                save(start.keep, state, trained, steps.optimiser)
        if stopped:
            break
    assert state is not None
    with torch.no_grad():
        for parameter, value in zip(trained, state.best, strict=True):
            parameter.copy_(value)
    return state.rounds, stopped, model


class _Steps:
    """The optimiser's steps through one stage."""

    def __init__(
        self,
        model: Model,
        stage: Stage,
        loss: Criterion,
        examples: Examples,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        self.model, self.loss, self.examples, self.config = model, loss, examples, config
        self.seed = seed
        self.sizes = lengths(examples.inputs)
        self.rates = [rate for _, rate in stage.groups]
        self.trained = [p for parameters, _ in stage.groups for p in parameters]
        for parameter in model.module.parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for parameters, rate in stage.groups],
            weight_decay=config.weight_decay,
        )
        self.a_round = math.ceil(math.ceil(len(examples) / config.batch) / config.accumulate)
        self.slope = _slope(self.a_round * stage.rounds, config.warmup)
        self.shares: NDArray[np.float64] | None = None
        self.half = config.precision == "bf16" or (
            config.precision == "auto" and gains_from_bf16(model.device)
        )

    def round(self, state: State, judge: Examples, until: float) -> Round | None:
        """One pass over the examples, judged; ends early at ``until`` of this process's CPU time.

        None if it diverged.
        """
        config, number = self.config, len(state.rounds) + 1
        started = time.monotonic()
        # Of the seed and the round alone, so that a resumed run takes the same way.
        torch.manual_seed(self.seed + number)
        generator = np.random.default_rng([self.seed, number])
        order = batches(self.sizes, config.batch, generator)
        if self.shares is not None:
            drawn = generator.choice(len(self.sizes), len(self.sizes), p=self.shares)
            order = [drawn[i] for i in batches(self.sizes[drawn], config.batch, generator)]
        losses, norms, ratios = [], [], []
        self.model.module.train()
        for step, i in enumerate(range(0, len(order), config.accumulate)):
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.slope(state.in_stage * self.a_round + step)
            loss, norm, ratio = self._step(order[i : i + config.accumulate])
            if not math.isfinite(loss):
                self.model.module.eval()
                return None
            losses.append(loss)
            norms.append(norm)
            ratios.append(ratio)
            if time.process_time() > until:
                break
        logits = self.model(judge.inputs)
        found = score(logits, judge.labels)
        if config.class_focus:
            self.shares = _focused(logits, judge.labels, self.examples.labels, config.class_focus)
        last = state.rounds[-1] if state.rounds else None
        loss = float(np.mean(losses))
        accuracy = last.validation_accuracy if last else state.before[0]
        return Round(
            number=number,
            seconds=round(time.monotonic() - started, 3),
            gradient_norm=float(np.mean(norms)),
            update_to_weight=float(np.median(ratios)),
            train_loss=loss,
            validation_loss=found.loss,
            loss_fall=last.train_loss - loss if last else 0.0,
            validation_accuracy=found.accuracy,
            accuracy_gain=100 * (found.accuracy - accuracy),
            gap=found.loss - loss,
        )

    def _step(self, part: list[NDArray[np.int64]]) -> tuple[float, float, float]:
        """One optimiser step over some batches: loss, gradient norm, update-to-weight ratio."""
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for index in part:
            feeds = self.model.feeds(self.examples.inputs[index])
            with torch.autocast(self.model.device, torch.bfloat16, enabled=self.half):
                embedding, logits, _ = self.model.module(**feeds)
            loss = self.loss(embedding.float(), logits.float(), index) / len(part)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.trained, self.config.clip))
        if not math.isfinite(norm):
            return math.nan, norm, math.nan
        with torch.no_grad():
            before = _copies(self.trained)
            self.optimiser.step()
            moved = [(p - b).norm() for p, b in zip(self.trained, before, strict=True)]
            ratio = torch.stack(moved).norm() / torch.stack([b.norm() for b in before]).norm()
        return total, norm, float(ratio)


def fit_head(model: Model, examples: Examples, validation: Examples, head: Head, l2: float) -> Head:
    """The better of ``head`` and a fresh fit, on the embeddings of the examples.

    Where they have none, ``model`` makes them.
    """
    fitted = fit_softmax(
        _embeddings(model, examples), examples.labels, examples.weights, head.classes, l2, head
    )
    if not len(validation):
        return fitted
    embeddings = _embeddings(model, validation)
    ours = score(fitted.logits(embeddings), validation.labels)
    theirs = score(head.logits(embeddings), validation.labels)
    return fitted if (ours.accuracy, -ours.loss) >= (theirs.accuracy, -theirs.loss) else head


def refit_head(
    model: Model, examples: Examples, validation: Examples, head: Head, l2: float
) -> Head:
    """As `fit_head`, on embeddings made anew: the encoder has moved."""
    return fit_head(
        model, examples.with_embeddings(None), validation.with_embeddings(None), head, l2
    )


def changed(model: Model, before: dict[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    """Encoder parameters that differ from ``before`` (a state_dict) or are new, FP32, by name."""
    return {
        name: tensor.detach().float().cpu().numpy().copy()
        for name, tensor in model.module.state_dict().items()
        if name.startswith("encoder.")
        and not (name in before and torch.equal(tensor, before[name]))
    }


def gains_from_bf16(device: str) -> bool:
    """Whether products in bfloat16 are faster than in FP32 there."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _embeddings(model: Model, examples: Examples) -> NDArray[np.float32]:
    found = examples.embeddings
    if found is not None and np.isfinite(found).all():
        return found
    return model.encode(examples.inputs)


def _focused(
    logits: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: NDArray[np.int64],
    focus: float,
) -> NDArray[np.float64]:
    """Float64 [n]: shares with which examples are drawn, by how badly their class does.

    A class that is always wrong is drawn ``1 + focus`` times as often as one always right.
    """
    classes = logits.shape[1]
    right = np.bincount(truth, logits.argmax(axis=1) == truth, classes)
    seen = np.bincount(truth, minlength=classes)
    # One success assumed: a class that is hardly seen in validation is not judged by it.
    recall = (right + 1) / (seen + 1)
    shares = np.asarray((1 + focus * (1 - recall))[labels], dtype=np.float64)
    return shares / float(shares.sum())


def _copies(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _slope(total: int, warmup: float) -> Callable[[int], float]:
    rising = max(1, int(total * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (total - step) / max(1, total - rising))

    return factor
