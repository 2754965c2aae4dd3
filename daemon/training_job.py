"""Training as a Kubernetes Job, on another node than the daemon: one with a GPU, say.

The Job's pod mounts the same volume at the same path and runs the trainer on the job's folder, as
the child process would: progress lines and the result come back as files. What a manifest needs
beyond that (image, nodes, resources) is the template's, which the chart makes.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from daemon.config_reading import ConfigError, Problem
from daemon.job import JOB, RESULT, Job
from daemon.kubernetes import Jobs, KubernetesError
from daemon.policy_config import TrainingJobConfig

log = logging.getLogger("driftd.trainer")

POLL_SECONDS = 5.0
# A shared volume may show another node's file late (NFS: acdirmax is 60 s).
VISIBLE_SECONDS = 60.0
PARENT = "parent"
OWNER = "driftd.io/daemon"


class TrainingJobs:
    """Makes a Job of each refresh that `takes` is true of.

    Raises `ConfigError` if the template is none. Jobs that an earlier daemon of this host's name
    has left are deleted, as their results would be nobody's.
    """

    def __init__(
        self, config: TrainingJobConfig, jobs: Jobs, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self.folder = config.folder
        self.jobs = jobs
        self.poll_seconds = poll_seconds
        self._rungs = config.rungs
        self._template = _template(config.template)
        self._owner = socket.gethostname()[:63]
        # One of several daemons counts its jobs as the others do: by its pod's number they differ.
        numbered = re.search(r"-\d+$", self._owner)
        self._number = numbered[0] if numbered else ""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            jobs.delete_all(f"{OWNER}={self._owner}")
        except (OSError, KubernetesError) as error:
            log.warning("Jobs that may be left of an earlier run were not deleted: %s", error)

    def takes(self, job: Job) -> bool:
        """Whether this refresh goes to a Job. The first version is trained beside the daemon."""
        return job.rung in self._rungs and job.parent is not None

    def launch(self, job: Job, folder: Path, limit_seconds: float) -> TrainingJob:
        """Start the job that was written to ``folder``; killed after ``limit_seconds``."""
        return TrainingJob(self, job, folder, self._manifest(job, folder, limit_seconds))

    def _manifest(self, job: Job, folder: Path, limit_seconds: float) -> dict[str, Any]:
        manifest = copy.deepcopy(self._template)
        metadata = manifest["metadata"]
        # Names of pods take it over, and end in their own letters after it.
        named = f"{metadata['name'][:24]}{self._number}-{job.id.lower().replace('_', '-')}"
        metadata["name"] = named[:57]
        for part in (metadata, manifest["spec"]["template"].setdefault("metadata", {})):
            part.setdefault("labels", {})[OWNER] = self._owner
        manifest["spec"]["activeDeadlineSeconds"] = max(1, int(limit_seconds))
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        container["command"] = ["python", "-m", "daemon.trainer_main"]
        container["args"] = [str(folder)]
        return manifest


class TrainingJob:
    """One Job under way. Copying, asking and waiting have a thread of their own."""

    def __init__(
        self, owner: TrainingJobs, job: Job, folder: Path, manifest: dict[str, Any]
    ) -> None:
        self._owner, self._job, self._folder, self._manifest = owner, job, folder, manifest
        self._name: str = manifest["metadata"]["name"]
        self._stopped = threading.Event()
        self._why: str | None = None
        self._thread = threading.Thread(target=self._follow, name=self._name, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether there is a result, or never will be."""
        return self._why is not None or (self._folder / RESULT).exists()

    @property
    def why(self) -> str:
        """Why there is no result, once it has ended without one."""
        return self._why or "it ended without a result"

    def stop(self) -> None:
        """Delete the Job, and its pod with it."""
        self._stopped.set()
        self._thread.join()
        try:
            self._owner.jobs.delete(self._name)
        except (OSError, KubernetesError) as error:
            log.warning("the Job %s could not be deleted: %s", self._name, error)

    def _follow(self) -> None:
        try:
            _carry(self._job, self._folder)
            if not self._create():
                return
            log.info("%s trains as Job %s", self._job.id, self._name)
            self._wait()
        except KubernetesError as error:
            self._why = f"no Job could be made of it: {error}"
        except OSError as error:
            self._why = f"the job's files could not be copied to {self._folder}: {error}"

    def _create(self) -> bool:
        while not self._stopped.is_set():
            try:
                self._owner.jobs.create(self._manifest)
            except OSError as error:
                log.warning("the Kubernetes API does not answer (%s): asked again", error)
                self._stopped.wait(self._owner.poll_seconds)
            else:
                return True
        return False

    def _wait(self) -> None:
        """Until the Job has ended, or nobody waits for it any more."""
        while not self._stopped.wait(self._owner.poll_seconds):
            if self.ended or not self._folder.exists():
                return
            try:
                how = self._owner.jobs.ended(self._name)
            except (OSError, KubernetesError) as error:
                log.warning("how the Job %s does could not be asked: %s", self._name, error)
                continue
            if how is None:
                continue
            deadline = time.monotonic() + (0 if how else VISIBLE_SECONDS)
            while time.monotonic() < deadline and not (self._folder / RESULT).exists():
                if self._stopped.wait(self._owner.poll_seconds):
                    return
            self._why = f"the Job {self._name} failed: {how}" if how else self._nothing()
            return

    def _nothing(self) -> str:
        return (
            f"the Job {self._name} is complete, but left no result in {self._folder}: its pods "
            "must mount the daemon's volume at the same path (trainer.job.folder)"
        )


def _carry(job: Job, folder: Path) -> None:
    """Copy the parent version into the job's folder: its own is on a volume of the daemon's."""
    assert job.parent is not None
    shutil.copytree(job.parent, folder / PARENT, dirs_exist_ok=True)
    carried = replace(job, parent=str(folder / PARENT))
    partial = folder / f"{JOB}.partial"
    partial.write_text(json.dumps(asdict(carried), indent=1))
    os.replace(partial, folder / JOB)


def _template(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
        if found["kind"] != "Job":
            raise _refused(path, f"is a {found['kind']}, not a Job")
        if not found["metadata"]["name"] or not found["spec"]["template"]["spec"]["containers"]:
            raise _refused(path, "has no name or no container")
    except OSError as error:
        raise _refused(path, str(error.strerror)) from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise _refused(path, f"is no manifest of a Job: {error}") from error
    return dict(found)


def _refused(path: Path, message: str) -> ConfigError:
    return ConfigError([Problem("trainer.job.template", message, file=str(path))])
