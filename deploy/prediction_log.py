"""What was predicted, to a Kafka topic: for those who bring the labels later.

A request only puts its items into a bounded queue; a thread of its own writes them. Whatever the
broker does, requests go on: items that find no room are dropped and counted. A record has the
form of an event of the daemon, with a ``prediction`` beside it (see docs/deploy.md).
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import orjson

from deploy.config import PredictionLogConfig
from deploy.errors import LogError
from deploy.kafka_producer import end_producer, open_producer
from deploy.metrics import Metrics
from deploy.preprocess import Preprocessor, Tensors
from deploy.session import Prediction

log = logging.getLogger("driftd.server")

_METRIC = "driftd_server_logged_items_total"
_BLOCK_MS = 2_000  # that a send may wait for the cluster's metadata, or for room
_RETRY_SECONDS = 1.0
_DECIMALS = 6  # of a probability
_MAX_RECORD = 16 * 1024 * 1024


class Answered(NamedTuple):
    """The answer to a request; no labels: a number.

    inputs: its items as plain JSON values, None if not to be had.
    """

    id: str
    time: float
    version: str
    labels: Sequence[str]
    prediction: Prediction
    inputs: Callable[[], Sequence[object] | None]


class PredictionLog:
    """Writes answers to a topic, if the broker can keep up.

    Raises `LogError` if kafka-python is not installed.
    """

    def __init__(self, config: PredictionLogConfig, metrics: Metrics) -> None:
        if find_spec("kafka") is None:
            raise LogError('server.prediction_log needs kafka-python: pip install "driftd[log]"')
        self._config = config
        self._metrics = metrics
        self._waiting: deque[Answered] = deque()
        self._items = 0
        self._wake = threading.Condition()
        self._ending = False
        self._end_at = 0.0
        self._complaint = ""
        self._producer: Any = None
        self._thread = threading.Thread(target=self._run, name="driftd-log", daemon=True)

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def write(self, answered: Answered) -> None:
        """Queue an answer's items, or drop them all; never waits."""
        n = len(answered.prediction)
        with self._wake:
            room = self._items + n <= self._config.queue_items and not self._ending
            if room:
                self._waiting.append(answered)
                self._items += n
                self._wake.notify()
        if not room:
            self._count(answered.version, "dropped", n)

    def close(self) -> None:
        """Write what waits, for ``flush_seconds`` at most, and end."""
        with self._wake:
            self._ending = True
            self._end_at = time.monotonic() + self._config.flush_seconds
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(self._config.flush_seconds + 1)
        with self._wake:
            left = list(self._waiting)
            self._waiting.clear()
        for answered in left:
            self._count(answered.version, "dropped", len(answered.prediction))

    @property
    def waiting(self) -> int:
        """Items that wait for the broker."""
        return self._items

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._ending:
                    self._wake.wait()
                if not self._waiting or self._late():
                    break
            if self._producer is None and not self._connect():
                with self._wake:  # or the end, whichever comes first
                    self._wake.wait_for(lambda: self._ending, _RETRY_SECONDS)
                    if self._ending:
                        break
                continue
            with self._wake:
                answered = self._waiting.popleft()
                self._items -= len(answered.prediction)
            self._send(answered)
        if self._producer is not None:
            left = max(0.0, self._end_at - time.monotonic())
            try:
                self._producer.flush(timeout=left)
            except Exception as error:  # what is not delivered counts itself as failed
                self._complain(error)
            end_producer(self._producer)

    def _late(self) -> bool:
        return self._ending and time.monotonic() > self._end_at

    def _connect(self) -> bool:
        from kafka.errors import KafkaError

        settings = {
            "client_id": "driftd-server",
            "allow_auto_create_topics": False,
            "enable_idempotence": False,  # an outage must not stop it for good
            "acks": 1,
            "linger_ms": 20,
            "bootstrap_timeout_ms": _BLOCK_MS,
            "max_block_ms": _BLOCK_MS,
            "max_request_size": _MAX_RECORD,
        }
        try:
            self._producer = open_producer(self._config, settings)
        except (KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
            self._complain(error)
            return False
        return True

    def _send(self, answered: Answered) -> None:
        version, config = answered.version, self._config
        try:
            records = list(records_of(answered, inputs=config.inputs, embedding=config.embedding))
        except Exception as error:  # whatever it is, the next answer shall be written
            self._complain(error)
            self._count(version, "failed", len(answered.prediction))
            return
        for key, value in records:
            try:
                sent = self._producer.send(config.topic, value, key=key)
            except Exception as error:  # a topic that is not there, a record too long, no room
                self._complain(error)
                self._count(version, "failed", 1)
                continue
            sent.add_callback(lambda _: self._sent(version))
            sent.add_errback(lambda error: self._refused(version, error))

    def _sent(self, version: str) -> None:
        self._complaint = ""
        self._count(version, "sent", 1)

    def _refused(self, version: str, error: object) -> None:
        self._complain(error)
        self._count(version, "failed", 1)

    def _count(self, version: str, outcome: str, items: int) -> None:
        self._metrics.counter(_METRIC, version, outcome).inc(items)

    def _complain(self, error: object) -> None:
        if str(error) != self._complaint:  # one line a trouble
            self._complaint = str(error)
            servers = ", ".join(self._config.bootstrap_servers)
            log.warning(
                "predictions do not reach topic %s at %s: %s", self._config.topic, servers, error
            )


def records_of(answered: Answered, *, inputs: bool, embedding: bool) -> list[tuple[bytes, bytes]]:
    """Keys and values, one an item.

    >>> one = np.float32([[0.25, 0.75]])
    >>> said = Answered("7", 1e9, "v0001", ["no", "yes"], Prediction(one, one, one), lambda: ["hi"])
    >>> ((key, value),) = records_of(said, inputs=True, embedding=False)
    >>> print(key.decode(), value.decode().replace(',"', ', "'))
    7 {"id":"7", "time":1000000000.0, "text":"hi", "prediction":{"version":"v0001", \
"label":"yes", "probabilities":{"no":0.25, "yes":0.75}}}
    """
    prediction, labels = answered.prediction, answered.labels
    n = len(prediction)
    given = answered.inputs() if inputs else None
    probabilities = np.round(prediction.probabilities.astype(np.float64), _DECIMALS).tolist()
    best = prediction.probabilities.argmax(axis=1).tolist()
    found = []
    for i in range(n):
        name = answered.id if n == 1 else f"{answered.id}:{i}"
        said: dict[str, object] = {"version": answered.version}
        if labels:
            said["label"] = labels[best[i]]
            said["probabilities"] = dict(zip(labels, probabilities[i], strict=True))
        else:
            said["value"] = float(prediction.logits[i, 0])
        if embedding:
            row = np.ascontiguousarray(prediction.embeddings[i], "<f4")
            said["embedding"] = base64.b64encode(row.tobytes()).decode()
        record: dict[str, object] = {"id": name, "time": answered.time}
        if given is not None:
            value = given[i]
            record |= value if isinstance(value, dict) else {"text": value}
        record["prediction"] = said
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        found.append((name.encode("utf-8", "replace"), orjson.dumps(record, option=options)))
    return found


def plain_items(tensors: Tensors, preprocessor: Preprocessor) -> Sequence[object] | None:
    """A request's items as plain values: texts, or rows of features; None for raw feeds."""
    names = {spec.name for spec in preprocessor.tensors()}
    if not set(tensors) <= names:
        return None
    columns = {name: tensor.ravel().tolist() for name, tensor in tensors.items()}
    if preprocessor.kind == "text":
        return columns["text"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
