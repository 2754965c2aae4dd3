"""A student on banking77 by the trainer itself: both INT8 versions, measured beside each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._learn_data import BASE, MAX_LENGTH, few, intents, labelled, preprocess
from daemon.job import VERSION, Job, Result
from deploy.session import Session
from learn.config import LearnConfig, ModelConfig, StudentConfig
from learn.examples import Examples
from learn.model import load_model

ROUNDS = 7
BATCHES = (1, 32)
TIMED = 512  # texts


def distilled(per_class: int | None, seed: int, quick: bool, folder: Path) -> dict[str, Any]:
    """Teacher and student of the training examples, at most so many a class."""
    names = intents(quick)
    train, test = labelled("banking77_train", names), labelled("banking77_test", names)
    examples = train if per_class is None else few(train, per_class, seed)
    student = StudentConfig(rounds=2) if quick else StudentConfig()
    large, _ = _refreshed("head", None, examples, names, student, seed, folder / "head")
    small, result = _refreshed("student", large, examples, names, student, seed, folder / "student")
    sessions = [Session.open(place, threads=1) for place in (large, small)]
    answers = [session.predict(test.inputs).probabilities.argmax(axis=1) for session in sessions]
    right = [answer == test.labels for answer in answers]
    fp32 = load_model(small, preprocess())(test.inputs).argmax(axis=1)
    sizes = [_parameters(place) for place in (large, small)]
    return {
        "examples": len(examples),
        "accuracy": [100 * float(r.mean()) for r in right],
        "fp32": 100 * float((fp32 == test.labels).mean()),
        "agreement": 100 * float((answers[0] == answers[1]).mean()),
        "disagree": 100 * float((right[0] != right[1]).mean()),
        "share": 100 * sizes[1] / sizes[0],
        "parameters": sizes,
        "bytes": [session.size_bytes for session in sessions],
        "cpu_seconds": result.cpu_seconds,
        "peak_mb": result.peak_memory_mb,
        "rounds": len(result.lineage["rounds"]),
        "stopped": result.stopped,
        "rates": _rates(sessions, test.inputs[:TIMED]),
    }


def _refreshed(
    strategy: str,
    parent: Path | None,
    examples: Examples,
    labels: list[str],
    student: StudentConfig,
    seed: int,
    folder: Path,
) -> tuple[Path, Result]:
    """The version that a trainer's process of its own makes, and what it says of it."""
    job = Job(
        id=folder.name,
        rung=strategy,  # type: ignore[arg-type]
        strategy=strategy,
        labels=labels,
        parent=str(parent) if parent else None,
        seed=seed,
        threads=1,
        cpu_seconds=600.0,
        model=ModelConfig(base=BASE, max_length=MAX_LENGTH).model_dump(mode="json"),
        learn=LearnConfig(student=student).model_dump(mode="json"),
    )
    # A daemon has the embeddings of what it answered; those of the first version are made here.
    job.write(folder, examples.with_embeddings(None))
    command = [sys.executable, "-m", "daemon.trainer_main", str(folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environ)
    result = Result.read(folder)
    if result.outcome != "trained":
        raise RuntimeError(result.reason)
    version = folder / VERSION
    # What the registry adds, and a refresh of it reads.
    (version / "manifest.json").write_text(json.dumps({"metrics": result.metrics}))
    return version, result


def _parameters(version: Path) -> int:
    model = load_model(version, preprocess())
    return sum(p.numel() for p in model.module.encoder.parameters())


def _rates(sessions: Sequence[Session], texts: NDArray[Any]) -> dict[int, list[float]]:
    """Texts a second of each session, one thread, by batch: medians of rounds taken in turn."""
    found: dict[int, list[float]] = {}
    for batch in BATCHES:
        some = texts[: TIMED if batch > 1 else TIMED // 4]
        seconds: list[list[float]] = [[] for _ in sessions]
        for _ in range(ROUNDS):
            for session, times in zip(sessions, seconds, strict=True):
                began = time.perf_counter()
                for i in range(0, len(some), batch):
                    session.predict(some[i : i + batch])
                times.append(time.perf_counter() - began)
        found[batch] = [len(some) / float(np.median(times)) for times in seconds]
    return found
