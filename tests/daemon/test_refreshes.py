"""Refreshes of a small text model as the trainer does them: every rung, bad input, crashes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.job import TRAINING, VERSION, Job, Result
from daemon.policy_config import TrainerConfig
from daemon.trainer import ChildProcess, Trainer
from daemon.trainer_main import run
from deploy.preprocess import load_preprocessor
from deploy.session import MODEL_FILE, QUANTISATION_FILE, Session
from learn.config import LearnConfig, ModelConfig, StudentConfig, TrainingConfig
from learn.examples import Examples
from learn.model import load_model
from learn.strategies import NAMES
from tests.daemon.small_text import pretrained, texts_of

LABELS = ["a", "b", "c"]
TRAINING_CONFIG = TrainingConfig(
    rounds=2, encoder_rate=1e-3, top_layers=1, adapter_width=8, virtual_tokens=8, precision="fp32"
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So small that a test takes a moment."""
    return pretrained(tmp_path_factory.mktemp("base"), 16, 2)


def examples(
    n: int, seed: int = 1, classes: int = 3, texts: np.ndarray[Any, Any] | None = None
) -> Examples:
    number = np.arange(n, dtype=np.int64)
    labels = number % classes
    return Examples(
        ids=np.array([f"{seed}-{i}" for i in number], dtype=object),
        times=number.astype(np.float64),
        inputs=texts_of(labels, seed) if texts is None else texts,
        labels=labels,
        embeddings=None,
        weights=np.ones(n, np.float32),
        topics=np.full(n, "t", dtype=object),
        partitions=np.zeros(n, np.int32),
        offsets=number,
        arrivals=number,
    )


Make = Callable[..., Job]


@pytest.fixture(scope="session")
def make(base: Path) -> Make:
    """Makes a job; the parent is a version's folder."""

    def job(
        strategy: str,
        parent: Path | None,
        labels: list[str] = LABELS,
        learn: dict[str, Any] | None = None,
        **training: Any,
    ) -> Job:
        settings = LearnConfig(
            training=TRAINING_CONFIG.model_copy(update=training),
            # So small a teacher leaves a tenth no room.
            student=StudentConfig(share=0.9, rounds=10, batch=8, rate=1e-2, texts=120),
        )
        return Job(
            id=f"job-{strategy}",
            rung=strategy,
            strategy=strategy,
            labels=labels,
            parent=str(parent) if parent else None,
            seed=1,
            threads=1,
            cpu_seconds=60,
            model=ModelConfig(base=str(base)).model_dump(mode="json"),
            learn=settings.model_dump(mode="json") | (learn or {}),
        )

    return job


def refresh(job: Job, found: Examples, folder: Path) -> tuple[Result, Path]:
    job.write(folder, found)
    result = run(folder)
    if result.outcome == "trained":
        # What the registry adds, and later refreshes read.
        (folder / VERSION / "manifest.json").write_text(json.dumps({"metrics": result.metrics}))
    return result, folder / VERSION


