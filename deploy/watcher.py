"""Follows the registry: loads what was promoted, warms it, switches, keeps the one before.

Beside the champion it loads the challenger that shall see traffic, and reports what was counted of
both; a challenger that cannot be loaded hurts nobody but itself.

One background thread. A version is verified, opened and warmed before the switch, which is one
assignment; the first one is also asked through the queue, before the server calls itself ready.
A version that fails any of this never serves: the old one goes on, the failure is counted and
logged, and tried again with growing pauses, or at once when the registry moves.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deploy.config import ServerConfig
from deploy.engine import Engine, Lineup, Loaded
from deploy.errors import LoadError
from deploy.garbage import give_back
from deploy.metrics import NO_VERSION
from deploy.preprocess import Preprocessor, load_preprocessor
from deploy.routing import Counted, Trial
from deploy.same_graph import same_but_head
from deploy.session import Session, model_file, predicts_number, read_head
from deploy.versions import Aliases, Versions

log = logging.getLogger("driftd.server")

# Steps of niceness of the thread that loads: on a core that requests keep busy, opening a version
# gets a quarter of it. As an equal it would double every latency, and end in half the time.
_NICE = 5

# Load errors that say nothing about the version itself.
_PASSING = ("registry", "not_found", "no_answer")


class Watcher:
    """Keeps an engine's lineup equal to a registry's aliases.

    `step` is one look, to be called by hand in tests; `start` and `stop` run it on a thread.
    """

    def __init__(
        self,
        versions: Versions,
        engine: Engine,
        config: ServerConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._versions = versions
        self._engine = engine
        self._config = config
        self._clock = clock
        self._seen: object = None
        self._failures = 0
        self._retry_at = 0.0
        self._complaint = ""
        self._preprocessors: dict[str, Preprocessor] = {}
        # A name of this process alone: a restarted server adds to what it had reported before.
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()).strip("-")
        self._name = f"{host or 'server'}-{secrets.token_hex(4)}"
        self._reported: Counted | None = None
        self._report_at = 0.0
        self._report_failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driftd-watcher", daemon=True)

    def start(self) -> None:
        """Start to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following, once a load under way has ended, and report what was counted."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._config.drain_seconds)
        self.report()

    def step(self) -> bool:
        """Look once, and do what is needed. True if everything is as the registry wants it."""
        noticed = self._clock()
        if noticed >= self._report_at:
            self._report_at = noticed + self._config.report_seconds
            self.report()
        try:
            token = self._versions.token()
            moved = token != self._seen
            if not moved and not self._failures:
                return True
            if not moved and noticed < self._retry_at:
                return False
            aliases = self._versions.aliases()
        except LoadError as error:
            self._failed(NO_VERSION, error)
            return False
        if moved:
            self._failures = 0
        self._seen = token
        done = self._follow(aliases, noticed)
        if done:
            self._failures = 0
            self._complaint = ""
        return done

    def report(self) -> None:
        """Tell the registry what was counted, if that is news."""
        trial = self._engine.lineup.trial
        counted = trial.counted() if trial else None
        if counted is None or counted == self._reported:
            return
        outcome = "done"
        try:
            self._versions.report(self._name, counted)
            self._reported = counted
        except LoadError as error:
            outcome = "failed"
            if not self._report_failed:
                log.error("cannot report what the challenger's traffic came to: %s", error)
        self._report_failed = outcome == "failed"
        self._engine.metrics.counter("driftd_server_traffic_reports_total", outcome).inc()

    def _run(self) -> None:
        _stand_back()
        log.info("waiting for a champion in %s", self._versions)
        config = self._config
        pause = config.poll_seconds_bucket if self._versions.remote else config.poll_seconds
        while not self._stop.is_set():
            try:
                self.step()
            except Exception:  # this thread must not die: a server that cannot swap is no server
                log.exception("the watcher failed; it goes on")
                self._failures += 1
            self._stop.wait(pause)

    def _follow(self, aliases: Aliases, noticed: float) -> bool:
        if aliases.champion is None:
            return True  # nothing promoted yet, or no registry: keep what serves
        if not self._champion(aliases.champion, noticed):
            return False
        kept = self._previous(aliases)
        return self._challenger() and kept

    def _champion(self, wanted: str, noticed: float) -> bool:
        champion, previous, trial = self._engine.lineup
        if champion is not None and champion.version == wanted:
            return True
        metrics = self._engine.metrics
        challenger = trial.loaded if trial else None
        if previous is not None and previous.version == wanted:
            chosen = previous  # a rollback: still warm
        elif challenger is not None and challenger.version == wanted:
            chosen = challenger
        else:
            # Void, as the champion has moved; and room is needed.
            self._engine.lineup = Lineup(champion, previous)
            del trial, challenger
            try:
                chosen = self._load(wanted)
                if champion is None:  # later ones share a queue that is known to answer
                    self._engine.probe(chosen, self._config.deadline_seconds)
                meanwhile = self._versions.aliases().champion
            except LoadError as error:
                metrics.counter("driftd_server_swaps_total", wanted, "failed").inc()
                self._failed(wanted, error)
                return False
            if meanwhile != wanted:
                log.info("version %s is no longer the champion; dropped", wanted)
                metrics.counter("driftd_server_swaps_total", wanted, "superseded").inc()
                self._seen = None  # look again
                return False
        self._engine.lineup = Lineup(chosen, champion if self._config.keep_previous else None)
        seconds = self._clock() - noticed
        metrics.counter("driftd_server_swaps_total", wanted, "done").inc()
        metrics.histogram("driftd_server_swap_seconds", wanted).observe(seconds)
        before = champion.version if champion else "none"
        log.info("serving %s (before: %s), %.0f ms after noticing", wanted, before, seconds * 1e3)
        return True

    def _previous(self, aliases: Aliases) -> bool:
        champion, previous, trial = self._engine.lineup
        wanted = aliases.previous if self._config.keep_previous else None
        if wanted == (previous.version if previous else None):
            return True
        # Free first: at most two versions and the one being loaded are in memory.
        self._engine.lineup = Lineup(champion, None, trial)
        if wanted is None:
            return True
        del previous
        try:
            self._engine.lineup = Lineup(champion, self._load(wanted), trial)
        except LoadError as error:
            self._failed(wanted, error)
            return False
        return True

    def _challenger(self) -> bool:
        """Give a challenger the traffic that the registry says, or none."""
        lineup = self._engine.lineup
        before = lineup.trial
        try:
            split = self._versions.split()
        except LoadError as error:
            self._engine.lineup = lineup._replace(trial=None)
            self._failed(NO_VERSION, error)
            return False
        if split is None:
            if before is not None:
                self._engine.lineup = lineup._replace(trial=None)
                log.info("no challenger sees traffic any more")
            return True
        if before is not None and before.loaded and before.split == split:
            return True
        loaded = next((v for v in lineup.roles.values() if v.version == split.challenger), None)
        trial = Trial(split, loaded)
        if before is not None and before.split.generation == split.generation:
            trial.challenger, trial.champion = before.challenger, before.champion
        if loaded is None:
            self._engine.lineup = lineup._replace(trial=None)
            lineup, before = self._engine.lineup, None  # free first
            try:
                trial.loaded = self._load(split.challenger)
            except LoadError as error:
                if error.cause not in _PASSING:  # from now on its requests count as failed
                    self._engine.lineup = lineup._replace(trial=trial)
                self._failed(split.challenger, error)
                return False
        self._engine.lineup = lineup._replace(trial=trial)
        log.info("%s of %s: %g percent", split.mode, split.challenger, split.share)
        return True

    def _load(self, version: str) -> Loaded:
        folder = self._versions.fetch(version)
        preprocessor = self._preprocessor(folder)
        session = self._shared(folder, preprocessor)
        if session is not None:
            session.warm(1)
            return Loaded(version, session)
        give_back()  # what the version before the last has left, or it adds up over swaps
        session = Session.open(
            folder,
            preprocessor=preprocessor,
            batch=self._config.batch,
            mapped=self._config.map_files,
        )
        session.warm()
        return Loaded(version, session)

    def _shared(self, folder: Path, preprocessor: Preprocessor) -> Session | None:
        """A session that runs a loaded version's graph, where only the head differs."""
        labels, head = read_head(folder)
        model = model_file(folder)
        for loaded in self._engine.lineup.roles.values():
            alike = loaded.session.number == predicts_number(folder)
            if alike and same_but_head(loaded.session.path, model, head):
                return loaded.session.with_head(model, preprocessor, labels, head)
        return None

    def _preprocessor(self, folder: Path) -> Preprocessor:
        """The folder's preprocessor; the one at hand if its files are the same.

        Parsing a tokenizer holds the interpreter for tens of milliseconds, and most versions
        share theirs.
        """
        digest = hashlib.sha256()
        try:
            for name in ("preprocess.json", "tokenizer.json"):
                path = folder / name
                digest.update(path.read_bytes() if path.exists() else b"\0")
            key = digest.hexdigest()
            if key not in self._preprocessors:
                self._preprocessors = {key: load_preprocessor(folder)}
        except (OSError, ValueError) as error:
            raise LoadError("bad_files", str(error)) from error
        return self._preprocessors[key]

    def _failed(self, version: str, error: LoadError) -> None:
        pause = self._config.retry_seconds * 2.0**self._failures
        pause = min(pause, self._config.retry_seconds_max)
        self._failures += 1
        self._retry_at = self._clock() + pause
        self._engine.metrics.counter(
            "driftd_server_load_failures_total", version, error.cause
        ).inc()
        if str(error) != self._complaint:  # one line a trouble, not one a try
            self._complaint = str(error)
            log.error("cannot load %s (%s): %s", version, error.cause, error)


def _stand_back() -> None:
    """Let this thread, not its process, wait for others."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        before = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, before + _NICE)
