"""The trainer process: one job in, one version folder out.

Started by `daemon.trainer`, or in a Job's pod; everything that needs torch happens here. The
encoder runs only where a rung needs it: head rungs work on the embeddings that the daemon already
has, and patch the new head into the graph that serves.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from daemon.job import EMBEDDED, PROGRESS, TRAINING, VERSION, Job, Result, read_examples
from deploy.measure import measure
from deploy.patch import patch_head, patch_weights
from deploy.preprocess import (
    CUT,
    UNCUT,
    Preprocessor,
    TabularPreprocessor,
    TextPreprocessor,
    load_preprocessor,
)
from deploy.session import MODEL_FILE, Session
from learn.config import LearnConfig, ModelConfig
from learn.curation import curate
from learn.examples import Examples
from learn.head import Head
from learn.strategy import Start, Update
from registry.manifest import RESERVED

if TYPE_CHECKING:
    from learn.model import Model

log = logging.getLogger("driftd.trainer")

PR_SET_PDEATHSIG = 1
VALIDATION_SHARE = 0.15
MEASURED_EVENTS = 256
FP32 = "model.fp32.onnx"
# Neither torch nor the loader of shared libraries has an exception of its own for it.
OUT_OF_MEMORY = ("allocate memory", "failed to map segment", "CUDA out of memory")
# What a version with its parent's encoder need not measure again.
INHERITED = (
    "size_ratio",
    "fp32_size_bytes",
    "fp32_latency_ms",
    "latency_ms",
    "agreement",
    "parity_points",
    "parity_error",
)


def main() -> int:
    """Run the job in the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--memory-mb", type=int)
    parser.add_argument("--parent", type=int, help="die with this process, which has started it")
    arguments = parser.parse_args()
    _bound(arguments.nice, arguments.memory_mb, arguments.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder: Path = arguments.folder
    try:
        result = run(folder)
    except Exception as error:
        log.exception("the refresh failed")
        full = isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
        reason = "out of memory: raise trainer.memory_mb or use a lower rung" if full else ""
        result = Result("failed", reason or f"{type(error).__name__}: {error}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = asdict(result) | {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_memory_mb": round(usage.ru_maxrss / 1024, 1),
    }
    Result(**spent).write(folder)
    return 0


def run(folder: Path) -> Result:
    """Do the job in ``folder``; the version's files are left in ``folder/version``."""
    job = Job.read(folder)
    examples, given = read_examples(folder)
    if job.rung == "recall":
        return recall(job, examples)
    if not len(examples):
        return Result("failed", "no labelled examples to learn from")
    out = folder / VERSION
    # What a run that was cut off left; its training goes on from its last round all the same.
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if job.parent is None:
        begin(job, examples, out)
        parent = out
    else:
        parent = Path(job.parent)
    return refresh(job, examples, given, parent, out, _reporter(folder))


def recall(job: Job, examples: Examples) -> Result:
    """How well each archived version, and the champion, answers the recent events."""
    rows = []
    for name, place in job.candidates:
        session = Session.open(Path(place), threads=job.threads)
        columns = {label: position for position, label in enumerate(session.labels)}
        truth = np.array([columns.get(job.labels[i], -1) for i in examples.labels])
        answers = session.predict(examples.inputs).probabilities.argmax(axis=1)
        right = int((answers == truth).sum())
        accuracy = right / len(examples) if len(examples) else 0.0
        rows.append({"version": name, "accuracy": round(accuracy, 4), "events": len(examples)})
    return Result("recalled", examples=len(examples), recall=rows)


def begin(job: Job, examples: Examples, out: Path) -> None:
    """The very first version: base model, preprocessing and graphs, with an empty head."""
    import torch

    from learn.model import create_model

    torch.manual_seed(job.seed)  # a table's encoder begins at random
    config = ModelConfig(**job.model)
    preprocess = create_preprocessor(config, examples)
    preprocess.save(out)
    model = create_model(config, job.labels, preprocess, job.seed)
    model.save(out)
    _export(out, model, preprocess)


def _export(out: Path, model: Model, preprocess: Any) -> None:
    from deploy.export import export_onnx, quantize_int8

    fp32 = out.parent / FP32
    export_onnx(model.module, preprocess.sample(2).feeds(), fp32)
    quantize_int8(fp32, out / MODEL_FILE)


def create_preprocessor(config: ModelConfig, examples: Examples) -> Preprocessor:
    """The preprocessing of a new model: the base's tokenizer, or fitted to the table."""
    if config.task == "tabular":
        kinds = {feature.name: feature.kind for feature in config.columns}
        cut = UNCUT if config.table == "ensemble" else CUT
        return TabularPreprocessor.fit(examples.inputs, kinds, cut)
    from learn.text import resolve_base

    return TextPreprocessor(resolve_base(config.base) / "tokenizer.json", config.max_length)


def refresh(
    job: Job,
    examples: Examples,
    given: Mapping[str, NDArray[np.float32]],
    parent: Path,
    out: Path,
    report: Callable[[Any], None],
) -> Result:
    """Train by the job's strategy, patch the result into the graph, measure it."""
    from learn.strategies import open_strategy

    preprocess = load_preprocessor(parent)
    session = Session.open(parent, threads=job.threads)
    if not given:
        examples = _embedded(examples, session, out.parent)
    learned, validation = split(examples, job.seed)
    learn = LearnConfig(**job.learn)
    curated: dict[str, int] = {}
    if not given:
        learned, curated = curate(
            learned,
            len(job.labels),
            learn.curation,
            learn.l2,
            job.seed,
            lambda some: _embedded(some, session),
        )
    if given:
        encoder = {name: array for name, array in given.items() if not name.startswith("head.")}
        update = Update(
            head=Head(given["head.weight"], given["head.bias"]),
            encoder=encoder,
            parameters_touched=sum(array.size for array in given.values()),
        )
    else:
        update = open_strategy(job.strategy, learn).fit(
            Start(
                labels=job.labels,
                head=_grown(session, job.labels),
                load=lambda: _load(parent, preprocess, job.labels, learn.training.device),
                seed=job.seed,
                threads=job.threads,
                cpu_seconds=job.cpu_seconds,
                held=_held(examples, session, job.onset),
                target=job.target,
                keep=out.parent / TRAINING,
            ),
            learned,
            validation,
            report,
        )
    _write_version(job, update, parent, out)
    if update.parts:
        _export(out, _load(out, preprocess, job.labels, "cpu"), preprocess)
    served = Session.open(out, threads=job.threads)
    sample = validation if len(validation) else learned
    sample = sample.take(np.arange(min(len(sample), MEASURED_EVENTS)))
    if update.encoder and given:
        # The graph is the parent's but for a few numbers: INT8 costs what it cost the parent.
        served.warm()
        answers = served.predict(sample.inputs).probabilities.argmax(axis=1)
        accuracy = float((answers == sample.labels).mean())
        metrics = _inherited(parent, INHERITED) | {"accuracy": accuracy}
    else:
        metrics = _measured(job, update, parent, out, served, preprocess, sample)
    return Result(
        "trained",
        stopped=update.stopped,
        examples=len(examples),
        parameters_touched=update.parameters_touched,
        metrics=metrics,
        lineage={
            "seed": job.seed,
            "code_version": code_version(),
            "trained_on": examples.lineage(),
            "target": job.target,
            "onset": job.onset,
            "newest_event": datetime.fromtimestamp(examples.times.max(), UTC).isoformat(),
            "excluded": job.excluded,
            "examples": len(examples),
            "rounds": [asdict(line) for line in update.rounds],
            "stopped": update.stopped,
            "curation": curated,
            "strategy_settings": job.learn,
            "labels_added": [name for name in job.labels if name not in session.labels],
        },
        input_schema=preprocess.schema(),
    )


def split(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Training and validation parts, drawn at random; tiny sets keep all for training."""
    order = np.random.default_rng(seed).permutation(len(examples))
    held = int(len(examples) * VALIDATION_SHARE)
    if held < 8:
        held = 0
    return examples.take(np.sort(order[held:])), examples.take(np.sort(order[:held]))


def code_version() -> dict[str, str]:
    """The versions of everything that shapes a result."""
    found = {"python": platform.python_version()}
    for name in ("driftd", "numpy", "scipy", "torch", "transformers", "peft", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_version(job: Job, update: Update, parent: Path, out: Path) -> None:
    weight, bias = update.head
    save_file({"weight": np.ascontiguousarray(weight), "bias": bias}, out / "head.safetensors")
    description = json.loads((parent / "model.json").read_text()) | {"labels": job.labels}
    if update.parts:
        description["parts"] = update.parts
    (out / "model.json").write_text(json.dumps(description, indent=1))
    graph = out / MODEL_FILE
    if update.encoder:
        delta = out / "delta.safetensors"
        before = load_file(parent / delta.name) if (parent / delta.name).exists() else {}
        save_file({**before, **update.encoder}, delta)
    if update.parts:
        pass  # another architecture: no weights fit the parent's graph
    elif update.encoder:
        patch_weights(
            parent / graph.name,
            {**update.encoder, "head.weight": weight, "head.bias": bias},
            graph,
        )
    else:
        patch_head(parent / graph.name, weight, bias, graph)
    if update.adapter:
        save_file(update.adapter, out / "adapter.safetensors")
    # Only what the update did not write: a link is the parent's own file, never to be written to.
    own = RESERVED | {graph.name}
    for file in parent.iterdir():
        if file.name not in own and not (out / file.name).exists():
            _link(file, out / file.name)


def _measured(
    job: Job,
    update: Update,
    parent: Path,
    out: Path,
    served: Session,
    preprocess: Any,
    sample: Examples,
) -> dict[str, Any]:
    """Size, speed and accuracy of the INT8 file; against FP32 where the encoder is new."""
    fp32 = out.parent / FP32
    if update.encoder:
        if fp32.exists():
            size = float(fp32.stat().st_size)
            metrics = {"size_ratio": served.size_bytes / size, "fp32_size_bytes": size}
        else:
            metrics = _inherited(parent, ("size_ratio", "fp32_size_bytes"))
        model = _load(out, preprocess, job.labels, "cpu")
        metrics |= measure(served, model, sample.inputs, sample.labels)
    elif fp32.exists():
        metrics = dict(measure(served, fp32, sample.inputs, sample.labels))
    else:
        # The same encoder: what INT8 costs it was measured when it was made.
        metrics = _inherited(parent, INHERITED)
        served.warm()
        embeddings = _embedded(sample, served, out.parent).embeddings
        assert embeddings is not None
        answers = Head(*served.head).logits(embeddings).argmax(axis=1)
        return metrics | {"accuracy": float((answers == sample.labels).mean())}
    return metrics


def _inherited(parent: Path, names: tuple[str, ...]) -> dict[str, Any]:
    found = json.loads((parent / "manifest.json").read_text())["metrics"]
    return {name: found[name] for name in names if name in found}


def _load(folder: Path, preprocess: Any, labels: list[str], device: str) -> Model:
    import torch

    from learn.model import load_model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(folder, preprocess, device)
    model.grow(labels)
    return model


def _grown(session: Session, labels: list[str]) -> Head:
    head = Head(*session.head)
    return (
        head.grow(len(labels))
        if len(labels) >= head.classes
        else Head.zeros(head.dimension, len(labels))
    )


def _held(examples: Examples, session: Session, onset: int) -> tuple[int, ...]:
    """Places of the parent's labels of which nothing came since the onset."""
    fresh = set(examples.labels[examples.arrivals >= onset].tolist())
    return tuple(place for place in range(len(session.labels)) if place not in fresh)


def _embedded(examples: Examples, session: Session, folder: Path | None = None) -> Examples:
    """The examples with this encoder's embeddings, computed only where they are missing.

    What was computed is left in ``folder``, if given, so that the daemon need not ask for it again.
    """
    found = examples.embeddings
    width = session.head.weight.shape[0]
    if found is None or found.shape[1] != width:
        found = np.full((len(examples), width), np.nan, dtype=np.float32)
    missing = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(missing):
        found = found.copy()
        found[missing] = session.predict(examples.inputs[missing]).embeddings
        if folder is not None:
            computed = examples.with_embeddings(found).take(missing)
            save_file(computed.to_arrays(), folder / EMBEDDED)
    return examples.with_embeddings(found)


def _reporter(folder: Path) -> Callable[[Any], None]:
    def report(line: Any) -> None:
        with open(folder / PROGRESS, "a") as file:
            file.write(json.dumps(asdict(line)) + "\n")

    return report


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _bound(nice: int, memory_mb: int | None, parent: int | None) -> None:
    """Die with the daemon, give way to it, and keep to the memory limit."""
    if parent is not None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the daemon is gone")
    os.nice(nice)
    if memory_mb:
        limit = memory_mb * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
