"""Training as a Job of a cluster: a real API conversation over TLS, processes for pods."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from daemon.config_reading import ConfigError
from daemon.job import JOB, VERSION, Job, Result
from daemon.kubernetes import Jobs, KubernetesError
from daemon.policy_config import TrainerConfig, TrainingJobConfig
from daemon.trainer import Trainer
from daemon.trainer_main import run
from daemon.training_job import OWNER, TrainingJobs
from deploy.session import Session
from learn.config import LearnConfig, ModelConfig
from learn.examples import Examples
from tests.daemon.cluster import Cluster

TEMPLATE = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "shop-driftd-training", "namespace": "models", "labels": {"a": "b"}},
    "spec": {
        "backoffLimit": 1,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "trainer", "image": "driftd/daemon:0.1.0"}],
            }
        },
    },
}
LABELS = ["no", "yes"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster")
    yield cluster
    cluster.stop()


@pytest.fixture
def jobs(cluster: Cluster) -> Jobs:
    return Jobs("127.0.0.1", cluster.port, cluster.account)


def config(folder: Path, template: Any = TEMPLATE) -> TrainingJobConfig:
    path = folder / "template.yaml"
    path.write_text(yaml.safe_dump(template))
    return TrainingJobConfig(template=path, folder=folder / "shared")


Started = Callable[..., Trainer]


@pytest.fixture
def trainer(jobs: Jobs, tmp_path: Path) -> Iterator[Started]:
    made: list[Trainer] = []

    def start(job: Job, found: Examples, **limits: Any) -> Trainer:
        elsewhere = TrainingJobs(config(tmp_path), jobs, poll_seconds=0.05)
        trainer = Trainer(tmp_path / "jobs", TrainerConfig(**limits), elsewhere)
        made.append(trainer)
        job.write(trainer.folder_of(job), found)
        trainer.start(job)
        return trainer

    yield start
    for trainer in made:
        trainer.cancel()


def examples(n: int = 400) -> Examples:
    x = np.random.default_rng(4).normal(size=n)
    inputs = np.empty(n, dtype=[("a", "<f8")])
    inputs["a"] = x
    number = np.arange(n, dtype=np.int64)
    return Examples(
        ids=np.array([f"e{i}" for i in number], dtype=object),
        times=number.astype(np.float64),
        inputs=inputs,
        labels=(np.abs(x) > 0.7).astype(np.int64),
        embeddings=None,
        weights=np.ones(n, np.float32),
        topics=np.full(n, "t", dtype=object),
        partitions=np.zeros(n, np.int32),
        offsets=number,
        arrivals=number,
    )


def job(rung: Any, parent: Path | None) -> Job:
    return Job(
        id=f"7-{rung}",
        rung=rung,
        strategy=rung,
        labels=LABELS,
        parent=str(parent) if parent else None,
        seed=1,
        threads=1,
        cpu_seconds=60,
        model=ModelConfig(task="tabular", table="network", features=[{"name": "a"}]).model_dump(
            mode="json"
        ),
        learn=LearnConfig().model_dump(mode="json"),
    )


@pytest.fixture
def champion(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    job("head", None).write(folder, examples())
    result = run(folder)
    (folder / VERSION / "manifest.json").write_text(json.dumps({"metrics": result.metrics}))
    return folder / VERSION


def wait(until: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := until()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def test_a_refresh_runs_as_a_job_and_its_version_comes_back(
    cluster: Cluster, trainer: Started, champion: Path, tmp_path: Path
) -> None:
    running = trainer(job("full", champion), examples())
    result: Result = wait(running.result)
    assert result.outcome == "trained", result.reason
    (name,) = cluster.jobs
    manifest = cluster.jobs[name]
    assert name == "shop-driftd-training-7-full"
    assert manifest["metadata"]["labels"] == {"a": "b", OWNER: socket.gethostname()[:63]}
    assert manifest["spec"]["activeDeadlineSeconds"] == 3600
    folder = tmp_path / "shared" / "7-full"
    answers = Session.open(folder / VERSION).predict(examples().inputs).probabilities
    assert (answers.argmax(axis=1) == examples().labels).mean() > 0.8
    # The pod needs nothing of the daemon's own volume.
    assert Path(json.loads((folder / JOB).read_text())["parent"]).is_relative_to(folder)
    running.done()
    assert not folder.exists()


def test_a_head_and_the_first_version_stay_with_the_daemon(
    cluster: Cluster, trainer: Started, champion: Path
) -> None:
    result: Result = wait(trainer(job("head", champion), examples()).result)
    assert result.outcome == "trained", result.reason
    assert cluster.jobs == {}


def test_a_job_that_fails_is_a_failed_refresh_that_says_why(
    cluster: Cluster, trainer: Started, champion: Path
) -> None:
    running = trainer(job("full", champion), examples())
    wait(lambda: cluster.pods)
    next(iter(cluster.pods.values())).kill()
    result: Result = wait(running.result)
    assert result.outcome == "failed"
    assert result.reason == (
        "the Job shop-driftd-training-7-full failed: BackoffLimitExceeded: "
        "Job has reached the specified backoff limit"
    )


@pytest.mark.parametrize("why", ["cancelled", "too long"])
def test_a_stopped_job_is_deleted_with_its_pod(
    cluster: Cluster, trainer: Started, champion: Path, why: str
) -> None:
    limit = 3600.0 if why == "cancelled" else 0.5
    running = trainer(job("full", champion), examples(), timeout_seconds=limit)
    (pod,) = wait(lambda: list(cluster.pods.values()))
    if why == "cancelled":
        running.cancel()
        assert not running.running
    else:
        result: Result = wait(running.result)
        assert "trainer.timeout_seconds" in result.reason
    assert cluster.deleted == ["shop-driftd-training-7-full"]
    assert pod.poll() is not None


def test_a_refused_job_says_what_the_cluster_said(
    cluster: Cluster, trainer: Started, champion: Path
) -> None:
    said = 'jobs.batch is forbidden: User "x" cannot create resource "jobs"'
    cluster.answers = lambda: (403, said)
    result: Result = wait(trainer(job("full", champion), examples()).result)
    assert result.outcome == "failed"
    assert said in result.reason


def test_an_api_that_does_not_answer_for_a_while_costs_only_time(
    cluster: Cluster, jobs: Jobs, trainer: Started, champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, silent = Jobs._ask, [6]

    def unsure(self: Jobs, *arguments: Any, **more: Any) -> dict[str, Any]:
        if silent[0]:
            silent[0] -= 1
            raise ConnectionRefusedError("nobody there")
        return ask(self, *arguments, **more)

    monkeypatch.setattr(Jobs, "_ask", unsure)
    running = trainer(job("full", champion), examples())
    wait(lambda: cluster.pods)
    silent[0] = 3
    result: Result = wait(running.result)
    assert result.outcome == "trained", result.reason


def test_a_restarted_daemon_deletes_the_jobs_it_left(
    cluster: Cluster, jobs: Jobs, trainer: Started, champion: Path, tmp_path: Path
) -> None:
    trainer(job("full", champion), examples())
    wait(lambda: cluster.pods)
    TrainingJobs(config(tmp_path), jobs)
    assert cluster.jobs == {}


def test_a_wrong_token_is_told(cluster: Cluster, jobs: Jobs) -> None:
    (cluster.account / "token").write_text("another")
    with pytest.raises(KubernetesError, match="401, Unauthorized"):
        jobs.ended("any")


def test_outside_of_a_cluster_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubernetesError, match="needs a pod with a service account"):
        Jobs.of_this_pod()


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("[", "no manifest"),
        ({"kind": "Deployment"}, "is a Deployment, not a Job"),
        ({"kind": "Job", "metadata": {"name": "x"}}, "no manifest"),
    ],
)
def test_a_bad_template_is_refused(
    jobs: Jobs, tmp_path: Path, template: Any, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TrainingJobs(config(tmp_path, template), jobs)
    with pytest.raises(ConfigError, match="No such file"):
        TrainingJobs(TrainingJobConfig(template=Path("missing"), folder=tmp_path / "s"), jobs)
