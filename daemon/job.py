"""A refresh as a folder: what the daemon asks of the trainer, and what it gets back.

The two processes share files only: ``job.json`` and ``examples.safetensors`` go in, progress
lines and a result come out, with the new version's files beside it. So a trainer that is killed,
or runs on another machine, can never hurt the loop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from daemon.policy_config import Rung
from learn.examples import Examples

JOB = "job.json"
EXAMPLES = "examples.safetensors"
EMBEDDED = "embedded.safetensors"
PROGRESS = "progress.jsonl"
RESULT = "result.json"
VERSION = "version"
LOG = "trainer.log"
TRAINING = "training.safetensors"


@dataclass(frozen=True, slots=True)
class Job:
    """One refresh.

    ``labels`` are the new version's classes, in order; the examples' labels index into them.
    ``parent`` is the folder of the version to start from, None for the very first one.
    ``candidates`` are (version, folder) pairs, for a recall. ``model``, ``learn``, ``export`` are
    the config sections as plain values. ``target`` is the validation accuracy, 0 to 1, that
    suffices; examples of an arrival before ``onset`` are replayed. ``excluded`` are the offset
    ranges that the examples leave out, for the lineage.
    """

    id: str
    rung: Rung
    strategy: str
    labels: list[str]
    parent: str | None
    seed: int
    threads: int
    cpu_seconds: float
    model: dict[str, Any]
    learn: dict[str, Any]
    candidates: list[tuple[str, str]] = field(default_factory=list)
    target: float | None = None
    onset: int = 0
    excluded: list[dict[str, Any]] = field(default_factory=list)
    export: dict[str, Any] = field(default_factory=dict)

    def write(
        self,
        folder: Path,
        examples: Examples,
        given: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Write the job into the new ``folder``; ``given`` are weights by name, learned already.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        folder.mkdir(parents=True)
        arrays = {f"examples/{name}": array for name, array in examples.to_arrays().items()}
        arrays |= {f"given/{name}": array for name, array in (given or {}).items()}
        try:
            save_file({k: np.ascontiguousarray(a) for k, a in arrays.items()}, folder / EXAMPLES)
        except SafetensorError as error:
            raise OSError(f"cannot write the training job to {folder}: {error}") from error
        (folder / JOB).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job that `write` left in ``folder``."""
        values = json.loads((folder / JOB).read_text())
        values["candidates"] = [tuple(pair) for pair in values["candidates"]]
        return cls(**values)


def read_embedded(folder: Path) -> Examples | None:
    """The examples whose embeddings the trainer computed and left in ``folder``, if any."""
    path = folder / EMBEDDED
    return Examples.from_arrays(load_file(path)) if path.exists() else None


def read_examples(folder: Path) -> tuple[Examples, dict[str, NDArray[np.float32]]]:
    """The examples of the job in ``folder``, and the weights that it gives outright, by name."""
    arrays = load_file(folder / EXAMPLES)

    def under(prefix: str) -> dict[str, NDArray[Any]]:
        return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

    return Examples.from_arrays(under("examples/")), under("given/")


@dataclass(frozen=True, slots=True)
class Result:
    """How a refresh ended.

    outcome: ``trained`` (version files lie in ``VERSION/``), ``recalled`` (``recall`` lists how
    the candidates did) or ``failed``. stopped: why training stopped itself early, if it did.
    metrics: of the INT8 file, for the manifest. lineage: how to make the version again.
    """

    outcome: Literal["trained", "recalled", "failed"]
    reason: str = ""
    stopped: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    examples: int = 0
    parameters_touched: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    input_schema: dict[str, Any] = field(default_factory=dict)
    recall: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Leave the result in ``folder``, by an atomic rename: it is there whole or not at all."""
        partial = folder / f"{RESULT}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1))
        os.replace(partial, folder / RESULT)

    @classmethod
    def read(cls, folder: Path) -> Result:
        """The result that `write` left in ``folder``.

        Raises:
            FileNotFoundError: the trainer ended without one.
        """
        return cls(**json.loads((folder / RESULT).read_text()))


class Progress:
    """Reads the progress lines of a running trainer, each line once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                yield json.loads(line)
