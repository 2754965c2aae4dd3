"""Where records go that are no events: with the reason, so that a person can mend the producer.

Letters are handed over with `send` and delivered by `flush`, which the loop calls before every
checkpoint: what cannot be delivered keeps the checkpoint back, so that a refused record is read
again after a crash rather than lost. Delivery is therefore at least once; topic, partition and
offset identify a letter.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from daemon.events import Rejected
from daemon.stream_config import (
    FileLettersConfig,
    KafkaSourceConfig,
    LetterLimits,
    TopicLettersConfig,
)
from deploy.kafka_config import KafkaConnection
from deploy.kafka_producer import end_producer, open_producer

if TYPE_CHECKING:
    from daemon.config import Config

log = logging.getLogger("driftd.dead-letters")

FLUSH_SECONDS = 10.0
LOG_SECONDS = 30.0  # between two log lines for one reason
BOOTSTRAP_MS = 5_000
MAX_REQUEST = 16 * 1024 * 1024  # the largest letter that the client may send


class DeadLetterError(Exception):
    """Letters could not be delivered; they are kept, and the message says what to do."""


class DeadLetters:
    """Takes refused records and delivers them, as its ``post`` does. Not thread-safe."""

    def __init__(self, limits: LetterLimits, post: Post) -> None:
        self._limits = limits
        self._post = post
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._said: dict[str, tuple[float, int]] = {}  # reason -> when logged, how many since

    @property
    def waiting(self) -> int:
        """Letters that are not delivered yet."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the loop should stop reading until a `flush` succeeds."""
        return self._bytes >= self._limits.max_pending_bytes

    def send(self, rejected: Rejected) -> None:
        """Take one refused record; never blocks.

        Raises:
            DeadLetterError: twice ``max_pending_bytes`` wait, because nobody heeded `full`.
        """
        self._tell(rejected)
        letter = encode(rejected, self._limits.max_value_bytes)
        if self._bytes + len(letter) > 2 * self._limits.max_pending_bytes:
            raise DeadLetterError(
                f"{len(self._waiting)} dead letters wait to be delivered and no more fit in"
                " memory (dead_letters.max_pending_bytes): see to their topic or file"
            )
        self._waiting.append(letter)
        self._bytes += len(letter)

    def flush(self, timeout: float = FLUSH_SECONDS) -> None:
        """Deliver all letters, within about ``timeout`` seconds.

        Raises:
            DeadLetterError: some are not delivered; they are kept for the next `flush`.
        """
        if not self._waiting:
            return
        try:
            self._post.deliver(self._waiting, timeout)
        finally:
            self._bytes = sum(map(len, self._waiting))

    def close(self) -> None:
        """Let go of the file or the producer; `flush` first."""
        if self._waiting:
            log.error("%d dead letters were not delivered; their records are read again after a"
                      " restart", len(self._waiting))  # fmt: skip
        self._post.close()

    def _tell(self, rejected: Rejected) -> None:
        """Log the first refusal of each reason, then at most one a while, with the count."""
        now = time.monotonic()
        when, count = self._said.get(rejected.reason, (-LOG_SECONDS, 0))
        if now - when < LOG_SECONDS:
            self._said[rejected.reason] = when, count + 1
            return
        self._said[rejected.reason] = now, 0
        log.warning(
            "refused %s/%d offset %d: %s: %s%s",
            rejected.topic,
            rejected.partition,
            rejected.offset,
            rejected.reason,
            rejected.detail,
            f" (and {count} more since the last line like this)" if count else "",
        )


class Post(Protocol):
    """Delivers letters: takes off the left end of the queue what is safely delivered."""

    def deliver(self, letters: deque[bytes], timeout: float) -> None:
        """Deliver, in order. Raises `DeadLetterError`; the letters that remain are undelivered."""

    def close(self) -> None:
        """Let go of everything."""


def open_dead_letters(config: Config) -> DeadLetters:
    """The configured dead letters; connects and opens nothing before the first letter."""
    letters = config.dead_letters
    post: Post
    if isinstance(letters, TopicLettersConfig):
        connection: KafkaConnection | None = letters.connection
        if connection is None and isinstance(config.source, KafkaSourceConfig):
            connection = config.source
        assert connection is not None  # Config saw to it
        post = TopicPost(letters.topic, connection)
    elif isinstance(letters, FileLettersConfig):
        post = FilePost(letters.path, letters.max_file_bytes)
    else:
        post = NoPost()
    return DeadLetters(letters, post)


