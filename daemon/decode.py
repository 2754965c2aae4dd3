"""From raw records to columns: JSON in, `EventBatch` and the refused records out.

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
from enum import StrEnum
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from daemon import plain
from daemon.events import EventBatch, Rejected
from daemon.plain import FIRST_SECOND, LAST_SECOND, Feature
from daemon.stream_config import EventsConfig, FieldsConfig

log = logging.getLogger("driftd.decode")

NO_TIME = -1  # Kafka's value for a record without a timestamp
MAX_LABEL = 200  # characters; longer is a text in the label's place
MAX_ID = 1000  # characters
EXACT = 2.0**53  # beyond, a float no longer tells whole numbers apart
UNLABELLED_WARNING = 1000  # events without a label field before that is worth a warning

# Below the bound a number counts that unit; 1e11 seconds is the year 5138, 1e11 ms March 1973.
EPOCH_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (math.inf, 1e9))

_MISSING: Any = object()

Getter = Callable[[dict[str, Any]], Any]


class Reason(StrEnum):
    """Why a record is no event. The values are stable: they label a metric and dead letters."""

    NO_VALUE = "no_value"
    TOO_LARGE = "too_large"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_INPUT = "empty_input"
    BAD_LABEL = "bad_label"
    UNKNOWN_LABEL = "unknown_label"
    BAD_TIME = "bad_time"
    FUTURE = "future"
    TOO_OLD = "too_old"


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


class _RefusedError(Exception):
    """Raised while reading one record, caught around it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail


