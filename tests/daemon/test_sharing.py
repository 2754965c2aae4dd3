"""One daemon among several: what it knows of a partition counts as long as nobody else had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.config import Config
from daemon.config_reading import ConfigError
from daemon.journal import JournalWriter
from daemon.metrics import Metrics
from daemon.sharing import Sharing
from daemon.sources import Partition
from daemon.state import State
from registry import Registry, open_registry
from tests.daemon.test_handover import end
from tests.daemon.test_partitions import PLACE, examples


class Moving:
    """The part of a source that partitions come from and go to."""

    def __init__(self) -> None:
        self.came: set[Partition] = set()
        self.went: set[Partition] = set()
        self.begun: dict[Partition, int | None] = {}

    def moves(self) -> tuple[set[Partition], set[Partition]]:
        found = self.came, self.went
        self.came, self.went = set(), set()
        return found

    def begin(self, place: Partition, position: int | None) -> None:
        self.begun[place] = position

    def leave(self, place: Partition) -> None:
        self.begun.pop(place, None)


class Member:
    """A daemon's state and its part in the group."""

    def __init__(self, registry: Registry, owner: str) -> None:
        self.source = Moving()
        self.state = State(Config.model_validate({"source": {"kind": "stdin"}}))
        for name in "ab":
            self.state.classes.add(name)
        self.metrics = Metrics("m")
        journal = JournalWriter(registry.journal, lambda: 0)
        source: Any = self.source
        self.sharing = Sharing(
            registry, source, self.state, journal, self.metrics, owner, lease_seconds=60.0
        )
        self.sharing.restore(None)
        self.led: list[Any] = []

    def turn(self, *, came: bool = False, went: bool = False) -> None:
        self.source.came = {PLACE} if came else set()
        self.source.went = {PLACE} if went else set()
        self.sharing.turn(None, gained=self.led.append, lost=self.led.append)

    def learn(self, start: int, stop: int) -> None:
        self.state.memory.add(examples(start, stop).with_embeddings(None), "")
        self.state.positions[PLACE] = stop

    def known(self) -> list[str]:
        return self.state.memory.lying_in(*PLACE).ids.tolist()


def ids(stop: int) -> list[str]:
    return [f"e{n}" for n in range(stop)]


def two(tmp_path: Path) -> tuple[Member, Member]:
    made = (open_registry(tmp_path / "registry", create=True) for _ in range(2))
    one, other = made
    return Member(one, "one"), Member(other, "two")


def test_a_partition_moves_with_what_was_learned(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    one.turn(came=True)
    assert one.source.begun == {PLACE: None}
    one.learn(0, 10)
    one.sharing.commit()
    one.learn(10, 15)
    one.turn(went=True)  # told in time: what was not committed yet is
    assert one.known() == []
    assert one.state.positions == {}
    other.turn(came=True)
    assert other.source.begun == {PLACE: 15}
    assert other.known() == ids(15)
    assert (other.state.memory.lying_in(*PLACE).labels == examples(0, 15).labels).all()
    kinds = [row.kind for row in other_rows(tmp_path)]
    assert kinds.count("partition-taken") == 2
    assert kinds.count("partition-left") == 1


def other_rows(tmp_path: Path) -> list[Any]:
    return list(open_registry(tmp_path / "registry").journal.rows())


def test_one_that_was_frozen_forgets_what_it_had_not_committed(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    one.turn(came=True)
    one.learn(0, 10)
    one.sharing.commit()
    one.learn(10, 15)
    other.turn(came=True)  # one is frozen meanwhile
    other.learn(10, 20)
    one.sharing.commit()
    assert one.source.begun == {}
    assert one.known() == []
    assert b'driftd_partition_moves_total{model="m",what="fenced"} 1.0' in one.metrics.exposition()
    other.sharing.commit()
    assert other.known() == ids(20)
    one.turn(went=True)  # the group says so at last
    one.turn(came=True)
    assert one.source.begun == {PLACE: 20}
    assert one.known() == ids(20)


def restarted(tmp_path: Path, before: Member) -> Member:
    """The same daemon in a new process, from a checkpoint that was written before its commit."""
    after = Member(open_registry(tmp_path / "registry"), "one again")
    after.state.memory.restore(before.state.memory.state())
    after.state.positions = dict(before.state.positions)
    after.sharing.restore(before.sharing.values())
    return after


def test_after_a_restart_its_own_checkpoint_counts_if_nobody_had_the_partition(
    tmp_path: Path,
) -> None:
    one, other = two(tmp_path)
    one.turn(came=True)
    one.learn(0, 10)
    one.sharing.commit()
    one.learn(10, 20)  # checkpointed, and killed before the commit
    again = restarted(tmp_path, one)
    assert again.state.positions == {}
    again.turn(came=True)
    assert again.source.begun == {PLACE: 20}
    assert again.known() == ids(20)
    # The same, but another had it in between and read those events itself.
    again.learn(20, 30)
    third = restarted(tmp_path, again)
    other.turn(came=True)
    other.learn(20, 25)
    other.sharing.commit()
    third.turn(came=True)
    assert third.source.begun == {PLACE: 25}
    assert third.known() == [*ids(10), *ids(25)[20:]] or third.known() == ids(25)


def test_what_is_forgotten_with_a_partition_is_handed_over_again(tmp_path: Path) -> None:
    for leader, member in zip((True, False), two(tmp_path), strict=True):
        handover = end("nowhere:1", "h", "one")
        handover.positions, handover.watermarks = {0: 7}, {("t", 9): 3}
        member.sharing.handover = handover
        member.turn(came=True)
        assert member.sharing.leads == leader
        member.learn(0, 10)
        member.turn(went=True)
        if leader:  # it keeps what it has learned, and is told of what comes after
            assert member.known() == ids(10)
            assert handover.watermarks == {("t", 9): 3, PLACE: 10}
            assert handover.positions == {0: 7}
        else:
            assert member.known() == []
            assert handover.watermarks == {("t", 9): 3}
            assert handover.positions == {}


def test_one_leads_and_what_people_order_is_not_fenced(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    one.turn()
    other.turn()
    assert (one.sharing.leads, other.sharing.leads) == (True, False)
    assert one.led == [1]
    one.sharing.close()
    assert not one.sharing.leads
    other.sharing.lease._looked = float("-inf")
    other.turn()
    assert other.led == [2]
    assert other.sharing.status()["term"] == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"kind": "stdin"}, "needs a Kafka topic"),
        ({"labels": {"topic": "l"}}, "cannot go with source.labels"),
    ],
)
def test_settings_that_do_not_fit(source: dict[str, Any], says: str) -> None:
    kafka = {"kind": "kafka", "topic": "t", "bootstrap_servers": "x:1"}
    settings = {
        "source": source if "kind" in source else {**kafka, **source},
        "fields": {"id": "id"},
        "sharing": {"enabled": True},
    }
    with pytest.raises((ConfigError, ValueError), match=says):
        Config.model_validate(settings)
