"""From raw records to columns: bytes in, `EventBatch` and the refused records out.

One pass over the records, no object per event, no schema library: this is the hot path. Whatever a
record holds, decoding never raises; what is no event comes back as `Rejected`, with a reason from
a fixed list and a sentence for the person who has to mend the producer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon import plain
from daemon.events import EventBatch, Rejected
from daemon.formats import Reader, read_json
from daemon.plain import BOUNDS, FIRST_SECOND, LAST_SECOND, UNITS, Feature, objects
from daemon.refusals import MISSING, Reason, RefusedError, kind_of, short, unfit
from daemon.stream_config import EventsConfig, FieldsConfig

log = logging.getLogger("driftd.decode")

NO_TIME = -1  # Kafka's value for a record without a timestamp
MAX_LABEL = 200  # characters; longer is a text in the label's place
MAX_ID = 1000  # characters
EXACT = 2.0**53  # beyond, a float no longer tells whole numbers apart
UNLABELLED_WARNING = 1000  # events without a label field before that is worth a warning

# As the short way has them: below the bound a number counts that unit.
EPOCH_UNITS: tuple[tuple[float, float], ...] = tuple(
    zip((*BOUNDS.tolist(), math.inf), UNITS.tolist(), strict=True)
)

Getter = Callable[[dict[str, Any]], Any]


@dataclass(slots=True)
class Records:
    """Raw records as columns, ``n`` each, in the order they were read.

    values: the bytes, or None (a Kafka tombstone). timestamps: milliseconds since the epoch, or
    `NO_TIME`. oversized: for records of which the source kept only a beginning, index -> size.
    """

    values: list[bytes | None] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    oversized: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def extend(self, more: Records) -> None:
        """Add records that were read after these."""
        self.oversized |= {len(self) + i: size for i, size in more.oversized.items()}
        self.values += more.values
        self.topics += more.topics
        self.partitions += more.partitions
        self.offsets += more.offsets
        self.timestamps += more.timestamps


class KnownLabels:
    """The labels met so far, and which new ones are let in; or any number, as its text."""

    def __init__(self, events: EventsConfig, numbers: bool = False) -> None:
        self._events = events
        self._numbers = numbers
        self._labels: set[str] = set()

    def update(self, labels: Iterable[str]) -> None:
        """The model has these."""
        self._labels.update(labels)

    def read(self, path: str, value: Any) -> str | None:
        """The label that ``value`` is; None for null or empty. Raises RefusedError."""
        if value is None:
            return None
        if self._numbers:
            return _number_label(path, value)
        label = value if type(value) is str else as_text(value)
        if label is None:
            raise unfit(path, value, "the label", "text, a whole number or a boolean")
        if not label:
            return None
        if label not in self._labels:
            self._admit(path, label)
        return label

    def column(self, path: str, values: Sequence[Any]) -> Sequence[Any]:
        """What `read` gives for each of the values, [n]. Raises NotPlain where one is new."""
        if not self._numbers:
            return plain.among(values, self._labels)
        try:
            return [self.read(path, value) for value in values]
        except RefusedError:
            raise plain.NotPlain from None

    def _admit(self, path: str, label: str) -> None:
        """Accept a label seen for the first time, or refuse the event."""
        if len(label) > MAX_LABEL or not label.isprintable() or not label.strip():
            raise RefusedError(
                Reason.BAD_LABEL,
                f"the label in '{path}' must be printable and at most {MAX_LABEL}"
                f" characters, this one has {len(label)}: {short(label)}",
            )
        if self._events.unknown_label == "reject":
            raise RefusedError(
                Reason.UNKNOWN_LABEL,
                f"the model has no class {short(label)} and events.unknown_label is 'reject'",
            )
        if len(self._labels) >= self._events.max_labels:
            raise RefusedError(
                Reason.UNKNOWN_LABEL,
                f"{short(label)} would be class {len(self._labels) + 1}, over events.max_labels"
                f" ({self._events.max_labels})",
            )
        self._labels.add(label)


class Decoder:
    """Decodes records by the user's own field names.

    ``features``: the features of a table, None for text. ``clock``: seconds since the epoch, for
    the limits on an event's time. ``hint``: for whoever reads that a feature is of another kind.
    ``numbers``: labels are numbers to predict; they come as their texts. ``read``: the format, see
    `daemon.formats`.

    >>> from daemon.stream_config import EventsConfig, FieldsConfig
    >>> decoder = Decoder(FieldsConfig(input="post.body", label="topic"), EventsConfig())
    >>> records = Records([b'{"post": {"body": "hi"}, "topic": 3}', b"{"], ["t", "t"], [0, 0],
    ...                   [7, 8], [1_700_000_000_000, NO_TIME])
    >>> batch, rejected = decoder.decode(records)
    >>> batch.inputs[0], batch.labels[0], batch.ids[0], batch.times[0]
    ('hi', '3', 't:0:7', np.float64(1700000000.0))
    >>> rejected[0].reason, rejected[0].offset
    (<Reason.INVALID_JSON: 'invalid_json'>, 8)
    """

    def __init__(
        self,
        fields: FieldsConfig,
        events: EventsConfig,
        features: Sequence[Feature] | None = None,
        clock: Callable[[], float] = time.time,
        hint: str = "",
        numbers: bool = False,
        read: Reader = read_json,
    ) -> None:
        self._events = events
        self._fields = fields
        self._hint = hint
        self._clock = SteadyClock(clock)
        self._read = read
        self._label_path = fields.label
        self._label = getter(fields.label)
        self._id = (fields.id, getter(fields.id)) if fields.id else None
        self._labeller = getter(fields.labeller) if fields.labeller else None
        self._prediction = getter(fields.prediction) if fields.prediction else None
        self._version = getter(fields.version) if fields.version else None
        self._time = (fields.time, getter(fields.time)) if fields.time else None
        self._input: Callable[[dict[str, Any]], Any]
        if features is None:
            self._dtype = np.dtype(object)
            self._input = _text_reader(fields.input)
        else:
            self.read_rows(features)
        self._features = features
        self._plain = self._columns_wanted()
        self.known = KnownLabels(events, numbers)
        #: Whether events are meant to carry their label; where none does, that is worth a warning.
        self.labels_expected = True
        self._unlabelled = 0  # events so far without a label field; -1 once one had it

    def read_rows(self, features: Sequence[Feature]) -> None:
        """Read tables of these features from now on."""
        self._dtype = features_dtype(features)
        self._input = _row_reader(features, self._fields.features, self._hint)
        self._features = features
        self._plain = self._columns_wanted()

    def glance(self, value: bytes | None, size: int | None = None) -> dict[str, Any] | None:
        """The object in a record, None where there is none; nothing is counted or refused.

        Raises FormatAway.
        """
        try:
            return read_object(value, size, self._events, self._read)
        except RefusedError:
            return None

    def has_label(self, event: dict[str, Any]) -> bool:
        """Whether the field of the label holds anything."""
        return self._label(event) not in (MISSING, None, "")

    def know(self, labels: Iterable[str]) -> None:
        """Tell the decoder which labels the model has, for the limits on new ones."""
        self.known.update(labels)

    def decode(self, records: Records) -> tuple[EventBatch, list[Rejected]]:
        """All events among ``records``, and all that are none; nothing is lost.

        Raises FormatAway, where it cannot be told for now, and nothing else.
        """
        now = self._clock()
        if self._plain and len(records) and not records.oversized:
            try:
                return self._decode_plain(records, now), []
            except plain.NotPlain:
                pass  # each record is looked at by itself
        kept: list[int] = []
        ids: list[str] = []
        times: list[float] = []
        inputs: list[Any] = []
        labels: list[str | None] = []
        labellers: list[str | None] = []
        predictions: list[str | None] = []
        versions: list[str | None] = []
        rejected: list[Rejected] = []
        for i, value in enumerate(records.values):
            try:
                event = read_object(value, records.oversized.get(i), self._events, self._read)
                item = self._input(event)
                stamp = records.timestamps[i]
                seconds = self._seconds(event, stamp, now)
                name = self._name(event)
                label = self._read_label(event)
            except RefusedError as refused:
                rejected.append(refused_record(records, i, refused))
                continue
            kept.append(i)
            inputs.append(item)
            times.append(seconds)
            labels.append(label)
            labellers.append(_name_in(self._labeller, event, MAX_ID))
            predictions.append(_name_in(self._prediction, event, MAX_LABEL))
            versions.append(_name_in(self._version, event, MAX_ID))
            place = records.topics[i], records.partitions[i], records.offsets[i]
            ids.append(name if name is not None else "{}:{}:{}".format(*place))
        batch = EventBatch(
            ids=objects(ids),
            times=np.array(times, dtype=np.float64),
            inputs=self._column(inputs),
            labels=objects(labels),
            topics=objects([records.topics[i] for i in kept]),
            partitions=np.array([records.partitions[i] for i in kept], dtype=np.int32),
            offsets=np.array([records.offsets[i] for i in kept], dtype=np.int64),
            labellers=objects(labellers) if self._labeller else None,
            predictions=objects(predictions) if self._prediction else None,
            versions=objects(versions) if self._version else None,
        )
        return batch, rejected

    def _columns_wanted(self) -> dict[str, str]:
        """Column to field for the short way; none where it cannot be gone.

        It reads JSON, and no field that lies within another.
        """
        fields = self._fields
        if self._read is not read_json or (self._features is not None and not self._features):
            return {}
        wanted = {
            "label": fields.label,
            "id": fields.id,
            "time": fields.time,
            "labeller": fields.labeller,
            "prediction": fields.prediction,
            "version": fields.version,
        }
        if self._features is None:
            wanted |= {f"input {i}": path for i, path in enumerate(fields.input)}
        else:
            for i, f in enumerate(self._features):
                wanted[f"input {i}"] = fields.features.get(f.name, f.name)
        found = {column: path for column, path in wanted.items() if path}
        several = self._features is None and len(fields.input) > 1
        return {} if several or any("." in path for path in found.values()) else found

    def _decode_plain(self, records: Records, now: Now) -> EventBatch:
        """All records as events. Raises `NotPlain` where one is out of the ordinary."""
        wanted, limits = self._plain, self._events
        values = plain.events_of(records.values, limits.max_event_bytes, list(wanted.values()))
        column = dict(zip(wanted, values, strict=True))
        if self._features is None:
            inputs = objects(plain.texts(column["input 0"], visible=True))
        else:
            features = [column[f"input {i}"] for i in range(len(self._features))]
            inputs = plain.rows(features, self._features, self._dtype)
        if "time" in column:
            times = plain.seconds(column["time"])
        else:
            times = np.array(records.timestamps, dtype=np.float64)
            times = np.where(times == NO_TIME, now.clock, times / 1000.0)
        oldest = limits.max_age_seconds
        if (times > now.late + limits.max_future_seconds).any() or (
            oldest is not None and (times < now.early - oldest).any()
        ):
            raise plain.NotPlain
        if "id" in column:
            ids = plain.texts(column["id"], MAX_ID)
        else:
            ids = plain.names(records.topics, records.partitions, records.offsets)
        labels = self.known.column(self._label_path, column["label"])

        def named(what: str, longest: int) -> NDArray[np.object_] | None:
            if what not in column:
                return None
            return objects(plain.texts(column[what], longest))

        self._unlabelled = -1
        return EventBatch(
            ids=objects(ids),
            times=times,
            inputs=inputs,
            labels=objects(labels),
            topics=objects(records.topics),
            partitions=np.array(records.partitions, dtype=np.int32),
            offsets=np.array(records.offsets, dtype=np.int64),
            labellers=named("labeller", MAX_ID),
            predictions=named("prediction", MAX_LABEL),
            versions=named("version", MAX_ID),
        )

    def _column(self, inputs: list[Any]) -> NDArray[np.generic]:
        if self._dtype.names is None:
            return objects(inputs)
        return np.array(inputs, dtype=self._dtype)

    def _name(self, event: dict[str, Any]) -> str | None:
        return None if self._id is None else read_id(self._id[0], self._id[1](event))

    def _seconds(self, event: dict[str, Any], timestamp: int, now: Now) -> float:
        if self._time is not None:
            path, get = self._time
            seconds = event_time(path, get(event))
        else:
            seconds = now.clock if timestamp == NO_TIME else timestamp / 1000.0
        check_time(seconds, now, self._events)
        return seconds

    def _read_label(self, event: dict[str, Any]) -> str | None:
        value = self._label(event)
        if value is MISSING:
            self._count_unlabelled()
            return None
        self._unlabelled = -1
        return self.known.read(self._label_path, value)

    def _count_unlabelled(self) -> None:
        if self._unlabelled < 0:
            return
        self._unlabelled += 1
        if self._unlabelled == UNLABELLED_WARNING and self.labels_expected:
            log.warning(
                "none of the first %d events has the label field '%s': is fields.label right?",
                UNLABELLED_WARNING,
                self._label_path,
            )


def read_object(
    value: bytes | None, size: int | None, events: EventsConfig, read: Reader
) -> dict[str, Any]:
    """The fields of one record; ``size`` where the source kept only its beginning."""
    if value is None:
        raise RefusedError(Reason.NO_VALUE, "the record has no value (a tombstone)")
    limit = events.max_event_bytes
    if size is not None or len(value) > limit:
        size = len(value) if size is None else size
        raise RefusedError(
            Reason.TOO_LARGE, f"{size} bytes are over events.max_event_bytes ({limit})"
        )
    return read(value)


def read_id(path: str, value: Any) -> str:
    """The id of an event."""
    if type(value) is str and value and len(value) <= MAX_ID:
        return value
    if type(value) is int:
        return str(value)
    raise unfit(path, value, "the id", f"a text of 1 to {MAX_ID} characters or a whole number")


def read_name(value: Any, longest: int = MAX_ID) -> str | None:
    """A name that is there for information; whatever is none is no reason to refuse the event."""
    name = value if type(value) is str else as_text(value)
    return name if name and len(name) <= longest else None


def _name_in(get: Getter | None, event: dict[str, Any], longest: int) -> str | None:
    return None if get is None else read_name(get(event), longest)


class Now(NamedTuple):
    """Seconds since the epoch, by the clock, and between which bounds it is believed."""

    clock: float
    early: float
    late: float


class SteadyClock:
    """A clock beside what it would show had nobody set it since the start.

    A limit is exceeded if it is by both: a clock that jumps must not have the daemon refuse what
    comes in.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steady = clock() - time.monotonic()

    def __call__(self) -> Now:
        """The time now."""
        now, steady = self._clock(), self._steady + time.monotonic()
        return Now(now, min(now, steady), max(now, steady))


