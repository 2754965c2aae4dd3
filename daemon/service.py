"""The daemon as a process: puts the parts together, listens to signals, ends in order."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from daemon.api import ApiServer, Health, application
from daemon.checkpoint import CheckpointError, CheckpointStore
from daemon.config import Config
from daemon.dead_letters import open_dead_letters
from daemon.journal import JournalWriter
from daemon.kubernetes import Jobs
from daemon.loop import Loop
from daemon.metrics import Metrics
from daemon.trainer import Trainer
from daemon.training_job import TrainingJobs
from daemon.undeclared import open_known, undeclared
from registry import open_registry
from registry.lock import try_lock

log = logging.getLogger("driftd.service")

LOCK = "lock"


def run(config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT, or until a finite source has ended.

    Only one daemon runs on a checkpoint folder: two would each learn a part of the stream and
    write over the other's state.

    Raises the rooms' own errors (ConfigError, SourceError, RegistryError, CheckpointError,
    OSError), whose messages say what to do; the command line prints them.
    """
    stop = threading.Event()
    reasons: list[str] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        reasons.append(signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    with only_daemon(config.checkpoint.path):
        _run(config, stop, reasons)


@contextmanager
def only_daemon(folder: Path) -> Iterator[None]:
    """Hold the checkpoint ``folder``. Raises CheckpointError where another daemon holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the checkpoint folder {folder}: {error.strerror}; set "
            "checkpoint.path to a writable folder"
        ) from error
    with file:
        if not try_lock(file.fileno()):
            raise CheckpointError(
                f"another daemon runs on {folder}: stop it, or give this one a folder of its own "
                "(checkpoint.path)"
            )
        yield


def _run(config: Config, stop: threading.Event, reasons: list[str]) -> None:
    registry = open_registry(config.registry, create=True)
    metrics, health = Metrics(config.name), Health(config.http.stalled_seconds)
    in_cluster = config.trainer.job
    elsewhere = TrainingJobs(in_cluster, Jobs.of_this_pod()) if in_cluster.enabled else None
    trainer = Trainer(config.checkpoint.path / "jobs", config.trainer, elsewhere)
    checkpoints = CheckpointStore(config.checkpoint.path / "checkpoints")
    loop: Loop | None = None

    def status() -> dict[str, Any]:
        starting = {"model": config.name, "state": "starting", "reason": health.why}
        return loop.snapshot if loop else starting

    app = application(metrics, health, status, registry, config.http)
    api = ApiServer(app, config.http)
    api.start()
    log.info("%s serves /metrics, /status, /health and /v1", api.url)
    try:
        journal = JournalWriter(registry.journal, lambda: 0)
        config, source = open_known(config, registry, checkpoints, journal, health, stop)
        if undeclared(config):
            source.close()  # it was told to end before it knew its features
            return
        loop = Loop(
            config,
            registry,
            source,
            open_dead_letters(config),
            checkpoints=checkpoints,
            trainer=trainer,
            metrics=metrics,
            health=health,
            actor=f"driftd@{socket.gethostname()}",
        )
        try:
            loop.start()
            loop.run(stop)
        except BaseException as error:
            _close_after(loop, error)
            raise
        loop.close(reasons[0] if reasons else "the source has ended")
    finally:
        api.stop()


def _close_after(loop: Loop, error: BaseException) -> None:
    """End in order if it can be; what hinders that must not hide the error that came first."""
    try:
        loop.close(f"{type(error).__name__}: {error}")
    except Exception as second:
        log.error("while ending: %s", second)
