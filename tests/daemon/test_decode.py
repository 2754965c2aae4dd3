"""Decoding: every kind of bad record has its reason, good ones become the right columns."""

import dataclasses
import itertools
import logging
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import plain
from daemon.decode import NO_TIME, Decoder, Now, Reason, Records, features_dtype
from daemon.stream_config import EventsConfig, FieldsConfig
from learn.config import FeatureConfig

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
FEATURES = (
    FeatureConfig(name="amount", kind="numeric"),
    FeatureConfig(name="returning", kind="boolean"),
    FeatureConfig(name="country", kind="categorical"),
)


def records(*values: bytes | None, timestamp: int = NO_TIME) -> Records:
    n = len(values)
    return Records(list(values), ["t"] * n, [3] * n, list(range(7, 7 + n)), [timestamp] * n)


def json(**event: Any) -> bytes:
    return orjson.dumps(event)


def text_decoder(events: EventsConfig | None = None, **fields: Any) -> Decoder:
    return Decoder(FieldsConfig(**fields), events or EventsConfig(), clock=lambda: NOW)


def table_decoder(**fields: Any) -> Decoder:
    return Decoder(FieldsConfig(**fields), EventsConfig(), FEATURES, clock=lambda: NOW)


def refused(decoder: Decoder, value: bytes | None) -> tuple[str, str]:
    batch, rejected = decoder.decode(records(value))
    assert len(batch) == 0
    assert len(rejected) == 1
    return rejected[0].reason, rejected[0].detail


# ------------------------------------------------------------------ what is no event


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (None, Reason.NO_VALUE, "tombstone"),
        (b"", Reason.INVALID_JSON, "empty"),
        (b"  \n", Reason.INVALID_JSON, "empty"),
        (b"{", Reason.INVALID_JSON, "not valid JSON"),
        (b"hello", Reason.INVALID_JSON, "not valid JSON"),
        (b'{"text": "cut o', Reason.INVALID_JSON, "not valid JSON"),
        (b"\xff\xfe\x00", Reason.INVALID_JSON, "UTF-8"),
        (b'{"text": "\\ud800"}', Reason.INVALID_JSON, "surrogate"),
        (b'{"text": NaN}', Reason.INVALID_JSON, "not valid JSON"),
        (b"[" * 100_000, Reason.INVALID_JSON, "depth"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, Reason.INVALID_JSON, "depth"),
        (b"[1, 2]", Reason.NOT_AN_OBJECT, "a list of 2"),
        (b'"text"', Reason.NOT_AN_OBJECT, "the text 'text'"),
        (b"null", Reason.NOT_AN_OBJECT, "null"),
        (b"{}", Reason.MISSING_FIELD, "the text 'text' is not there"),
        (json(Text="x"), Reason.MISSING_FIELD, "'text'"),
        (json(text=None), Reason.WRONG_TYPE, "must be text, this is null"),
        (json(text=5), Reason.WRONG_TYPE, "this is 5"),
        (json(text=["a"]), Reason.WRONG_TYPE, "a list of 1"),
        (json(text={"a": 1}), Reason.WRONG_TYPE, "an object"),
        (json(text=True), Reason.WRONG_TYPE, "this is true"),
        (json(text=""), Reason.EMPTY_INPUT, "empty"),
        (json(text=" \t\n\u00a0"), Reason.EMPTY_INPUT, "empty"),
        (json(text="x", label=1.5), Reason.WRONG_TYPE, "the label"),
        (json(text="x", label=["a"]), Reason.WRONG_TYPE, "the label"),
        (json(text="x", label={"a": 1}), Reason.WRONG_TYPE, "the label"),
        (json(text="x", label="a\nb"), Reason.BAD_LABEL, "printable"),
        (json(text="x", label="a\u0000"), Reason.BAD_LABEL, "printable"),
        (json(text="x", label="   "), Reason.BAD_LABEL, "printable"),
        (json(text="x", label="y" * 201), Reason.BAD_LABEL, "this one has 201"),
        # Whole numbers beyond 64 bits arrive as floats, which no longer tell them apart.
        (b'{"text":"x","label":123456789012345678901234}', Reason.WRONG_TYPE, "the label"),
    ],
)  # fmt: skip
def test_each_bad_record_has_its_reason(value: bytes | None, reason: Reason, says: str) -> None:
    found, detail = refused(text_decoder(), value)
    assert found == reason
    assert says in detail


