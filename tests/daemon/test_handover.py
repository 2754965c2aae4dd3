"""What the daemons that observe hand over: each event once, in order, to whoever leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("kafka")

from kafka import KafkaConsumer, TopicPartition

from daemon.events import EventBatch
from daemon.handover import Handover, HandoverError
from daemon.plain import objects
from daemon.stream_config import KafkaSourceConfig, SharingConfig

Eventually = Callable[..., None]
TEXT = np.dtype(object)
TABLE = np.dtype([("a", "<f8"), ("b", object)])


def end(bootstrap: str, topic: str, owner: str, dtype: Any = TEXT, **more: Any) -> Handover:
    source = KafkaSourceConfig(kind="kafka", topic="events", bootstrap_servers=(bootstrap,))
    config = SharingConfig(enabled=True, topic=topic, **{"handover_share": 1.0, **more})
    return Handover(source, config, topic, owner, dtype)


def batch(partition: int, start: int, stop: int, **changes: Any) -> EventBatch:
    n = stop - start
    names = [f"{partition}-{i}" for i in range(start, stop)]
    columns: dict[str, Any] = {
        "ids": objects(names),
        "times": np.arange(start, stop, dtype=np.float64),
        "inputs": objects([f"text {name}" for name in names]),
        "labels": objects(["ab"[i % 2] for i in range(start, stop)]),
        "topics": objects(["events"] * n),
        "partitions": np.full(n, partition, dtype=np.int32),
        "offsets": np.arange(start, stop, dtype=np.int64),
    }
    return EventBatch(**{**columns, **changes})


def taken(leader: Handover, count: int, eventually: Eventually, own: Any = ()) -> list[str]:
    """Ids, in the order in which they came; nothing more may come."""
    ids: list[str] = []

    def all_there() -> bool:
        ids.extend(leader.take(100, own).ids.tolist())
        return len(ids) >= count

    eventually(all_there)
    for _ in range(5):
        ids.extend(leader.take(100, own).ids.tolist())
    assert len(ids) == count
    return ids


def test_each_event_comes_once_and_in_order_whoever_sends_it(
    broker: Any, eventually: Eventually
) -> None:
    topic = broker.topic(partitions=2)
    one, two, leader = (end(broker.bootstrap, topic, name) for name in ("one", "two", "leader"))
    assert one.send(batch(0, 0, 30)) == 30
    two.send(batch(1, 0, 30))
    one.flush()
    two.flush()
    ids = taken(leader, 60, eventually)
    assert [i for i in ids if i.startswith("0-")] == batch(0, 0, 30).ids.tolist()
    # The first was frozen: its successor begins at the last commit, and then it wakes.
    two.send(batch(0, 20, 40))
    two.flush()
    one.send(batch(0, 30, 35))
    one.flush()
    assert taken(leader, 10, eventually) == batch(0, 30, 40).ids.tolist()
    # After a restart the leader goes on where its checkpoint was.
    again = end(broker.bootstrap, topic, "leader")
    again.restore(leader.values())
    two.send(batch(0, 40, 45))
    two.flush()
    assert taken(again, 5, eventually) == batch(0, 40, 45).ids.tolist()
    # One that is new reads all that the topic has, but for what it has itself.
    new = end(broker.bootstrap, topic, "new")
    assert len(taken(new, 45, eventually, own=[("events", 1)])) == 45
    for each in (one, two, leader, again, new):
        each.close()


def test_what_comes_is_what_was_sent(broker: Any, eventually: Eventually) -> None:
    topic = broker.topic()
    follower, leader = (end(broker.bootstrap, topic, name, TABLE) for name in ("f", "l"))
    rows = np.array([(0.1, "x"), (float("nan"), None)], dtype=TABLE)
    who = objects(["me", None])
    follower.send(batch(3, 7, 9, inputs=rows, labellers=who))
    follower.send(batch(3, 9, 10, inputs=rows[:1], labels=objects([None])))  # not labelled
    follower.flush()
    parts: list[EventBatch] = []
    eventually(lambda: (parts.append(leader.take(10, ())), sum(map(len, parts)) >= 2)[1])
    found = EventBatch.join([part for part in parts if len(part)])
    assert found.inputs["b"].tolist() == ["x", None]
    np.testing.assert_array_equal(found.inputs["a"], rows["a"])
    assert found.labels.tolist() == ["b", "a"]
    assert found.labellers is not None
    assert found.labellers.tolist() == ["me", None]
    assert (found.partitions.tolist(), found.offsets.tolist()) == ([3, 3], [7, 8])
    assert found.times.tolist() == [7.0, 8.0]
    follower.close()
    leader.close()


def test_a_sample_by_id_and_bounded_keys(broker: Any) -> None:
    topic = broker.topic()
    follower = end(broker.bootstrap, topic, "f", handover_share=0.25, handover_slots=10)
    first = follower.send(batch(0, 0, 1000))
    assert 180 < first < 320
    assert follower.send(batch(0, 0, 1000)) == first  # the same ones again
    follower.flush()
    reader = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    reader.assign([TopicPartition(topic, 0)])
    reader.seek_to_beginning()
    keys = set()
    while len(keys) < 10:
        for records in reader.poll(500).values():
            keys.update(record.key for record in records)
    assert keys == {f"event/events/0/{slot}".encode() for slot in range(10)}
    reader.close()
    follower.close()


def test_members_tell_of_themselves(broker: Any, eventually: Eventually) -> None:
    topic = broker.topic()
    one, leader = end(broker.bootstrap, topic, "one"), end(broker.bootstrap, topic, "leader")
    one.tell({"events": 7})
    leader.tell({"events": 3})
    one.flush()
    leader.flush()
    eventually(lambda: (leader.take(10, ()), len(leader.members()) == 2)[1])
    assert sorted(said["events"] for said in leader.members()) == [3, 7]
    one.tell(None)
    one.flush()
    eventually(lambda: (leader.take(10, ()), len(leader.members()) == 1)[1])
    one.close()
    leader.close()


def test_what_the_broker_does_not_take_is_kept(fragile: Any, eventually: Eventually) -> None:
    follower = end(fragile.bootstrap, "handover", "f")
    follower.send(batch(0, 0, 10))
    with pytest.raises(HandoverError, match="nothing is committed"):
        follower.flush()
    fragile.proxy.start()
    with pytest.raises(HandoverError):
        follower.flush()  # not asked again so soon

    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=fragile.bootstrap)
    admin.create_topics(
        {"handover": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True
    )
    admin.close()

    def flushed() -> bool:
        try:
            follower.flush()
        except HandoverError:
            return False
        return True

    eventually(flushed)
    leader = end(fragile.bootstrap, "handover", "l")
    assert taken(leader, 10, eventually) == batch(0, 0, 10).ids.tolist()
    follower.close()
    leader.close()
