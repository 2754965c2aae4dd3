"""A real daemon's canary on a real server's traffic: climbing on counts, and sent back by them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.system.stack import Stack, get

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

Rows = Callable[..., list[bytes]]

# Wide margins, so that some tens of requests decide.
CANARY = {
    "steps": [20, 60, 100],
    "min_requests": 40,
    "error_margin": 0.2,
    "slow_margin": 0.5,
    "slow_seconds": 2.0,
}


class Clients:
    """Users who ask all the time: the versions that answered each, and what went wrong."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self._stop = threading.Event()

    def ask(self, first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        body = json.dumps({"features": {"a": 1.0, "b": 1.0}})
        n = first
        while not self._stop.wait(0.002):
            user = f"user-{n % 50}"
            n += 1
            connection.request("POST", "/predict", body, {"X-Driftd-Key": user})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status == 200:
                self.answers.append((user, found["version"]))
            else:
                self.failures.append(str(found))
        connection.close()

    @contextmanager
    def asking(self) -> Iterator[Clients]:
        threads = [threading.Thread(target=self.ask, args=(25 * i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)


@pytest.fixture
def serving(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> Callable[..., str]:
    """Daemon and server with a first champion; gives the stream's topic."""

    def start(**canary: int) -> str:
        topic: str = broker.topic()
        source = {"kind": "kafka", "bootstrap_servers": [broker.bootstrap], "topic": topic}
        stack.configure(
            source | {"options": fast_group},
            gate={"size_ratio": 10.0, "parity_points": 10.0, "canary": CANARY | canary},
            server={"port": stack.server, "name": "table", "report_seconds": 0.2},
        )
        stack.start("run")
        stack.start("serve")
        broker.produce(topic, table(1600, seed=1))
        stack.wait(lambda: get(stack.server, "/v2/health/ready")[0] == 200)
        stack.wait(lambda: stack.events() == 1600)
        return topic

    return start


def test_a_repair_climbs_the_steps_on_the_server_s_own_traffic(
    stack: Stack, broker: Any, serving: Callable[..., str], table: Rows
) -> None:
    topic = serving()
    with Clients(stack.server).asking() as clients:
        broker.produce(topic, table(1500, seed=2, turned=True))
        stack.wait(lambda: stack.rows("canary-passed"), 120)
        promoted = stack.rows("canary-passed")[0]["version"]
        stack.wait(lambda: clients.answers[-1][1] == promoted)
    assert clients.failures == []
    steps = stack.rows("canary-step")
    assert [row["share"] for row in steps[:3]] == CANARY["steps"]
    assert steps[0]["version"] == promoted
    for row in (*steps[1:3], stack.rows("canary-passed")[0]):
        assert row["traffic"]["challenger"]["requests"] >= CANARY["min_requests"]
        assert row["traffic"]["challenger"]["errors"] == 0
    # Sticky: whoever has met the challenger meets no other version again.
    for user in {user for user, _ in clients.answers}:
        versions = [version for who, version in clients.answers if who == user]
        assert versions == sorted(versions), user


def test_a_challenger_that_no_server_can_load_is_sent_back(
    stack: Stack, broker: Any, serving: Callable[..., str], table: Rows
) -> None:
    topic = serving(min_requests=90_000)
    broker.produce(topic, table(1500, seed=2, turned=True))
    stack.wait(lambda: stack.rows("canary-step"), 120)
    challenger = stack.rows("canary-step")[0]["version"]
    graph = stack.folder / "registry" / "versions" / challenger / "model.int8.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.unlink()
    graph.write_bytes(data)
    assert stack.processes[1].stop() == 0
    stack.start("serve")  # and meets the damage
    stack.wait(lambda: get(stack.server, "/v2/health/ready")[0] == 200)
    with Clients(stack.server).asking() as clients:
        stack.wait(lambda: stack.rows("canary-back"), 60)
    assert clients.failures == []
    assert challenger not in {version for _, version in clients.answers}
    back = stack.rows("canary-back")[0]
    assert back["version"] == challenger
    assert "errors" in back["reason"]
    assert stack.rows("promote")[-1]["version"] != challenger