def test_a_rejected_record_keeps_its_bytes_and_place() -> None:
    _, rejected = text_decoder().decode(records(json(text="fine"), b"{broken"))
    assert [(r.value, r.topic, r.partition, r.offset) for r in rejected] == [
        (b"{broken", "t", 3, 8)
    ]


def test_the_size_limit_is_exact_and_comes_before_parsing() -> None:
    value = json(text="x" * 100)
    decoder = text_decoder(EventsConfig(max_event_bytes=len(value)))
    assert len(decoder.decode(records(value))[0]) == 1
    assert refused(decoder, value + b" ")[0] == Reason.TOO_LARGE
    # What the source cut off is refused with the size that it had.
    cut = records(value[:10])
    cut.oversized[0] = 10_485_760
    _, rejected = decoder.decode(cut)
    assert "10485760 bytes" in rejected[0].detail


def test_bad_records_cost_no_good_ones() -> None:
    good = [json(text=f"event {i}", label="a") for i in range(50)]
    mixed: list[bytes | None] = []
    for value in good:
        mixed += [value, b"{", None, json(label="a"), b"[]"]
    batch, rejected = text_decoder().decode(records(*mixed))
    assert batch.inputs.tolist() == [f"event {i}" for i in range(50)]
    assert batch.offsets.tolist() == list(range(7, 257, 5))
    assert len(rejected) == 200


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.none(),
            st.recursive(
                st.none()
                | st.booleans()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.integers(-(2**53), 2**53)
                | st.text(max_size=8),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["text", "label", "id", "time", "amount", "country"]), inner
                    )
                ),
                max_leaves=6,
            ).map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)),
        ),
        max_size=12,
    )
)
def test_whatever_comes_decoding_neither_raises_nor_loses(values: list[bytes | None]) -> None:
    for decoder in (
        text_decoder(id="id", time="time"),
        text_decoder(),
        table_decoder(time="time"),
        table_decoder(id="id"),
    ):
        batch, rejected = decoder.decode(records(*values))
        assert sorted([*batch.offsets.tolist(), *(r.offset for r in rejected)]) == list(
            range(7, 7 + len(values))
        )
        assert all(r.reason in set(Reason) and r.detail for r in rejected)
        assert np.isfinite(batch.times).all()


# ------------------------------------------------------------------ columns


def test_a_text_batch_has_the_documented_columns() -> None:
    batch, rejected = text_decoder().decode(
        records(json(text="eins", label="a"), json(text="zwei"), timestamp=1_700_000_000_500)
    )
    assert not rejected
    assert batch.inputs.dtype == object
    assert batch.inputs.tolist() == ["eins", "zwei"]
    assert batch.labels.tolist() == ["a", None]
    assert batch.ids.tolist() == ["t:3:7", "t:3:8"]
    assert batch.times.tolist() == [1_700_000_000.5] * 2
    assert batch.topics.tolist() == ["t", "t"]
    assert (batch.partitions.dtype, batch.offsets.dtype) == (np.int32, np.int64)
    assert batch.take(np.array([False, True])).ids.tolist() == ["t:3:8"]


def test_empty_batches_keep_their_dtypes() -> None:
    batch, _ = text_decoder().decode(Records())
    assert batch.inputs.dtype == object
    assert batch.inputs.shape == (0,)
    batch, _ = table_decoder().decode(Records())
    assert batch.inputs.dtype == features_dtype(FEATURES)
    assert np.concatenate([batch.inputs, batch.inputs]).shape == (0,)


