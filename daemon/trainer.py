"""The trainer seen from the daemon: one job at a time, watched and bounded.

Training runs in its own process, with its own threads, priority, memory and time limits, so that
neither consuming nor serving ever waits for it and a crash there costs one refresh. It is a child
of the daemon's, or a Job of the cluster's (`daemon.training_job`).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from daemon.job import LOG, TRAINING, Job, Progress, Result
from daemon.policy_config import TrainerConfig
from daemon.training_job import TrainingJobs

log = logging.getLogger("driftd.trainer")

TERMINATE_SECONDS = 5.0
LOG_TAIL = 800


class Run(Protocol):
    """A job under way."""

    @property
    def ended(self) -> bool:
        """Whether there is a result, or never will be."""

    @property
    def why(self) -> str:
        """Why there is no result, once it has ended without one."""

    def stop(self) -> None:
        """End it without a result."""


class Trainer:
    """Runs one job at a time in a child process, or as one of ``elsewhere``'s."""

    def __init__(
        self, folder: Path, config: TrainerConfig, elsewhere: TrainingJobs | None = None
    ) -> None:
        self.folder = folder
        self.config = config
        self.elsewhere = elsewhere
        self.job: Job | None = None
        self.job_folder: Path | None = None
        self._run: Run | None = None
        self._progress: Progress | None = None
        self._started = 0.0
        self._resumed = False
        # Whatever lies there belonged to a daemon that is gone: its jobs are started anew.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    @property
    def running(self) -> bool:
        """Whether a job has been started and its result not yet collected."""
        return self.job is not None

    @property
    def seconds(self) -> float:
        """Wall time of the running job so far."""
        return time.monotonic() - self._started if self.running else 0.0

    def start(self, job: Job) -> None:
        """Start ``job``, which was written to `folder_of` it."""
        if self.running:
            raise RuntimeError("the trainer is busy; a job is started when the last one is done")
        folder = self.folder_of(job)
        if self.elsewhere is not None and self.elsewhere.takes(job):
            self._run = self.elsewhere.launch(job, folder, self.config.timeout_seconds)
        else:
            self._run = ChildProcess(job, folder, self.config)
        self.job, self.job_folder = job, folder
        self._progress = Progress(folder)
        self._started = time.monotonic()
        self._resumed = False

    def folder_of(self, job: Job) -> Path:
        """Where the job's files go."""
        if self.elsewhere is not None and self.elsewhere.takes(job):
            return self.elsewhere.folder / job.id
        return self.folder / job.id

    def progress(self) -> list[dict[str, Any]]:
        """The training panel's rounds that were reported since the last call."""
        return list(self._progress) if self._progress else []

    def result(self) -> Result | None:
        """The result once the job has ended, else None; enforces the time limit."""
        if self._run is None or self.job_folder is None:
            return None
        if not self._run.ended:
            if self.seconds <= self.config.timeout_seconds:
                return None
            self._run.stop()
            limit = self.config.timeout_seconds
            return self._failed(f"stopped after trainer.timeout_seconds = {limit:g}")
        try:
            found = Result.read(self.job_folder)
        except FileNotFoundError:
            if self._resume():
                return None
            return self._failed(self._run.why)
        return replace(found, seconds=round(self.seconds, 3))

    def _resume(self) -> bool:
        """Go on, once, with a job whose process died after a whole round of training.

        A cluster's Job has been started anew by the cluster already.
        """
        assert self.job is not None
        assert self.job_folder is not None
        if not isinstance(self._run, ChildProcess):
            return False
        if self._resumed or not (self.job_folder / TRAINING).exists():
            return False
        log.warning("%s", self._run.why)
        log.warning("training goes on after its last whole round")
        self._resumed = True
        self._run = ChildProcess(self.job, self.job_folder, self.config)
        return True

    def done(self) -> None:
        """The result was used: remove the job's files and be free for the next."""
        if self.job_folder is not None:
            shutil.rmtree(self.job_folder, ignore_errors=True)
        self.job = self.job_folder = self._run = self._progress = None

    def cancel(self) -> None:
        """End the running job, if any, without a result."""
        if self._run is not None:
            self._run.stop()
        self.done()

    def _failed(self, reason: str) -> Result:
        return Result(outcome="failed", reason=reason, seconds=round(self.seconds, 3))


class ChildProcess:
    """One job in a child process, which dies with the daemon, gives way to it, keeps its limits."""

    def __init__(self, job: Job, folder: Path, config: TrainerConfig) -> None:
        self._output = folder / LOG
        environment = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(job.threads)
        # Tokenisers fork threads of their own unless told not to.
        environment["TOKENIZERS_PARALLELISM"] = "false"
        command = [sys.executable, "-m", "daemon.trainer_main", str(folder)]
        command += ["--nice", str(config.nice), "--parent", str(os.getpid())]
        if config.memory_mb:
            command += ["--memory-mb", str(config.memory_mb)]
        with open(self._output, "ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    @property
    def ended(self) -> bool:
        """As `Run`."""
        return self.process.poll() is not None

    @property
    def why(self) -> str:
        """As `Run`."""
        return _why(self.process.returncode, self._output)

    def stop(self) -> None:
        """As `Run`."""
        if self.ended:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _why(code: int, output: Path) -> str:
    tail = output.read_text(errors="replace")[-LOG_TAIL:].strip() if output.exists() else ""
    last = tail.splitlines()[-1] if tail else "it printed nothing"
    if code == -signal.SIGKILL:
        return f"the trainer was killed (out of memory?); last words: {last}"
    return f"the trainer ended with code {code}; last words: {last}"
