"""Other libraries, each in an environment of its own, on the same streams as ours.

Their requirements contradict one another and this project's. The environments are made by pip
under ``.cache/bench/peers``, once; `bench._peers_drift` runs in them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from bench._drift_errors import SETTLED, Trial
from bench._drift_streams import CACHE, REFERENCE, Bits
from bench._drift_texts import Entering

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
MINUTES = 8


class Unavailable(Exception):  # noqa: N818 - a fact about the machine
    """A library does not install or run here; the message says why."""


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
    _run([str(python), str(SCRIPT), library, str(folder), str(seconds)])
    found: dict[str, Any] = json.loads((folder / f"{library}.json").read_text())
    return found


def _interpreter(library: str) -> Path:
    place = CACHE / "peers" / library.replace("_", "-")
    python, ready = place / "bin" / "python", place / ".ready"
    if not ready.exists():
        _run([sys.executable, "-m", "venv", str(place)])
        _run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[library]])
        if library in BORROWS_TORCH:
            asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
            packages = _run([str(python), "-c", asked]).strip()
            Path(packages, "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ready.touch()
    return python


def _run(command: list[str]) -> str:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
            env=os.environ | one_thread,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{type(error).__name__}: {error}"[:160]) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(said[-1][:160])
    return done.stdout
