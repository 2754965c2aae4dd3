"""The doctor's look at Kafka: brokers, login, topics, and whether the next event is still there.

Reads as the daemon will, from the position in the checkpoint, but in no group: partitions of a
running daemon stay where they are.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError

from daemon.config import Config
from daemon.doctor import SKEW_SECONDS, Finding, Positions, fail, ok, warn
from daemon.stream_config import KafkaSourceConfig, TopicLettersConfig
from deploy.kafka_config import KafkaConnection

CONNECT_SECONDS = 5.0
ANSWER_MS = 8_000
READ_SECONDS = 10.0
NEAR_THE_END = 0.1  # of what the topic holds: so close to its beginning is close to being removed


def kafka(config: Config, source: KafkaSourceConfig, positions: Positions) -> Iterator[Finding]:
    """Findings about the brokers and the topics of the configuration."""
    reached = False
    for finding in brokers(source):
        reached = reached or finding.outcome == "ok"
        yield finding
    if not reached:
        return
    letters = config.dead_letters
    wanted = [("source.topic", source.topic)]
    if isinstance(letters, TopicLettersConfig):
        if letters.connection is None:
            wanted.append(("dead_letters.topic", letters.topic))
        else:
            yield from topics(letters.connection, [("dead_letters.topic", letters.topic)])
    partitions: list[int] = []
    for finding in topics(source, wanted, partitions):
        yield finding
    if partitions:
        yield from reading(config, source, partitions, positions)


def brokers(connection: KafkaConnection) -> Iterator[Finding]:
    """Whether each of the bootstrap servers lets itself be connected to, with TLS if configured."""
    reached: list[str] = []
    for server in connection.bootstrap_servers:
        host, _, port = server.rpartition(":")
        try:
            with socket.create_connection(
                (host.strip("[]"), int(port)), timeout=CONNECT_SECONDS
            ) as plain:
                trouble = _handshake(connection, plain, host)
            if trouble:
                do = "see tls_ca_file, tls_check_hostname and security_protocol"
                yield fail("broker", f"{server} does not speak TLS with us: {trouble}", do)
            else:
                reached.append(server)
        except socket.gaierror:
            yield _unreached(connection, f"{server}: no such host", "mend the name, or the DNS")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            do = "is it up, and may this machine reach it?"
            yield _unreached(connection, f"{server} cannot be connected to: {why}", do)
    if reached:
        yield ok("broker", f"{', '.join(reached)} can be connected to")
    elif len(connection.bootstrap_servers) > 1:
        yield fail("broker", "none of them can be connected to", "mend source.bootstrap_servers")


def _unreached(connection: KafkaConnection, says: str, do: str) -> Finding:
    several = len(connection.bootstrap_servers) > 1
    return (warn if several else fail)("broker", says, do)


def _handshake(connection: KafkaConnection, plain: socket.socket, host: str) -> str | None:
    """What is wrong with TLS on this connection, where the configuration asks for it."""
    if not connection.security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=connection.tls_ca_file)
        context.check_hostname = connection.tls_check_hostname
        if connection.tls_cert_file is not None:
            context.load_cert_chain(connection.tls_cert_file, connection.tls_key_file)
        context.wrap_socket(plain, server_hostname=host.strip("[]")).close()
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted ({error.verify_message})"
    except TimeoutError:
        return "no answer to the handshake"
    except ssl.SSLError as error:
        return str(error.reason or error).lower().replace("_", " ")
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror or error}"
    return None


class _Overheard(logging.Handler):
    """Keeps what the client says to its log: it is the only one to know why it cannot connect."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.lines.append(record.getMessage())

    @property
    def refused(self) -> str | None:
        """Why the login was refused, if it was."""
        name = kafka_errors.SaslAuthenticationFailedError.__name__
        found = next((line for line in reversed(self.lines) if name in line), None)
        return None if found is None else found.rpartition(f"{name}: ")[2].partition(" (backoff")[0]

    @property
    def why(self) -> str | None:
        """The last failure to connect."""
        mark = " failed: "
        found = next((line for line in reversed(self.lines) if mark in line), None)
        return None if found is None else found.partition(mark)[2].partition(" (backoff")[0]


