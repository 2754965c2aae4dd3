"""Events for `bench ingest`, and the process that puts them on a topic.

``python -m bench._ingest_producer BOOTSTRAP TOPIC KIND FIRST COUNT`` produces and ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
import orjson

from bench.streams import texts

BYTES = 300  # of a text's event
WRONG = 0.1  # share of predictions that are


def text_events(first: int, count: int) -> Iterator[bytes]:
    """Utterances of banking77 with label and prediction, about `BYTES` each."""
    inputs, labels = texts("banking77_train")
    names = sorted(set(labels))
    random = np.random.default_rng(first)
    places = random.integers(0, len(inputs), count).tolist()
    others = random.integers(0, len(names), count).tolist()
    wrong = (random.random(count) < WRONG).tolist()
    for i, place in enumerate(places):
        event = {
            "id": f"e{first + i:09d}",
            "time": 1.7e9 + first + i,
            "text": inputs[place],
            "label": labels[place],
            "prediction": names[others[i]] if wrong[i] else labels[place],
            "confidence": 0.9,
            "channel": "app",
        }
        packed = orjson.dumps(event)
        event["more"] = "x" * max(0, BYTES - len(packed) - 10)
        yield orjson.dumps(event)


def table_events(first: int, count: int) -> Iterator[bytes]:
    """Rows of two numbers, whose sum tells the label."""
    random = np.random.default_rng(first)
    values = random.normal(size=(count, 2)).tolist()
    for i, (a, b) in enumerate(values):
        label = "yes" if a + 0.5 * b > 0 else "no"
        yield orjson.dumps({"id": f"e{first + i:09d}", "a": a, "b": b, "label": label})


KINDS: dict[str, Callable[[int, int], Iterator[bytes]]] = {
    "text": text_events,
    "table": table_events,
}


def main(bootstrap: str, topic: str, kind: str, first: str, count: str) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, batch_size=256 * 1024, linger_ms=20)
    for value in KINDS[kind](int(first), int(count)):
        producer.send(topic, value=value, partition=0)
    producer.flush(timeout=120)
    producer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
