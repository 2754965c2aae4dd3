"""Events from a Kafka topic, and labels from another, through outages and rebalances.

The checkpoint's positions are the truth: every partition that is assigned is sought to its
position, and the offsets committed to the group are only a copy for lag tools and for a partition
that the checkpoint does not know. A broker that is away costs nothing but time: the client is
made on a thread of its own and makes itself whole again, so that the loop never waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from daemon.decode import Decoder, Records
from daemon.decode_labels import LabelDecoder
from daemon.events import EMPTY, NO_LABELS
from daemon.formats import FormatAway
from daemon.sources.source import Partition, Poll, Positions, SourceError
from daemon.stream_config import KafkaSourceConfig

log = logging.getLogger("driftd.source")

BOOTSTRAP_MS = 30_000  # for one attempt to reach the cluster, with retries inside
MAX_POLL_RECORDS = 10_000
METADATA_MS = 30_000  # new partitions are noticed within this time
BACKOFF_SECONDS = 0.5
LOOKUP_MS = 5_000
CLOSE_MS = 2_000
UNASSIGNED_SECONDS = 30.0  # without any partition, before it is worth a warning
LINK_SECONDS = 1.0  # between two looks at the number of connections

# Errors that no waiting cures, and what to do about each.
HOPELESS: dict[type[KafkaError], str] = {
    kafka_errors.KafkaConfigurationError: "mend the source section",
    kafka_errors.UnsupportedCodecError: "the topic is compressed with a codec that is not"
    " installed: pip install 'kafka-python[lz4,snappy,zstd]'",
    kafka_errors.InvalidTopicError: "mend source.topic",
    kafka_errors.InvalidGroupIdError: "mend source.group",
    kafka_errors.InvalidSessionTimeoutError: "mend session_timeout_ms in source.options",
    kafka_errors.InconsistentGroupProtocolError: "the group is in use by another kind of"
    " consumer: choose another source.group",
    kafka_errors.FencedInstanceIdError: "another daemon runs with the same source.instance_id:"
    " stop it, or give each its own",
    kafka_errors.UnsupportedVersionError: "the broker is too old for this client",
}


class KafkaSource:
    """One topic, and that of its labels, read by one member of a consumer group."""

    def __init__(
        self,
        config: KafkaSourceConfig,
        decoder: Decoder,
        *,
        group: str,
        labels: LabelDecoder | None = None,
        shared: bool = False,
    ) -> None:
        self._config = config
        self._decoder = decoder
        self._labels = labels
        #: Partitions are claimed by whoever shares them (`moves`, `begin`) before they are read.
        self._shared = shared
        self._begun: set[Partition] = set()
        self._came: set[Partition] = set()
        self._went: set[Partition] = set()
        self._topics = [config.topic, *([config.labels.topic] if config.labels else [])]
        self._group = group
        self._link = _Link(", ".join(config.bootstrap_servers))
        self._assignor = _Assignor()
        self._consumer: Any = None
        self._connecting: threading.Thread | None = None
        self._made = threading.Event()
        self._fresh: Any = None  # the consumer, or the error, that the connecting thread made
        self._closed = False
        self._positions: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._commit_failed = self._format_away = self._held = False
        self._unassigned_since = time.monotonic()
        self._looked = 0.0

    @property
    def connected(self) -> bool:
        """Whether a broker answers, and what the records' format needs."""
        return self._link.connected and not self._format_away

    @property
    def ended(self) -> bool:
        """Never: a topic has no end."""
        return False

    @property
    def caught_up(self) -> bool:
        """Whether every partition that is ours was read to the end of its last fetch."""
        if self._consumer is None or not self._link.connected:
            return False
        lags = self.lags()
        return 0 < len(self._consumer.assignment()) == len(lags) and not any(lags.values())

    def start(self, positions: Positions) -> None:
        """Remember where to begin and start connecting; does not wait for the broker."""
        self._positions = {p: at for p, at in positions.items() if p[0] in self._topics}
        others = sorted({topic for topic, _ in positions} - set(self._topics))
        if others:
            log.warning(
                "the checkpoint has positions in %s too; source.topic is %s, so they are not used",
                ", ".join(others),
                self._config.topic,
            )
        try:
            options = self._options()
        except OSError as error:
            raise SourceError(f"cannot read {error.filename}: {error.strerror}") from None
        self._link.listen()
        self._connecting = threading.Thread(
            target=self._connect, args=(options,), name="driftd-kafka-connect", daemon=True
        )
        self._connecting.start()

    def poll(self, max_events: int, timeout: float) -> Poll:
        """The next records; see `Source.poll`."""
        events, labels = Records(), Records()
        moved: dict[Partition, int] = {}
        if self._consumer is None and not self._adopt(timeout):
            return Poll(*self._decoder.decode(events), moved)
        if self._held:
            self._resume()
        fetched = self._fetch(max_events, timeout)
        for partition, found in (fetched or {}).items():
            place = partition.topic, partition.partition
            if self._shared and place not in self._begun:
                continue
            expected = self._positions.get(place, 0)
            if found and found[0].offset < expected:  # offsets ascend
                found = [record for record in found if record.offset >= expected]
            if not found:
                continue
            moved[place] = found[-1].offset + 1
            records = events if partition.topic == self._config.topic else labels
            records.values += [record.value for record in found]
            records.offsets += [record.offset for record in found]
            records.timestamps += [record.timestamp for record in found]
            records.topics += [partition.topic] * len(found)
            records.partitions += [partition.partition] * len(found)
        if moved:
            self._link.up()
        elif fetched is not None:
            self._look()
        try:
            batch, rejected = self._decoder.decode(events)
            joined = NO_LABELS
            if self._labels is not None and len(labels):
                joined, refused = self._labels.decode(labels)
                rejected += refused
        except FormatAway:  # whoever raised it has said so
            self._format_away = True
            self._read_again(fetched)
            time.sleep(min(BACKOFF_SECONDS, timeout))
            return Poll(EMPTY, [], {})
        self._format_away = False
        self._positions |= moved
        return Poll(batch, rejected, moved, joined)

    def hold(self) -> None:
        """Rest all partitions, and let the client do what keeps it in the group."""
        if self._consumer is None:
            return
        self._held = True
        self._consumer.pause(*self._consumer.assignment())
        # A partition that has only just come does not rest yet; what it gives is read again.
        self._read_again(self._fetch(1, 0.0))

    def _read_again(self, fetched: dict[Any, list[Any]] | None) -> None:
        for partition, found in (fetched or {}).items():
            at = self._positions.get((partition.topic, partition.partition), found[0].offset)
            self._consumer.seek(partition, at)

    def _resume(self) -> None:
        """After `hold`: read on, but for what nobody has claimed yet."""
        self._held = False
        assigned = self._consumer.assignment()
        ready = [p for p in assigned if not self._shared or (p.topic, p.partition) in self._begun]
        self._consumer.resume(*ready)

    def positions(self) -> dict[Partition, int]:
        """The next offset of every partition that was ever read."""
        return dict(self._positions)

    def checkpointed(self, positions: Positions) -> None:
        """Commit the positions to the group, for lag tools; nothing depends on it."""
        if self._consumer is None:
            return
        news = self._commits(positions)
        if not news:
            return
        try:
            self._consumer.commit_async(news, callback=self._on_commit)
        except (KafkaError, RuntimeError) as error:
            self._on_commit(news, error)

    def lag(self) -> int | None:
        """Events between our positions and the ends of the partitions; labels do not count."""
        lags = [lag for (topic, _), lag in self.lags().items() if topic == self._config.topic]
        return sum(lags) if lags else None

    def lags(self) -> dict[Partition, int]:
        """The same by partition, from the high watermark of the last fetch."""
        if self._consumer is None:
            return {}
        lags: dict[Partition, int] = {}
        for partition in self._consumer.assignment():
            place = partition.topic, partition.partition
            try:
                end = self._consumer.highwater(partition)
            except (KafkaError, KeyError):  # lost since the assignment was read
                continue
            if end is not None and place in self._positions:
                lags[place] = max(0, end - self._positions[place])
        return lags

    def know(self, labels: Iterable[str]) -> None:
        """Tell the decoder which classes the model has."""
        self._decoder.know(labels)

    def close(self) -> None:
        """Leave the group; gives up after a few seconds if the broker is away."""
        self._closed = True
        if self._made.is_set() and not isinstance(self._fresh, Exception):
            self._consumer = self._consumer or self._fresh
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                consumer.close(timeout_ms=CLOSE_MS)
            except (KafkaError, RuntimeError) as error:
                log.debug("closing the consumer: %s", error)
        self._link.deaf()

    # ---------------------------------------------------------------- shared partitions

    def moves(self) -> tuple[set[Partition], set[Partition]]:
        """Partitions that came to us and that went since the last call; what came rests."""
        came, self._came = self._came, set()
        went, self._went = self._went, set()
        for place in went:
            self._positions.pop(place, None)
        return came, went

    def begin(self, place: Partition, position: int | None) -> None:
        """Read a partition that came, from ``position``; None: as for one that nobody knows."""
        partition = TopicPartition(*place)
        if partition not in self._consumer.assignment():
            return  # it went meanwhile, and `moves` will say so
        self._positions.pop(place, None)
        if position is not None:
            self._positions[place] = position
            self._consumer.seek(partition, position)
        self._begun.add(place)
        self._consumer.resume(partition)

    def leave(self, place: Partition) -> None:
        """Read no more of a partition that is another's, whatever the group thinks."""
        self._begun.discard(place)
        self._positions.pop(place, None)
        partition = TopicPartition(*place)
        if partition in self._consumer.assignment():
            self._consumer.pause(partition)

    # ---------------------------------------------------------------- connecting

    def _options(self) -> dict[str, Any]:
        """Arguments of the consumer; raises OSError for a file that cannot be read."""
        config = self._config
        for path in (config.tls_ca_file, config.tls_cert_file, config.tls_key_file):
            if path is not None:
                path.open("rb").close()
        # A partition that stays is read on while others move; eager is what others may expect.
        cooperative = {"partition_assignment_strategy": [self._assignor]}
        return {
            "group_id": self._group,
            "group_instance_id": config.instance_id,
            "client_id": "driftd",
            "enable_auto_commit": False,
            # Gaps and beginnings are decided here and said aloud, not by the client in silence.
            "auto_offset_reset": "none",
            "isolation_level": config.isolation,
            "allow_auto_create_topics": False,
            "max_poll_records": MAX_POLL_RECORDS,
            "metadata_max_age_ms": METADATA_MS,
            "bootstrap_timeout_ms": BOOTSTRAP_MS,
        } | ((cooperative if self._shared else {}) | config.client_options())

    def _connect(self, options: dict[str, Any]) -> None:
        """On a thread of its own: make a consumer, however long that takes."""
        made: Any = None
        while made is None and not self._closed:
            try:
                made = KafkaConsumer(**options)
            except KafkaError as error:
                if isinstance(error, tuple(HOPELESS)):
                    made = _hopeless(error)
                else:
                    self._link.trouble = str(error)
                    time.sleep(BACKOFF_SECONDS)
            except (OSError, ValueError, TypeError, AssertionError) as error:
                made = SourceError(f"the Kafka client refuses the source section: {error}")
        self._fresh = made
        self._made.set()
        if self._closed and isinstance(made, KafkaConsumer):
            made.close(timeout_ms=CLOSE_MS)

    def _adopt(self, timeout: float) -> bool:
        """Take the consumer over from the connecting thread, if it is there by now."""
        if not self._made.wait(timeout):
            self._link.down()
            return False
        if isinstance(self._fresh, SourceError):
            raise self._fresh
        self._consumer = self._fresh
        self._consumer.subscribe(self._topics, listener=_Listener(self))
        self._unassigned_since = time.monotonic()
        self._link.up()
        return True

    # ---------------------------------------------------------------- reading

    def _fetch(self, max_events: int, timeout: float) -> dict[Any, list[Any]] | None:
        """Records by partition; None after an error that may pass, which is logged."""
        try:
            found: dict[Any, list[Any]] = self._consumer.poll(
                timeout_ms=int(timeout * 1000), max_records=max_events
            )
            return found
        except kafka_errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0])
        except kafka_errors.OffsetOutOfRangeError as error:
            self._cross_gap(error.args[0])
        except kafka_errors.LogTruncationError as error:
            self._cross_truncation(error.divergent_offsets)
        except KafkaError as error:
            if isinstance(error, tuple(HOPELESS)):
                raise _hopeless(error) from None
            self._link.down(str(error))
            time.sleep(min(BACKOFF_SECONDS, timeout))
        return None

    def _begin(self, partitions: Iterable[Any]) -> None:
        """Partitions that neither the checkpoint nor the group knows."""
        partitions = list(partitions)
        log.info("beginning at the %s offset of %s", self._config.start, _listed(partitions))
        if self._config.start == "earliest":
            self._consumer.seek_to_beginning(*partitions)
        else:
            self._consumer.seek_to_end(*partitions)

    def _cross_gap(self, offsets: dict[Any, int]) -> None:
        """Positions that the topic no longer has."""
        try:
            oldest = self._consumer.beginning_offsets(list(offsets), timeout_ms=LOOKUP_MS)
        except KafkaError as error:
            self._link.down(str(error))
            return  # the next poll comes here again
        for partition, offset in offsets.items():
            place = f"{partition.topic}/{partition.partition}"
            first = oldest[partition]
            if first > offset:
                what = (
                    f"{first - offset} events of {place} from offset {offset} on were deleted"
                    " before they were read (retention)"
                )
            else:
                what = (
                    f"{place} has no offset {offset}: the topic is not the one that the"
                    " checkpoint knows (made anew?)"
                )
            if self._config.on_gap == "stop":
                raise SourceError(
                    f"{what}. Set source.on_gap: continue to go on with offset {first}, or start"
                    " over with an empty checkpoint.path"
                )
            log.error("%s; going on with offset %d", what, first)
            self._consumer.seek(partition, first)
            self._positions[partition.topic, partition.partition] = first

    def _cross_truncation(self, ends: dict[Any, Any]) -> None:
        """The cluster lost records that were read already (unclean leader election)."""
        for partition, end in ends.items():
            place = f"{partition.topic}/{partition.partition}"
            if end is None:  # not even where it was cut is known
                at = self._positions.get((partition.topic, partition.partition), 0)
                self._cross_gap({partition: at})
                continue
            log.error(
                "%s was cut back to offset %d by the cluster; what was learned from the lost"
                " events stays learned",
                place,
                end.offset,
            )
            self._consumer.seek(partition, end.offset)
            self._positions[partition.topic, partition.partition] = end.offset

    def _look(self) -> None:
        """After a poll without records: is there a broker, and have we any partition?"""
        now = time.monotonic()
        if now - self._looked < LINK_SECONDS:
            return
        self._looked = now
        metrics = self._consumer.metrics().get("consumer-metrics", {})
        if metrics.get("connection-count") == 0:
            self._link.down()
        else:
            self._link.up()
        assigned = self._consumer.assignment()
        if assigned:
            self._unassigned_since = now
            self._note_positions(assigned)
        elif self._link.connected and now - self._unassigned_since > UNASSIGNED_SECONDS:
            self._unassigned_since = now + 1e9  # said once
            log.warning(
                "no partition of %s for this daemon in %.0f s: does the topic exist, and does"
                " another member of group %s hold them all?",
                self._config.topic,
                UNASSIGNED_SECONDS,
                self._group,
            )

    def _note_positions(self, assigned: Iterable[Any]) -> None:
        """Move positions past what the client skipped, and note where new partitions begin.

        Without it, a transaction's markers would count as lag for ever, and `start: latest` would
        begin anew after a restart and skip what came between.
        """
        for partition in assigned:
            try:
                at = self._consumer.position(partition, timeout_ms=0)
            except (KafkaError, KeyError):  # not settled yet
                continue
            place = partition.topic, partition.partition
            if self._shared and place not in self._begun:
                continue
            if at is not None and at > self._positions.get(place, -1):
                self._positions[place] = at

    # ---------------------------------------------------------------- committing

    def _commits(self, positions: Positions) -> dict[Any, Any]:
        assigned = self._consumer.assignment()
        return {
            partition: OffsetAndMetadata(at, "", -1)
            for partition in assigned
            if (at := positions.get((partition.topic, partition.partition))) is not None
            and self._committed.get((partition.topic, partition.partition)) != at
        }

    def _on_commit(self, offsets: dict[Any, Any], answer: object) -> None:
        if isinstance(answer, Exception):
            if not self._commit_failed:
                log.info("offsets not committed to group %s for now: %s", self._group, answer)
            self._commit_failed = True
            return
        self._commit_failed = False
        for partition, offset in offsets.items():
            self._committed[partition.topic, partition.partition] = offset.offset


