"""The demo's yardsticks: the frozen model, a ceiling, and what INT8 costs, on the whole stream.

Runs as a child beside the demo, with the lowest priority; prints its findings as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deploy.measure import parity
from deploy.session import Session
from examples.demo.newsgroups import CACHE, Stream, load, stream
from learn.head import fit_softmax
from learn.model import load_model

FOLDS = 5
COMPARED = 600  # posts answered in FP32 too: some ten seconds of one core


def judge(
    folder: Path, posts: Stream
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """By phase: accuracy of the frozen first version, and the ceiling; and what INT8 costs.

    The ceiling is a head trained on the phase's own events, by cross-validation: each event is
    answered by a head that has seen the other folds. INT8 is compared with the model in PyTorch,
    in FP32, on the first phase after the warm-up.
    """
    session = Session.open(folder, threads=1)
    frozen: dict[str, float] = {}
    ceiling: dict[str, float] = {}
    cost: dict[str, float] = {}
    for phase in posts.phases[1:]:
        events = posts.events[phase.start : phase.end]
        texts: np.ndarray[Any, Any] = np.array([event["text"] for event in events], dtype=object)
        truth = np.array([session.labels.index(event["label"]) for event in events])
        found = session.predict(texts)
        answers = found.probabilities.argmax(axis=1)
        frozen[phase.name] = float((answers == truth).mean())
        if not cost:
            n = min(len(texts), COMPARED)
            exact = load_model(folder, session.preprocessor, "cpu")(texts[:n]).argmax(axis=1)
            cost = {**parity(answers[:n], exact, truth[:n]), "parity_events": float(n)}
        fold = np.arange(len(events)) % FOLDS
        right = 0
        for k in range(FOLDS):
            rest, held = fold != k, fold == k
            head = fit_softmax(
                found.embeddings[rest], truth[rest], None, len(session.labels), l2=0.1
            )
            right += int((head.logits(found.embeddings[held]).argmax(axis=1) == truth[held]).sum())
        ceiling[phase.name] = right / len(events)
    return frozen, ceiling, cost


def main() -> None:
    """Judge the version in the folder named on the command line."""
    os.nice(19)
    frozen, ceiling, cost = judge(Path(sys.argv[1]), stream(load(CACHE)))
    print(json.dumps({"frozen": frozen, "ceiling": ceiling, "cost": cost}))


if __name__ == "__main__":
    main()
