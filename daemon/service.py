"""The daemon as a process: puts the parts together, listens to signals, ends in order."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from daemon.api import ApiServer, Health, application
from daemon.checkpoint import CheckpointError
from daemon.config import Config
from daemon.dead_letters import open_dead_letters
from daemon.delayed import open_waiting
from daemon.journal import JournalWriter
from daemon.kubernetes import Jobs
from daemon.logs import know
from daemon.loop import Loop
from daemon.metrics import Metrics
from daemon.reload import reload
from daemon.stored_checkpoint import StoredCheckpoints, open_checkpoints
from daemon.stream_config import KafkaSourceConfig
from daemon.trainer import Trainer
from daemon.training_job import TrainingJobs
from daemon.undeclared import open_known, undeclared, with_features
from daemon.up import Terminal
from deploy.garbage import collect_seldom
from learn.blas import one_blas_thread
from learn.config import FeatureConfig
from registry import open_registry
from registry.lock import try_lock

log = logging.getLogger("driftd.service")

LOCK = "lock"
SILENT = 3  # checkpoints that a daemon elsewhere has missed before it is taken for gone
COLLECTED_AFTER = 20_000  # new objects: more than a poll's records, a few MiB at most
MAX_OFFSETS = 64  # on a line of the log; a topic may have thousands of partitions


def run(config: Config, read: Callable[[], Config] | None = None) -> None:
    """Run the daemon until SIGTERM or SIGINT, or until a finite source has ended.

    It ends within ``checkpoint.stop_seconds`` of the signal. ``read``: reads the configuration
    again, on SIGHUP. Only one daemon runs on a checkpoint folder: two would each learn a part of
    the stream and write over the other's state.

    Raises the rooms' own errors (ConfigError, SourceError, RegistryError, CheckpointError,
    OSError), whose messages say what to do; the command line prints them.
    """
    signals = Signals(config.checkpoint.stop_seconds)
    signals.listen()
    with only_daemon(config.checkpoint.path), one_blas_thread():
        _run(config, signals, read)


class Signals:
    """What the system asks of the process: to end, or to read its configuration again."""

    def __init__(self, stop_seconds: float) -> None:
        self.stop_seconds = stop_seconds
        self.stop = threading.Event()
        self.reason = ""
        self.reload = False
        self._terminal = Terminal()

    def listen(self) -> None:
        """From now on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._see_to_the_end, name="driftd-stop", daemon=True).start()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and not self._terminal.closed:
            self.reload = True
        elif not self.stop.is_set():
            self.reason = signal.Signals(number).name
            self.stop.set()

    def _see_to_the_end(self) -> None:
        self.stop.wait()
        time.sleep(self.stop_seconds)  # the thread goes with the process, if that ends before
        log.error(
            "not ended %g s after %s (checkpoint.stop_seconds): leaving without a last checkpoint;"
            " the events since the one before are read again",
            self.stop_seconds,
            self.reason,
        )
        os._exit(1)


def facts(loop: Loop) -> dict[str, Any]:
    """What stands on every line of a JSON log."""
    state = loop.state
    # Any thread may log: a copy is one step, which the loop cannot come between.
    positions = sorted(state.positions.copy().items())
    return {
        "model": loop.config.name,
        "version": state.champion,
        "event": state.events,
        "offsets": {f"{topic}/{p}": offset for (topic, p), offset in positions[:MAX_OFFSETS]},
    }


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


def _run(config: Config, signals: Signals, read: Callable[[], Config] | None) -> None:
    registry = open_registry(config.registry, create=True)
    metrics, health = Metrics(config.name), Health(config.http.stalled_seconds)
    in_cluster = config.trainer.job
    elsewhere = TrainingJobs(in_cluster, Jobs.of_this_pod()) if in_cluster.enabled else None
    trainer = Trainer(config.checkpoint.path / "jobs", config.trainer, elsewhere)
    checkpoints = open_checkpoints(config, registry)
    later = isinstance(config.source, KafkaSourceConfig) and config.source.labels is not None
    loop: Loop | None = None

    def status() -> dict[str, Any]:
        starting = {"model": config.name, "state": "starting", "reason": health.why}
        return loop.snapshot if loop else starting

    # Orders over HTTP are an operator's, not the loop's: they go by a registry of their own.
    orders = open_registry(config.registry)
    app = application(metrics, health, status, orders, config.http)
    api = ApiServer(app, config.http)
    api.start()
    log.info("%s serves /metrics, /status, /health and /v1", api.url)

    def between() -> None:
        if signals.reload and read is not None and loop is not None:
            signals.reload = False
            reload(loop, partial(_read_again, read, loop.config.model.features))
            signals.stop_seconds = loop.config.checkpoint.stop_seconds
            orders.config = loop.config.registry

    try:
        if isinstance(checkpoints, StoredCheckpoints):
            # Of one name and host there is one daemon; another's must have stopped writing.
            patience = SILENT * config.checkpoint.every_seconds
            checkpoints.claim(f"driftd@{socket.gethostname()}", patience)
        journal = JournalWriter(registry.journal, lambda: 0)
        config, source = open_known(config, registry, checkpoints, journal, health, signals.stop)
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
            actor=_actor(config),
            waiting=open_waiting(config) if later else None,
        )
        know(partial(facts, loop))
        try:
            loop.start()
            spare_the_collector()
            loop.run(signals.stop, between)
        except BaseException as error:
            _close_after(loop, error)
            raise
        loop.close(signals.reason or "the source has ended")
    finally:
        api.stop()


def spare_the_collector() -> None:
    """No collection looks again at what is there by now: modules and the model, which stay.

    A poll's records are thousands of objects, and each 700 of them have Python look for cycles, now
    and then among all of torch's: without this it takes a third of the time of a fast stream.
    """
    collect_seldom(COLLECTED_AFTER)


def _read_again(read: Callable[[], Config], features: Sequence[FeatureConfig]) -> Config:
    """The configuration; where it declares no ``features``, with those that are in use."""
    config = read()
    return with_features(config, features) if undeclared(config) else config


def _actor(config: Config) -> str:
    """Who moves the registry; of several daemons each process is somebody else."""
    name = f"driftd@{socket.gethostname()}"
    if not config.sharing.enabled:
        return name
    return f"{name}-{os.getpid()}-{secrets.token_hex(3)}"


def _close_after(loop: Loop, error: BaseException) -> None:
    """End in order if it can be; what hinders that must not hide the error that came first."""
    try:
        loop.close(f"{type(error).__name__}: {error}")
    except Exception as second:
        log.error("while ending: %s", second)