class Decoder:
    """Decodes records by the user's own field names.

    ``features``: the features of a table, None for text. ``clock``: seconds since the epoch, for
    the limits on an event's time. ``hint``: for whoever reads that a feature is of another kind.

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
    ) -> None:
        self._events = events
        self._fields = fields
        self._hint = hint
        self._clock = clock
        self._steady = clock() - time.monotonic()
        self._label_path = fields.label
        self._label = _getter(fields.label)
        self._id = (fields.id, _getter(fields.id)) if fields.id else None
        self._labeller = _getter(fields.labeller) if fields.labeller else None
        self._prediction = _getter(fields.prediction) if fields.prediction else None
        self._version = _getter(fields.version) if fields.version else None
        self._time = (fields.time, _getter(fields.time)) if fields.time else None
        self._input: Callable[[dict[str, Any]], Any]
        if features is None:
            self._dtype = np.dtype(object)
            self._input = _text_reader(fields.input)
        else:
            self.read_rows(features)
        self._features = features
        self._plain = self._columns_wanted()
        self._labels: set[str] = set()
        self._unlabelled = 0  # events so far without a label field; -1 once one had it

    def read_rows(self, features: Sequence[Feature]) -> None:
        """Read tables of these features from now on."""
        self._dtype = features_dtype(features)
        self._input = _row_reader(features, self._fields.features, self._hint)
        self._features = features
        self._plain = self._columns_wanted()

    def glance(self, value: bytes | None, size: int | None = None) -> dict[str, Any] | None:
        """The object in a record, None where there is none; nothing is counted or refused."""
        try:
            return self._parse(value, size)
        except _RefusedError:
            return None

    def has_label(self, event: dict[str, Any]) -> bool:
        """Whether the field of the label holds anything."""
        return self._label(event) not in (_MISSING, None, "")

    def know(self, labels: Iterable[str]) -> None:
        """Tell the decoder which labels the model has, for the limits on new ones."""
        self._labels.update(labels)

    def decode(self, records: Records) -> tuple[EventBatch, list[Rejected]]:
        """All events among ``records``, and all that are none; nothing is lost, nothing raises."""
        now = self._clock()
        # What the clock would show had nobody set it since the start. A limit is exceeded if it is
        # by both: a clock that jumps must not have the daemon refuse what comes in.
        steady = self._steady + time.monotonic()
        early, late = min(now, steady), max(now, steady)
        if self._plain and len(records) and not records.oversized:
            try:
                return self._decode_plain(records, now, early, late), []
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
                event = self._parse(value, records.oversized.get(i))
                item = self._input(event)
                stamp = records.timestamps[i]
                arrived = now if stamp == NO_TIME else stamp / 1000.0
                seconds = self._seconds(event, arrived, early, late)
                name = self._name(event)
                label = self._read_label(event)
            except _RefusedError as refused:
                rejected.append(_rejected(records, i, refused))
                continue
            kept.append(i)
            inputs.append(item)
            times.append(seconds)
            labels.append(label)
            labellers.append(_read_name(self._labeller, event, MAX_ID))
            predictions.append(_read_name(self._prediction, event, MAX_LABEL))
            versions.append(_read_name(self._version, event, MAX_ID))
            place = records.topics[i], records.partitions[i], records.offsets[i]
            ids.append(name if name is not None else "{}:{}:{}".format(*place))
        batch = EventBatch(
            ids=_objects(ids),
            times=np.array(times, dtype=np.float64),
            inputs=self._column(inputs),
            labels=_objects(labels),
            topics=_objects([records.topics[i] for i in kept]),
            partitions=np.array([records.partitions[i] for i in kept], dtype=np.int32),
            offsets=np.array([records.offsets[i] for i in kept], dtype=np.int64),
            labellers=_objects(labellers) if self._labeller else None,
            predictions=_objects(predictions) if self._prediction else None,
            versions=_objects(versions) if self._version else None,
        )
        return batch, rejected

    def _columns_wanted(self) -> dict[str, str]:
        """Column to field for the short way; none where a field lies within another."""
        fields = self._fields
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

    def _decode_plain(self, records: Records, now: float, early: float, late: float) -> EventBatch:
        """All records as events. Raises `NotPlain` where one is out of the ordinary."""
        wanted, limits = self._plain, self._events
        values = plain.events_of(records.values, limits.max_event_bytes, list(wanted.values()))
        column = dict(zip(wanted, values, strict=True))
        if self._features is None:
            inputs = plain.objects(plain.texts(column["input 0"], visible=True))
        else:
            features = [column[f"input {i}"] for i in range(len(self._features))]
            inputs = plain.rows(features, self._features, self._dtype)
        if "time" in column:
            times = plain.seconds(column["time"])
        else:
            times = np.array(records.timestamps, dtype=np.float64)
            times = np.where(times == NO_TIME, now, times / 1000.0)
        oldest = limits.max_age_seconds
        if (times > late + limits.max_future_seconds).any() or (
            oldest is not None and (times < early - oldest).any()
        ):
            raise plain.NotPlain
        if "id" in column:
            ids = plain.texts(column["id"], MAX_ID)
        else:
            ids = plain.names(records.topics, records.partitions, records.offsets)
        labels = plain.among(column["label"], self._labels)

        def named(what: str, longest: int) -> NDArray[np.object_] | None:
            if what not in column:
                return None
            return plain.objects(plain.texts(column[what], longest))

        self._unlabelled = -1
        return EventBatch(
            ids=plain.objects(ids),
            times=times,
            inputs=inputs,
            labels=plain.objects(labels),
            topics=plain.objects(records.topics),
            partitions=np.array(records.partitions, dtype=np.int32),
            offsets=np.array(records.offsets, dtype=np.int64),
            labellers=named("labeller", MAX_ID),
            predictions=named("prediction", MAX_LABEL),
            versions=named("version", MAX_ID),
        )

    def _column(self, inputs: list[Any]) -> NDArray[np.generic]:
        if self._dtype.names is None:
            return _objects(inputs)
        return np.array(inputs, dtype=self._dtype)

    def _parse(self, value: bytes | None, size: int | None) -> dict[str, Any]:
        if value is None:
            raise _RefusedError(Reason.NO_VALUE, "the record has no value (a tombstone)")
        limit = self._events.max_event_bytes
        if size is not None or len(value) > limit:
            size = len(value) if size is None else size
            raise _RefusedError(
                Reason.TOO_LARGE, f"{size} bytes are over events.max_event_bytes ({limit})"
            )
        try:
            event = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            what = "the value is empty" if not value.strip() else f"not valid JSON: {error}"
            raise _RefusedError(Reason.INVALID_JSON, what) from None
        if type(event) is not dict:
            raise _RefusedError(
                Reason.NOT_AN_OBJECT, f"an event is a JSON object, this is {_kind(event)}"
            )
        return event

    def _name(self, event: dict[str, Any]) -> str | None:
        if self._id is None:
            return None
        path, get = self._id
        value = get(event)
        if type(value) is str and value and len(value) <= MAX_ID:
            return value
        if type(value) is int:
            return str(value)
        raise _unfit(path, value, "the id", f"a text of 1 to {MAX_ID} characters or a whole number")

    def _seconds(self, event: dict[str, Any], arrived: float, early: float, late: float) -> float:
        if self._time is not None:
            path, get = self._time
            seconds = _event_time(path, get(event))
        else:
            seconds = arrived
        ahead, age = seconds - late, early - seconds
        if ahead > self._events.max_future_seconds:
            raise _RefusedError(
                Reason.FUTURE,
                f"the event's time {_iso(seconds)} is {ahead:.0f} s ahead of the clock, over"
                f" events.max_future_seconds ({self._events.max_future_seconds:g})",
            )
        oldest = self._events.max_age_seconds
        if oldest is not None and age > oldest:
            raise _RefusedError(
                Reason.TOO_OLD,
                f"the event's time {_iso(seconds)} is {age:.0f} s ago, over"
                f" events.max_age_seconds ({oldest:g})",
            )
        return seconds

    def _read_label(self, event: dict[str, Any]) -> str | None:
        value = self._label(event)
        if value is _MISSING:
            self._count_unlabelled()
            return None
        self._unlabelled = -1
        if value is None:
            return None
        label = value if type(value) is str else _plain(value)
        if label is None:
            raise _unfit(self._label_path, value, "the label", "text, a whole number or a boolean")
        if not label:
            return None
        if label not in self._labels:
            self._admit(label)
        return label

    def _admit(self, label: str) -> None:
        """Accept a label seen for the first time, or refuse the event."""
        if len(label) > MAX_LABEL or not label.isprintable() or not label.strip():
            raise _RefusedError(
                Reason.BAD_LABEL,
                f"the label in '{self._label_path}' must be printable and at most {MAX_LABEL}"
                f" characters, this one has {len(label)}: {_short(label)}",
            )
        if self._events.unknown_label == "reject":
            raise _RefusedError(
                Reason.UNKNOWN_LABEL,
                f"the model has no class {_short(label)} and events.unknown_label is 'reject'",
            )
        if len(self._labels) >= self._events.max_labels:
            raise _RefusedError(
                Reason.UNKNOWN_LABEL,
                f"{_short(label)} would be class {len(self._labels) + 1}, over events.max_labels"
                f" ({self._events.max_labels})",
            )
        self._labels.add(label)

    def _count_unlabelled(self) -> None:
        if self._unlabelled < 0:
            return
        self._unlabelled += 1
        if self._unlabelled == UNLABELLED_WARNING:
            log.warning(
                "none of the first %d events has the label field '%s': is fields.label right?",
                UNLABELLED_WARNING,
                self._label_path,
            )


def _read_name(get: Getter | None, event: dict[str, Any], longest: int) -> str | None:
    """A name that is there for information; whatever is none is no reason to refuse the event."""
    if get is None:
        return None
    value = get(event)
    name = value if type(value) is str else _plain(value)
    return name if name and len(name) <= longest else None


def features_dtype(features: Sequence[Feature]) -> np.dtype[Any]:
    """The dtype of a table's inputs: float64 for numeric and boolean, object for the others."""
    kinds = {f.name: "<f8" if f.kind in ("numeric", "boolean") else object for f in features}
    return np.dtype(list(kinds.items()))


