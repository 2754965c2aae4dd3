"""The server as a process of its own: no torch in it, and an orderly end on SIGTERM."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]

# Heavy packages of the daemon: a serving machine does not have them.
PROGRAM = """
import importlib.abc, logging, sys

BLOCKED = {"torch", "transformers", "peft", "onnx", "kafka", "river", "scipy", "opentelemetry"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Block())
logging.basicConfig(level=logging.INFO)
import deploy
from deploy.config import ServerConfig
from deploy.server import serve

notice = float(sys.argv[2])
serve(ServerConfig(port=0, workers=2, poll_seconds=0.05, notice_seconds=notice), sys.argv[1])
assert not BLOCKED & set(sys.modules)
print("ended in order")
"""


@pytest.fixture
def process(tmp_path):
    """Starts the server; gives the process and its URL."""
    started = []

    def start(notice=0.5):
        running = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "registry"), str(notice)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(running)
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            lines.append(line)
            found = re.search(r"listening on (http\S+)", line)
            if found:
                return running, found[1]
        raise AssertionError("".join(lines))

    yield start
    for running in started:
        if running.poll() is None:
            running.kill()
        running.wait(10)


def wait_ready(client):
    for _ in range(500):
        if client.get("/v2/health/ready").status_code == 200:
            return
        time.sleep(0.02)
    raise AssertionError("never ready")


@pytest.mark.parametrize("kind", ["text", "table"])
def test_serves_without_the_training_packages(kind, request, publish, process):
    publish(request.getfixturevalue(kind), promote=True)
    running, url = process()
    with httpx.Client(base_url=url, timeout=20) as client:
        wait_ready(client)
        body = (
            {"text": "my card"}
            if kind == "text"
            else {"features": {"price": 3, "peak": None, "region": "north"}}
        )
        assert client.post("/predict", json=body).status_code == 200
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 0, output
    assert "ended in order" in output


def test_sigterm_says_not_ready_then_drains_then_ends(text, publish, process):
    publish(text, promote=True)
    running, url = process(notice=1)
    failures, done, refused = [], [], threading.Event()

    def keep_asking():
        with httpx.Client(base_url=url, timeout=20) as client:
            while not refused.is_set():
                try:
                    answer = client.post("/predict", json={"text": "my card"})
                    (done if answer.status_code == 200 else failures).append(answer.status_code)
                except httpx.ConnectError:
                    refused.set()
                except httpx.HTTPError as error:
                    failures.append(repr(error))

    with httpx.Client(base_url=url, timeout=20) as client:
        wait_ready(client)
        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        answer = client.post("/predict", json={"text": "my card"})
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
    for thread in threads:
        thread.join(20)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 0, output
    assert "ended in order" in output
    assert failures == []
    assert len(done) > 10


def test_importing_the_room_is_light():
    program = (
        "import sys, deploy; import deploy.server, deploy.session, deploy.patch;"
        "heavy = {'torch', 'transformers', 'peft', 'scipy', 'kafka', 'river'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
