"""Events and labels on two topics of a real broker, and a daemon that is killed in between."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from daemon.checkpoint import CheckpointStore
from daemon.config import load_config
from daemon.state import State
from tests.system.stack import Stack

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

Rows = Callable[..., list[bytes]]


def apart(rows: list[bytes]) -> tuple[list[bytes], list[bytes], dict[str, str]]:
    """Events without a label, their labels by themselves, and the truth by id."""
    events, labels, truth = [], [], {}
    for row in rows:
        event = json.loads(row)
        label = truth[event["id"]] = event.pop("label")
        events.append(json.dumps(event).encode())
        labels.append(json.dumps({"id": event["id"], "label": label}).encode())
    return events, labels, truth


@pytest.mark.timeout(600)
def test_killed_at_random_each_event_is_learned_once_with_its_label(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topics = {"topic": broker.topic(partitions=2), "labels": {"topic": broker.topic()}}
    source = {
        "kind": "kafka",
        "bootstrap_servers": [broker.bootstrap],
        "options": fast_group,
        **topics,
    }
    stack.configure(
        source,
        checkpoint={"path": str(stack.folder / "state"), "every_seconds": 0.5, "ledger": True},
        memory={"recent": 10_000},
    )
    events, labels, truth = apart(table(2400, seed=21))
    random.seed(5)
    order = sorted(range(2400), key=lambda n: n + random.randrange(-300, 300))
    mixed = [labels[n] for n in order]
    daemon = stack.start("run")
    broker.produce(topics["topic"], events[:500])
    broker.produce(topics["labels"]["topic"], labels[:500])
    stack.wait(lambda: stack.status().get("champion"), 150)
    for start in range(500, 2400, 380):
        broker.produce(topics["topic"], events[start : start + 380], partition=start // 380 % 2)
        broker.produce(topics["labels"]["topic"], mixed[start : start + 380])
        seen = min(2400, start + random.randrange(40, 380))
        stack.wait(lambda seen=seen: stack.events() >= seen, 100)
        os.kill(daemon.child.pid, signal.SIGKILL)
        daemon.child.wait()
        stack.processes.remove(daemon)
        daemon = stack.start("run")
    broker.produce(topics["labels"]["topic"], labels)  # all of them again

    def settled() -> bool:
        status = stack.status()
        found = status.get("delayed_labels")
        if not found or status["events"] < 2400:
            return False
        return not found["pending"] and bool(found["repeated"] == 2400)

    stack.wait(settled, 150)
    assert daemon.stop() == 0
    state = State(load_config(stack.path, {}))
    found = CheckpointStore(stack.folder / "state" / "checkpoints").load()
    assert found is not None
    state.restore(found)
    counts = found.values["delayed"]["counts"]
    assert counts["joined"] + counts["early"] == 2400
    assert counts["repeated"] == 2400
    assert counts["never"] == counts["corrected"] == 0
    lines = (stack.folder / "state" / "ledger.jsonl").read_text().splitlines()
    fates: dict[str, list[str]] = {}
    for line in lines:
        name, _, _, _, fate = json.loads(line)
        fates.setdefault(name, []).append(fate)
    # Taken in once and labelled once, whichever came first.
    assert set(fates) == set(truth)
    assert {tuple(found) for found in fates.values()} <= {
        ("labelled",),
        ("unlabelled", "joined"),
    }
    known = state.memory.recent(10_000)
    names = state.classes.names
    assert {i: names[n] for i, n in zip(known.ids, known.labels, strict=True)} == truth
    assert len(known) == 2400
    assert state.prequential.labelled == sum(r.labelled for r in state.records.values())
