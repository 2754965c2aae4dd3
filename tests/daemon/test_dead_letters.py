"""Dead letters: nothing refused is lost, nothing blocks for ever, and disks do not fill up."""

import base64
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from daemon.config import Config
from daemon.dead_letters import (
    DeadLetterError,
    DeadLetters,
    FilePost,
    TopicPost,
    encode,
    open_dead_letters,
)
from daemon.events import Rejected
from daemon.stream_config import LetterLimits
from deploy.kafka_config import KafkaConnection


def refused(n: int = 0, value: bytes = b"{broken", reason: str = "invalid_json") -> Rejected:
    return Rejected(reason, "a sentence", value, "events", 2, n)


def letters_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def to_file(path: Path, **limits: int) -> DeadLetters:
    return DeadLetters(LetterLimits(**limits), FilePost(path, 100_000))


# ------------------------------------------------------------------ what a letter says


def test_a_letter_has_everything_to_find_and_mend_the_record() -> None:
    letter = orjson.loads(encode(refused(7), 1000))
    assert letter.pop("time").startswith("20")
    assert letter == {
        "reason": "invalid_json",
        "detail": "a sentence",
        "topic": "events",
        "partition": 2,
        "offset": 7,
        "size": 7,
        "truncated": False,
        "encoding": "text",
        "value": "{broken",
    }


def test_bytes_that_are_no_text_go_as_base64() -> None:
    letter = orjson.loads(encode(refused(value=b"\xff\x00\xfe"), 1000))
    assert letter["encoding"] == "base64"
    assert base64.b64decode(letter["value"]) == b"\xff\x00\xfe"


@pytest.mark.parametrize("limit", range(9))
def test_a_cut_through_a_character_stays_text(limit: int) -> None:
    value = "a\u00e9\u20ac\U0001f600z".encode()
    letter = orjson.loads(encode(refused(value=value), limit))
    assert letter["encoding"] == "text"
    assert value.decode().startswith(letter["value"])
    assert len(letter["value"].encode()) > limit - 4
    assert letter["truncated"]
    assert letter["size"] == len(value)


def test_large_records_are_cut(tmp_path: Path) -> None:
    letters = to_file(tmp_path / "dead.jsonl", max_value_bytes=100)
    letters.send(refused(value=b"x" * 10_000_000))
    letters.flush()
    (letter,) = letters_of(tmp_path / "dead.jsonl")
    assert (len(letter["value"]), letter["size"], letter["truncated"]) == (100, 10_000_000, True)


# ------------------------------------------------------------------ a file


