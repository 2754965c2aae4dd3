"""Every strategy on a tiny random transformer whose task is easy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import save_file
from transformers import BertConfig, BertModel

from learn.config import LearnConfig, StudentConfig, TrainingConfig
from learn.examples import Examples
from learn.head import Head, score
from learn.model import Classifier, Model, load_model
from learn.strategies import NAMES, open_strategy
from learn.strategy import Round, Start, Update
from learn.text import TextEncoder

WORDS = {f"w{i}": i + 2 for i in range(40)}
LABELS = ["a", "b", "c"]


def preprocess(inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    ids = [[1, *(WORDS.get(word, 0) for word in text.split())] for text in inputs]
    width = max((len(row) for row in ids), default=1)
    tokens = np.zeros((len(ids), width), np.int64)
    mask = np.zeros((len(ids), width), np.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def tiny() -> Model:
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    encoder = TextEncoder(BertModel(config), 16)
    description = {"kind": "text", "labels": LABELS, "encoder": config.to_dict(), "dimension": 16}
    return Model(Classifier(encoder, 16, len(LABELS)), description, preprocess)


def examples(model: Model, n: int, seed: int, classes: int = 3) -> Examples:
    generator = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    texts = np.empty(n, dtype=object)
    for i, label in enumerate(labels):
        words = generator.integers(12 * label, 12 * label + 12, generator.integers(3, 8))
        texts[i] = " ".join(f"w{word}" for word in words)
    numbers = np.arange(n, dtype=np.int64)
    return Examples(
        ids=np.array([f"{seed}-{i}" for i in range(n)], dtype=object),
        times=numbers.astype(np.float64),
        inputs=texts,
        labels=labels,
        embeddings=model.encode(texts),
        weights=np.ones(n, np.float32),
        topics=np.array(["t"] * n, dtype=object),
        partitions=np.zeros(n, np.int32),
        offsets=numbers,
        arrivals=numbers,
    )


CONFIG = LearnConfig(
    training=TrainingConfig(
        rounds=2,
        batch=8,
        encoder_rate=1e-3,
        top_layers=1,
        adapter_width=8,
        virtual_tokens=8,
        precision="fp32",
    ),
    # So small a teacher leaves a tenth no room.
    student=StudentConfig(share=0.9, rounds=10, batch=8, rate=1e-2, texts=120),
)
PARTS = {"adapter": "bottleneck", "prefix": "prefix", "prompt": "prompt"}


class Run:
    """A strategy's fit, with what went in and came out."""

    def __init__(
        self, name: str, n: int = 60, judges: int = 30, classes: int = 3, noise: int = 0
    ) -> None:
        self.model = tiny()
        self.before = {k: v.numpy().copy() for k, v in self.model.module.state_dict().items()}
        self.train = examples(self.model, n, 1, classes)
        self.validation = examples(self.model, judges, 2, classes)
        self.reported: list[Round] = []
        head = Head.zeros(16, len(LABELS))
        start = Start(LABELS, head, lambda: self.model, 1, 1, 60.0)
        torch.manual_seed(noise)
        strategy = open_strategy(name, CONFIG)
        self.update: Update = strategy.fit(start, self.train, self.validation, self.reported.append)


def assert_finite(update: Update) -> None:
    for array in (update.head.weight, update.head.bias, *update.encoder.values()):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name: Run(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_update_is_finite_and_right(name: str, runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs[name]
    update = run.update
    assert_finite(update)
    assert update.parameters_touched > 0
    assert update.rounds == run.reported
    assert update.rounds
    # What is saved is what was learned: base weights, what changed, the head.
    base = tiny()
    base.save(tmp_path)
    if update.architecture:
        described = {**base.description, **update.architecture}
        (tmp_path / "model.json").write_text(json.dumps(described))
    if update.whole:
        save_file(update.encoder, tmp_path / "encoder.safetensors")
    elif update.encoder:
        save_file(update.encoder, tmp_path / "delta.safetensors")
    save_file(
        {"weight": update.head.weight, "bias": update.head.bias}, tmp_path / "head.safetensors"
    )
    loaded = load_model(tmp_path, preprocess)
    assert score(loaded(run.validation.inputs), run.validation.labels).accuracy > 0.8
    if update.encoder and not update.whole:
        np.testing.assert_allclose(
            loaded.encode(run.validation.inputs),
            run.model.encode(run.validation.inputs),
            atol=1e-5,
        )


@pytest.mark.parametrize("name", NAMES)
def test_only_what_the_rung_may_change_changes(name: str, runs: dict[str, Run]) -> None:
    run = runs[name]
    names = set(run.update.encoder)
    if name in PARTS:
        assert run.update.architecture == {"parts": {PARTS[name]: 8}}
        assert names
        assert not names & set(run.before)
        return
    if name == "student":
        assert run.update.whole
        assert set(run.update.architecture) == {"encoder"}
        after = run.model.module.state_dict()
        encoder = [key for key in run.before if key.startswith("encoder.")]
        assert all(np.array_equal(after[key].numpy(), run.before[key]) for key in encoder)
        return
    assert not run.update.architecture
    assert not run.update.whole
    assert names <= set(run.before)
    for key in names:
        assert run.update.encoder[key].shape == run.before[key].shape
        assert not np.array_equal(run.update.encoder[key], run.before[key])
    if name == "head":
        assert not names
    else:
        assert names
    if name == "partial":
        assert all(".layer.1." in key for key in names)
    if name == "ia3":
        ends = ("key.weight", "key.bias", "value.weight", "value.bias", ".output.dense.weight")
        assert all(key.endswith(ends) and "attention.output" not in key for key in names)
    if name == "progressive":
        assert not any("embeddings" in key for key in names)
    if name == "lora":
        assert all(key.endswith(("query.weight", "value.weight")) for key in names)


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_what_peft_added_is_merged_and_gone(name: str, runs: dict[str, Run]) -> None:
    run = runs[name]
    for module in run.model.module.modules():
        assert not isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
    assert set(run.model.module.state_dict()) == set(run.before)
    assert run.update.adapter
    assert all(f"{name}_" in key for key in run.update.adapter)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_update(name: str, runs: dict[str, Run]) -> None:
    update = runs[name].update
    again = Run(name, noise=12345).update  # what ran before must not matter
    np.testing.assert_array_equal(again.head.weight, update.head.weight)
    assert set(again.encoder) == set(update.encoder)
    for key, value in again.encoder.items():
        np.testing.assert_array_equal(value, update.encoder[key])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("n", "judges", "classes"), [(1, 0, 1), (1, 1, 1), (20, 10, 1), (17, 0, 3)]
)
def test_little_data_does_not_crash(name: str, n: int, judges: int, classes: int) -> None:
    assert_finite(Run(name, n, judges, classes).update)


def test_a_head_refit_holds_classes_of_which_nothing_new_came() -> None:
    head = Run("head").update.head
    fresh = examples(tiny(), 60, 4, classes=2)
    lost = {}
    for held in ((), (2,)):
        start = Start(LABELS, head, tiny, 1, 1, 60.0, held=held)
        update = open_strategy("head", CONFIG).fit(start, fresh, fresh, lambda _: None)
        old = examples(tiny(), 90, 5)
        old = old.take(old.labels == 2)
        lost[held] = score(update.head.logits(old.embeddings), old.labels).loss
    assert lost[(2,)] < lost[()] - 0.1


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(ValueError, match="magic"):
        open_strategy("magic", CONFIG)