def test_a_record_without_a_timestamp_happened_now() -> None:
    batch, _ = text_decoder().decode(records(json(text="x")))
    assert batch.times.tolist() == [NOW]


def test_nul_and_other_unicode_pass_unchanged() -> None:
    text = "a\u0000b \U0001f600 \u202e"
    batch, rejected = text_decoder().decode(records(json(text=text, label="\U0001f600")))
    assert not rejected
    assert batch.inputs[0] == text
    assert batch.labels[0] == "\U0001f600"


def test_users_keep_their_own_names() -> None:
    decoder = text_decoder(input="post.body", label="meta.topic", id="meta.key", time="at")
    event = {"post": {"body": "hi"}, "meta": {"topic": "sci", "key": 12}, "at": 1_700_000_000}
    batch, rejected = decoder.decode(records(orjson.dumps(event)))
    assert not rejected
    assert (batch.inputs[0], batch.labels[0], batch.ids[0], batch.times[0]) == (
        "hi",
        "sci",
        "12",
        1_700_000_000.0,
    )


def test_a_name_with_a_dot_in_it_wins_over_nesting() -> None:
    decoder = text_decoder(input="a.b")
    batch, _ = decoder.decode(records(orjson.dumps({"a.b": "flat", "a": {"b": "nested"}})))
    assert batch.inputs[0] == "flat"
    assert refused(decoder, orjson.dumps({"a": "no object"}))[0] == Reason.MISSING_FIELD


def test_several_text_fields_are_joined() -> None:
    decoder = text_decoder(input=["title", "body"])
    batch, _ = decoder.decode(
        records(json(title="T", body="B"), json(title="T"), json(title=None, body="B"))
    )
    assert batch.inputs.tolist() == ["T\nB", "T", "B"]
    assert refused(decoder, json(other=1))[0] == Reason.MISSING_FIELD
    assert refused(decoder, json(title="T", body=3))[0] == Reason.WRONG_TYPE
    assert refused(decoder, json(title="", body=" "))[0] == Reason.EMPTY_INPUT


@pytest.mark.parametrize(
    ("value", "label"),
    [("a", "a"), (3, "3"), (-1, "-1"), (3.0, "3"), (True, "true"), (False, "false"),
     (None, None), ("", None), (2**62, str(2**62))],
)  # fmt: skip
def test_labels_become_text(value: object, label: str | None) -> None:
    batch, rejected = text_decoder().decode(records(json(text="x", label=value)))
    assert not rejected
    assert batch.labels[0] == label


def test_an_id_field_is_required_once_it_is_configured() -> None:
    decoder = text_decoder(id="id")
    assert decoder.decode(records(json(text="x", id="a")))[0].ids[0] == "a"
    assert refused(decoder, json(text="x"))[0] == Reason.MISSING_FIELD
    for bad in (None, "", 1.5, ["a"], True, "y" * 1001):
        assert refused(decoder, json(text="x", id=bad))[0] == Reason.WRONG_TYPE


# ------------------------------------------------------------------ labels never seen before


def test_new_labels_grow_classes_up_to_a_limit() -> None:
    decoder = text_decoder(EventsConfig(max_labels=3))
    decoder.know(["a"])
    values = [json(text="x", label=label) for label in ("a", "b", "c", "d", "b")]
    batch, rejected = decoder.decode(records(*values))
    assert batch.labels.tolist() == ["a", "b", "c", "b"]
    assert [r.reason for r in rejected] == [Reason.UNKNOWN_LABEL]
    assert "'d' would be class 4, over events.max_labels (3)" in rejected[0].detail


def test_new_labels_can_be_refused() -> None:
    decoder = text_decoder(EventsConfig(unknown_label="reject"))
    decoder.know(["a"])
    batch, rejected = decoder.decode(
        records(json(text="x", label="a"), json(text="x", label="b"), json(text="x"))
    )
    assert batch.labels.tolist() == ["a", None]
    assert "no class 'b'" in rejected[0].detail


