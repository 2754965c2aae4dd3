"""The checkpoint: positions and the state they produced, in one atomic unit.

Here it is one safetensors file, named by its sequence number and digest, that appears by an atomic
rename; `daemon.stored_checkpoint` keeps it in the registry's store instead. After a crash the loop
resumes from the newest checkpoint that is whole, so each event is learned exactly once. The one
before is kept: a torn or corrupt file costs the events since then (they are read again), never the
daemon.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

log = logging.getLogger("driftd.checkpoint")

FORMAT = 1
KEPT = 2

Arrays = dict[str, NDArray[np.generic]]


class CheckpointError(Exception):
    """The checkpoint could not be written or read; the message says what to do."""


class CheckpointTaken(CheckpointError):  # noqa: N818 - a fact, not a mistake
    """Another daemon goes on from these checkpoints: this one must end."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``values`` are JSON-able; ``arrays`` are numpy arrays of any numeric or bool dtype."""

    values: dict[str, Any]
    arrays: Arrays
    sequence: int = 0
    fallback: str | None = None


class Checkpoints(Protocol):
    """Where checkpoints lie."""

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. Raises CheckpointError where none is whole."""

    def save(self, values: Mapping[str, Any], arrays: Arrays) -> int:
        """Make it the current one; its size in bytes. Raises CheckpointError."""


class CheckpointStore:
    """Checkpoints in a local folder, which one daemon owns at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot create the checkpoint folder {folder}: {error.strerror}; "
                "set checkpoint.path to a writable folder"
            ) from error
        self._sequence = max((n for n, _ in self._files()), default=0)
        self._broken: list[Path] = []

    def save(self, values: Mapping[str, Any], arrays: Arrays) -> int:
        """Write a checkpoint and make it the current one; returns its size in bytes.

        Raises:
            CheckpointError: the disk is full or not writable; the checkpoint before is intact.
        """
        sequence = self._sequence + 1
        payload = save_arrays(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            metadata={"format": str(FORMAT), "values": json.dumps(values)},
        )
        digest = hashlib.sha256(payload).hexdigest()
        target = self.folder / f"checkpoint-{sequence:010d}-{digest[:16]}.safetensors"
        partial = target.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            self._sync_folder()
        except OSError as error:
            partial.unlink(missing_ok=True)
            what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise CheckpointError(
                f"cannot write a checkpoint to {self.folder}: {what}; free space there or move "
                "checkpoint.path. Nothing is lost: the last checkpoint is intact"
            ) from error
        self._sequence = sequence
        while self._broken:  # they must not count among those that are kept
            self._broken.pop().unlink(missing_ok=True)
        for _, old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)
        return len(payload)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there has been none yet.

        Raises:
            CheckpointError: files exist, but none of them is whole.
        """
        files = self._files()
        broken: list[str] = []
        for sequence, path in reversed(files):
            try:
                found = self._read(path)
            except (OSError, ValueError, SafetensorError) as error:
                log.error("checkpoint %s is corrupt (%s), trying the one before", path.name, error)
                broken.append(f"{path.name}: {error}")
                self._broken.append(path)
                continue
            fallback = "; ".join(broken) or None
            return Checkpoint(found.values, found.arrays, sequence, fallback)
        if files:
            raise CheckpointError(
                f"no whole checkpoint in {self.folder} ({'; '.join(broken)}). Restore the folder "
                "from a backup, or move it away to start over from source.start"
            )
        return None

    def _read(self, path: Path) -> Checkpoint:
        payload = path.read_bytes()
        expected = path.stem.rsplit("-", 1)[-1]
        if hashlib.sha256(payload).hexdigest()[:16] != expected:
            raise ValueError("digest mismatch")
        length = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
        if metadata["format"] != str(FORMAT):
            raise ValueError(f"format {metadata['format']}, this driftd reads {FORMAT}")
        return Checkpoint(json.loads(metadata["values"]), load_arrays(payload))

    def _files(self) -> list[tuple[int, Path]]:
        found = sorted(self.folder.glob("checkpoint-*.safetensors"))
        return [(int(path.stem.split("-")[1]), path) for path in found]

    def _sync_folder(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def prefixed(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """The arrays with ``prefix/`` before their names, to share one file.

    >>> sorted(prefixed("memory", {"ids": np.zeros(1)}))
    ['memory/ids']
    """
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def under(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """The arrays stored by `prefixed`, under their own names."""
    head = f"{prefix}/"
    return {name.removeprefix(head): a for name, a in arrays.items() if name.startswith(head)}