def _getter(path: str) -> Getter:
    """Reads a field; a dotted path reaches into objects unless the name itself has the dots."""
    if "." not in path:
        return lambda event: event.get(path, _MISSING)
    steps = path.split(".")

    def get(event: dict[str, Any]) -> Any:
        value: Any = event.get(path, _MISSING)
        if value is not _MISSING:
            return value
        value = event
        for step in steps:
            if type(value) is not dict:
                return _MISSING
            value = value.get(step, _MISSING)
        return value

    return get


def _text_reader(paths: Sequence[str]) -> Callable[[dict[str, Any]], str]:
    getters = [(path, _getter(path)) for path in paths]

    def read(event: dict[str, Any]) -> str:
        parts: list[str] = []
        for path, get in getters:
            value = get(event)
            if type(value) is str:
                parts.append(value)
            elif len(getters) == 1 or (value is not None and value is not _MISSING):
                raise _unfit(path, value, "the text", "text")
        if not parts:
            raise _RefusedError(Reason.MISSING_FIELD, f"none of {', '.join(paths)} is there")
        text = parts[0] if len(parts) == 1 else "\n".join(parts)
        if not text or text.isspace():
            raise _RefusedError(Reason.EMPTY_INPUT, f"the text in {', '.join(paths)} is empty")
        return text

    return read