def test_a_label_of_a_refused_event_does_not_count() -> None:
    decoder = text_decoder(EventsConfig(max_labels=2))
    decoder.decode(records(json(text="", label="a"), json(text="", label="b")))
    batch, rejected = decoder.decode(records(json(text="x", label="c"), json(text="x", label="d")))
    assert len(batch) == 2
    assert not rejected


def test_a_wrong_label_field_is_noticed_once(caplog: pytest.LogCaptureFixture) -> None:
    decoder = text_decoder(label="lable")
    with caplog.at_level(logging.WARNING, "driftd.decode"):
        for _ in range(3):
            decoder.decode(records(*[json(text="x", label="a")] * 600))
    assert len(caplog.records) == 1
    assert "'lable': is fields.label right?" in caplog.text


def test_streams_with_late_labels_raise_no_such_warning(caplog: pytest.LogCaptureFixture) -> None:
    decoder = text_decoder()
    with caplog.at_level(logging.WARNING, "driftd.decode"):
        decoder.decode(records(json(text="x", label=None), *[json(text="x")] * 2000))
    assert not caplog.records


# ------------------------------------------------------------------ time


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_700_000_000, 1_700_000_000.0),
        (1_700_000_000.25, 1_700_000_000.25),
        (1_700_000_000_250, 1_700_000_000.25),
        (1_700_000_000_250_000, 1_700_000_000.25),
        (1_700_000_000_250_000_000, 1_700_000_000.25),
        (0, 0.0),
        (-86_400, -86_400.0),
        (-2_208_988_800_000, -2_208_988_800.0),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000.5),
        ("2023-11-14 22:13:20", 1_700_000_000.0),
        (" 2023-11-14T22:13:20 ", 1_700_000_000.0),
        ("1899-12-31", datetime(1899, 12, 31, tzinfo=UTC).timestamp()),
        ("1969-07-20T20:17:40Z", datetime(1969, 7, 20, 20, 17, 40, tzinfo=UTC).timestamp()),
    ],
)
def test_times_of_all_usual_kinds(value: object, seconds: float) -> None:
    batch, rejected = text_decoder(time="ts").decode(records(json(text="x", ts=value)))
    assert not rejected
    assert batch.times[0] == pytest.approx(seconds, abs=1e-3)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("yesterday", Reason.BAD_TIME),
        ("1700000000", Reason.BAD_TIME),
        ("", Reason.BAD_TIME),
        (None, Reason.BAD_TIME),
        (True, Reason.BAD_TIME),
        ([1], Reason.BAD_TIME),
        (1e30, Reason.BAD_TIME),
        (-1e30, Reason.BAD_TIME),
        ("2026-13-01", Reason.BAD_TIME),
        ("2026-11-24T13:00:01Z", Reason.FUTURE),
        ("9999-12-31T23:59:59Z", Reason.FUTURE),
        (99_999_999_999, Reason.FUTURE),
    ],
)
def test_times_that_are_none(value: object, reason: Reason) -> None:
    assert refused(text_decoder(time="ts"), json(text="x", ts=value))[0] == reason


def test_a_time_field_is_required_once_it_is_configured() -> None:
    assert refused(text_decoder(time="ts"), json(text="x"))[0] == Reason.MISSING_FIELD


def test_the_limits_on_time() -> None:
    edge = text_decoder(time="ts")
    assert len(edge.decode(records(json(text="x", ts="2026-11-24T13:00:00Z")))[0]) == 1
    young = text_decoder(EventsConfig(max_age_seconds=3600), time="ts")
    assert len(young.decode(records(json(text="x", ts="2026-11-24T11:00:00Z")))[0]) == 1
    reason, detail = refused(young, json(text="x", ts="2026-11-24T10:59:59Z"))
    assert reason == Reason.TOO_OLD
    assert "2026-11-24T10:59:59" in detail
    # Without a limit, histories of any age are welcome.
    assert len(edge.decode(records(json(text="x", ts="0001-01-01")))[0]) == 1