def check_time(seconds: float, now: Now, events: EventsConfig) -> None:
    """Refuse what lies too far ahead of the clock, or behind it."""
    ahead, age = seconds - now.late, now.early - seconds
    if ahead > events.max_future_seconds:
        raise RefusedError(
            Reason.FUTURE,
            f"the event's time {_iso(seconds)} is {ahead:.0f} s ahead of the clock, over"
            f" events.max_future_seconds ({events.max_future_seconds:g})",
        )
    oldest = events.max_age_seconds
    if oldest is not None and age > oldest:
        raise RefusedError(
            Reason.TOO_OLD,
            f"the event's time {_iso(seconds)} is {age:.0f} s ago, over"
            f" events.max_age_seconds ({oldest:g})",
        )


def features_dtype(features: Sequence[Feature]) -> np.dtype[Any]:
    """The dtype of a table's inputs: float64 for numeric and boolean, object for the others."""
    kinds = {f.name: "<f8" if f.kind in ("numeric", "boolean") else object for f in features}
    return np.dtype(list(kinds.items()))


def getter(path: str) -> Getter:
    """Reads a field; a dotted path reaches into objects unless the name itself has the dots."""
    if "." not in path:
        return lambda event: event.get(path, MISSING)
    steps = path.split(".")

    def get(event: dict[str, Any]) -> Any:
        value: Any = event.get(path, MISSING)
        if value is not MISSING:
            return value
        value = event
        for step in steps:
            if type(value) is not dict:
                return MISSING
            value = value.get(step, MISSING)
        return value

    return get


