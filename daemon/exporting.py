"""A version's graphs once more, from its weights: FP32 and INT8, measured side by side.

The labelled events are those in the checkpoint's memory. The held-out fifth, which no training
ever saw, judges; the others fix the scales where activations are static.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daemon.config import Config
from daemon.remembered import Remembered
from daemon.served import scale_of
from daemon.version_files import code_version, link
from deploy.preprocess import load_preprocessor
from deploy.session import MODEL_FILE, QUANTISATION_FILE, model_file
from learn.examples import Examples
from registry import Manifest, ManifestDraft, Registry
from registry.manifest import RESERVED

FP32_FILE = "model.fp32.onnx"
# Where a version stands in a run, which one that is exported from it does not.
_OF_A_RUN = ("run", "follows", "event")


class CannotExport(Exception):  # noqa: N818
    """The version cannot be exported; the message says why."""


@dataclass(frozen=True, slots=True)
class Exported:
    """metrics: as `deploy.measure.measure` gives them, on so many ``events``. published: the new
    version's name, if it is one."""

    version: str
    activations: str
    events: int
    metrics: dict[str, float]
    published: str | None = None


def export(
    config: Config,
    registry: Registry,
    version: str,
    out: Path | None,
    *,
    publisher: str | None = None,
) -> Exported:
    """Export ``version`` anew by ``config.export``, into the folder ``out`` and as a version.

    out: gets all that serves, and the FP32 graph beside it. publisher: who publishes the result,
    whose parent is ``version``; it is neither tried nor promoted.

    Raises `CannotExport`, and `deploy.ExportError` if the graph is not the model.
    """
    from deploy.export import export_version
    from learn.model import load_model

    if out is not None and out.exists() and any(out.iterdir()):
        raise CannotExport(f"{out} is not empty: give a new folder")
    source = registry.path(version)
    if model_file(source).name != MODEL_FILE:
        raise CannotExport(f"{version} is a model of river, which has no ONNX graph")
    manifest = registry.version(version).manifest
    judge, others = _examples(config, registry, manifest)
    model = load_model(source, load_preprocessor(source))
    scale = scale_of(source)
    with tempfile.TemporaryDirectory(prefix="driftd-export-") as place:
        folder, fp32 = Path(place, "version"), Path(place, FP32_FILE)
        not_shared = shutil.ignore_patterns(*RESERVED, MODEL_FILE, QUANTISATION_FILE)
        shutil.copytree(source, folder, ignore=not_shared, copy_function=link)
        metrics = export_version(
            model.module,
            folder,
            judge.inputs,
            judge.truth,
            fp32=fp32,
            calibrate_on=others.inputs if len(others) else None,
            right=np.equal if scale is None else scale.right,
            config=config.export,
        )
        if out is not None:
            shutil.copytree(folder, out, dirs_exist_ok=True)
            shutil.copy2(fp32, out / FP32_FILE)
        made = None
        if publisher is not None:
            made = registry.publish(folder, _draft(manifest, config, metrics), actor=publisher).id
    return Exported(version, config.export.activations, len(judge), metrics, made)


def _draft(manifest: Manifest, config: Config, metrics: dict[str, Any]) -> ManifestDraft:
    lineage = {k: v for k, v in manifest.lineage.items() if k not in _OF_A_RUN}
    exported = {"export": config.export.model_dump(mode="json"), "code_version": code_version()}
    return ManifestDraft(
        parent=manifest.version,
        strategy="export",
        rung=manifest.rung,
        task=manifest.task,
        labels=list(manifest.labels),
        input_schema=manifest.input_schema,
        metrics=metrics,
        lineage={**lineage, **exported},
    )


def _examples(config: Config, registry: Registry, manifest: Manifest) -> tuple[Examples, Examples]:
    """The events in memory that judge, and the others; the newest first, of known classes."""
    found = Remembered.read(config, registry)
    if found is None:
        raise CannotExport("there is no checkpoint yet, so there are no events to measure with")
    known = found.memory.recent(config.memory.recent, since=0)
    known = found.labelled(known, manifest.labels)
    known = known.take(known.labels >= 0)
    known = known.take(np.argsort(-known.arrivals, kind="stable"))
    held = found.memory.held_out(known.ids)
    judge, others = known.take(held), known.take(~held)
    if not len(judge):
        raise CannotExport("no labelled event in memory is held out, so nothing can be measured")
    return judge, others