# ------------------------------------------------------------------ tables


def row(**event: Any) -> dict[str, Any]:
    batch, rejected = table_decoder().decode(records(orjson.dumps(event)))
    assert not rejected, rejected[0].detail
    return {name: batch.inputs[name][0] for name in batch.inputs.dtype.names}


def test_a_table_is_a_structured_array() -> None:
    batch, _ = table_decoder().decode(
        records(json(amount=1.5, returning=True, country="NO", label="yes", extra="ignored"))
    )
    assert batch.inputs.dtype == np.dtype(
        [("amount", "<f8"), ("returning", "<f8"), ("country", object)]
    )
    assert batch.inputs[0].tolist() == (1.5, 1.0, "NO")
    assert batch.labels[0] == "yes"


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), (-2.5, -2.5), ("12.5", 12.5), (" 7 ", 7.0), (True, 1.0), ("1e3", 1000.0)],
)
def test_numbers_also_in_quotes(value: object, number: float) -> None:
    assert row(amount=value)["amount"] == number


@pytest.mark.parametrize("value", ["12,5", "1_000", "nan", "inf", "many", [1], {"a": 1}])
def test_what_is_no_number(value: object) -> None:
    reason, detail = refused(table_decoder(), json(amount=value))
    assert reason == Reason.WRONG_TYPE
    assert "feature 'amount' in 'amount' must be a finite number" in detail


@pytest.mark.parametrize(
    ("value", "number"),
    [(True, 1.0), (False, 0.0), (1, 1.0), (0.0, 0.0), ("true", 1.0), ("FALSE", 0.0), ("1", 1.0)],
)
def test_booleans(value: object, number: float) -> None:
    assert row(returning=value)["returning"] == number


@pytest.mark.parametrize("value", [2, "yes", [True], 0.5])
def test_what_is_no_boolean(value: object) -> None:
    assert refused(table_decoder(), json(returning=value))[0] == Reason.WRONG_TYPE


@pytest.mark.parametrize(
    ("value", "category"),
    [("NO", "NO"), (47, "47"), (47.0, "47"), (1.5, "1.5"), (True, "true"), ("", None)],
)
def test_categories(value: object, category: str | None) -> None:
    assert row(country=value, amount=1)["country"] == category


def test_missing_features_are_nan_and_none() -> None:
    found = row(country="NO")
    assert math.isnan(found["amount"])
    assert math.isnan(found["returning"])
    found = row(amount=1, country=None, returning=None)
    assert found["country"] is None
    assert math.isnan(found["returning"])


def test_a_row_without_any_feature_is_refused() -> None:
    for value in (json(label="a"), json(amount=None, country=""), b"{}"):
        assert refused(table_decoder(), value)[0] == Reason.EMPTY_INPUT


def test_features_under_other_names() -> None:
    decoder = table_decoder(features={"amount": "order.total", "country": "from"})
    event = {"order": {"total": 9}, "from": "SE", "returning": False}
    batch, _ = decoder.decode(records(orjson.dumps(event)))
    assert batch.inputs[0].tolist() == (9.0, 0.0, "SE")


def test_who_labelled_is_read_and_never_a_reason_to_refuse() -> None:
    decoder = text_decoder(labeller="by.name")
    batch, rejected = decoder.decode(
        records(
            json(text="a", by={"name": "ann"}),
            json(text="b", by={"name": 7}),
            json(text="c", by=None),
            json(text="d"),
        )
    )
    assert not rejected
    assert batch.labellers is not None
    assert batch.labellers.tolist() == ["ann", "7", None, None]
    assert batch.take(np.array([1])).labellers.tolist() == ["7"]
    assert text_decoder().decode(records(json(text="a")))[0].labellers is None


