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
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from daemon.job import EMBEDDED, PROGRESS, TRAINING, VERSION, Job, Result, read_examples
from daemon.served import scale_of
from daemon.version_files import INHERITED, code_version, inherited, write_version
from deploy.config import ExportConfig
from deploy.measure import Alike, measure
from deploy.preprocess import (
    CUT,
    UNCUT,
    Preprocessor,
    TabularPreprocessor,
    TextPreprocessor,
    load_preprocessor,
)
from deploy.river_version import RIVER_FILE, Recipe, RiverVersion
from deploy.session import DESCRIPTION_FILE, HEAD_FILE, Session
from learn.config import LearnConfig, ModelConfig
from learn.curation import curate
from learn.examples import Examples
from learn.head import Head
from learn.number_scale import NumberScale, errors
from learn.strategy import Start, Update

if TYPE_CHECKING:
    from learn.model import Model

log = logging.getLogger("driftd.trainer")

PR_SET_PDEATHSIG = 1
VALIDATION_SHARE = 0.15
MEASURED_EVENTS = 256
SAME = 0.02  # of the tolerance: numbers of INT8 and FP32 that differ by less are the same answer
FP32 = "model.fp32.onnx"
# Neither torch nor the loader of shared libraries has an exception of its own for it.
OUT_OF_MEMORY = ("allocate memory", "failed to map segment", "CUDA out of memory")


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
    if job.parent is None and job.model.get("table") == "river":
        return begin_river(job, examples, out)
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
        if examples.targets is not None:
            truth = examples.targets
        right = _right(scale_of(Path(place)))(_answers(session, examples.inputs), truth)
        accuracy = float(right.mean()) if len(examples) else 0.0
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
    _export(job, out, model, preprocess, examples)


def begin_river(job: Job, examples: Examples, out: Path) -> Result:
    """The very first version of a model of river: it has learned the examples, in their order."""
    config = ModelConfig(**job.model)
    examples = examples.take(np.argsort(examples.arrivals, kind="stable"))
    preprocess = create_preprocessor(config, examples)
    assert isinstance(preprocess, TabularPreprocessor)
    preprocess.save(out)
    learned, validation = split(examples, job.seed)
    recipe = Recipe(
        model=config.river.model,
        parameters=config.river.parameters,
        seed=job.seed,
        numbers=preprocess.numeric_features,
        categories=len(preprocess.category_sizes),
        number=config.number,
    )
    river = RiverVersion(recipe, () if config.number else job.labels)
    names = np.array(job.labels, dtype=object)
    feeds = preprocess(learned.inputs)
    river.learn(feeds, names[learned.labels] if learned.targets is None else learned.targets)
    (out / RIVER_FILE).write_bytes(river.to_bytes())
    weight, bias = river.head(job.labels)
    save_file({"weight": weight, "bias": bias}, out / HEAD_FILE)
    description: dict[str, Any] = {"kind": "river", "model": recipe.model, "labels": job.labels}
    description |= {"numbers": recipe.numbers, "target": config.target}
    scale, unseen = None, _unseen(learned, validation)
    if config.number:
        scale = _scale(learned, unseen, river.scores(preprocess(unseen.inputs)))
        description["scale"] = scale.as_dict()
    (out / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1))
    served = Session.open(out, threads=job.threads)
    sample = unseen.take(np.arange(min(len(unseen), MEASURED_EVENTS)))
    metrics = dict(measure(served, None, sample.inputs, sample.truth, right=_right(scale)))
    if sample.targets is not None:
        metrics |= errors(_answers(served, sample.inputs), sample.targets)
    update = Update(Head(weight, bias))
    return _trained(job, examples, update, metrics, preprocess, job.labels)


def _export(job: Job, out: Path, model: Model, preprocess: Any, examples: Examples) -> None:
    from deploy.export import export_onnx, quantize_version

    fp32, config = out.parent / FP32, ExportConfig(**job.export)
    export_onnx(model.module, preprocess.sample(2).feeds(), fp32, config)
    newest = np.argsort(-examples.arrivals, kind="stable")[: config.calibration_events]
    quantize_version(fp32, out, preprocess, examples.inputs[newest], config)


