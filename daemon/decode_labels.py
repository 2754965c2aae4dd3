"""From the records of a label topic to columns: which event, which label, when and by whom."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from daemon.decode import (
    NO_TIME,
    KnownLabels,
    Records,
    SteadyClock,
    check_time,
    event_time,
    getter,
    read_id,
    read_name,
    read_object,
    refused_record,
)
from daemon.events import LabelBatch, Rejected
from daemon.formats import Reader, read_json
from daemon.plain import objects
from daemon.refusals import Reason, RefusedError
from daemon.stream_config import EventsConfig, FieldsConfig, LabelsConfig


class LabelDecoder:
    """Decodes labels by the user's own field names; raises FormatAway only, whatever comes.

    ``known`` is shared with the decoder of the events: labels are let in alike.

    >>> fields, limits = FieldsConfig(id="id"), EventsConfig()
    >>> decoder = LabelDecoder(fields, limits, LabelsConfig(topic="labels"), KnownLabels(limits))
    >>> records = Records([b'{"id": "e1", "label": "yes"}', b'{"id": "e2"}'], ["labels"] * 2,
    ...                   [0, 0], [4, 5], [1_700_000_000_000, NO_TIME])
    >>> labels, rejected = decoder.decode(records)
    >>> labels.ids.tolist(), labels.labels.tolist(), [r.offset for r in rejected]
    (['e1'], ['yes'], [5])
    """

    def __init__(
        self,
        fields: FieldsConfig,
        events: EventsConfig,
        labels: LabelsConfig,
        known: KnownLabels,
        clock: Callable[[], float] = time.time,
        read: Reader = read_json,
    ) -> None:
        self._read = read
        self._events = events
        self._known = known
        self._clock = SteadyClock(clock)
        self._id_path = labels.id or fields.id or "id"
        self._id = getter(self._id_path)
        self._label_path = labels.label or fields.label
        self._label = getter(self._label_path)
        labeller = labels.labeller or fields.labeller
        self._labeller = getter(labeller) if labeller else None
        self._time = (labels.time, getter(labels.time)) if labels.time else None

    def decode(self, records: Records) -> tuple[LabelBatch, list[Rejected]]:
        """All labels among ``records``, and all that are none."""
        now = self._clock()
        ids: list[str] = []
        labels: list[str] = []
        times: list[float] = []
        labellers: list[str | None] = []
        rejected: list[Rejected] = []
        for i, value in enumerate(records.values):
            try:
                found = read_object(value, records.oversized.get(i), self._events, self._read)
                name = read_id(self._id_path, self._id(found))
                label = self._known.read(self._label_path, self._label(found))
                if label is None:
                    raise RefusedError(Reason.MISSING_FIELD, f"'{self._label_path}' is empty")
                if self._time is not None:
                    seconds = event_time(self._time[0], self._time[1](found))
                else:
                    stamp = records.timestamps[i]
                    seconds = now.clock if stamp == NO_TIME else stamp / 1000.0
                check_time(seconds, now, self._events)
            except RefusedError as refused:
                rejected.append(refused_record(records, i, refused))
                continue
            ids.append(name)
            labels.append(label)
            times.append(seconds)
            labellers.append(read_name(self._labeller(found)) if self._labeller else None)
        batch = LabelBatch(
            objects(ids), objects(labels), np.array(times, dtype=np.float64), objects(labellers)
        )
        return batch, rejected
