"""The daemon as a process: puts the parts together, listens to signals, ends in order."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from types import FrameType

from daemon.api import ApiServer, Health, application
from daemon.checkpoint import CheckpointStore
from daemon.config import Config
from daemon.dead_letters import open_dead_letters
from daemon.loop import Loop
from daemon.metrics import Metrics
from daemon.sources import open_source
from daemon.trainer import Trainer
from registry import open_registry

log = logging.getLogger("driftd.service")


def run(config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT, or until a finite source has ended.

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
    registry = open_registry(config.registry, create=True)
    metrics, health = Metrics(config.name), Health()
    trainer = Trainer(config.checkpoint.path / "jobs", config.trainer)
    loop = Loop(
        config,
        registry,
        open_source(config),
        open_dead_letters(config),
        checkpoints=CheckpointStore(config.checkpoint.path / "checkpoints"),
        trainer=trainer,
        metrics=metrics,
        health=health,
        actor=f"driftd@{socket.gethostname()}",
    )
    api = ApiServer(application(metrics, health, lambda: loop.snapshot, registry), config.http)
    api.start()
    log.info("http://%s:%d serves /metrics, /status, /health", config.http.host, api.port)
    try:
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
