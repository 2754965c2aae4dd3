"""Daemon and server processes on a real broker: the job done, bad input survived, nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.stack import Process, Stack, get

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

Rows = Callable[..., list[bytes]]


def kafka(bootstrap: str, topic: str, options: dict[str, int]) -> dict[str, Any]:
    return {
        "kind": "kafka",
        "bootstrap_servers": [bootstrap],
        "topic": topic,
        "options": options,
    }


def changed(row: bytes, **fields: Any) -> bytes:
    """The row with other values; a field that is given None is left out."""
    event = json.loads(row) | fields
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def test_drift_repair_operators_and_a_server_that_never_fails(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topic = broker.topic(partitions=2)
    stack.configure(kafka(broker.bootstrap, topic, fast_group))
    daemon, server = stack.start("run"), stack.start("serve")
    normal, turned = table(1600, seed=1), table(1500, seed=2, turned=True)
    broker.produce(topic, normal[:600])
    stack.wait(lambda: get(stack.server, "/v2/health/ready")[0] == 200)
    broker.produce(topic, normal[600:], partition=1)
    stack.wait(lambda: stack.events() == 1600)
    for partition in (0, 1):
        broker.produce(topic, turned[partition::2], partition=partition)
    body = {"features": {"a": 1.0, "b": 1.0}}
    answers: list[tuple[int, str, str]] = []

    def ask() -> str:
        code, found = get(stack.server, "/predict", body)
        answers.append((code, found.get("version"), found.get("label")))
        return answers[-1][2]

    # The meaning of the table turned over: so must the answer of the server.
    stack.wait(lambda: ask() == "no")
    assert {code for code, _, _ in answers} == {200}
    assert answers[0][2] == "yes"
    repaired = stack.rows("promote")[-1]["version"]
    stack.wait(
        lambda: stack.status()["champion"] == repaired
    )  # the server may be the first to know
    assert stack.rows("alarm")
    assert stack.rows("verdict")[-1]["decision"] == "promote"

    # Orders come from another process while the daemon runs, and the server follows.
    assert stack.order("rollback").returncode == 2  # no reason given
    done = stack.order("pin", "--reason", "looking at it")
    assert done.returncode == 0, done.stderr
    stack.wait(lambda: stack.status()["pinned"])
    assert stack.order("unpin", "--reason", "looked at").returncode == 0
    done = stack.order("rollback", "--reason", "a complaint", "--json")
    assert done.returncode == 0, done.stderr
    stack.wait(lambda: stack.status()["champion"] != repaired)
    stack.wait(lambda: ask() == "yes")
    assert {code for code, _, _ in answers} == {200}
    print(stack.order("status", "--json").stdout)
    counted = 'driftd_rollbacks_total{cause="operator",model="table"} 1.0'
    stack.wait(lambda: counted in get(stack.http, "/metrics")[1])

    assert daemon.stop() == 0
    assert server.stop() == 0
    assert stack.rows("stopped")[-1]["reason"] == "SIGTERM"


def test_what_is_no_event_goes_to_the_dead_letters_and_nothing_else_is_lost(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topic = broker.topic()
    stack.configure(
        kafka(broker.bootstrap, topic, fast_group),
        model={
            "task": "tabular",
            "features": [{"name": "a"}, {"name": "b"}],
            "labels": ["yes", "no"],
        },
        events={"max_event_bytes": 1_000_000, "unknown_label": "reject"},
    )
    good = table(700, seed=3)
    bad = {
        "invalid_json": b'{"a": 1,',
        "not_an_object": b"[1, 2]",
        "wrong_type": changed(good[0], a="a word"),
        "bad_label": changed(good[0], label="x" * 500),
        "unknown_label": changed(good[0], label="perhaps"),
        "too_large": changed(good[0], note="x" * 3_000_000),
        "future": changed(good[0], time=4e9),
        "bad_time": changed(good[0], time="yesterday"),
    }
    mixed = [*good[:300], *bad.values(), *good[300:]]
    stack.start("run")
    broker.produce(topic, mixed)
    stack.wait(lambda: stack.events() == len(good))
    stack.wait(lambda: len(stack.letters()) == len(bad))
    assert [letter["reason"] for letter in stack.letters()] == list(bad)
    assert [letter["offset"] for letter in stack.letters()] == list(range(300, 300 + len(bad)))
    stack.wait(lambda: stack.status()["champion"] == "v0001")
    metrics = get(stack.http, "/metrics")[1]
    for reason in bad:
        assert f'driftd_dead_letters_total{{model="table",reason="{reason}"}} 1.0' in metrics


def test_a_label_never_seen_before_grows_the_model(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topic = broker.topic()
    stack.configure(
        kafka(broker.bootstrap, topic, fast_group),
        learn={"new_class_min": 20},
    )
    stack.start("run")
    normal = table(1200, seed=4)
    broker.produce(topic, normal[:500])
    stack.wait(lambda: stack.status().get("champion"))
    broker.produce(topic, normal[500:])
    stack.wait(lambda: stack.events() == 1200)
    # A new region of the table, and a name for it that nobody knew.
    strange = [
        changed(row, id=f"s{i}", a=6.0 + i % 7 / 10, b=-6.0, label="maybe")
        for i, row in enumerate(table(400, seed=5))
    ]
    rows = [row for pair in zip(strange, table(400, seed=6), strict=True) for row in pair]
    broker.produce(topic, rows)
    stack.wait(lambda: stack.rows("new-class"))
    stack.wait(lambda: "maybe" in stack.status().get("labels", []))
    stack.wait(lambda: stack.events() == 2000)
    shown = json.loads(stack.order("show", "champion", "--json").stdout)
    assert shown["labels"] == ["no", "yes", "maybe"] or shown["labels"] == ["yes", "no", "maybe"]


def test_a_broker_that_is_away_at_start_and_goes_away_later(
    stack: Stack, fragile: Any, fast_group: dict[str, int], table: Rows
) -> None:
    from kafka import KafkaAdminClient, KafkaProducer

    stack.configure(kafka(fragile.bootstrap, "events", fast_group))
    daemon = stack.start("run")
    stack.wait(lambda: get(stack.http, "/health/live")[0] == 200)
    stack.wait(lambda: "events" in daemon.output() or fragile.bootstrap in daemon.output())
    code, found = get(stack.http, "/health/ready")
    assert (code, found["ready"]) == (503, False)

    fragile.proxy.start()
    rows = table(900, seed=7)
    admin = KafkaAdminClient(bootstrap_servers=fragile.bootstrap)
    admin.create_topics(
        {"events": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True
    )
    admin.close()

    def produce(values: list[bytes]) -> None:
        producer = KafkaProducer(bootstrap_servers=fragile.bootstrap)
        for value in values:
            producer.send("events", value)
        producer.flush(timeout=20)
        producer.close()

    produce(rows[:600])
    stack.wait(lambda: stack.events() == 600)
    stack.wait(lambda: stack.status()["ready"])
    fragile.proxy.refuse()
    stack.wait(lambda: not stack.status()["ready"])
    assert "source is away" in get(stack.http, "/health/ready")[1]["reason"]
    fragile.proxy.start()
    produce(rows[600:])
    stack.wait(lambda: stack.events() == 900)
    stack.wait(lambda: stack.status()["ready"])
    assert daemon.stop() == 0
    assert stack.rows("source-away")
    assert stack.rows("stopped")[-1]["champion"] == "v0001"


@pytest.mark.parametrize(("verb", "setting"), [("run", "http.port"), ("serve", "server.port")])
def test_a_port_in_use_is_said_so(stack: Stack, tmp_path: Path, verb: str, setting: str) -> None:
    (tmp_path / "events.jsonl").touch()
    stack.configure({"kind": "file", "path": str(tmp_path / "events.jsonl"), "follow": True})
    port = stack.http if verb == "run" else stack.server
    with socket.create_server(("127.0.0.1", port)):
        process = stack.start(verb)
        assert process.child.wait(60) == 1
    last = process.output().strip().splitlines()[-1]
    assert str(port) in last
    assert setting in last


def test_a_second_daemon_on_the_same_state_is_refused(stack: Stack, table: Rows) -> None:
    events = stack.folder / "events.jsonl"
    events.write_bytes(b"\n".join(table(50, seed=10)) + b"\n")
    stack.configure({"kind": "file", "path": str(events), "follow": True}, http={"port": 0})
    first = stack.start("run")
    stack.wait(lambda: stack.rows("started"))
    second = Process("run", stack.path, stack.folder / "second.log")
    assert second.child.wait(60) == 1
    assert "another daemon runs on" in second.output().splitlines()[-1]
    assert first.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_stops_no_watching_and_loses_nothing(
    stack: Stack, small_disk: Path, table: Rows
) -> None:
    events = stack.folder / "events.jsonl"
    events.write_bytes(b"\n".join(table(1000, seed=8)) + b"\n")
    stack.configure(
        {"kind": "file", "path": str(events), "follow": True},
        registry={"path": str(small_disk / "registry")},
        checkpoint={"path": str(small_disk / "state"), "every_seconds": 0.5},
    )
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    fill()
    daemon = stack.start("run")
    stack.wait(lambda: "disk full" in daemon.output())
    stack.wait(lambda: stack.events() == 1000)
    assert stack.status()["champion"] is None
    filler.unlink()
    stack.wait(lambda: stack.status()["champion"] == "v0001")
    with events.open("ab") as file:
        file.write(b"\n".join(table(1000, seed=10)) + b"\n")
    stack.wait(lambda: stack.status()["drift"]["watching"])
    fill()
    with events.open("ab") as file:
        file.write(b"\n".join(table(1500, seed=9, turned=True)) + b"\n")
    stack.wait(lambda: stack.events() == 3500)
    stack.wait(lambda: "checkpoint: cannot write" in daemon.output())
    assert daemon.child.poll() is None
    assert 'driftd_errors_total{model="table"' in get(stack.http, "/metrics")[1]
    filler.unlink()
    stack.wait(lambda: stack.status()["champion"] != "v0001")
    assert daemon.stop() == 0
    again = stack.start("run")
    stack.wait(lambda: stack.events() == 3500)
    time.sleep(0.5)
    assert stack.events() == 3500
    assert again.stop() == 0
