"""Several processes on one port: one that dies, the way they end, and one page of metrics."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.config import ServerConfig
from deploy.crew import merged
from deploy.errors import BindError
from deploy.listening import bind, reserve
from deploy.metrics import Metrics

ROOT = Path(__file__).parents[2]


def test_a_share_is_a_part_of_all():
    config = ServerConfig(processes=3, workers=7, queue_limit=1000, max_items=200)
    share = config.share()
    assert (share.processes, share.workers, share.queue_limit) == (1, 2, 333)
    assert ServerConfig(processes=4, workers=2).share().workers == 1
    with pytest.raises(ValueError, match="or than a process's share of it"):
        ServerConfig(processes=8, queue_limit=1024, max_items=256)


def test_merged_metrics_are_the_same_metrics_with_a_label():
    first, second = Metrics("m"), Metrics("m")
    first.counter("driftd_server_swaps_total", "v1", "done").inc(3)
    first.histogram("driftd_server_swap_seconds", "v1").observe(0.3)
    second.counter("driftd_server_swaps_total", "v1", "done").inc(4)
    second.counter("driftd_server_swaps_total", 'v"2, {x', "failed").inc()
    pages = {"0": first.exposition(), "1": second.exposition()}
    ours = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(merged(pages).decode())
        for sample in family.samples
    }
    theirs = {
        (sample.name, tuple(sorted({**sample.labels, "worker": worker}.items()))): sample.value
        for worker, page in pages.items()
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert ours == theirs
    heads = [line for line in merged(pages).splitlines() if line.startswith(b"# TYPE")]
    assert len(heads) == len(set(heads))


def test_a_shared_port_is_not_shared_with_strangers():
    with reserve("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        with (
            bind("127.0.0.1", port, 10, shared=True),
            bind("127.0.0.1", port, 10, shared=True),
        ):
            for wrong in (lambda: reserve("127.0.0.1", port), lambda: bind("127.0.0.1", port, 10)):
                with pytest.raises(BindError, match="Address already in use"):
                    wrong()


@pytest.fixture
def crew(tmp_path):
    """`driftd serve` with two processes: the supervisor, a client, and its log."""
    started = []

    def start(**settings):
        config = tmp_path / "driftd.yaml"
        lines = [f"  {key}: {value}" for key, value in settings.items()]
        config.write_text(
            "\n".join(
                [
                    f"registry: {{path: {tmp_path}/registry}}",
                    "server:",
                    "  processes: 2",
                    "  port: 0",
                    "  notice_seconds: 0",
                    *lines,
                ]
            )
        )
        running = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli", "serve", "-c", str(config)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        log = []

        def read():
            for line in running.stderr:
                log.append(line)

        threading.Thread(target=read, daemon=True).start()
        started.append(running)
        for _ in range(3000):
            found = [match[1] for line in log if (match := re.search(r"on (http://\S+)", line))]
            if len(found) == 2:
                assert len(set(found)) == 1
                return running, found[0], log
            assert running.poll() is None, log
            threading.Event().wait(0.02)
        raise AssertionError(log)

    yield start
    for running in started:
        if running.poll() is None:
            running.terminate()
            running.wait(30)
        running.stderr.close()


def children(running):
    path = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def fresh(url, method, path, **more):
    """A request on a connection of its own, so that any of the processes may get it."""
    with httpx.Client(base_url=url, timeout=20) as client:
        return client.request(method, path, **more)


def workers(url, metric="driftd_server_ready"):
    page = fresh(url, "GET", "/metrics").text
    found = re.findall(rf'^{metric}{{worker="(\d)",[^}}]*}} 1.0', page, re.MULTILINE)
    return sorted(found)


def test_two_answer_on_one_port_and_one_that_dies_is_started_again(crew, text, publish, eventually):
    publish(text, promote=True)
    running, url, log = crew()
    eventually(lambda: workers(url) == ["0", "1"], 60)
    for _ in range(30):
        assert fresh(url, "POST", "/predict", json={"text": "my card"}).status_code == 200
    page = fresh(url, "GET", "/metrics").text
    answered = re.findall(r'requests_total{worker="(\d)",code="200"[^}]*} (\d+)', page)
    assert sum(int(count) for _, count in answered) == 30
    assert len(answered) == 2  # the kernel gave each its part

    before = children(running)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: any("was killed by SIGKILL; starting it again" in line for line in log))
    for _ in range(10):  # the other one goes on
        assert fresh(url, "POST", "/predict", json={"text": "my card"}).status_code == 200
    eventually(lambda: workers(url) == ["0", "1"], 60)
    after = children(running)
    assert len(after) == 2
    assert before[1] in after

    running.terminate()
    assert running.wait(30) == 0, log
    assert not any(Path(f"/proc/{pid}").exists() for pid in after)
    with pytest.raises(httpx.ConnectError):
        fresh(url, "GET", "/v2/health/live")


def test_grpc_is_shared_too(crew, text, publish, eventually):
    grpc = pytest.importorskip("grpc")
    publish(text, promote=True)
    _, _, log = crew(grpc_port=0)

    def ports():
        return [match[1] for line in log if (match := re.search(r"gRPC on \S+:(\d+)", line))]

    eventually(lambda: len(ports()) == 2)
    assert len(set(ports())) == 1
    with grpc.insecure_channel(f"127.0.0.1:{ports()[0]}") as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)


def test_workers_end_with_their_supervisor(crew, eventually):
    running, _, _ = crew()
    pids = children(running)
    running.kill()
    running.wait(10)
    eventually(lambda: not any(alive(pid) for pid in pids), 30)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
