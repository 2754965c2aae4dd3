"""Send events to a Kafka topic at a chosen pace, each exactly once, in order within a partition.

In a thread (``Replay(...).start()``) or as a process that takes commands on its standard input:

    python -m examples.demo.replay posts.jsonl --bootstrap localhost:9092 --topic posts --rate 40
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

BURST_SECONDS = 0.25  # after a stall at most this much of the schedule is made up at once
NAP_SECONDS = 0.1  # how soon a pause, a stop or a new rate is noticed
REPORT_SECONDS = 1.0
FLUSH_SECONDS = 60.0
BOOTSTRAP_MS = 10_000

Spread = Literal["key", "round_robin"]
Progress = Callable[[int], None]


class ReplayError(RuntimeError):
    """An event could not be delivered."""


class Replay:
    """A paced producer.

    ``sent`` counts events handed to the client, ``delivered`` those the broker has acknowledged.
    Both may be read, and ``pause``, ``resume``, ``stop`` and ``rate`` used, from any thread.

    Args:
        events: JSON-able records; each needs an ``id`` when spread by key.
        bootstrap: ``host:port`` of a broker.
        topic: an existing topic.
        rate: events a second; ``float("inf")`` for as fast as the broker takes them.
        spread: ``key`` sends an id always to the same partition (its hash); ``round_robin`` fills
            partitions evenly.
        progress: called with ``delivered`` about once a second and once at the end, from the
            sending thread.
    """

    def __init__(
        self,
        events: Iterable[Mapping[str, Any]],
        bootstrap: str,
        topic: str,
        rate: float,
        spread: Spread = "key",
        progress: Progress | None = None,
    ) -> None:
        self.events, self.bootstrap, self.topic = events, bootstrap, topic
        self.rate = rate
        self.spread = spread
        self.progress = progress
        self.sent = 0
        self.delivered = 0
        self.error: Exception | None = None
        self._going = threading.Event()
        self._going.set()
        self._stopped = threading.Event()
        self._waiting: deque[FutureRecordMetadata] = deque()
        self._thread: threading.Thread | None = None

    @property
    def rate(self) -> float:
        """Events a second; may be changed while events flow."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be more than 0 events a second, not {rate}; use pause()")
        self._rate = rate

    @property
    def paused(self) -> bool:
        """Whether ``pause`` was called and ``resume`` was not."""
        return not self._going.is_set()

    def pause(self) -> None:
        """Send nothing until ``resume``; events already sent are still delivered."""
        self._going.clear()

    def resume(self) -> None:
        """Go on at the same rate, without a burst for the time paused."""
        self._going.set()

    def stop(self) -> None:
        """End early: send no more, deliver what was sent."""
        self._stopped.set()

    def start(self) -> Replay:
        """Send in a thread of its own; ``join`` waits for it."""
        self._thread = threading.Thread(target=self._run_kept, name="replay", daemon=True)
        self._thread.start()
        return self

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread; true when it has ended. Raises what went wrong in it."""
        if self._thread is None:
            raise ReplayError("the replay was not started")
        self._thread.join(timeout_s)
        if self.error is not None:
            raise self.error
        return not self._thread.is_alive()

    def run(self) -> int:
        """Send every event from the calling thread; return how many were delivered."""
        require_topic(self.bootstrap, self.topic)
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap,
            linger_ms=5,
            allow_auto_create_topics=False,
            reconnect_backoff_max_ms=1_000,
        )  # idempotent with acks=all by default: retries neither repeat nor reorder
        try:
            self._send_all(producer)
            producer.flush(FLUSH_SECONDS)
            self._settle(wait=True)
        except KafkaError as error:
            raise ReplayError(
                f"stopped after {self.delivered} events delivered to {self.topic}: {error!r}"
            ) from error
        finally:
            producer.close(timeout=5)
        self._report()
        return self.delivered

    def _run_kept(self) -> None:
        try:
            self.run()
        except Exception as error:  # handed to whoever joins
            self.error = error

    def _send_all(self, producer: KafkaProducer) -> None:
        partitions = len(producer.partitions_for(self.topic))
        next_report = time.monotonic() + REPORT_SECONDS
        for event in self._paced():
            value = json.dumps(event, ensure_ascii=False).encode()
            if self.spread == "key":
                future = producer.send(self.topic, value, key=str(event["id"]).encode())
            else:
                future = producer.send(self.topic, value, partition=self.sent % partitions)
            self.sent += 1
            self._waiting.append(future)
            self._settle(wait=False)
            if time.monotonic() >= next_report:
                self._report()
                next_report += REPORT_SECONDS

    def _paced(self) -> Iterator[Mapping[str, Any]]:
        """Yield each event when its time has come; end early when stopped."""
        due = time.monotonic()
        for event in self.events:
            while not self._stopped.is_set():
                now = time.monotonic()
                if self.paused:
                    self._going.wait(NAP_SECONDS)
                    due = max(due, now)
                elif due > now:
                    self._stopped.wait(min(due - now, NAP_SECONDS))
                else:
                    break
            if self._stopped.is_set():
                return
            due = max(due, time.monotonic() - BURST_SECONDS) + 1 / self.rate
            yield event

    def _settle(self, wait: bool) -> None:
        """Count the oldest acknowledged sends; raise for one that failed."""
        while self._waiting and (wait or self._waiting[0].is_done):
            self._waiting[0].get(timeout=FLUSH_SECONDS)
            self._waiting.popleft()
            self.delivered += 1

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.delivered)


def replay(
    events: Iterable[Mapping[str, Any]],
    bootstrap: str,
    topic: str,
    rate: float,
    spread: Spread = "key",
    progress: Progress | None = None,
) -> int:
    """Send every event and return how many were delivered; ``Replay`` tells the arguments."""
    return Replay(events, bootstrap, topic, rate, spread, progress).run()


def require_topic(bootstrap: str, topic: str) -> None:
    """Raise unless the topic exists: some brokers would create it, with partitions of their own."""
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=BOOTSTRAP_MS)
        try:
            topics = admin.list_topics()
        finally:
            admin.close()
    except KafkaError as error:
        raise ReplayError(f"no answer from a broker at {bootstrap}: {error!r}") from error
    if topic not in topics:
        raise ReplayError(f"topic {topic!r} does not exist at {bootstrap}")


def obey(commands: Iterable[str], player: Replay) -> None:
    """Carry out commands, one a line: ``pause``, ``resume``, ``stop``, ``rate 80``."""
    for line in commands:
        verb, _, value = line.strip().partition(" ")
        if verb == "pause":
            player.pause()
        elif verb == "resume":
            player.resume()
        elif verb == "stop":
            player.stop()
        elif verb == "rate":
            try:
                player.rate = float(value)
            except ValueError as error:
                print(error, file=sys.stderr)
        elif verb:
            print(f"unknown command {verb!r}: pause, resume, stop, rate N", file=sys.stderr)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a JSON lines file, one at a time."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def main() -> int:
    """Replay a file; commands on standard input, progress on standard output."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.replay", description=__doc__)
    parser.add_argument("file", type=Path, help="JSON lines, one event a line")
    parser.add_argument("--bootstrap", required=True, help="host:port of a Kafka broker")
    parser.add_argument("--topic", required=True, help="an existing topic")
    parser.add_argument("--rate", type=float, default=40.0, help="events a second")
    parser.add_argument("--spread", choices=("key", "round_robin"), default="key")
    options = parser.parse_args()
    player = Replay(
        read_lines(options.file),
        options.bootstrap,
        options.topic,
        options.rate,
        options.spread,
        progress=lambda count: print(f"delivered {count}", flush=True),
    )
    threading.Thread(target=obey, args=(sys.stdin, player), daemon=True).start()
    try:
        player.run()
    except (ReplayError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