class _Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """KIP-429's, which forgets what a member has lost.

    A member tells the group which partitions it owns; the client goes on naming those that it lost
    with its session. Whoever should get one of them then waits for a revocation that never comes.
    """

    def lose(self) -> None:
        self.member_assignment = None


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Seeks to the checkpoint's positions; runs on the client's I/O thread, inside `poll`."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        source = self._source
        if source._shared:
            source._came |= _places(assigned)
            source._consumer.pause(*assigned)
            log.info("partitions assigned: %s", _listed(assigned))
            return
        for partition in assigned:
            at = source._positions.get((partition.topic, partition.partition))
            if at is not None:
                source._consumer.seek(partition, at)
        log.info("partitions assigned: %s", _listed(assigned))

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        if revoked:
            self._gone(revoked)
            log.info("partitions given back: %s", _listed(revoked))

    def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        self._gone(lost)
        self._source._assignor.lose()
        log.warning("partitions lost to another member of the group: %s", _listed(lost))

    def _gone(self, partitions: Iterable[Any]) -> None:
        source, places = self._source, _places(partitions)
        source._came -= places
        source._begun -= places
        source._went |= places


class _Link(logging.Handler):
    """Whether the broker is there, logged once for each change.

    The client repeats every failed attempt in its own log; this handler keeps the last of them as
    the reason, so that one line of ours can stand for all of them.
    """

    def __init__(self, servers: str) -> None:
        super().__init__(logging.ERROR)
        self._servers = servers
        self.connected = False
        self.trouble = ""
        self._said_down = False

    def listen(self) -> None:
        log.info("connecting to Kafka at %s", self._servers)
        logging.getLogger("kafka").addHandler(self)

    def deaf(self) -> None:
        logging.getLogger("kafka").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.trouble = record.getMessage()

    def up(self) -> None:
        if not self.connected:
            log.info("connected to Kafka at %s", self._servers)
        self.connected, self._said_down, self.trouble = True, False, ""

    def down(self, reason: str = "") -> None:
        reason = reason or self.trouble
        if self.connected or (reason and not self._said_down):
            log.warning(
                "cannot read from Kafka at %s for now (%s); trying until it works",
                self._servers,
                reason or "no connection",
            )
            self._said_down = True
        self.connected = False