def _row_reader(
    features: Sequence[Feature], names: dict[str, str], hint: str = ""
) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    read_value = {"numeric": _number, "boolean": _boolean}
    columns = [
        (
            path := names.get(f.name, f.name),
            _getter(path),
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
            if value is not _MISSING and value is not None and value != "":
                empty = False
            try:
                row.append(convert(path, name, value))
            except _RefusedError as refused:
                raise _RefusedError(refused.reason, refused.detail + hint) from None
        if empty:
            raise _RefusedError(Reason.EMPTY_INPUT, "every feature is missing or null")
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
    elif value is _MISSING or value is None or value == "":
        return math.nan
    elif type(value) is str and "_" not in value:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise _unfit(path, value, f"feature '{name}'", "a finite number")


def _boolean(path: str, name: str, value: Any) -> float:
    if value is _MISSING or value is None or value == "":
        return math.nan
    if type(value) is str:
        value = {"true": 1, "false": 0, "1": 1, "0": 0}.get(value.lower(), value)
    if type(value) in (bool, int, float) and value in (0, 1):
        return float(value)
    raise _unfit(path, value, f"feature '{name}'", "true or false")


def _category(path: str, name: str, value: Any) -> str | None:
    if type(value) is str:
        return value or None
    if value is _MISSING or value is None:
        return None
    text = _plain(value) or (repr(value) if type(value) is float else None)
    if text is None:
        raise _unfit(path, value, f"feature '{name}'", "text, a number or a boolean")
    return text


def _plain(value: Any) -> str | None:
    """Text of a boolean or whole number; a float counts if it is whole, as 3.0 for 3."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    if type(value) is float and value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    return None


def _event_time(path: str, value: Any) -> float:
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
            raise _RefusedError(
                Reason.BAD_TIME, f"the time in '{path}' is not ISO 8601: {_short(value)}"
            ) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    elif value is _MISSING:
        raise _RefusedError(Reason.MISSING_FIELD, f"the time '{path}' is not there")
    else:
        raise _RefusedError(
            Reason.BAD_TIME,
            f"the time in '{path}' must be ISO 8601 or an epoch number, this is {_kind(value)}",
        )
    if not FIRST_SECOND <= seconds < LAST_SECOND:
        raise _RefusedError(
            Reason.BAD_TIME, f"the time in '{path}' lies outside the years 1 to 9999: {value}"
        )
    return seconds


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _unfit(path: str, value: Any, what: str, wanted: str) -> _RefusedError:
    if value is _MISSING:
        return _RefusedError(Reason.MISSING_FIELD, f"{what} '{path}' is not there")
    return _RefusedError(
        Reason.WRONG_TYPE, f"{what} in '{path}' must be {wanted}, this is {_kind(value)}"
    )


def _kind(value: Any) -> str:
    """What a JSON value is, in a reader's words, without giving away long contents."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"the text {_short(value)}"
    return str(value).lower()  # a boolean as JSON has it, or a number


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _objects(items: Sequence[Any]) -> NDArray[np.object_]:
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column


def _rejected(records: Records, i: int, refused: _RefusedError) -> Rejected:
    return Rejected(
        reason=refused.reason,
        detail=refused.detail,
        value=records.values[i] or b"",
        topic=records.topics[i],
        partition=records.partitions[i],
        offset=records.offsets[i],
    )
