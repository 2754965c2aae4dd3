"""Other libraries, each in an environment of its own, on the same streams as ours.

`bench._peers_drift` runs in these environments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench._drift_errors import SETTLED, Trial
from bench._drift_streams import REFERENCE, Bits
from bench._drift_texts import Entering
from bench._peer_env import interpreter, run

SCRIPT = Path(__file__).with_name("_peers_drift.py")
# evidently 0.7 imports what pandas 3 no longer has.
REQUIREMENTS = {
    "frouros": ["frouros"],
    "capymoa": ["capymoa"],
    "alibi_detect": ["alibi-detect"],
    "evidently": ["evidently", "pandas<3"],
}
# Read torch from here: a second copy would be a download of hundreds of megabytes.
BORROWS_TORCH = {"alibi_detect"}


def write_errors(folder: Path, calm: Bits, trials: dict[str, Trial]) -> None:
    """What detectors of errors will be `measured` on."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "calm.npy", calm)
    for name, trial in trials.items():
        np.save(folder / f"{name}.npy", trial.errors)
    (folder / "streams.json").write_text(json.dumps({"before": REFERENCE, "change": SETTLED}))


def write_texts(folder: Path, runs: list[Entering]) -> None:
    """What tests of rows will be `measured` on."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pool.npy", runs[0].pool.events.embeddings)
    np.save(folder / "reference.npy", np.stack([run.reference for run in runs]))
    np.save(folder / "rows-calm.npy", np.stack([run.settled for run in runs]))
    for share in runs[0].changed:
        rows = np.stack([run.changed[share] for run in runs])
        np.save(folder / f"rows-{round(100 * share):02}.npy", rows)


def measured(library: str, folder: Path, seconds: float) -> dict[str, Any]:
    """``version`` and ``detectors`` by name, as `bench._peers_drift` describes them.

    seconds: of CPU that each detector gets for each kind of stream (of rows: for all).

    Raises Unavailable.
    """
    python = Path(sys.executable) if library == "river" else _interpreter(library)
    run([str(python), str(SCRIPT), library, str(folder), str(seconds)])
    found: dict[str, Any] = json.loads((folder / f"{library}.json").read_text())
    return found


def _interpreter(library: str) -> Path:
    name = library.replace("_", "-")
    return interpreter(name, REQUIREMENTS[library], library in BORROWS_TORCH)
