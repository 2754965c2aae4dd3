"""The files of a version that is made from another: its own weights, and the rest shared.

The trainer writes what it has trained, and the daemon what has learned online; both patch the
parent's graph instead of exporting a new one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from deploy.patch import patch_head, patch_weights
from deploy.river_version import RIVER_FILE
from deploy.session import MODEL_FILE, model_file
from learn.number_scale import NumberScale
from learn.strategy import Update
from registry.manifest import RESERVED

ENCODER, DELTA, ADAPTER = "encoder.safetensors", "delta.safetensors", "adapter.safetensors"
# The part of an update that is the whole file of a model of river, uint8 [bytes].
RIVER = "river"
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


def write_version(
    labels: Sequence[str], update: Update, parent: Path, out: Path, scale: NumberScale | None
) -> None:
    """Write the files of a version of ``labels`` into ``out``: ``parent``'s with the update.

    Files that stay the same are links to the parent's. Of an update with another architecture the
    graph is left out: no weights fit the parent's. Of a model of river there is none.
    """
    weight, bias = update.head
    save_file({"weight": np.ascontiguousarray(weight), "bias": bias}, out / "head.safetensors")
    description = json.loads((parent / "model.json").read_text()) | {"labels": list(labels)}
    description |= update.architecture
    if scale:
        description["scale"] = scale.as_dict()
    (out / "model.json").write_text(json.dumps(description, indent=1))
    graph = out / MODEL_FILE
    river = update.encoder.get(RIVER)
    if river is not None:
        (out / RIVER_FILE).write_bytes(river.tobytes())
    elif update.whole:
        save_file(update.encoder, out / ENCODER)
    elif update.encoder:
        delta = out / DELTA
        before = load_file(parent / delta.name) if (parent / delta.name).exists() else {}
        save_file({**before, **update.encoder}, delta)
    if update.architecture or model_file(parent).name == RIVER_FILE:
        pass  # another architecture: no weights fit the parent's graph; or there is none
    elif update.encoder:
        patch_weights(
            parent / graph.name,
            {**update.encoder, "head.weight": weight, "head.bias": bias},
            graph,
        )
    else:
        patch_head(parent / graph.name, weight, bias, graph)
    if update.adapter:
        save_file(update.adapter, out / ADAPTER)
    # Only what the update did not write: a link is the parent's own file, never to be written to.
    own = RESERVED | {graph.name} | ({ENCODER, DELTA, ADAPTER} if update.whole else set())
    for file in parent.iterdir():
        if file.name not in own and not (out / file.name).exists():
            link(file, out / file.name)


def inherited(parent: Path, names: tuple[str, ...] = INHERITED) -> dict[str, Any]:
    """What was measured of the version in ``parent`` and holds for one made from it."""
    found = json.loads((parent / "manifest.json").read_text())["metrics"]
    return {name: found[name] for name in names if name in found}


def code_version() -> dict[str, str]:
    """The versions of everything that shapes a result."""
    found = {"python": platform.python_version()}
    for name in ("driftd", "numpy", "scipy", "torch", "transformers", "peft", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def link(source: Path | str, target: Path | str) -> None:
    """Have ``target`` be the file ``source``, or a copy of it on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
