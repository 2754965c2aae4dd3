"""Three daemons of one model: one is killed, one frozen, and nothing is learned twice."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.partitions import Partitions
from registry import Registry, RegistryConfig, open_registry
from tests.system.stack import ENVIRONMENT, Process, Stack

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

Rows = Callable[..., list[bytes]]
PARTITIONS = 6
# Of this and of the session: on a busy machine a turn takes seconds, and who leads changes often.
LEASE = 6.0
SESSION = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 1000}


class Group:
    """Several stacks, one registry and one consumer group."""

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        topic: str,
        handover: str,
        options: dict[str, int],
        *,
        names: str = "abc",
        registry: RegistryConfig | None = None,
    ) -> None:
        """``registry``: a bucket, in which the daemons' own state lies then, too."""
        from examples.demo.broker import free_port

        self.folder, self.topic = folder, topic
        self.place = registry or RegistryConfig(path=str(folder / "registry"))
        self.stacks: list[Stack] = []
        ports: set[int] = set()
        while len(ports) < 2 * len(names):
            ports.add(free_port())
        for name in names:
            place = folder / name
            place.mkdir()
            stack = Stack(place, ports.pop(), ports.pop())
            source = {
                "kind": "kafka",
                "bootstrap_servers": [bootstrap],
                "topic": topic,
                "group": f"g-{topic}",
                "options": options,
            }
            stack.configure(
                source,
                registry=self.place.model_dump(mode="json") | {"cache": str(place / "cache")},
                checkpoint={
                    "path": str(place / "state"),
                    "every_seconds": 0.5,
                    "store": "registry" if registry else "folder",
                    "name": name,
                },
                sharing={
                    "enabled": True,
                    "lease_seconds": LEASE,
                    "topic": handover,
                    "handover_share": 1.0,
                },
                bootstrap={"warmup_events": 150},
                memory={"recent": 10_000},
            )
            self.stacks.append(stack)
        self.leaders: list[tuple[str, int]] = []  # (owner, term), of every look

    @property
    def registry(self) -> Registry:
        return open_registry(self.place)

    def look(self) -> list[dict[str, Any]]:
        """What each daemon says of the group; never do two lead in one term."""
        found = [stack.status().get("sharing") or {} for stack in self.stacks]
        for said in found:
            if said.get("leads"):
                self.leaders.append((said["owner"], said["term"]))
        owners: dict[int, str] = {}
        for owner, term in self.leaders:
            assert owners.setdefault(term, owner) == owner, f"two leaders in term {term}"
        return found

    def leading(self) -> int:
        """Which of the stacks leads, once exactly one says so."""
        found: list[int] = []

        def one() -> bool:
            found[:] = [i for i, said in enumerate(self.look()) if said.get("leads")]
            return len(found) == 1

        self.wait(one)
        return found[0]

    def knows_all(self, count: int) -> bool:
        """Whether the one that leads remembers so many events: the others' as well as its own."""
        found = [stack.status() for stack in self.stacks]
        leading = [said for said in found if (said.get("sharing") or {}).get("leads")]
        return bool(leading) and leading[0]["memory"]["recent"] == count

    def owned(self) -> Counter[int]:
        """By partition, how many daemons say that it is theirs."""
        return Counter(p[1] for said in self.look() for p in said.get("partitions", ()))

    def learned(self) -> Counter[str]:
        """By event, in how many partitions' records it stands."""
        reader = Partitions(self.registry.store, "test")
        ids: Counter[str] = Counter()
        for number in range(PARTITIONS):
            ids.update(reader.read((self.topic, number))[0].examples.ids.tolist())
        return ids

    def wait(self, reached: Callable[[], object], seconds: float = 180.0) -> float:
        """How long it took."""
        began = time.monotonic()
        while not reached():
            waited = time.monotonic() - began
            logs = "\n".join(p.output()[-2500:] for s in self.stacks for p in s.processes)
            assert waited < seconds, f"it did not come about: {self.look()}\n{logs}"
            time.sleep(0.1)
        return time.monotonic() - began

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        return [dict(row.fields) for row in self.registry.journal.rows(kinds=list(kinds))]


def end_all(group: Group) -> None:
    for stack in group.stacks:
        for process in stack.processes:
            if process.child.poll() is None:
                process.child.kill()
                process.child.wait()


@pytest.fixture
def group(tmp_path: Path, broker: Any) -> Iterator[Group]:
    topics = broker.topic(partitions=PARTITIONS), broker.topic(partitions=2)
    made = Group(tmp_path, broker.bootstrap, *topics, SESSION)
    yield made
    end_all(made)


