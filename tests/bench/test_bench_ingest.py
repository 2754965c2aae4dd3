"""The events of `bench ingest` are what they are said to be."""

from __future__ import annotations

import orjson
import pytest

from bench._ingest_producer import BYTES, WRONG, table_events, text_events
from bench.streams import NoData


def test_texts_are_as_long_as_said_and_the_same_each_time() -> None:
    try:
        events = list(text_events(100, 4000))
    except NoData as reason:
        pytest.skip(str(reason))
    assert events == list(text_events(100, 4000))
    found = [orjson.loads(event) for event in events]
    assert [event["id"] for event in found] == [f"e{i:09d}" for i in range(100, 4100)]
    short = [len(event) for event, one in zip(events, found, strict=True) if one["more"]]
    assert all(abs(size - BYTES) <= 1 for size in short)
    assert len(short) > 0.9 * len(events)
    wrong = sum(event["prediction"] != event["label"] for event in found)
    assert wrong / len(found) == pytest.approx(WRONG, abs=0.02)


def test_a_row_tells_its_label() -> None:
    for event in map(orjson.loads, table_events(0, 100)):
        assert (event["a"] + 0.5 * event["b"] > 0) == (event["label"] == "yes")
