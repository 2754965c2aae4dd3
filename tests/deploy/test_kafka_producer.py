"""Producers through trouble: what they hold does not keep them, and nothing has them spin."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("kafka")

from deploy.kafka_config import KafkaConnection
from deploy.kafka_producer import end_producer, open_producer


def made(bootstrap):
    connection = KafkaConnection(bootstrap_servers=[bootstrap])
    return open_producer(connection, {"enable_idempotence": False, "metadata_max_age_ms": 500})


def test_one_is_ended_whatever_it_still_holds(fragile):
    fragile.proxy.start()
    producer = made(fragile.bootstrap)
    producer.send("t", b"1").get(timeout=10)
    fragile.proxy.refuse()
    waiting = producer.send("t", b"2")
    end_producer(producer, 0.2)
    producer._sender.join(10)
    assert not producer._sender.is_alive()
    assert waiting.failed()


def test_one_whose_topic_is_gone_does_not_spin(broker, eventually):
    from kafka import KafkaAdminClient, TopicPartition

    topic = broker.topic()
    producer = made(broker.bootstrap)
    producer.send(topic, b"1").get(timeout=10)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    admin.delete_topics([topic])
    admin.close()
    place = TopicPartition(topic, 0)
    eventually(lambda: producer._metadata.leader_for_partition(place) in (None, -1))
    turns, turn = 0, producer._sender.run_once

    def counted():
        nonlocal turns
        turns += 1
        turn()

    producer._sender.run_once = counted
    time.sleep(1.0)
    assert turns < 200  # thousands, where it spins
    end_producer(producer)
