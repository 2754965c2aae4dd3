"""Learning: strategies, wrong labels, a stream of news, domains one by one, a small student.

Parts: noise, reuters, strategies, domains, student (``--only NAME``). Text embeddings are those of
the pretrained encoder in FP32, made once and kept beside the temporary files. Medians over three
seeds; the spread is in the note.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._learn_data import embeddings, intents, labelled
from bench._learn_domains import METHODS, Domains
from bench._learn_student import distilled
from bench.report import Row, row
from bench.streams import texts
from learn.config import LearnConfig, OnlineConfig
from learn.curation.noise import NOISE, out_of_fold, suspects
from learn.head import Head, fit_softmax, score
from learn.online import OnlineHead

SEEDS = 3
FLIPPED = 0.2
LEARN = LearnConfig()


def rows(quick: bool) -> Iterator[Row]:
    """The rows of all parts."""
    for part in PARTS.values():
        yield from part(quick)


def _spread(
    figure: str, values: Sequence[float], unit: str = "", target: str = "", note: str = ""
) -> Row:
    spread = f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else "one seed"
    return row(figure, median(values), unit, target, "; ".join(filter(None, (spread, note))))


# -------------------------------------------------------------------------------- wrong labels


def noise(quick: bool) -> Iterator[Row]:
    """banking77, a fifth of the labels flipped to another class: what the filters win back."""
    names = intents(quick)
    train, test = labelled("banking77_train", names), labelled("banking77_test", names)
    assert train.embeddings is not None
    assert test.embeddings is not None
    k, x, unseen = len(names), train.embeddings, test.embeddings

    def accuracy(labels: NDArray[np.int64], kept: NDArray[np.bool_]) -> float:
        head = fit_softmax(x[kept], labels[kept], None, k, LEARN.l2)
        return 100 * score(head.logits(unseen), test.labels).accuracy

    everything = np.ones(len(train), dtype=np.bool_)
    clean = accuracy(train.labels, everything)
    noisy: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in NOISE}
    for seed in range(1 if quick else SEEDS):
        generator = np.random.default_rng(seed)
        flipped = generator.random(len(train)) < FLIPPED
        other = (train.labels + generator.integers(1, k, len(train))) % k
        labels = np.where(flipped, other, train.labels)
        noisy.append(accuracy(labels, everything))
        probabilities = out_of_fold(x, labels, k, LEARN.l2, LEARN.curation.folds, seed)
        for name in NOISE:
            wrong = suspects(probabilities, labels, name, LEARN.curation)
            found[name].append(accuracy(labels, ~wrong))
    yield row("noise: accuracy on clean labels", clean, "%")
    yield _spread("noise: accuracy with 20 % of the labels flipped", noisy, "%")
    for name, values in found.items():
        back = [100 * (v - n) / (clean - n) for v, n in zip(values, noisy, strict=True)]
        yield _spread(f"noise: accuracy with the filter {name}", values, "%")
        target = ">= 50" if name == "ratio" else ""
        yield _spread(f"noise: lost accuracy recovered by {name}", back, "%", target)
    probabilities = out_of_fold(x, train.labels, k, LEARN.l2, LEARN.curation.folds, 0)
    for name in NOISE:
        wrong = suspects(probabilities, train.labels, name, LEARN.curation)
        cost = clean - accuracy(train.labels, ~wrong)
        yield row(f"noise: cost of {name} on clean labels", cost, "points")


# -------------------------------------------------------------------------------- news in order


def reuters(quick: bool) -> Iterator[Row]:
    """Reuters top 10 in time order: test on a block of 50, then learn from it."""
    read, topics = texts("reuters_top10")
    n, warm, block = (300, 150, 50) if quick else (len(read), 1000, 50)
    inputs = np.empty(n, dtype=object)
    inputs[:] = read[:n]
    names = sorted(set(topics))
    truth = np.array([names.index(t) for t in topics[:n]], dtype=np.int64)
    x = embeddings(inputs)
    frozen = fit_softmax(x[:warm], truth[:warm], None, len(names), LEARN.l2)
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in ("frozen", *_LEARNERS)}
    learners = {name: make(frozen) for name, make in _LEARNERS.items()}
    for start in range(warm, n, block):
        part = slice(start, start + block)
        right["frozen"].append(frozen.logits(x[part]).argmax(axis=1) == truth[part])
        for name, learner in learners.items():
            right[name].append(learner(x, truth, start, part))
    note = f"{n - warm:,} events after a warm-up of {warm:,}, blocks of {block}"
    majority = np.bincount(truth[:warm]).argmax()
    yield row("reuters: majority class", 100 * float((truth[warm:] == majority).mean()), "%")
    last = 100 * float((truth[warm:] == truth[warm - 1 : -1]).mean())
    yield row("reuters: last label", last, "%")
    for name, hits in right.items():
        accuracy = 100 * float(np.concatenate(hits).mean())
        kappa = 100 * (accuracy - last) / (100 - last)
        target = ">= 97" if name == "refitted head" else ""
        yield row(
            f"reuters: prequential accuracy, {name}",
            accuracy,
            "%",
            target,
            f"kappa-temporal {kappa:.1f}; {note}",
        )


Learner = Callable[[NDArray[np.float32], NDArray[np.int64], int, slice], NDArray[np.bool_]]


def _online(start: Head) -> Learner:
    online = OnlineHead(start, OnlineConfig())

    def learn(
        x: NDArray[np.float32], truth: NDArray[np.int64], _: int, part: slice
    ) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = online.logits(x[part]).argmax(axis=1) == truth[part]
        for i in range(part.start, min(part.stop, len(truth)), 10):
            online.learn(x[i : min(i + 10, part.stop)], truth[i : min(i + 10, part.stop)])
        return found

    return learn


def _refitted(start: Head) -> Learner:
    """The head refitted on all events so far after every block: a refresh a block."""
    head = start

    def learn(
        x: NDArray[np.float32], truth: NDArray[np.int64], _: int, part: slice
    ) -> NDArray[np.bool_]:
        nonlocal head
        found: NDArray[np.bool_] = head.logits(x[part]).argmax(axis=1) == truth[part]
        stop = min(part.stop, len(truth))
        head = fit_softmax(x[:stop], truth[:stop], None, head.classes, LEARN.l2, head)
        return found

    return learn


_LEARNERS: dict[str, Callable[[Head], Learner]] = {
    "online head": _online,
    "refitted head": _refitted,
}


# -------------------------------------------------------------------------------- strategies

LADDER = ("head", "partial", "progressive", "ia3", "lora", "adapter", "full")


def strategies(quick: bool) -> Iterator[Row]:
    """banking77, 10 labels a class: each strategy in a process of its own."""
    seeds = 1 if quick else SEEDS
    names = ("head", "partial") if quick else LADDER
    runs = {name: [_measured(name, 10, seed, quick) for seed in range(seeds)] for name in names}
    full = runs.get("full")
    for name, found in runs.items():
        accuracy = [100 * run["accuracy"] for run in found]
        target = ">= 86" if name == "lora" else ""
        yield _spread(f"strategies: {name}, accuracy with 10 labels a class", accuracy, "%", target)
        yield _spread(
            f"strategies: {name}, CPU time of a refresh",
            [run["cpu_seconds"] for run in found],
            "s",
            note=f"{found[0]['rounds']} rounds of {found[0]['examples']}; {found[0]['stopped']}",
        )
        if name != "head":
            rates = [run["samples_per_cpu_second"] for run in found]
            yield _spread(f"strategies: {name}, samples a CPU-second", rates, "1/s")
        yield _spread(f"strategies: {name}, peak memory", [run["peak_mb"] for run in found], "MiB")
        share = 100 * found[0]["touched"] / found[0]["encoder"]
        yield row(
            f"strategies: {name}, parameters trained, of the encoder's",
            share,
            "%",
            "<= 1" if name == "lora" else "",
            "without the head",
        )
    if full is None:
        return
    cost = median(run["cpu_seconds"] for run in full)
    for name, limit in (("lora", 50), ("progressive", 60)):
        spent = median(run["cpu_seconds"] for run in runs[name])
        yield row(
            f"strategies: {name}, CPU time against full", 100 * spent / cost, "%", f"<= {limit}"
        )
    best = median(100 * run["accuracy"] for run in full)
    lora = median(100 * run["accuracy"] for run in runs["lora"])
    yield row("strategies: lora, accuracy against full", 100 * lora / best, "%", ">= 99")
    deep = median(100 * run["accuracy"] for run in runs["progressive"])
    yield row("strategies: progressive, accuracy against full", 100 * deep / best, "%", ">= 100")


def _measured(name: str, per_class: int, seed: int, quick: bool) -> dict[str, Any]:
    """One fit in a process of its own, so that its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        arguments = [name, str(per_class), str(seed), str(out), *(["--quick"] if quick else [])]
        command = [sys.executable, "-m", "bench._learn_fit", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


# -------------------------------------------------------------------------------- domains


def domains(quick: bool) -> Iterator[Row]:
    """CLINC150 as ten domains one after the other, a memory of 2,000; heads on embeddings."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(1 if quick else SEEDS):
        stream = Domains.read(seed, 2, 20) if quick else Domains.read(seed, 10)
        for name in METHODS:
            found[name].append(stream.run(name))
    joint = [run["accuracy"] for run in found["joint"]]
    for name, runs in found.items():
        ours = name == "driftd"
        for figure, unit in (("accuracy", "%"), ("forgetting", "points"), ("backward", "points")):
            target = "<= 2" if ours and figure == "forgetting" else ""
            words = {
                "accuracy": "average accuracy at the end",
                "forgetting": "forgetting",
                "backward": "backward transfer",
            }[figure]
            values = [run[figure] for run in runs]
            yield _spread(f"domains: {name}, {words}", values, unit, target)
        if ours:
            below = [j - run["accuracy"] for j, run in zip(joint, runs, strict=True)]
            yield _spread("domains: driftd below joint training", below, "points", "<= 2")


# -------------------------------------------------------------------------------- a student

# Examples a class: all (10,003), what a memory of default size holds, and a few.
SUPPLIES: dict[str, int | None] = {"all": None, "78 a class": 78, "10 a class": 10}


def student(quick: bool) -> Iterator[Row]:
    """banking77: a head on MiniLM, and a student of it, both INT8, on the test set."""
    for name, per_class in SUPPLIES.items():
        if quick and per_class:
            continue
        seeds = SEEDS if per_class and not quick else 1
        runs = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(distilled(per_class, seed, quick, Path(folder)))
        yield from _student(f"student: {name}", runs)


def _student(prefix: str, runs: list[dict[str, Any]]) -> Iterator[Row]:
    examples = f"{runs[0]['examples']:,} examples"
    teachers, students = ([run["accuracy"][i] for run in runs] for i in (0, 1))
    yield _spread(f"{prefix}, accuracy of the teacher", teachers, "%", note=examples)
    yield _spread(f"{prefix}, accuracy of the student", students, "%", note=examples)
    lost = [t - s for t, s in zip(teachers, students, strict=True)]
    differ = median(run["disagree"] for run in runs)
    note = f"one of the two is right, the other wrong, on {differ:.1f} % of the events"
    yield _spread(f"{prefix}, accuracy lost", lost, "points", note=note)
    int8 = [run["fp32"] - s for run, s in zip(runs, students, strict=True)]
    yield _spread(f"{prefix}, of which INT8 costs", int8, "points", "<= 1")
    yield _spread(f"{prefix}, answers as the teacher's", [run["agreement"] for run in runs], "%")
    seconds = [run["cpu_seconds"] for run in runs]
    first = runs[0]
    note = f"{first['rounds']} rounds; start, export and measuring included; {first['stopped']}"
    yield _spread(f"{prefix}, CPU time of the distillation", seconds, "s", "<= 600", note)
    yield _spread(f"{prefix}, peak memory of it", [run["peak_mb"] for run in runs], "MiB")
    if prefix != "student: all":
        return
    own, whole = first["parameters"][1], first["parameters"][0]
    note = f"{own:,} of {whole:,}"
    yield row("student: parameters of the encoder's", first["share"], "%", "<= 10", note)
    large, small = (size / 1024**2 for size in first["bytes"])
    yield row("student: size of the INT8 file", small, "MiB", note=f"teacher: {large:.1f}")
    for batch, (slow, fast) in first["rates"].items():
        note = f"{fast:,.0f} against {slow:,.0f} texts a second, one thread, with tokenising"
        figure = f"student: throughput against the teacher's in batches of {batch}"
        yield row(figure, fast / slow, "x", note=note)
        if batch == 1:
            yield row("student: latency of a text", 1e3 / fast, "ms", note=f"{1e3 / slow:.2f}")


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "noise": noise,
    "reuters": reuters,
    "strategies": strategies,
    "domains": domains,
    "student": student,
}