@contextmanager
def _overhearing() -> Iterator[_Overheard]:
    client, heard = logging.getLogger("kafka"), _Overheard()
    before = client.propagate
    client.addHandler(heard)
    client.propagate = False
    try:
        yield heard
    finally:
        client.removeHandler(heard)
        client.propagate = before


def topics(
    connection: KafkaConnection, wanted: list[tuple[str, str]], found: list[int] | None = None
) -> Iterator[Finding]:
    """Login, and the topics; ``found`` takes the partitions of the first."""
    with _overhearing() as heard:
        yield from _topics(connection, wanted, [] if found is None else found, heard)


def _topics(
    connection: KafkaConnection,
    wanted: list[tuple[str, str]],
    found: list[int],
    heard: _Overheard,
) -> Iterator[Finding]:
    try:
        given = connection.options_of(KafkaAdminClient)
        times = {"bootstrap_timeout_ms": ANSWER_MS, "request_timeout_ms": ANSWER_MS}
        client = KafkaAdminClient(**times | given)
    except (KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
        if heard.refused is not None:
            says = f"the brokers refuse the login: {heard.refused}"
            do = "see sasl_username and the password, and the user on the brokers"
        else:
            says = f"the cluster does not answer: {heard.why or error}"
            do = "see security_protocol and sasl_mechanism: does the port speak this protocol?"
        yield fail("broker", says, do)
        return
    try:
        cluster = client.describe_cluster()
        login = f", logged in as {connection.sasl_username}" if connection.sasl_mechanism else ""
        yield ok("broker", f"the cluster of {len(cluster['brokers'])} answers{login}")
        described = {d["name"]: d for d in client.describe_topics([t for _, t in wanted])}
        for number, (key, name) in enumerate(wanted):
            finding, partitions = _topic(key, name, described.get(name))
            yield finding
            if not number:
                found += partitions
    except KafkaError as error:
        yield fail("topic", f"the cluster does not describe its topics: {error}", "see its ACLs")
    finally:
        client.close()


def _topic(key: str, name: str, found: dict[str, Any] | None) -> tuple[Finding, list[int]]:
    code = found["error_code"] if found else kafka_errors.UnknownTopicOrPartitionError.errno
    if code == kafka_errors.UnknownTopicOrPartitionError.errno or found is None:
        return fail("topic", f"there is no topic {name}", f"make it, or mend {key}"), []
    if code == kafka_errors.TopicAuthorizationFailedError.errno:
        do = "give the daemon's user the rights to describe and read it (ACL)"
        return fail("topic", f"{name} may not be looked at", do), []
    if code:
        why = kafka_errors.for_code(code).__name__
        return fail("topic", f"{name}: {why}", "see the brokers' log"), []
    partitions = sorted(p["partition_index"] for p in found["partitions"])
    headless = [p["partition_index"] for p in found["partitions"] if p["leader_id"] < 0]
    if headless:
        says = f"{name}: no leader for {', '.join(map(str, headless))}"
        return fail("topic", says, "a broker is away: nothing comes from these partitions"), []
    count = len(partitions)
    return ok("topic", f"{name} is there, with {count} partition{'s'[: count > 1]}"), partitions


def reading(
    config: Config, source: KafkaSourceConfig, partitions: list[int], positions: Positions
) -> Iterator[Finding]:
    """Whether the daemon may read, whether its next event is still there, and whose time it is."""
    places = [TopicPartition(source.topic, p) for p in partitions]
    options = source.client_options() | {
        "group_id": None,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "isolation_level": source.isolation,
        "allow_auto_create_topics": False,
        "bootstrap_timeout_ms": ANSWER_MS,
    }
    consumer = KafkaConsumer(**options)
    try:
        beginnings = consumer.beginning_offsets(places, timeout_ms=ANSWER_MS)
        consumer.assign(places)
        ends = _ends(consumer, places, beginnings)
        yield ok("topic", f"{source.topic} can be read: {_events(beginnings, ends)} events")
        for place in places:
            at = positions.get((place.topic, place.partition))
            if at is not None:
                yield from _position(source, place, at, beginnings[place], ends[place])
        yield from _clock(config, consumer, beginnings, ends)
    except kafka_errors.TopicAuthorizationFailedError:
        do = "give the daemon's user the right to read it (ACL)"
        yield fail("topic", f"{source.topic} may not be read", do)
    except KafkaError as error:
        yield fail("topic", f"{source.topic} cannot be read: {error}", "see the brokers' log")
    finally:
        with suppress(KafkaError, RuntimeError):
            consumer.close(timeout_ms=2000)


def _ends(consumer: Any, places: list[Any], beginnings: dict[Any, int]) -> dict[Any, int]:
    """The offset after the last record of each, as the answer to a fetch has it."""
    for place in places:
        consumer.seek(place, beginnings[place])
    deadline = time.monotonic() + READ_SECONDS
    while any(consumer.highwater(place) is None for place in places):
        if time.monotonic() > deadline:
            raise kafka_errors.KafkaTimeoutError(f"no answer within {READ_SECONDS:g} s")
        consumer.poll(timeout_ms=200, max_records=1)
    return {place: consumer.highwater(place) for place in places}


def _events(beginnings: dict[Any, int], ends: dict[Any, int]) -> str:
    return f"{sum(ends[place] - beginnings[place] for place in ends):,}"


def _position(
    source: KafkaSourceConfig, place: Any, at: int, beginning: int, end: int
) -> Iterator[Finding]:
    where = f"{place.topic}/{place.partition}"
    if at < beginning:
        says = f"{where}: offsets {at} to {beginning - 1} are gone before they were read"
        if source.on_gap == "stop":
            do = "the daemon will not go on (source.on_gap: stop)"
        else:
            do = "the daemon goes on with the oldest one; a longer retention keeps more"
        yield fail("position", says, do)
    elif at > end:
        says = f"{where}: the checkpoint is at {at}, and the topic ends at {end}: it was made anew"
        do = "move checkpoint.path away to begin anew, or restore the topic"
        yield fail("position", says, do)
    elif at < end and at - beginning < NEAR_THE_END * (end - beginning):
        says = f"{where}: {end - at:,} events wait, and the next one is {at - beginning:,} from the"
        do = "raise the topic's retention until the daemon has caught up"
        yield warn("position", f"{says} oldest", do)
    else:
        yield ok("position", f"{where}: {end - at:,} events wait")


def _clock(
    config: Config, consumer: Any, beginnings: dict[Any, int], ends: dict[Any, int]
) -> Iterator[Finding]:
    """The newest records' times against this machine's: they cannot lie ahead of it."""
    filled = [place for place in ends if ends[place] > beginnings[place]]
    if not filled:
        return
    consumer.assign(filled)
    for place in filled:
        consumer.seek(place, ends[place] - 1)
    newest: dict[Any, Any] = {}
    deadline = time.monotonic() + READ_SECONDS
    while len(newest) < len(filled) and time.monotonic() < deadline:
        for place, records in consumer.poll(timeout_ms=200).items():
            newest[place] = records[-1]
    if not newest:
        return  # the last offsets hold no records, as after a transaction
    last = max(newest.values(), key=lambda record: record.timestamp)
    ahead = last.timestamp / 1000 - time.time()
    whose = "the broker's" if last.timestamp_type == 1 else "a producer's"
    if ahead > config.events.max_future_seconds and config.fields.time is None:
        says = f"{whose} clock is {ahead:,.0f} s ahead: its events are refused as from the future"
        yield fail("clock", says, "synchronise it, or this machine's clock (NTP)")
    elif ahead > SKEW_SECONDS:
        says = f"{whose} clock is {ahead:,.0f} s ahead of this machine's"
        yield warn("clock", says, "synchronise both (NTP)")
    else:
        yield ok("clock", f"the newest event is {max(0.0, -ahead):,.0f} s old")