def test_a_clock_that_jumps_refuses_nothing() -> None:
    shown = NOW
    limits = EventsConfig(max_age_seconds=3600.0)
    decoder = Decoder(FieldsConfig(time="time"), limits, clock=lambda: shown)
    records = Records([b'{"text": "now", "time": %d}' % NOW], ["t"], [0], [0], [NO_TIME])
    for jump in (0.0, 1e8, -1e8):
        shown = NOW + jump
        batch, rejected = decoder.decode(records)
        assert (len(batch), rejected) == (1, [])
    early = Records([b'{"text": "no", "time": %d}' % (NOW - 2e8)], ["t"], [0], [0], [NO_TIME])
    assert decoder.decode(early)[1][0].reason == "too_old"
    late = Records([b'{"text": "no", "time": %d}' % (NOW + 2e8)], ["t"], [0], [0], [NO_TIME])
    assert decoder.decode(late)[1][0].reason == "future"


TIMES = [1.7e9, 1_700_000_000, 1.7e12, 1.7e15, 1.7e18, -5, "2023-11-14T22:13:20+00:00",
         "2023-11-14", " 2023-11-14T22:13:20Z", 1e300, True, None]  # fmt: skip
LABELS = ["a", "b", "c", "", None, 1, True, 1.5]
IDS = ["x", "", 7, None, "y" * 1001]
INPUTS = [{"text": "a text"}, {"text": " "}, {"text": 3}, {}]
ROWS = [
    {"n": 1.5, "b": True, "c": "red"},
    {"n": 3, "b": False, "c": "blue"},
    {"n": "3", "b": True, "c": "red"},
    {"n": None, "b": 1, "c": None},
    {"n": True, "b": True, "c": ""},
]
FEW = (
    FeatureConfig(name="n", kind="numeric"),
    FeatureConfig(name="b", kind="boolean"),
    FeatureConfig(name="c", kind="categorical"),
)


def both_ways(found: Records, *more: Any) -> tuple[Any, Any, bool]:
    """The columns by the short way and by the long one, and whether the short one was gone."""
    fields = FieldsConfig(id="id", time="time", labeller="by", prediction="said", version="v")
    ways = []
    for short in (True, False):
        decoder = Decoder(fields, EventsConfig(), *more, clock=lambda: NOW)
        decoder.know(["a", "b"])
        if not short:
            decoder._plain = {}
        batch, rejected = decoder.decode(found)
        ways.append(
            (
                {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)},
                [(r.reason, r.detail, r.offset) for r in rejected],
            )
        )
    try:
        decoder = Decoder(fields, EventsConfig(), *more, clock=lambda: NOW)
        decoder.know(["a", "b"])
        decoder._decode_plain(found, Now(NOW, NOW, NOW))
    except plain.NotPlain:
        return *ways, False
    return *ways, True


@pytest.mark.parametrize("table", [False, True])
def test_the_short_way_and_the_long_one_give_the_same(table: bool) -> None:
    more = (FEW,) if table else ()
    inputs = ROWS if table else INPUTS
    short = 0
    for at, label, name, more_fields in itertools.product(TIMES, LABELS, IDS, inputs):
        event = {
            "id": name,
            "time": at,
            "label": label,
            "by": "me",
            "said": "a",
            "v": "v1",
        } | more_fields
        usual = event | {"id": "u", "time": 1.7e9, "label": "a", "said": "b"} | inputs[0]
        three = records(*(orjson.dumps(one) for one in (usual, event, usual)))
        (ours, refused), (theirs, refused_too), gone = both_ways(three, *more)
        short += gone
        assert refused == refused_too
        for column, values_of in ours.items():
            assert values_of.dtype == theirs[column].dtype
            assert repr(values_of.tolist()) == repr(theirs[column].tolist()), column
    assert short >= 18
