"""A version made once more, from its lineage: does it come out as good as it was?

The same events, out of the checkpoint's memory; the same seed, settings and parent; the trainer as
ever. Nothing is published: only the two accuracies are laid side by side.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.config import Config
from daemon.job import Job
from daemon.remembered import Remembered
from daemon.trainer import Trainer
from daemon.undeclared import remembered, undeclared, with_features
from daemon.version_files import code_version
from learn.examples import Examples
from learn.memory import replay_weights
from learn.strategies import NAMES
from registry import Manifest, Registry

POLL_SECONDS = 0.1


class CannotReproduce(Exception):  # noqa: N818
    """The version cannot be made again; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """recorded, reproduced: validation accuracy of the INT8 file then and now, 0 to 1. code: what
    differs in the versions of the code, as (name, then, now)."""

    version: str
    strategy: str
    examples: int
    recorded: float
    reproduced: float
    cpu_seconds: float
    code: list[tuple[str, str, str]]


def reproduce(config: Config, registry: Registry, version: str) -> Reproduction:
    """Train ``version`` again and measure it.

    Raises `CannotReproduce` where it was not trained from events, where the memory no longer holds
    all of them, and where training fails.
    """
    manifest = registry.version(version).manifest
    lineage = manifest.lineage
    if manifest.strategy not in NAMES:
        raise CannotReproduce(
            f"{version} was made by {manifest.strategy}, event by event: there is no training to "
            "repeat"
        )
    if "onset" not in lineage:
        raise CannotReproduce(
            f"the lineage of {version} has no onset of its regime: it is of an older driftd"
        )
    if undeclared(config):
        config = with_features(config, remembered(registry, None))
    examples = _examples(config, registry, manifest)
    with tempfile.TemporaryDirectory(prefix="driftd-reproduce-") as folder:
        trainer = Trainer(Path(folder, "jobs"), config.trainer)
        job = Job(
            id=version,
            rung=manifest.rung,  # type: ignore[arg-type]  # a string in the manifest
            strategy=manifest.strategy,
            labels=list(manifest.labels),
            parent=str(registry.path(manifest.parent)) if manifest.parent else None,
            seed=lineage["seed"],
            threads=config.trainer.threads,
            cpu_seconds=config.policy.cpu_seconds_per_refresh,
            model=config.model.model_dump(mode="json"),
            export=config.export.model_dump(mode="json"),
            learn=lineage["strategy_settings"],
            excluded=lineage.get("excluded", []),
            target=lineage["target"],
            onset=lineage["onset"],
        )
        job.write(trainer.folder_of(job), examples)
        trainer.start(job)
        try:
            while (result := trainer.result()) is None:
                time.sleep(POLL_SECONDS)
        finally:
            trainer.cancel()
    if result.outcome != "trained":
        raise CannotReproduce(f"training {version} again failed: {result.reason}")
    now, then = code_version(), lineage.get("code_version", {})
    return Reproduction(
        version=version,
        strategy=manifest.strategy,
        examples=len(examples),
        recorded=manifest.metrics["accuracy"],
        reproduced=result.metrics["accuracy"],
        cpu_seconds=result.cpu_seconds,
        code=[(k, then.get(k, "-"), v) for k, v in now.items() if then.get(k) != v],
    )


def _examples(config: Config, registry: Registry, manifest: Manifest) -> Examples:
    """The events that the version learned from, as its refresh was given them."""
    found = Remembered.read(config, registry)
    if found is None:
        raise CannotReproduce("there is no checkpoint yet: no events")
    lineage = manifest.lineage
    everything = found.memory.at(lineage["trained_on"])
    if gone := _gone(lineage["trained_on"], everything):
        lost = sum(end - start for *_, start, end in gone)
        raise CannotReproduce(
            f"{lost:,} of the {lineage['examples']:,} events that "
            f"{manifest.version} learned from are no longer in memory: "
            + ", ".join(f"{topic}/{part} {start}-{end}" for topic, part, start, end in gone[:10])
            + (f" and {len(gone) - 10} more ranges" if len(gone) > 10 else "")
            + ". A larger memory.recent keeps more"
        )
    old = everything.arrivals < lineage["onset"]
    replayed, fresh = everything.take(old), everything.take(~old)
    weight = lineage["strategy_settings"]["replay_weight"]
    weights = replay_weights(replayed.labels, fresh.labels, weight)
    examples = Examples.concatenate([replayed.weighted(weights), fresh])
    # The memory's embeddings may be those of a later encoder: the parent makes its own.
    return found.labelled(examples, manifest.labels).with_embeddings(None)


def _gone(ranges: Sequence[dict[str, Any]], found: Examples) -> list[tuple[str, int, int, int]]:
    """What of the ranges is not among the events found: topic, partition, start, end."""
    have = set(zip(found.topics, found.partitions.tolist(), found.offsets.tolist(), strict=True))
    gone: list[tuple[str, int, int, int]] = []
    for place in ranges:
        topic, partition = place["topic"], place["partition"]
        for offset in range(place["start"], place["end"]):
            if (topic, partition, offset) in have:
                continue
            if gone and gone[-1][:2] == (topic, partition) and gone[-1][3] == offset:
                gone[-1] = (*gone[-1][:3], offset + 1)
            else:
                gone.append((topic, partition, offset, offset + 1))
    return gone
