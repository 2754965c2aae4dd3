"""The parts of training: losses, the panel's verdicts, layers that run once, going on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learn.config import TrainingConfig
from learn.frozen import UpperLayers, upper_layers
from learn.head import Head
from learn.losses import Loss, Matching, contrastive, distillation
from learn.panel import verdict
from learn.strategies import open_strategy
from learn.strategies.encoder import numbered
from learn.strategies.student import _taught
from learn.strategy import Round, Start
from tests.learn.test_strategies import CONFIG, Run, examples, tiny

SOUND = Round(1, 1.0, 1.0, 0.01, 1.0, 1.1, 0.0, 0.7, 5.0, 0.1)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("diverged", {"train_loss": float("nan")}),
        ("diverged", {"validation_loss": float("inf")}),
        ("diverged", {"update_to_weight": 0.11}),
        ("diverged", {"loss_fall": -0.1, "validation_loss": 1.5}),
        ("overfitting", {"gap": 0.3, "validation_loss": 1.5, "loss_fall": 0.5}),
        ("enough", {"validation_accuracy": 0.91}),
        ("gained", {"accuracy_gain": 0.4}),
    ],
)
def test_the_panel_stops_a_run_and_says_why(kind: str, change: dict[str, float]) -> None:
    settings = TrainingConfig()
    second = replace(SOUND, number=2, validation_accuracy=0.8, loss_fall=0.2, validation_loss=1.0)
    assert verdict([SOUND, second], 2.0, settings, target=0.9) is None
    stopped = verdict([SOUND, replace(second, **change)], 2.0, settings, target=0.9)
    assert stopped is not None
    assert stopped.startswith(f"{kind}: ")


def test_a_first_round_may_gain_nothing() -> None:
    assert verdict([replace(SOUND, accuracy_gain=-3.0)], 2.0, TrainingConfig()) is None


def test_distillation_is_zero_at_the_teacher_and_only_where_it_is_right() -> None:
    logits = torch.randn(6, 3)
    assert distillation(logits, logits).abs().max() < 1e-6
    assert (distillation(logits, logits.flip(1)) >= 0).all()
    run = Run("head")
    head = run.update.head
    data = examples(tiny(), 30, 1)
    wrong = data.relabelled((head.logits(data.embeddings).argmax(axis=1) + 1) % 3)
    index = np.arange(30)
    embedding, free = torch.from_numpy(data.embeddings), torch.zeros(30, 3)
    with_it, without = TrainingConfig(distillation=1.0), TrainingConfig()
    for found, differs in ((data, True), (wrong, False)):
        a = Loss(found, head, with_it)(embedding, free, index)
        b = Loss(found, head, without)(embedding, free, index)
        assert bool(a > b + 1e-3) is differs


def test_the_contrastive_loss_falls_as_classes_draw_together() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    together = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert contrastive(together, labels) < contrastive(apart, labels) - 5
    assert contrastive(apart, torch.arange(4)) == 0


def test_upper_layers_give_what_the_whole_model_gives() -> None:
    model = tiny()
    data = examples(model, 40, 1)
    top = numbered(model)[-1:]
    names = {name for layer in top for name in layer.parameters}
    above = upper_layers(model, names, data.inputs, 2**20)
    assert isinstance(above, UpperLayers)
    np.testing.assert_allclose(above.encode(data.inputs), model.encode(data.inputs), atol=1e-6)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name in names:
                parameter.add_(0.1 * torch.randn_like(parameter))
    # They share parameters: what one learns the other knows.
    np.testing.assert_allclose(above.encode(data.inputs), model.encode(data.inputs), atol=1e-6)
    assert upper_layers(model, names, data.inputs, max_bytes=100) is None
    every = {name for layer in model.layers() for name in layer.parameters}
    assert upper_layers(model, every, data.inputs, 2**20) is None


def test_a_student_needs_no_label_to_match_its_teacher() -> None:
    head, data, index = Run("head").update.head, examples(tiny(), 30, 1), np.arange(30)
    taught = Matching(data.weighted(np.zeros(30, np.float32)), head, 10.0)
    labelled = Matching(data, head, 10.0)
    own = torch.from_numpy(data.embeddings)
    logits = torch.from_numpy(head.logits(data.embeddings))
    assert abs(float(taught(own, logits, index))) < 1e-5
    assert float(labelled(own, logits, index)) > 0.01
    assert float(taught(own.flip(0), logits, index)) > 0.1
    assert float(taught(own, logits.flip(0), index)) > 0.01
    # Texts that are made up have no label that counts, and lie where their originals do.
    start = Start(["a", "b", "c"], head, tiny, 1, 1, 60.0)
    found = _taught(tiny(), data, 75, start, time.process_time())
    assert len(found) == 75
    assert (found.weights[:30] == 1).all()
    assert (found.weights[30:] == 0).all()
    np.testing.assert_allclose(found.embeddings, tiny().encode(found.inputs), atol=1e-5)
    assert len(_taught(tiny(), data, 10, start, time.process_time())) == 30
    late = time.process_time() - 31.0
    assert len(_taught(tiny(), data, 75, start, late)) == 30  # half of the time is over


class Interrupted(Exception):  # noqa: N818
    """The process ends here."""


@pytest.mark.parametrize("name", ["full", "progressive", "student"])
def test_a_run_that_was_cut_off_ends_where_a_whole_one_does(name: str, tmp_path: Path) -> None:
    settings = CONFIG.training.model_copy(update={"rounds": 4, "minimal_gain": 0, "max_gap": 9.0})
    config = CONFIG.model_copy(update={"training": settings})
    data, judges = examples(tiny(), 60, 1), examples(tiny(), 30, 2)
    data = data.relabelled((data.labels + np.arange(60) // 50) % 3)  # some wrong: slow to learn

    def fit(keep: Path | None, stop: int) -> tuple[dict[str, np.ndarray], list[int]]:
        seen: list[int] = []

        def report(line: Round) -> None:
            seen.append(line.number)
            if line.number > stop:
                raise Interrupted

        start = Start(["a", "b", "c"], Head.zeros(16, 3), tiny, 1, 1, 60.0, keep=keep)
        update = open_strategy(name, config).fit(start, data, judges, report)
        return update.encoder, seen

    whole, rounds = fit(None, stop=100)
    assert len(rounds) >= 2
    kept = tmp_path / "training.safetensors"
    with pytest.raises(Interrupted):
        fit(kept, stop=1)
    resumed, again = fit(kept, stop=100)
    assert again == rounds[1:]
    assert set(resumed) == set(whole)
    for key, value in whole.items():
        np.testing.assert_allclose(resumed[key], value, atol=1e-6)
