"""One strategy on banking77 with few labels, in this process: cost and accuracy as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from bench._learn_data import few, intents, labelled, new_model
from daemon.trainer_main import split
from learn.config import LearnConfig, TrainingConfig
from learn.head import Head, score
from learn.model import Model
from learn.strategies import open_strategy
from learn.strategy import Round, Start


def main(name: str, per_class: str, seed: str, out: str, quick: str = "") -> None:
    """Fit, measure on the test set, write ``out``."""
    names = intents(bool(quick))
    train, test = labelled("banking77_train", names), labelled("banking77_test", names)
    learned, validation = split(few(train, int(per_class), int(seed)), int(seed))
    # As many rounds as the panel allows: with few labels three would be too few.
    config = LearnConfig(training=TrainingConfig(rounds=1 if quick else 10))
    loaded: list[Model] = []

    def load() -> Model:
        loaded.append(new_model(names))
        return loaded[0]

    lines: list[Round] = []
    head = Head.zeros(384, len(names))
    start = Start(names, head, load, int(seed), 1, 3600.0)
    began = time.process_time()
    update = open_strategy(name, config).fit(start, learned, validation, lines.append)
    spent = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    encoder = sum(p.numel() for p in new_model(["one"]).module.encoder.parameters())
    if loaded:
        found = loaded[0].encode(test.inputs)
    else:
        assert test.embeddings is not None
        found = test.embeddings
    result = {
        "accuracy": score(update.head.logits(found), test.labels).accuracy,
        "cpu_seconds": spent,
        "samples_per_cpu_second": len(learned) * len(lines) / spent,
        "peak_mb": peak,
        "touched": update.parameters_touched - update.head.weight.size - update.head.bias.size,
        "encoder": encoder,
        "rounds": len(lines),
        "examples": len(learned),
        "stopped": update.stopped or "all rounds",
        "gradient_norm": float(np.mean([line.gradient_norm for line in lines])),
        "update_to_weight": float(np.mean([line.update_to_weight for line in lines])),
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
