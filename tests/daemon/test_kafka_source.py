"""The Kafka source against a real broker: positions, outages, rebalances, bad records."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kafka")

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment
from pydantic import SecretStr

from daemon.decode import Decoder, Reason
from daemon.decode_labels import LabelDecoder
from daemon.events import Rejected
from daemon.sources import SourceError
from daemon.sources.kafka import KafkaSource, _Listener, probe
from daemon.stream_config import EventsConfig, FieldsConfig, KafkaSourceConfig

Event = Callable[[int], bytes]
Eventually = Callable[..., None]


def make(
    bootstrap: str, topic: str, options: dict[str, Any], group: str | None = None, **more: Any
) -> KafkaSource:
    config = KafkaSourceConfig.model_validate(
        {
            "kind": "kafka",
            "topic": topic,
            "bootstrap_servers": bootstrap,
            "options": options,
            **more,
        }
    )
    decoder = Decoder(FieldsConfig(), EventsConfig())
    return KafkaSource(config, decoder, group=group or f"g-{topic}")


def test_what_was_lost_with_the_session_is_no_longer_claimed() -> None:
    source = make("127.0.0.1:1", "t", {})
    owned = {TopicPartition("t", number) for number in (0, 2)}
    source._assignor.on_assignment(ConsumerProtocolAssignment(1, [("t", [0, 2])], b""), 1)
    (claim,) = source._assignor.metadata({"t"}).owned_partitions
    assert claim.partitions == [0, 2]
    _Listener(source).on_partitions_lost(owned)
    # Were they claimed, whoever gets them would wait for us to give them back.
    assert source._assignor.metadata({"t"}).owned_partitions == []
    assert source.moves() == (set(), {("t", 0), ("t", 2)})


class Reading:
    """What came out of a source, in order."""

    def __init__(self, source: KafkaSource) -> None:
        self.source = source
        self.texts: list[str] = []
        self.places: list[tuple[int, int]] = []
        self.rejected: list[Rejected] = []
        self.longest = 0.0

    def poll(self, max_events: int = 100, timeout: float = 0.2) -> int:
        began = time.monotonic()
        polled = self.source.poll(max_events, timeout)
        self.longest = max(self.longest, time.monotonic() - began)
        assert len(polled.batch) + len(polled.rejected) <= max_events
        self.texts += polled.batch.inputs.tolist()
        self.places += zip(
            polled.batch.partitions.tolist(), polled.batch.offsets.tolist(), strict=True
        )
        self.rejected += polled.rejected
        return len(polled.batch) + len(polled.rejected)

    def until(self, count: int, seconds: float = 45.0) -> None:
        deadline = time.monotonic() + seconds
        while len(self.texts) + len(self.rejected) < count:
            assert time.monotonic() < deadline, f"{len(self.texts)} of {count} events"
            self.poll()


def texts(*numbers: int) -> list[str]:
    return [f"event {n}" for n in numbers]


def test_all_partitions_from_the_beginning_with_lag_and_positions(
    broker: Any, fast_group: dict[str, int], event: Event, eventually: Eventually
) -> None:
    topic = broker.topic(partitions=3)
    for partition in range(3):
        broker.produce(
            topic,
            [event(partition * 100 + i) for i in range(40)],
            partition=partition,
            timestamp_ms=1_700_000_000_000,
        )
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    reading = Reading(source)
    assert source.lag() is None
    reading.until(30)
    lag = source.lag()
    assert lag is None or lag > 0 or len(reading.texts) == 120
    reading.until(120)
    assert sorted(reading.texts) == sorted(texts(*range(40), *range(100, 140), *range(200, 240)))
    for partition in range(3):
        offsets = [offset for place, offset in reading.places if place == partition]
        assert offsets == list(range(40))
    assert source.positions() == {(topic, p): 40 for p in range(3)}
    eventually(lambda: not reading.poll() and source.lag() == 0)
    assert source.lags() == {(topic, p): 0 for p in range(3)}
    assert source.connected
    assert not source.ended
    broker.produce(topic, [event(i) for i in range(5)])
    reading.until(125)
    source.close()
    source.close()


def test_the_time_of_an_event_is_the_record_s(
    broker: Any, fast_group: dict[str, int], event: Event
) -> None:
    topic = broker.topic()
    broker.produce(topic, [event(0)], timestamp_ms=1_700_000_000_123)
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    while not (polled := source.poll(10, 0.5)):
        pass
    assert polled.batch.times.tolist() == [1_700_000_000.123]
    assert polled.batch.ids.tolist() == [f"{topic}:0:0"]
    source.close()


def test_a_restart_goes_on_at_the_checkpoint_not_at_the_group_s_offsets(
    broker: Any, fast_group: dict[str, int], event: Event
) -> None:
    topic = broker.topic()
    broker.produce(topic, [event(i) for i in range(20)])
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    reading = Reading(source)
    reading.until(20)
    source.checkpointed({(topic, 0): 20})
    reading.poll()
    source.close()
    # The checkpoint that survived is older than what was committed.
    source = make(broker.bootstrap, topic, fast_group)
    source.start({(topic, 0): 12})
    reading = Reading(source)
    reading.until(8)
    assert reading.texts == texts(*range(12, 20))
    assert source.positions() == {(topic, 0): 20}
    source.close()


def test_without_a_checkpoint_the_group_s_offsets_count(
    broker: Any, fast_group: dict[str, int], event: Event, eventually: Eventually
) -> None:
    topic = broker.topic()
    broker.produce(topic, [event(i) for i in range(10)])
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    reading = Reading(source)
    reading.until(10)
    source.checkpointed({(topic, 0): 6})
    other = KafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=f"g-{topic}")
    eventually(lambda: reading.poll() == 0 and other.committed(TopicPartition(topic, 0)) == 6)
    other.close()
    source.close()
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    reading = Reading(source)
    reading.until(4)
    assert reading.texts == texts(6, 7, 8, 9)
    source.close()


def test_positions_of_another_topic_are_not_used(
    broker: Any, fast_group: dict[str, int], event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    topic = broker.topic()
    broker.produce(topic, [event(0)])
    source = make(broker.bootstrap, topic, fast_group)
    with caplog.at_level(logging.WARNING, "driftd.source"):
        source.start({("older-topic", 0): 500})
    assert "positions in older-topic too" in caplog.text
    reading = Reading(source)
    reading.until(1)
    assert source.positions() == {(topic, 0): 1}
    source.close()


def test_every_bad_record_is_refused_and_nothing_else_is_lost(
    broker: Any, fast_group: dict[str, int], event: Event
) -> None:
    topic = broker.topic()
    huge = b'{"text": "' + b"x" * (10 * 1024 * 1024) + b'"}'
    bad: list[tuple[bytes | None, Reason]] = [
        (b"{broken", Reason.INVALID_JSON),
        (None, Reason.NO_VALUE),
        (b"[1]", Reason.NOT_AN_OBJECT),
        (json.dumps({"label": "a"}).encode(), Reason.MISSING_FIELD),
        (json.dumps({"text": 1}).encode(), Reason.WRONG_TYPE),
        (json.dumps({"text": ""}).encode(), Reason.EMPTY_INPUT),
        (huge, Reason.TOO_LARGE),
    ]
    for n, (value, _) in enumerate(bad):
        broker.produce(topic, [event(n), value])
    broker.produce(topic, [event(len(bad))])
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    reading = Reading(source)
    reading.until(2 * len(bad) + 1)
    assert reading.texts == texts(*range(len(bad) + 1))
    assert [(r.reason, r.offset) for r in reading.rejected] == [
        (reason, 2 * n + 1) for n, (_, reason) in enumerate(bad)
    ]
    assert source.positions() == {(topic, 0): 2 * len(bad) + 1}
    source.close()


def test_a_loop_that_is_held_up_reads_nothing_and_stays_in_the_group(
    broker: Any, fast_group: dict[str, int], event: Event
) -> None:
    topic = broker.topic(partitions=2)
    for partition in (0, 1):
        broker.produce(topic, [event(100 * partition + n) for n in range(10)], partition=partition)
    source = make(broker.bootstrap, topic, fast_group)
    source.start({})
    source.hold()  # before there is a client
    reading = Reading(source)
    reading.until(20)
    for partition in (0, 1):
        broker.produce(topic, [event(50 + partition)], partition=partition)
    deadline = time.monotonic() + 3.0  # longer than the session
    while time.monotonic() < deadline:
        source.hold()
        time.sleep(0.05)
    assert source.positions() == {(topic, 0): 10, (topic, 1): 10}
    assert len(source.lags()) == 2
    reading.until(22)
    assert sorted(reading.texts[20:]) == texts(50, 51)
    source.close()


# ------------------------------------------------------------------ encryption


def test_through_tls_with_a_client_certificate(
    fragile: Any, fast_group: dict[str, int], event: Event, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="pip install 'driftd[signing]'")
    from tests.certificates import Authority

    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    fragile.proxy.tls(authority.ca, *authority.issue("server"))
    fragile.proxy.start()
    certificate, key = authority.issue("client", b"a password")
    password = tmp_path / "password"
    password.write_bytes(b"a password\n")
    secure = {
        "security_protocol": "SSL",
        "tls_ca_file": authority.ca,
        "tls_cert_file": certificate,
        "tls_key_file": key,
        "tls_key_password_file": password,
        "tls_check_hostname": False,
    }
    config = KafkaSourceConfig.model_validate(
        {"kind": "kafka", "topic": "events", "bootstrap_servers": fragile.bootstrap, **secure}
    )
    admin = KafkaAdminClient(**config.client_options())
    admin.create_topics({"events": {"num_partitions": 1, "replication_factor": 1}})
    admin.close()
    producer = KafkaProducer(**config.client_options())
    for n in range(10):
        producer.send("events", event(n), partition=0)
    producer.flush(10)
    producer.close(1)
    source = make(fragile.bootstrap, "events", fast_group, **secure)
    source.start({})
    reading = Reading(source)
    reading.until(10)
    assert reading.texts == texts(*range(10))
    source.close()
    # Without a certificate of its own the proxy lets nobody in; another authority is not believed.
    for wrong in (
        {"tls_cert_file": None, "tls_key_file": None, "tls_key_password_file": None},
        {"tls_ca_file": other.ca},
    ):
        source = make(fragile.bootstrap, "events", fast_group, **{**secure, **wrong})
        source.start({})
        for _ in range(10):
            assert not source.poll(10, 0.1)
        assert not source.connected
        source.close()


# ------------------------------------------------------------------ labels on their own topic


def test_one_consumer_reads_events_and_labels(
    broker: Any, fast_group: dict[str, int], event: Event, eventually: Eventually
) -> None:
    topic, labels = broker.topic(partitions=2), broker.topic()
    for partition in (0, 1):
        broker.produce(topic, [event(n) for n in range(10)], partition=partition)
    named = [json.dumps({"id": f"e{n}", "label": "ab"[n % 2]}).encode() for n in range(5)]
    broker.produce(labels, [*named, b"{}", None])
    config = KafkaSourceConfig.model_validate(
        {
            "kind": "kafka",
            "topic": topic,
            "bootstrap_servers": broker.bootstrap,
            "options": fast_group,
            "labels": {"topic": labels},
        }
    )
    fields, limits = FieldsConfig(id=None), EventsConfig()
    decoder = Decoder(fields, limits)
    assert config.labels is not None
    reader = LabelDecoder(fields, limits, config.labels, decoder.known)
    source = KafkaSource(config, decoder, group=f"g-{topic}", labels=reader)
    source.start({(labels, 0): 1})
    assert not source.caught_up
    events, ids, refused = 0, [], []

    def read() -> bool:
        nonlocal events
        polled = source.poll(100, 0.2)
        events += len(polled.batch)
        ids.extend(polled.labels.ids.tolist())
        refused.extend((r.topic, r.offset, r.reason) for r in polled.rejected)
        return events == 20 and len(ids) == 4 and len(refused) == 2

    eventually(read, 60)
    assert ids == ["e1", "e2", "e3", "e4"]
    assert refused == [(labels, 5, Reason.MISSING_FIELD), (labels, 6, Reason.NO_VALUE)]
    assert source.positions() == {(topic, 0): 10, (topic, 1): 10, (labels, 0): 7}
    eventually(lambda: (source.poll(100, 0.2), source.caught_up)[1])
    broker.produce(labels, named)
    assert source.lag() == 0  # labels are no events
    source.close()
    (missing,) = probe(config.model_copy(update={"topic": "no-such-topic"}))
    assert missing.endswith("has no topic 'no-such-topic'")


# ------------------------------------------------------------------ outages


def test_a_broker_away_at_start_is_waited_for(
    fragile: Any, fast_group: dict[str, int], event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    source = make(fragile.bootstrap, "events", fast_group)
    with caplog.at_level(logging.INFO, "driftd.source"):
        source.start({})
        reading = Reading(source)
        for _ in range(10):
            assert reading.poll(timeout=0.1) == 0
        assert not source.connected
        assert source.lag() is None
        assert source.positions() == {}
        source.checkpointed({})
        # A poll keeps its time though nothing answers: the loop goes on turning.
        assert reading.longest < 10.0  # the client itself would wait for 30
        fragile.proxy.start()
        producer = KafkaProducer(bootstrap_servers=fragile.bootstrap)
        for n in range(10):
            producer.send("events", event(n), partition=0)
        producer.flush(10)
        producer.close(1)
        reading.until(10)
    assert source.connected
    away = [r for r in caplog.records if "cannot read from Kafka" in r.getMessage()]
    assert len(away) == 1
    assert "ECONNREFUSED" in away[0].getMessage()
    assert sum("connected to Kafka" in r.getMessage() for r in caplog.records) == 1
    source.close()


def test_a_source_can_be_closed_while_it_still_connects(
    fragile: Any, fast_group: dict[str, int]
) -> None:
    source = make(fragile.bootstrap, "events", fast_group)
    source.start({})
    source.poll(10, 0.05)
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 20.0


def test_a_broker_that_goes_and_comes_back_costs_no_event_and_doubles_none(
    fragile: Any, fast_group: dict[str, int], event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    fragile.proxy.start()
    admin = KafkaAdminClient(bootstrap_servers=fragile.bootstrap)
    admin.create_topics({"events": {"num_partitions": 2, "replication_factor": 1}})
    admin.close()
    producer = KafkaProducer(bootstrap_servers=fragile.bootstrap, reconnect_backoff_max_ms=500)

    def produce(start: int, stop: int) -> None:
        for n in range(start, stop):
            producer.send("events", event(n), partition=n % 2)

    source = make(fragile.bootstrap, "events", fast_group)
    source.start({})
    reading = Reading(source)
    with caplog.at_level(logging.INFO, "driftd.source"):
        for round_ in range(3):
            produce(round_ * 40, round_ * 40 + 20)
            reading.until(round_ * 40 + 10)
            fragile.proxy.refuse()
            produce(round_ * 40 + 20, round_ * 40 + 40)
            deadline = time.monotonic() + 20
            while source.connected and time.monotonic() < deadline:
                reading.poll(timeout=0.1)
            assert not source.connected
            source.checkpointed(source.positions())  # neither blocks nor raises
            fragile.proxy.start()
            reading.until(round_ * 40 + 40)
            assert source.connected
    producer.close(1)
    assert sorted(reading.texts) == sorted(texts(*range(120)))
    for partition in (0, 1):
        offsets = [offset for place, offset in reading.places if place == partition]
        assert offsets == list(range(60))
    assert sum("cannot read from Kafka" in r.getMessage() for r in caplog.records) == 3
    source.close()


def test_resets_in_the_middle_of_reading_are_survived(
    fragile: Any, fast_group: dict[str, int], event: Event
) -> None:
    fragile.proxy.start()
    producer = KafkaProducer(bootstrap_servers=fragile.bootstrap)
    source = make(fragile.bootstrap, "events", fast_group)
    source.start({})
    reading = Reading(source)
    for start in range(0, 200, 20):
        for n in range(start, start + 20):
            producer.send("events", event(n), partition=0)
        fragile.proxy.cut()  # producer, coordinator and fetch: all at once
        reading.until(start + 10)
        fragile.proxy.cut()
        reading.until(start + 20)
    producer.close(1)
    assert reading.texts == texts(*range(200))
    source.close()


def test_a_broker_that_stalls_does_not_hold_the_loop_up(
    fragile: Any, fast_group: dict[str, int], event: Event
) -> None:
    fragile.proxy.start()
    producer = KafkaProducer(bootstrap_servers=fragile.bootstrap)
    for n in range(20):
        producer.send("events", event(n), partition=0)
    producer.flush(10)
    producer.close(1)
    source = make(fragile.bootstrap, "events", fast_group)
    source.start({})
    reading = Reading(source)
    reading.until(20)
    fragile.proxy.mode = "stall"
    reading.longest = 0.0
    for _ in range(10):
        reading.poll(timeout=0.1)
        source.checkpointed({("events", 0): 20})
        source.lag()
    assert reading.longest < 10.0  # the client itself would wait for 30
    fragile.proxy.mode = "pass"
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 20.0


# ------------------------------------------------------------------ rebalances


def test_a_second_member_takes_over_what_it_is_given_and_gives_it_back(
    broker: Any, fast_group: dict[str, int], event: Event, eventually: Eventually
) -> None:
    topic = broker.topic(partitions=2)
    group = f"g-{topic}"
    for partition in (0, 1):
        broker.produce(topic, [event(partition * 100 + i) for i in range(10)], partition=partition)
    first = make(broker.bootstrap, topic, fast_group, group)
    first.start({})
    one = Reading(first)
    one.until(20)
    first.checkpointed(first.positions())
    second = make(broker.bootstrap, topic, fast_group, group)
    second.start({})
    two = Reading(second)
    stop = threading.Event()

    def other_process() -> None:
        while not stop.is_set():
            two.poll(timeout=0.1)

    thread = threading.Thread(target=other_process)
    thread.start()
    try:
        eventually(lambda: one.poll(timeout=0.1) == 0 and len(second.lags()) == 1, 60)
        for partition in (0, 1):
            broker.produce(topic, [event(500 + partition)], partition=partition)
        eventually(lambda: (one.poll(timeout=0.1), len(one.texts) + len(two.texts) >= 22)[1], 60)
    finally:
        stop.set()
        thread.join()
    assert len(two.texts) == 1
    # Nothing that the first has learned from is learned by the second.
    assert sorted(one.texts[20:] + two.texts) == texts(500, 501)
    second.close()
    eventually(lambda: one.poll(timeout=0.1) == 0 and len(first.lags()) == 2, 60)
    for partition in (0, 1):
        broker.produce(topic, [event(600 + partition)], partition=partition)
    # What came back is read from where *this* daemon's own knowledge ends.
    missed = set(texts(500, 501)) - set(one.texts)
    eventually(
        lambda: (one.poll(timeout=0.1), {*texts(600, 601), *missed} <= set(one.texts))[1], 60
    )
    assert len(one.texts) == len(set(one.texts))
    first.close()


# ------------------------------------------------------------------ gaps, hopeless cases


class FakeConsumer:
    """Raises what a broker would answer after retention or a topic made anew."""

    def __init__(self, error: Exception, oldest: int) -> None:
        self.error: Exception | None = error
        self.oldest = oldest
        self.sought: list[tuple[Any, int]] = []

    def poll(self, **_: Any) -> dict[Any, Any]:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return {}

    def beginning_offsets(self, partitions: list[Any], **_: Any) -> dict[Any, int]:
        return dict.fromkeys(partitions, self.oldest)

    def seek(self, partition: Any, offset: int) -> None:
        self.sought.append((partition, offset))

    def metrics(self) -> dict[str, Any]:
        return {}

    def assignment(self) -> set[Any]:
        return set()

    def close(self, **_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("at", "oldest", "says"),
    [
        (5, 100, "95 events of events/0 from offset 5 on were deleted before they were read"),
        (900, 0, "events/0 has no offset 900: the topic is not the one that the checkpoint knows"),
    ],
)
@pytest.mark.parametrize("on_gap", ["continue", "stop"])
def test_a_gap_is_said_aloud(
    at: int, oldest: int, says: str, on_gap: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = make("127.0.0.1:1", "events", {}, on_gap=on_gap)
    partition = TopicPartition("events", 0)
    fake = FakeConsumer(kafka_errors.OffsetOutOfRangeError({partition: at}), oldest)
    source._consumer = fake
    source._positions = {("events", 0): at}
    if on_gap == "stop":
        with pytest.raises(SourceError, match=r"Set source\.on_gap: continue"):
            source.poll(10, 0)
        return
    with caplog.at_level(logging.ERROR, "driftd.source"):
        source.poll(10, 0)
    assert says in caplog.text
    assert fake.sought == [(partition, oldest)]
    assert source.positions() == {("events", 0): oldest}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (kafka_errors.UnsupportedCodecError("zstd"), "pip install 'kafka-python"),
        (kafka_errors.FencedInstanceIdError(), "same source.instance_id"),
        (kafka_errors.InvalidGroupIdError(), "mend source.group"),
    ],
)
def test_what_no_waiting_cures_ends_with_advice(error: Exception, says: str) -> None:
    source = make("127.0.0.1:1", "events", {})
    source._consumer = FakeConsumer(error, 0)
    with pytest.raises(SourceError, match=says):
        source.poll(10, 0)


@pytest.mark.parametrize(
    "error",
    [
        kafka_errors.UnknownBrokerIdError(3),
        kafka_errors.KafkaConnectionError("reset"),
        kafka_errors.TopicAuthorizationFailedError({"events"}),
        kafka_errors.CorruptRecordError("crc"),
    ],
)
def test_what_may_pass_is_waited_out(error: Exception) -> None:
    source = make("127.0.0.1:1", "events", {})
    source._consumer = FakeConsumer(error, 0)
    assert not source.poll(10, 0)
    assert not source.connected
    assert not source.poll(10, 0)


def test_settings_that_the_client_refuses_are_a_clear_error(
    broker: Any, eventually: Eventually
) -> None:
    source = make(broker.bootstrap, "events", {"sesion_timeout_ms": 5})
    source.start({})

    def raised() -> bool:
        try:
            source.poll(10, 0.1)
        except SourceError as error:
            return "sesion_timeout_ms" in str(error)
        return False

    eventually(raised)
    source.close()


def test_files_that_are_not_there_are_a_clear_error() -> None:
    source = make(
        "127.0.0.1:1", "events", {}, security_protocol="SSL", tls_ca_file="/nowhere/ca.pem"
    )
    with pytest.raises(SourceError, match=r"cannot read /nowhere/ca.pem: No such file"):
        source.start({})
    source = make(
        "127.0.0.1:1",
        "events",
        {},
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="me",
        sasl_password_file="/nowhere/password",
    )
    with pytest.raises(SourceError, match="cannot read /nowhere/password"):
        source.start({})


def test_login_and_encryption_reach_the_client() -> None:
    source = make(
        "127.0.0.1:1",
        "events",
        {"session_timeout_ms": 9000},
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="me",
        sasl_password=SecretStr("hunter2"),
        tls_check_hostname=False,
        instance_id="driftd-0",
    )
    options = source._options()
    assert options["sasl_plain_password"] == "hunter2"
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert options["ssl_check_hostname"] is False
    assert options["session_timeout_ms"] == 9000
    assert options["group_instance_id"] == "driftd-0"
    assert options["enable_auto_commit"] is False
    assert set(options) <= set(KafkaConsumer.DEFAULT_CONFIG)


def test_starting_at_the_end_is_remembered_before_the_first_event(
    broker: Any, fast_group: dict[str, int], event: Event, eventually: Eventually
) -> None:
    """Else a restart before the first event would begin at a later end and skip some."""
    topic = broker.topic()
    source = make(broker.bootstrap, topic, fast_group, start="latest")
    source.start({})
    reading = Reading(source)
    eventually(lambda: (reading.poll(), source.positions() == {(topic, 0): 0})[1])
    source.close()
    broker.produce(topic, [event(0)])
    source = make(broker.bootstrap, topic, fast_group, start="latest")
    source.start({(topic, 0): 0})
    reading = Reading(source)
    reading.until(1)
    source.close()


# ------------------------------------------------------------------ probing


def test_probing_says_what_is_not_there(broker: Any, event: Event) -> None:
    topic = broker.topic()

    def config(bootstrap: str, name: str) -> KafkaSourceConfig:
        return KafkaSourceConfig(kind="kafka", topic=name, bootstrap_servers=(bootstrap,))

    assert probe(config(broker.bootstrap, topic)) == []
    (missing,) = probe(config(broker.bootstrap, "no-such-topic"))
    assert missing.endswith("has no topic 'no-such-topic'")
    (away,) = probe(config("127.0.0.1:1", topic))
    assert away.startswith("Kafka at 127.0.0.1:1 does not answer")