@pytest.fixture
def diskless(
    tmp_path: Path,
    broker: Any,
    fast_group: dict[str, int],
    s3: Any,
    s3_config: Callable[..., RegistryConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Group]:
    """Two daemons, all of whose state lies in a bucket."""
    monkeypatch.setattr("tests.system.stack.ENVIRONMENT", ENVIRONMENT | s3.environ)
    topics = broker.topic(partitions=PARTITIONS), broker.topic(partitions=2)
    place = open_registry(s3_config(), create=True).config
    made = Group(tmp_path, broker.bootstrap, *topics, fast_group, names="ab", registry=place)
    yield made
    end_all(made)


def end(process: Process, how: signal.Signals) -> None:
    os.kill(process.child.pid, how)


def freeze(process: Process, lock: Path) -> None:
    """Stop it, but not while it holds the lock of the folder, which would stop all the others."""
    while True:
        end(process, signal.SIGSTOP)
        time.sleep(0.1)
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                end(process, signal.SIGCONT)
                time.sleep(0.05)
            else:
                return


@pytest.mark.timeout(300)
def test_one_whose_disk_is_gone_takes_its_part_again(
    diskless: Group, broker: Any, table: Rows
) -> None:
    group, events = diskless, table(1200, seed=41)

    def produce(start: int, stop: int) -> None:
        for number in range(PARTITIONS):
            broker.produce(
                group.topic, events[start + number : stop : PARTITIONS], partition=number
            )

    def settled(sent: int) -> bool:
        learned = group.learned()
        owned = group.owned()
        return len(learned) == sent and set(owned.values()) == {1} and len(owned) == PARTITIONS

    first = [stack.start("run") for stack in group.stacks]
    produce(0, 600)
    group.wait(lambda: settled(600) and all(said.get("partitions") for said in group.look()))
    group.wait(lambda: any(stack.status().get("champion") for stack in group.stacks))
    (leader,) = [i for i, said in enumerate(group.look()) if said.get("leads")]
    end(first[leader], signal.SIGKILL)
    first[leader].child.wait()
    gone = group.stacks[leader]
    gone.processes.clear()
    shutil.rmtree(gone.folder / "state")
    shutil.rmtree(gone.folder / "cache", ignore_errors=True)
    produce(600, 1200)
    gone.start("run")
    group.wait(lambda: settled(1200) and all(said.get("partitions") for said in group.look()))
    learned = group.learned()
    assert set(learned) == {json.loads(row)["id"] for row in events}
    assert set(learned.values()) == {1}
    for stack in group.stacks:
        for process in stack.processes:
            assert process.stop() == 0


@pytest.mark.timeout(900)
def test_one_killed_and_one_frozen_of_three(group: Group, broker: Any, table: Rows) -> None:
    events = table(3000, seed=31)
    ids = [json.loads(row)["id"] for row in events]
    sent = 0

    def produce(many: int) -> None:
        nonlocal sent
        for number in range(PARTITIONS):
            part = [row for i, row in enumerate(events) if i % PARTITIONS == number]
            start, stop = sent // PARTITIONS, (sent + many) // PARTITIONS
            broker.produce(group.topic, part[start:stop], partition=number)
        sent += many

    def all_learned() -> bool:
        found = group.learned()
        return len(found) == sent

    first = [stack.start("run") for stack in group.stacks]
    produce(900)
    group.wait(lambda: set(group.owned().values()) == {1} and len(group.owned()) == PARTITIONS)
    group.wait(all_learned)
    group.wait(lambda: any(s.status().get("champion") for s in group.stacks))
    # What the others read reaches the leader: it knows the events of all partitions.
    group.wait(lambda: group.knows_all(900))
    group.wait(lambda: any(len(said.get("members") or ()) >= 2 for said in group.look()))

    # The leader is killed: another leads, its partitions go on.
    leader = group.leading()
    end(first[leader], signal.SIGKILL)
    first[leader].child.wait()
    killed = group.stacks[leader]
    killed.processes.clear()
    produce(900)
    taken = group.wait(lambda: any(said.get("leads") for said in group.look()))
    group.wait(all_learned)
    print(f"killed: another led after {taken:.1f} s")

    # The next leader is frozen past its session and its lease.
    second = group.leading()
    freeze(first[second], group.folder / "registry" / "lock")
    produce(600)
    asleep = group.stacks.pop(second)  # it does not answer
    taken = group.wait(lambda: any(said.get("leads") for said in group.look()))
    group.wait(all_learned)
    print(f"frozen: another led after {taken:.1f} s")
    end(first[second], signal.SIGCONT)
    group.stacks.append(asleep)
    # The killed one comes back too, and all of them share again.
    killed.start("run")
    group.wait(lambda: all(said.get("partitions") for said in group.look()))
    produce(600)
    group.wait(all_learned)
    group.wait(lambda: set(group.owned().values()) == {1} and len(group.owned()) == PARTITIONS)
    group.wait(lambda: group.knows_all(sent))
    learned = group.learned()
    assert set(learned) == set(ids[:sent])
    assert set(learned.values()) == {1}  # no event is learned twice
    terms = [row["term"] for row in group.rows("leader")]
    assert terms == sorted(set(terms))  # each term has one leader, and they only grow
    assert len(terms) >= 3
    group.wait(lambda: group.rows("leader-lost"))  # the frozen one learned it when it woke
    assert group.rows("partition-taken")
    for stack in group.stacks:
        for process in stack.processes:
            assert process.stop() == 0