def encode(rejected: Rejected, max_value_bytes: int) -> bytes:
    """A letter as one line of JSON, without the line break.

    ``value`` is text where it is UTF-8, else base64 (``encoding`` says which), cut off after
    ``max_value_bytes``; ``size`` is the length of what arrived here.

    >>> letter = encode(Rejected("invalid_json", "no", b"{caf\\xc3\\xa9", "t", 0, 7), 5)
    >>> orjson.loads(letter)["value"], orjson.loads(letter)["truncated"]
    ('{caf', True)
    """
    size = len(rejected.value)
    kept = rejected.value[:max_value_bytes]
    cut = size > len(kept)
    encoding = "text"
    try:
        value = kept.decode()
    except UnicodeDecodeError as error:
        if cut and len(kept) - error.start < 4 and error.end == len(kept):
            value = kept[: error.start].decode()  # the cut went through a character
        else:
            encoding, value = "base64", base64.b64encode(kept).decode()
    return orjson.dumps(
        {
            "reason": str(rejected.reason),
            "detail": rejected.detail,
            "topic": rejected.topic,
            "partition": rejected.partition,
            "offset": rejected.offset,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "size": size,
            "truncated": cut,
            "encoding": encoding,
            "value": value,
        }
    )


class NoPost:
    """Drops letters; the log and the metrics have them counted."""

    def deliver(self, letters: deque[bytes], timeout: float) -> None:
        """Forget them."""
        letters.clear()

    def close(self) -> None:
        """Nothing to do."""


class FilePost:
    """Appends letters to a file of JSON lines and syncs it to disk."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def deliver(self, letters: deque[bytes], timeout: float) -> None:
        """Append them all, or leave the file as it was."""
        lines = b"".join(letter + b"\n" for letter in letters)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size + len(lines) > self._max_bytes:
                os.replace(self._path, f"{self._path}.1")
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _append(fd, lines)
            finally:
                os.close(fd)
        except OSError as error:
            raise DeadLetterError(
                f"cannot write dead letters to {self._path}: {error.strerror}. Make room or"
                " access there, or change dead_letters.path; reading goes on meanwhile"
            ) from error
        letters.clear()

    def close(self) -> None:
        """Nothing is held open."""


def _append(fd: int, lines: bytes) -> None:
    """All or nothing: a half-written line would break the readers of the file."""
    before = os.fstat(fd).st_size
    rest = memoryview(lines)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, before)
        raise


class TopicPost:
    """Sends letters to a Kafka topic; the producer is made when the first one is there."""

    def __init__(self, topic: str, connection: KafkaConnection) -> None:
        self._topic = topic
        self._connection = connection
        self._producer: Any = None
        self._sent: deque[Any] = deque()  # what was promised for the first letters of the queue

    def deliver(self, letters: deque[bytes], timeout: float) -> None:
        """Send all and wait for the brokers' word on each."""
        from kafka.errors import KafkaError

        deadline = time.monotonic() + timeout
        try:
            producer = self._open()
            for letter in islice(letters, len(self._sent), None):
                self._sent.append(producer.send(self._topic, value=letter))
            while self._sent:
                self._sent[0].get(timeout=max(0.0, deadline - time.monotonic()))
                self._sent.popleft()
                letters.popleft()
        except (KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
            # Those that are still under way are waited for next time; a failure sends all again.
            if any(future.is_done and future.failed() for future in self._sent):
                self._sent.clear()
            raise DeadLetterError(
                f"cannot deliver {len(letters)} dead letters to topic {self._topic}: {error}."
                " Does the topic exist, and is the broker there? They are kept and tried again"
            ) from error

    def close(self) -> None:
        """Close the producer without waiting for what it still holds."""
        producer, self._producer = self._producer, None
        self._sent.clear()
        if producer is not None:
            end_producer(producer)

    def _open(self) -> Any:
        if self._producer is None:
            settings = {
                "client_id": "driftd-dead-letters",
                "allow_auto_create_topics": False,
                # Letters are told apart by their offset; a gap in a producer's own numbering,
                # which a long outage leaves, must not stop it for good.
                "enable_idempotence": False,
                "acks": "all",
                "bootstrap_timeout_ms": BOOTSTRAP_MS,
                "max_block_ms": BOOTSTRAP_MS,
                "max_request_size": MAX_REQUEST,
                "delivery_timeout_ms": int(FLUSH_SECONDS * 1000),
                "request_timeout_ms": int(FLUSH_SECONDS * 500),
            }
            self._producer = open_producer(self._connection, settings)
        return self._producer
