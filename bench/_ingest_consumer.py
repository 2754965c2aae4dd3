"""A bare consumer, which `bench ingest` compares the loop with: kafka-python, and no more.

``python -m bench._ingest_consumer BOOTSTRAP TOPIC FIRST END DECODER`` reads the offsets from FIRST
to END of the topic's only partition, decodes each value, and prints the wall and the CPU seconds
that it took. DECODER: json, Python's own, or orjson.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

DECODERS: dict[str, Callable[[bytes], Any]] = {"json": json.loads, "orjson": orjson.loads}


def main(bootstrap: str, topic: str, first: str, end: str, decoder: str) -> None:
    from kafka import KafkaConsumer, TopicPartition

    decode, at, last = DECODERS[decoder], int(first), int(end)
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, max_poll_records=10_000
    )
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    consumer.seek(place, at)
    while not consumer.poll(timeout_ms=1000, max_records=1):
        pass
    consumer.seek(place, at)
    began, cpu = time.perf_counter(), time.process_time()
    while at < last:
        polled = consumer.poll(timeout_ms=200, max_records=last - at)
        for records in polled.values():
            for record in records:
                decode(record.value)
            at = records[-1].offset + 1
    print(time.perf_counter() - began, time.process_time() - cpu)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
