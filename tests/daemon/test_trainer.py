"""The trainer's work on files: what a refresh writes, shares with its parent, and leaves alone."""

from __future__ import annotations

import os

import numpy as np
import pytest

from daemon.job import VERSION, Job
from daemon.trainer_main import run
from deploy.session import Session
from learn.config import LearnConfig, ModelConfig, TrainingConfig
from learn.examples import Examples
from registry import ManifestDraft, open_registry

LABELS = ["no", "yes"]


@pytest.fixture
def examples():
    random = np.random.default_rng(4)
    x = random.normal(size=(1200, 2))
    inputs = np.empty(1200, dtype=[("a", "<f8"), ("b", "<f8")])
    inputs["a"], inputs["b"] = x.T
    number = np.arange(1200, dtype=np.int64)
    return Examples(
        ids=np.array([f"e{i}" for i in number], dtype=object),
        times=number.astype(np.float64),
        inputs=inputs,
        labels=(np.sin(4 * x[:, 0]) > x[:, 1]).astype(np.int64),  # more than a head can learn
        embeddings=None,
        weights=np.ones(1200, dtype=np.float32),
        topics=np.full(1200, "t", dtype=object),
        partitions=np.zeros(1200, dtype=np.int32),
        offsets=number,
        arrivals=number,
    )


def test_each_refresh_builds_on_its_parent_and_never_writes_to_it(examples, tmp_path):
    registry = open_registry(tmp_path / "registry", create=True)
    model = ModelConfig(task="tabular", table="network", features=[{"name": "a"}, {"name": "b"}])
    # With so strong a prior no fit of the head alone is any good: the encoder has to move.
    learn = LearnConfig(l2=1e4, training=TrainingConfig(encoder_rate=0.003, rounds=4))
    parent = None
    # The meaning turns over twice, so that each encoder rung starts from a head that is wrong.
    for rung, turned in (("head", False), ("partial", True), ("full", False), ("head", False)):
        events = examples.relabelled(1 - examples.labels) if turned else examples
        settings = LearnConfig() if rung == "head" else learn
        job = Job(
            id=f"{len(registry.versions())}-{rung}",
            rung=rung,
            strategy=rung,
            labels=LABELS,
            parent=str(registry.path(parent)) if parent else None,
            seed=1,
            threads=1,
            cpu_seconds=60,
            model=model.model_dump(mode="json"),
            learn=settings.model_dump(mode="json"),
        )
        folder = tmp_path / "jobs" / job.id
        job.write(folder, events)
        result = run(folder)
        assert result.outcome == "trained"
        assert "manifest.json" not in os.listdir(folder / VERSION)
        answers = Session.open(folder / VERSION).predict(examples.inputs).probabilities
        assert (answers.argmax(axis=1) == events.labels).mean() > 0.7
        draft = ManifestDraft(
            strategy=rung, rung=rung, task="tabular", labels=LABELS, metrics=result.metrics
        )
        parent = registry.publish(folder / VERSION, draft, actor="test").id
    first, partial, full, last = (version.manifest.files for version in registry.versions())
    for version in registry.versions():
        registry.path(version.id, verify=True)
    assert {f["encoder.safetensors"].sha256 for f in (first, partial, full, last)} == {
        first["encoder.safetensors"].sha256
    }
    assert "delta.safetensors" not in first
    assert partial["delta.safetensors"] != full["delta.safetensors"]
    assert full["delta.safetensors"] == last["delta.safetensors"]


def test_a_seed_makes_the_same_first_version_again(examples, tmp_path):
    model = ModelConfig(task="tabular", features=[{"name": "a"}, {"name": "b"}])
    made = []
    for name in ("once", "again"):
        job = Job(
            id=name,
            rung="head",
            strategy="head",
            labels=LABELS,
            parent=None,
            seed=3,
            threads=1,
            cpu_seconds=60,
            model=model.model_dump(mode="json"),
            learn=LearnConfig().model_dump(mode="json"),
        )
        job.write(tmp_path / name, examples)
        run(tmp_path / name)
        made.append((tmp_path / name / VERSION / "encoder.safetensors").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "strategy", ["head", "partial", "progressive", "ia3", "lora", "adapter", "full"]
)
def test_the_first_version_can_be_made_by_any_strategy(examples, tmp_path, strategy):
    model = ModelConfig(task="tabular", table="network", features=[{"name": "a"}, {"name": "b"}])
    learn = LearnConfig(training=TrainingConfig(encoder_rate=0.003, rounds=2))
    job = Job(
        id="first",
        rung=strategy,
        strategy=strategy,
        labels=LABELS,
        parent=None,
        seed=1,
        threads=1,
        cpu_seconds=60,
        model=model.model_dump(mode="json"),
        learn=learn.model_dump(mode="json"),
    )
    folder = tmp_path / "job"
    job.write(folder, examples)
    result = run(folder)
    assert result.outcome == "trained"
    assert {"size_ratio", "parity_points", "accuracy", "latency_ms"} <= set(result.metrics)
    answers = Session.open(folder / VERSION).predict(examples.inputs).probabilities.argmax(axis=1)
    assert (answers == examples.labels).mean() > 0.6


@pytest.mark.parametrize("strategy", ["prefix", "prompt", "student"])
def test_a_table_has_no_place_for_what_needs_words(examples, tmp_path, strategy):
    model = ModelConfig(task="tabular", features=[{"name": "a"}, {"name": "b"}])
    job = Job(
        id="first",
        rung=strategy,
        strategy=strategy,
        labels=LABELS,
        parent=None,
        seed=1,
        threads=1,
        cpu_seconds=60,
        model=model.model_dump(mode="json"),
        learn=LearnConfig().model_dump(mode="json"),
    )
    job.write(tmp_path / "job", examples)
    with pytest.raises(ValueError, match="needs a text"):
        run(tmp_path / "job")