def _text_reader(paths: Sequence[str]) -> Callable[[dict[str, Any]], str]:
    getters = [(path, getter(path)) for path in paths]

    def read(event: dict[str, Any]) -> str:
        parts: list[str] = []
        for path, get in getters:
            value = get(event)
            if type(value) is str:
                parts.append(value)
            elif len(getters) == 1 or (value is not None and value is not MISSING):
                raise unfit(path, value, "the text", "text")
        if not parts:
            raise RefusedError(Reason.MISSING_FIELD, f"none of {', '.join(paths)} is there")
        text = parts[0] if len(parts) == 1 else "\n".join(parts)
        if not text or text.isspace():
            raise RefusedError(Reason.EMPTY_INPUT, f"the text in {', '.join(paths)} is empty")
        return text

    return read


def _row_reader(
    features: Sequence[Feature], names: dict[str, str], hint: str = ""
) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    read_value = {"numeric": _number, "boolean": _boolean}
    columns = [
        (
            path := names.get(f.name, f.name),
            getter(path),
            f.name,
            read_value.get(f.kind, _category),
        )
        for f in features
    ]

    def read(event: dict[str, Any]) -> tuple[Any, ...]:
        row: list[Any] = []
        empty = True
        for path, get, name, convert in columns:
            value = get(event)
            if value is not MISSING and value is not None and value != "":
                empty = False
            try:
                row.append(convert(path, name, value))
            except RefusedError as refused:
                raise RefusedError(refused.reason, refused.detail + hint) from None
        if empty:
            raise RefusedError(Reason.EMPTY_INPUT, "every feature is missing or null")
        return tuple(row)

    return read