def create_preprocessor(config: ModelConfig, examples: Examples) -> Preprocessor:
    """The preprocessing of a new model: the base's tokenizer, or fitted to the table."""
    if config.task == "tabular":
        kinds = {feature.name: feature.kind for feature in config.columns}
        cut = CUT if config.table == "network" else UNCUT
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
    if session.number and not given and job.strategy != "head":
        return Result("failed", f"{job.strategy} trains classes: ask for head or online")
    curated: dict[str, int] = {}
    if not given and not session.number:
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
    scale, unseen = scale_of(parent), _unseen(learned, validation)
    if session.number and scale is None:
        assert unseen.embeddings is not None
        scale = _scale(learned, unseen, update.head.logits(unseen.embeddings))
    write_version(job.labels, update, parent, out, scale)
    # Static scales are those of the encoder that they were calibrated on.
    moved = update.encoder and not given and job.export.get("activations") == "static"
    if update.architecture or moved:
        _export(job, out, _load(out, preprocess, job.labels, "cpu"), preprocess, examples)
    served = Session.open(out, threads=job.threads)
    sample = unseen.take(np.arange(min(len(unseen), MEASURED_EVENTS)))
    if update.encoder and given:
        # The graph is the parent's but for a few numbers: INT8 costs what it cost the parent.
        served.warm()
        right = _right(scale)(_answers(served, sample.inputs), sample.truth)
        metrics = inherited(parent, INHERITED) | {"accuracy": float(right.mean())}
    else:
        metrics = _measured(job, update, parent, out, served, preprocess, sample, scale)
    if sample.targets is not None:
        metrics |= errors(_answers(served, sample.inputs), sample.targets)
    return _trained(job, examples, update, metrics, preprocess, session.labels, curated)


def _trained(
    job: Job,
    examples: Examples,
    update: Update,
    metrics: dict[str, Any],
    preprocess: Preprocessor,
    known: Sequence[str],
    curated: Mapping[str, int] | None = None,
) -> Result:
    """What came out, and of what. known: the parent's labels."""
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
            "curation": dict(curated or {}),
            "strategy_settings": job.learn,
            "labels_added": [name for name in job.labels if name not in known],
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


def _unseen(learned: Examples, validation: Examples) -> Examples:
    """What a version is measured on: what it has not learned, if there is any."""
    return validation if len(validation) else learned


def _scale(learned: Examples, unseen: Examples, answers: NDArray[np.float32]) -> NumberScale:
    """The first version's measure, from its errors: answers float32 [n, 1] to what is unseen."""
    assert learned.targets is not None
    assert unseen.targets is not None
    return NumberScale.fit(learned.targets, answers[:, 0] - unseen.targets)


def _right(scale: NumberScale | None) -> Alike:
    return scale.right if scale else np.equal


def _answers(session: Session, inputs: NDArray[Any]) -> NDArray[Any]:
    """The classes, int64 [n], or the numbers, float32 [n], that a version answers."""
    found = session.predict(inputs)
    return found.logits[:, 0] if session.number else found.probabilities.argmax(axis=1)


def _measured(
    job: Job,
    update: Update,
    parent: Path,
    out: Path,
    served: Session,
    preprocess: Any,
    sample: Examples,
    scale: NumberScale | None,
) -> dict[str, Any]:
    """Size, speed and accuracy of the INT8 file; against FP32 where the encoder is new."""
    fp32 = out.parent / FP32
    right = _right(scale)
    same = replace(scale, tolerance=scale.tolerance * SAME).right if scale else np.equal
    if update.encoder:
        if fp32.exists():
            size = float(fp32.stat().st_size)
            metrics = {"size_ratio": served.size_bytes / size, "fp32_size_bytes": size}
        else:
            metrics = inherited(parent, ("size_ratio", "fp32_size_bytes"))
        model = _load(out, preprocess, job.labels, "cpu")
        metrics |= measure(served, model, sample.inputs, sample.truth, right=right, same=same)
    elif fp32.exists():
        metrics = dict(measure(served, fp32, sample.inputs, sample.truth, right=right, same=same))
    else:
        # The same encoder: what INT8 costs it was measured when it was made.
        metrics = inherited(parent, INHERITED)
        served.warm()
        embeddings = _embedded(sample, served, out.parent).embeddings
        assert embeddings is not None
        logits = Head(*served.head).logits(embeddings)
        answers = logits[:, 0] if scale else logits.argmax(axis=1)
        return metrics | {"accuracy": float(right(answers, sample.truth).mean())}
    return metrics


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