def _hopeless(error: KafkaError) -> SourceError:
    advice = next(text for kind, text in HOPELESS.items() if isinstance(error, kind))
    return SourceError(f"Kafka: {error}: {advice}")


def _places(partitions: Iterable[Any]) -> set[Partition]:
    return {(p.topic, p.partition) for p in partitions}


def _listed(partitions: Iterable[Any]) -> str:
    return ", ".join(f"{p.topic}/{p.partition}" for p in sorted(partitions)) or "none"


def probe(config: KafkaSourceConfig, handover: str | None = None) -> list[str]:
    """Try the broker and the topics, for `driftd check`: what is wrong, as sentences."""
    from kafka import KafkaAdminClient

    servers = ", ".join(config.bootstrap_servers)
    try:
        given = config.options_of(KafkaAdminClient)
        client = KafkaAdminClient(
            **{"bootstrap_timeout_ms": LOOKUP_MS, "request_timeout_ms": LOOKUP_MS} | given
        )
    except (KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
        return [f"Kafka at {servers} does not answer: {error}"]
    try:
        topics = client.list_topics()
    except KafkaError as error:
        return [f"Kafka at {servers} does not list its topics: {error}"]
    finally:
        client.close()
    wanted = [config.topic, *([config.labels.topic] if config.labels else [])]
    wanted += [handover] if handover else []
    return [f"Kafka at {servers} has no topic {t!r}" for t in wanted if t not in topics]
