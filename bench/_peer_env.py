"""Environments for other projects' packages, made by pip under ``.cache/bench/peers``, once each.

Their requirements contradict one another and this project's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1] / ".cache" / "bench" / "peers"
MINUTES = 8


class Unavailable(Exception):  # noqa: N818 - a fact about the machine
    """A library does not install or run here; the message says why."""


def made(library: str) -> bool:
    """Whether its environment is there."""
    return (PLACE / library / ".ready").exists()


def interpreter(library: str, requirements: Sequence[str], borrows_torch: bool = False) -> Path:
    """The Python of an environment with these packages, made if need be. Raises Unavailable.

    borrows_torch: read torch from here; a second copy would be hundreds of megabytes.
    """
    place = PLACE / library
    python = place / "bin" / "python"
    if not made(library):
        run([sys.executable, "-m", "venv", str(place)])
        run([str(python), "-m", "pip", "install", "--quiet", *requirements])
        if borrows_torch:
            asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
            packages = run([str(python), "-c", asked]).strip()
            Path(packages, "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (place / ".ready").touch()
    return python


def run(command: Sequence[str]) -> str:
    """What it printed, on one thread. Raises Unavailable."""
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