@pytest.fixture(scope="session")
def champion(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, folder = refresh(make("head", None), examples(60), tmp_path_factory.mktemp("first") / "job")
    return folder


@pytest.fixture
def untouched(champion: Path) -> Any:
    before = digests(champion)
    yield
    assert digests(champion) == before


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def accuracy(folder: Path, found: Examples) -> float:
    answers = Session.open(folder).predict(found.inputs).probabilities.argmax(axis=1)
    return float((answers == found.labels).mean())


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("strategy", NAMES)
def test_every_strategy_makes_a_version_that_the_next_can_build_on(
    strategy: str, make: Make, champion: Path, tmp_path: Path
) -> None:
    swapped = examples(90, 2).relabelled(2 - examples(90).labels)
    result, folder = refresh(make(strategy, champion), swapped, tmp_path / "one")
    assert result.outcome == "trained", result.reason
    assert result.parameters_touched > 0
    unseen = examples(60, 3).relabelled(2 - examples(60).labels)
    assert accuracy(folder, unseen) > 0.8
    if strategy != "head":
        assert result.metrics["agreement"] > 0.9  # of INT8 with what was trained
    parts = json.loads((folder / "model.json").read_text()).get("parts")
    added = {"adapter": "bottleneck", "prefix": "prefix", "prompt": "prompt"}
    assert parts == ({added[strategy]: 8} if strategy in added else None)
    if strategy in (*added, "student"):
        again, second = refresh(make("lora", folder), examples(90, 4), tmp_path / "two")
        assert again.outcome == "trained", again.reason
        assert json.loads((second / "model.json").read_text()).get("parts") == parts
        assert accuracy(second, examples(60, 5)) > 0.8
        assert again.metrics["agreement"] > 0.9


def test_with_static_activations_a_trained_encoder_is_calibrated_anew(
    make: Make, tmp_path: Path
) -> None:
    static = {"activations": "static", "calibration_events": 40}
    first, folder = refresh(
        replace(make("head", None), export=static), examples(60), tmp_path / "a"
    )
    assert first.outcome == "trained", first.reason
    note = (folder / QUANTISATION_FILE).read_text()
    assert json.loads(note)["events"] == 40
    # A head leaves the graph's scales as they are, an encoder that moved does not.
    _, refit = refresh(
        replace(make("head", folder), export=static), examples(60, 2), tmp_path / "b"
    )
    assert (refit / QUANTISATION_FILE).read_text() == note
    trained, moved = refresh(
        replace(make("partial", folder), export=static), examples(60, 3), tmp_path / "c"
    )
    assert trained.outcome == "trained", trained.reason
    assert (moved / QUANTISATION_FILE).read_text() != note
    assert (folder / QUANTISATION_FILE).read_text() == note
    assert trained.metrics["agreement"] >= 0.8
    assert accuracy(moved, examples(60, 4)) > 0.8


@pytest.fixture(scope="session")
def teacher(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version whose encoder has been trained and has a part added, of 200,000 parameters."""
    wide = pretrained(tmp_path_factory.mktemp("wide"), 64, 4)
    folder, parent = tmp_path_factory.mktemp("teacher"), None
    for strategy in ("head", "lora", "adapter"):
        job = replace(make(strategy, parent), model=ModelConfig(base=str(wide)).model_dump())
        _, parent = refresh(job, examples(90), folder / strategy)
    return parent


def parameters(folder: Path) -> int:
    """Of the encoder."""
    model = load_model(folder, load_preprocessor(folder))
    return sum(p.numel() for p in model.module.encoder.parameters())


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_student_is_a_tenth_of_its_teacher_and_answers_as_it_does(
    blocks: int, make: Make, teacher: Path, tmp_path: Path
) -> None:
    before = digests(teacher)
    settings = StudentConfig(rounds=30, batch=16, rate=1e-2, blocks=blocks, texts=240).model_dump()
    job = make("student", teacher, learn={"student": settings})
    # Few labels, some of them wrong: there is more to learn from the teacher than from them.
    found = examples(120, 2)
    found.labels[::10] = (found.labels[::10] + 1) % 3
    result, folder = refresh(job, found, tmp_path / "one")
    assert digests(teacher) == before
    assert result.outcome == "trained", result.reason
    assert parameters(folder) <= 0.1 * parameters(teacher)
    assert result.metrics["agreement"] > 0.95
    # Whole files of its own, and nothing of the teacher's encoder.
    files = {file.name for file in folder.iterdir()}
    assert not files & {"delta.safetensors", "adapter.safetensors"}
    assert (folder / "encoder.safetensors").stat().st_nlink == 1
    assert (folder / "tokenizer.json").samefile(teacher / "tokenizer.json")
    assert (folder / MODEL_FILE).stat().st_size < (teacher / MODEL_FILE).stat().st_size
    unseen = examples(90, 3)
    small, large = (Session.open(place).predict(unseen.inputs) for place in (folder, teacher))
    agreed = small.probabilities.argmax(axis=1) == large.probabilities.argmax(axis=1)
    assert agreed.mean() > 0.9
    assert (small.embeddings * large.embeddings).sum(axis=1).mean() > 0.8
    # Rounds are in the panel, and get nearer to the teacher.
    losses = [line["train_loss"] for line in result.lineage["rounds"]]
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    # What comes after it builds on it as on any other version.
    for strategy in ("head", "partial", "full"):
        swapped = examples(120, 4).relabelled(2 - examples(120).labels)
        again, later = refresh(make(strategy, folder), swapped, tmp_path / strategy)
        assert again.outcome == "trained", again.reason
        assert accuracy(later, unseen.relabelled(2 - unseen.labels)) > 0.8
        assert (later / "encoder.safetensors").samefile(folder / "encoder.safetensors")


def test_a_student_that_does_not_fit_is_refused(make: Make, champion: Path, tmp_path: Path) -> None:
    job = make("student", champion, learn={"student": StudentConfig(share=0.01).model_dump()})
    with pytest.raises(ValueError, match=r"raise learn\.student\.share"):
        refresh(job, examples(60), tmp_path / "job")


@pytest.mark.usefixtures("untouched")
def test_a_student_keeps_to_its_time(make: Make, champion: Path, tmp_path: Path) -> None:
    settings = StudentConfig(share=0.9, rounds=10_000, texts=20_000).model_dump()
    job = replace(make("student", champion, learn={"student": settings}), cpu_seconds=2)
    began = time.process_time()
    result, folder = refresh(job, examples(400, 2), tmp_path / "job")
    assert result.stopped == "budget: 2 CPU-seconds are spent"
    assert time.process_time() - began < 8
    assert np.isfinite(Session.open(folder).predict(examples(9).inputs).probabilities).all()


BAD: dict[str, Callable[[], Examples]] = {
    "one example": lambda: examples(1),
    "one class": lambda: examples(40, classes=1),
    "all duplicates": lambda: examples(40, texts=np.full(40, "w1 w2", dtype=object)),
    "labels all wrong": lambda: examples(60).relabelled((examples(60).labels + 1) % 3),
    "a hundred thousand characters": lambda: examples(
        12, texts=np.array(["w1 " * 33_334, *["w2 w3"] * 11], dtype=object)
    ),
    "other scripts": lambda: examples(
        12, texts=np.array(["карта потеряна", "卡丢了", "بطاقة", "카드"] * 3, dtype=object)
    ),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("strategy", ["head", "progressive", "lora", "student"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gives_a_sound_version_and_leaves_the_champion(
    kind: str, strategy: str, make: Make, champion: Path, tmp_path: Path
) -> None:
    result, folder = refresh(make(strategy, champion), BAD[kind](), tmp_path / "job")
    assert result.outcome == "trained", result.reason
    assert np.isfinite(Session.open(folder).predict(examples(9).inputs).probabilities).all()
    if kind == "labels all wrong":
        # Learned as told: it is the gate that keeps such a version from serving.
        assert accuracy(folder, examples(30, 3)) < 0.2


@pytest.mark.usefixtures("untouched")
def test_no_example_fails_with_the_reason(make: Make, champion: Path, tmp_path: Path) -> None:
    result, _ = refresh(make("head", champion), examples(0), tmp_path / "job")
    assert (result.outcome, result.reason) == ("failed", "no labelled examples to learn from")


@pytest.mark.usefixtures("untouched")
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_weights(
    make: Make, champion: Path, tmp_path: Path
) -> None:
    job = make("full", champion, encoder_rate=1e30, clip=1e30)
    result, folder = refresh(job, examples(60, 2), tmp_path / "job")
    assert result.stopped is not None
    assert result.stopped.startswith("diverged")
    assert result.lineage["stopped"] == result.stopped
    assert accuracy(folder, examples(30, 3)) > 0.8


@pytest.mark.usefixtures("untouched")
def test_a_class_is_learned_without_forgetting_the_old_ones(
    make: Make, champion: Path, tmp_path: Path
) -> None:
    job = make("head", None, labels=LABELS[:2])
    _, first = refresh(job, examples(200, 2, classes=2), tmp_path / "two")
    old = examples(100, 5, classes=2)
    before = accuracy(first, old)
    for strategy in ("head", "lora"):
        result, grown = refresh(make(strategy, first), examples(300, 3), tmp_path / strategy)
        assert result.lineage["labels_added"] == ["c"]
        assert Session.open(grown).labels == tuple(LABELS)
        assert accuracy(grown, old) >= before - 0.05
        assert accuracy(grown, examples(60, 6)) > 0.8


def wait_for_result(trainer: Trainer) -> Result:
    deadline = time.monotonic() + 120
    while (result := trainer.result()) is None:
        assert time.monotonic() < deadline, "the trainer did not end"
        time.sleep(0.02)
    return result


def test_a_trainer_killed_in_mid_training_goes_on_after_its_last_round(
    make: Make, champion: Path, tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path / "jobs", TrainerConfig(nice=0))
    job = make("full", champion, rounds=12, minimal_gain=0.0, max_gap=1e9, encoder_rate=1e-6)
    job.write(trainer.folder_of(job), examples(150, 2))
    trainer.start(job)
    kept = trainer.folder_of(job) / TRAINING
    deadline = time.monotonic() + 120
    while not kept.exists():
        assert time.monotonic() < deadline
        assert trainer.result() is None
        time.sleep(0.01)
    assert isinstance(trainer._run, ChildProcess)
    trainer._run.process.kill()
    trainer._run.process.wait()
    result = wait_for_result(trainer)
    assert result.outcome == "trained", result.reason
    numbers = [line["number"] for line in result.lineage["rounds"]]
    assert numbers == list(range(1, len(numbers) + 1))
    reported = [line["number"] for line in trainer.progress()]
    # Every round once: what was done before the kill was not done again.
    assert reported == numbers
    trainer.done()


def test_a_trainer_over_its_memory_limit_fails_and_says_what_to_do(
    make: Make, champion: Path, tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path / "jobs", TrainerConfig(memory_mb=900, nice=0))
    job = make("lora", champion, batch=4000)
    # All different, as equal ones would be merged before the training.
    texts = np.array(["w1 " * 150 + str(i) for i in range(4000)], dtype=object)
    job.write(trainer.folder_of(job), examples(4000, texts=texts))
    trainer.start(job)
    result = wait_for_result(trainer)
    trainer.done()
    assert result.outcome == "failed"
    assert "trainer.memory_mb" in result.reason
