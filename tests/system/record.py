"""What became of the events: the ledger against the topic, record by record."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

Place = tuple[int, int]


def topic_of(bootstrap: str, topic: str) -> dict[Place, str]:
    """The ids of all records of the topic, by partition and offset."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(places)
    consumer.seek_to_beginning()
    found: dict[Place, str] = {}
    quiet = 0
    while quiet < 5:
        polled = consumer.poll(timeout_ms=200, max_records=10_000)
        quiet = 0 if polled else quiet + 1
        for place, records in polled.items():
            for record in records:
                found[place.partition, record.offset] = json.loads(record.value)["id"]
    consumer.close()
    return found


def ledger_of(state: Path) -> list[tuple[Place, str]]:
    """Partition, offset and id of each line of the ledger beside the checkpoints."""
    lines = (state / "ledger.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [((partition, offset), name) for name, _, partition, offset, _ in rows]


def assert_each_once(state: Path, wanted: dict[Place, str]) -> None:
    """Every record that lies in the topic is in the ledger, and none of them twice."""
    noted = ledger_of(state)
    times = Counter(place for place, _ in noted)
    twice = [place for place, count in times.items() if count > 1]
    lost = sorted(set(wanted) - set(times))
    assert not twice, f"{len(twice)} learned twice, such as {sorted(twice)[:5]}"
    assert not lost, f"{len(lost)} lost, such as {lost[:5]}"
    assert dict(noted) == wanted