def _number(path: str, name: str, value: Any) -> float:
    """A number; numbers in quotes count, as CSV bridges write them. NaN stands for missing."""
    if type(value) is float or type(value) is int or type(value) is bool:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    elif value is MISSING or value is None or value == "":
        return math.nan
    elif type(value) is str and "_" not in value:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise unfit(path, value, f"feature '{name}'", "a finite number")


def _number_label(path: str, value: Any) -> str | None:
    if value == "":
        return None
    if type(value) is not bool:
        try:
            return repr(_number(path, "", value))
        except RefusedError:
            pass
    raise unfit(path, value, "the label", "a finite number")


def _boolean(path: str, name: str, value: Any) -> float:
    if value is MISSING or value is None or value == "":
        return math.nan
    if type(value) is str:
        value = {"true": 1, "false": 0, "1": 1, "0": 0}.get(value.lower(), value)
    if type(value) in (bool, int, float) and value in (0, 1):
        return float(value)
    raise unfit(path, value, f"feature '{name}'", "true or false")


def _category(path: str, name: str, value: Any) -> str | None:
    if type(value) is str:
        return value or None
    if value is MISSING or value is None:
        return None
    text = as_text(value) or (repr(value) if type(value) is float else None)
    if text is None:
        raise unfit(path, value, f"feature '{name}'", "text, a number or a boolean")
    return text


