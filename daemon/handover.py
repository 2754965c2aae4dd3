"""What the daemons that observe hand over to the one that leads, through a compacted topic.

A sample of their labelled events, and what each has counted. An event's key is its partition and a
slot that its offset falls into, so that the topic holds a bounded sample of each partition however
long it runs; a leader that is new reads it from the beginning and knows what the one before knew.
It takes the events in as its own: predicts, watches, judges and learns, each once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from numpy.typing import NDArray

from daemon.checkpoint import CheckpointError
from daemon.events import EMPTY, EventBatch
from daemon.joining import packed, unpacked
from daemon.plain import objects
from daemon.sampling import unit_hash
from daemon.sources.source import Partition
from daemon.stream_config import SharingConfig
from deploy.kafka_config import KafkaConnection
from deploy.kafka_producer import end_producer, open_producer

log = logging.getLogger("driftd.handover")

FLUSH_SECONDS = 10.0
BOOTSTRAP_MS = 3_000
RETRY_SECONDS = 5.0
MOST_BYTES = 4 * 1024 * 1024  # of one event
MOST_UNSENT = 20_000
MEMBER = "member/"
GONE_SECONDS = 60.0  # without a word, before a member is left out

Watermarks = dict[Partition, int]


class HandoverError(CheckpointError):
    """What should be handed over was not; it is kept, and the message says what to do."""


class Handover:
    """The two ends of the topic: every daemon writes, and the one that leads reads."""

    def __init__(
        self,
        connection: KafkaConnection,
        config: SharingConfig,
        topic: str,
        owner: str,
        dtype: np.dtype[Any],
    ) -> None:
        self.topic = topic
        self._config = config
        self._connection = connection
        self._owner = owner
        self._dtype = dtype
        self._producer: Any = None
        self._consumer: Any = None
        self._unsent: list[tuple[bytes, bytes | None, int]] = []
        self._write_again = self._read_again = 0.0
        #: Next offset of the topic's partitions, and of what was handed over of the events'.
        self.positions: dict[int, int] = {}
        self.watermarks: Watermarks = {}
        self._members: dict[str, tuple[float, dict[str, Any]]] = {}

    # ---------------------------------------------------------------- the checkpoint

    def values(self) -> dict[str, Any]:
        """For the checkpoint: how far the topic was read, and what of which partition."""
        return {
            "positions": sorted(self.positions.items()),
            "watermarks": [(*place, at) for place, at in sorted(self.watermarks.items())],
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on where `values` was taken."""
        self.positions = dict(values["positions"])
        self.watermarks = {(topic, number): at for topic, number, at in values["watermarks"]}

    # ---------------------------------------------------------------- handing over

    def send(self, batch: EventBatch) -> int:
        """Hand over the sample of these labelled events; how many. `flush` makes it sure."""
        chosen = np.fromiter((self._sampled(name) for name in batch.ids), np.bool_, len(batch))
        chosen &= np.fromiter((x is not None for x in batch.labels), np.bool_, len(batch))
        batch = batch.take(chosen)
        text = batch.inputs.dtype.names is None
        for i, value in enumerate(packed(batch.inputs)):
            topic, number, offset = batch.topics[i], int(batch.partitions[i]), int(batch.offsets[i])
            record = {
                "topic": topic,
                "partition": number,
                "offset": offset,
                "id": batch.ids[i],
                "time": float(batch.times[i]),
                "label": batch.labels[i],
                "labeller": None if batch.labellers is None else batch.labellers[i],
                "input": value.decode("utf-8", "replace") if text else orjson.Fragment(value),
            }
            slot = offset % self._config.handover_slots
            self._unsent.append(
                (f"event/{topic}/{number}/{slot}".encode(), orjson.dumps(record), number)
            )
        return len(batch)

    def tell(self, counts: Mapping[str, Any] | None) -> None:
        """What this daemon has counted; None: it leaves."""
        value = None if counts is None else orjson.dumps({"owner": self._owner, **counts})
        self._unsent.append((f"{MEMBER}{self._owner}".encode(), value, 0))

    @property
    def full(self) -> bool:
        """Whether to read no more until a `flush` succeeds."""
        return len(self._unsent) >= MOST_UNSENT

    def flush(self) -> None:
        """Wait until the broker has everything. Raises HandoverError; then all is kept."""
        try:
            producer = self._writer()
            partitions = len(producer.partitions_for(self.topic) or ())
            if not partitions:
                raise HandoverError(f"there is no topic {self.topic!r} (sharing.topic)")
            # All of a partition on one partition: what is handed over keeps its order.
            sent = [
                producer.send(self.topic, value, key=key, partition=number % partitions)
                for key, value, number in self._unsent
            ]
            deadline = time.monotonic() + FLUSH_SECONDS
            for one in sent:
                one.get(timeout=max(0.0, deadline - time.monotonic()))
        except (KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
            # A producer that has failed may hold some back: another sends all of them again, in
            # order, and who reads leaves out what it has.
            self._end_producer()
            raise HandoverError(
                f"the topic {self.topic!r} does not take what is handed over to the leader"
                f" ({error!r}); nothing is committed until it does"
            ) from error
        self._unsent.clear()

    # ---------------------------------------------------------------- taking

    def take(self, most: int, own: Iterable[Partition]) -> EventBatch:
        """The next events that others handed over, none twice; ``own`` partitions are left out.

        Raises HandoverError.
        """
        try:
            consumer = self._reader()
            if consumer is None:
                return EMPTY
            found = consumer.poll(timeout_ms=0, max_records=most)
        except (KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
            self.rest()
            raise HandoverError(f"cannot read {self.topic!r} (sharing.topic): {error!r}") from error
        rows, mine = [], set(own)
        for partition, records in found.items():
            for record in records:
                if not (record.key or b"").startswith(MEMBER.encode()):
                    row = self._row(record.value, mine)
                    rows += [row] if row is not None else []
                else:
                    self._heard(record.key.decode(), record.value)
            self.positions[partition.partition] = records[-1].offset + 1
        return self._batch(rows)

    def rest(self) -> None:
        """This daemon leads no more: read nothing."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(timeout_ms=1_000)

    def forget(self, place: Partition) -> None:
        """Nothing is known of this partition any more: whoever leads again reads it all again."""
        self.watermarks.pop(place, None)
        self.positions.clear()
        self.rest()

    def members(self) -> list[dict[str, Any]]:
        """What each daemon has last told of itself; those that fell silent are left out."""
        now = time.monotonic()
        return [said for heard, said in self._members.values() if now - heard < GONE_SECONDS]

    def close(self) -> None:
        """Let go of both ends."""
        self.rest()
        self._end_producer()

    # ---------------------------------------------------------------- within

    def _end_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            end_producer(producer)

    def _sampled(self, name: str) -> bool:
        return unit_hash("handover", name) < self._config.handover_share

    def _row(self, value: bytes | None, mine: set[Partition]) -> dict[str, Any] | None:
        if value is None:
            return None
        try:
            row: dict[str, Any] = orjson.loads(value)
            place = row["topic"], row["partition"]
            if row["offset"] < self.watermarks.get(place, 0) or place in mine:
                return None
            self.watermarks[place] = row["offset"] + 1
            return row
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            log.warning("a record of %s was not written by driftd: %s", self.topic, error)
            return None

    def _heard(self, key: str, value: bytes | None) -> None:
        owner = key.removeprefix(MEMBER)
        if value is None:
            self._members.pop(owner, None)
        else:
            self._members[owner] = time.monotonic(), orjson.loads(value)

    def _batch(self, rows: list[dict[str, Any]]) -> EventBatch:
        if not rows:
            return EMPTY
        labellers = objects([row["labeller"] for row in rows])
        return EventBatch(
            ids=objects([row["id"] for row in rows]),
            times=np.array([row["time"] for row in rows], dtype=np.float64),
            inputs=self._inputs([row["input"] for row in rows]),
            labels=objects([row["label"] for row in rows]),
            topics=objects([row["topic"] for row in rows]),
            partitions=np.array([row["partition"] for row in rows], dtype=np.int32),
            offsets=np.array([row["offset"] for row in rows], dtype=np.int64),
            labellers=labellers if any(x is not None for x in labellers) else None,
        )

    def _inputs(self, found: list[Any]) -> NDArray[Any]:
        if self._dtype.names is None:
            return objects(found)
        return unpacked([orjson.dumps(row) for row in found], self._dtype)

    def _writer(self) -> Any:
        if self._producer is None:
            if time.monotonic() < self._write_again:
                raise HandoverError(f"the broker of {self.topic!r} is away")
            self._write_again = time.monotonic() + RETRY_SECONDS
            settings = {
                "client_id": "driftd-handover",
                "allow_auto_create_topics": False,
                "bootstrap_timeout_ms": BOOTSTRAP_MS,
                "max_block_ms": BOOTSTRAP_MS,
                "max_request_size": MOST_BYTES,
                "delivery_timeout_ms": int(FLUSH_SECONDS * 1000),
                "request_timeout_ms": int(FLUSH_SECONDS * 500),
            }
            self._producer = open_producer(self._connection, settings)
        return self._producer

    def _reader(self) -> Any:
        """The consumer, at where it should go on; None while it cannot be made."""
        if self._consumer is None:
            if time.monotonic() < self._read_again:
                return None
            self._read_again = time.monotonic() + RETRY_SECONDS
            consumer = KafkaConsumer(
                **{
                    "bootstrap_timeout_ms": BOOTSTRAP_MS,
                    "client_id": "driftd-handover",
                    "allow_auto_create_topics": False,
                    "enable_auto_commit": False,
                    # What was compacted away lies before what is to be read.
                    "auto_offset_reset": "earliest",
                    "group_id": None,
                }
                | self._connection.options_of(KafkaConsumer)
            )
            numbers = consumer.partitions_for_topic(self.topic) or set()
            if not numbers:
                consumer.close(timeout_ms=1_000)
                raise HandoverError(f"there is no topic {self.topic!r} (sharing.topic)")
            places = [TopicPartition(self.topic, number) for number in sorted(numbers)]
            consumer.assign(places)
            for place in places:
                if (at := self.positions.get(place.partition)) is not None:
                    consumer.seek(place, at)
                else:
                    consumer.seek_to_beginning(place)
            self._consumer = consumer
        return self._consumer