def test_letters_lie_in_the_file_after_a_flush(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "dead.jsonl"
    letters = to_file(path)
    letters.flush()
    assert not path.exists()
    for n in range(3):
        letters.send(refused(n))
    assert letters.waiting == 3
    letters.flush()
    letters.send(refused(3))
    letters.flush()
    assert letters.waiting == 0
    assert [letter["offset"] for letter in letters_of(path)] == [0, 1, 2, 3]
    letters.close()


def test_a_file_that_cannot_be_written_keeps_the_letters(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.mkdir()
    letters = to_file(path)
    letters.send(refused(1))
    with pytest.raises(DeadLetterError, match=r"cannot write dead letters to .*Is a directory"):
        letters.flush()
    assert letters.waiting == 1
    path.rmdir()
    letters.flush()
    assert [letter["offset"] for letter in letters_of(path)] == [1]


def test_a_disk_that_fills_up_leaves_no_half_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dead.jsonl"
    letters = to_file(path)
    letters.send(refused(1))
    letters.flush()
    before = path.read_bytes()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return write(fd, bytes(data)[:10])
        raise OSError(28, "No space left on device")

    letters.send(refused(2))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DeadLetterError, match="No space left on device"):
        letters.flush()
    monkeypatch.undo()
    assert path.read_bytes() == before
    letters.flush()
    assert [letter["offset"] for letter in letters_of(path)] == [1, 2]


def test_a_flood_cannot_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(LetterLimits(), FilePost(path, 5_000))
    for n in range(200):
        letters.send(refused(n))
        letters.flush()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dead.jsonl", "dead.jsonl.1"]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 10_000
    offsets = [x["offset"] for x in letters_of(tmp_path / "dead.jsonl.1") + letters_of(path)]
    assert offsets == list(range(offsets[0], 200))


# ------------------------------------------------------------------ bounds and the log


class Never:
    """A post that is away."""

    def deliver(self, letters: deque[bytes], timeout: float) -> None:
        raise DeadLetterError("away")

    def close(self) -> None:
        pass


def test_undelivered_letters_are_bounded() -> None:
    letters = DeadLetters(LetterLimits(max_pending_bytes=4096), Never())
    sent = 0
    while not letters.full:
        letters.send(refused(sent))
        sent += 1
    assert sent < 40
    with pytest.raises(DeadLetterError, match="away"):
        letters.flush()
    assert letters.full
    assert letters.waiting == sent

    def heedless() -> None:
        for n in range(1000):
            letters.send(refused(n))

    with pytest.raises(DeadLetterError, match="no more fit in memory"):
        heedless()


def test_a_flood_is_a_few_log_lines(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    letters = to_file(tmp_path / "dead.jsonl")
    with caplog.at_level(logging.WARNING, "driftd.dead-letters"):
        for n in range(500):
            letters.send(refused(n))
            letters.send(refused(n, reason="too_large"))
    assert [r.getMessage() for r in caplog.records] == [
        "refused events/2 offset 0: invalid_json: a sentence",
        "refused events/2 offset 0: too_large: a sentence",
    ]


def test_none_only_logs(tmp_path: Path) -> None:
    config = Config.model_validate({"source": {"kind": "stdin"}, "dead_letters": {"kind": "none"}})
    letters = open_dead_letters(config)
    letters.send(refused())
    letters.flush()
    assert letters.waiting == 0
    letters.close()


# ------------------------------------------------------------------ a topic


def read_topic(bootstrap: str, topic: str, count: int) -> list[dict[str, Any]]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None)
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    found: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=200).values():
            found += [record.value for record in records]
    consumer.close()
    return [orjson.loads(value) for value in found]


def test_a_topic_of_the_source_s_cluster(broker: Any, fast_group: dict[str, int]) -> None:
    topic = broker.topic()
    config = Config.model_validate(
        {
            "source": {
                "kind": "kafka",
                "topic": "events",
                "bootstrap_servers": broker.bootstrap,
                "options": fast_group,  # a consumer's settings, which a producer does not know
            },
            "dead_letters": {"kind": "topic", "topic": topic},
        }
    )
    letters = open_dead_letters(config)
    for n in range(50):
        letters.send(refused(n, value=b"\xff" * n))
    letters.flush()
    assert letters.waiting == 0
    letters.send(refused(50))
    letters.flush()
    letters.close()
    found = read_topic(broker.bootstrap, topic, 51)
    assert [letter["offset"] for letter in found] == list(range(51))


def test_a_broker_that_is_away_keeps_the_letters_and_the_time(
    fragile: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr("daemon.dead_letters.BOOTSTRAP_MS", 500)
    connection = KafkaConnection(bootstrap_servers=(fragile.bootstrap,))
    letters = DeadLetters(LetterLimits(), TopicPost("dead", connection))
    for n in range(20):
        letters.send(refused(n))
    before = time.monotonic()
    with pytest.raises(DeadLetterError, match="cannot deliver 20 dead letters to topic dead"):
        letters.flush(timeout=1.0)
    assert time.monotonic() - before < 25  # not for ever
    assert letters.waiting == 20
    fragile.proxy.start()

    def flushed() -> bool:
        try:
            letters.flush(timeout=5.0)
        except DeadLetterError:
            return False
        return True

    eventually(flushed)
    # Gone again, with a producer that is connected: delivery is at least once.
    fragile.proxy.refuse()
    letters.send(refused(20))
    with pytest.raises(DeadLetterError):
        letters.flush(timeout=1.0)
    fragile.proxy.start()
    eventually(flushed)
    letters.close()
    found = read_topic(fragile.bootstrap, "dead", 21)
    assert sorted({letter["offset"] for letter in found}) == list(range(21))