def as_text(value: Any) -> str | None:
    """Text of a boolean or whole number; a float counts if it is whole, as 3.0 for 3."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    if type(value) is float and value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    return None


def event_time(path: str, value: Any) -> float:
    """Seconds since the epoch of an ISO 8601 text or an epoch number of any usual unit."""
    if type(value) is int or type(value) is float:
        size = abs(value)
        seconds = value / next(
            unit for bound, unit in EPOCH_UNITS if size < bound or bound == math.inf
        )
    elif type(value) is str:
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise RefusedError(
                Reason.BAD_TIME, f"the time in '{path}' is not ISO 8601: {short(value)}"
            ) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    elif value is MISSING:
        raise RefusedError(Reason.MISSING_FIELD, f"the time '{path}' is not there")
    else:
        raise RefusedError(
            Reason.BAD_TIME,
            f"the time in '{path}' must be ISO 8601 or an epoch number, this is {kind_of(value)}",
        )
    if not FIRST_SECOND <= seconds < LAST_SECOND:
        raise RefusedError(
            Reason.BAD_TIME, f"the time in '{path}' lies outside the years 1 to 9999: {value}"
        )
    return seconds


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def refused_record(records: Records, i: int, refused: RefusedError) -> Rejected:
    """The i-th record, on its way to the dead letters."""
    return Rejected(
        reason=refused.reason,
        detail=refused.detail,
        value=records.values[i] or b"",
        topic=records.topics[i],
        partition=records.partitions[i],
        offset=records.offsets[i],
    )
