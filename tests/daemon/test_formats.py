"""Avro with a schema registry, and decoders of one's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastavro", reason="pip install 'driftd[avro]'")

from daemon.avro import AvroReader
from daemon.config import Config, ConfigError, load_config
from daemon.decode import Decoder, Records
from daemon.formats import FormatAway, FormatError, open_reader, plugged
from daemon.refusals import Reason, RefusedError
from daemon.sources import SourceError, open_source
from daemon.stream_config import (
    EventsConfig,
    FieldsConfig,
    KafkaSourceConfig,
    SchemaRegistryConfig,
)
from tests.daemon.schemas import Schemas, framed

POST: dict[str, Any] = {
    "type": "record",
    "name": "Post",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "text", "type": "string"},
        {"name": "label", "type": ["null", "string"], "default": None},
    ],
}


@pytest.fixture
def schemas() -> Iterator[Schemas]:
    made = Schemas()
    made.start()
    yield made
    made.stop()


def reader(schemas: Schemas, **more: Any) -> AvroReader:
    return AvroReader(SchemaRegistryConfig(url=schemas.url, **more))


def test_a_record_is_read_by_the_schema_it_names_which_is_asked_for_once(schemas: Schemas) -> None:
    schemas.add(7, POST)
    read = reader(schemas)
    for n in range(3):
        record = {"id": n, "text": "hi", "label": "a"}
        assert read(framed(7, POST, record)) == record
    assert schemas.asked == ["/schemas/ids/7"]


def test_values_become_what_json_would_have(schemas: Schemas) -> None:
    schema = {
        "type": "record",
        "name": "Row",
        "fields": [
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {
                "name": "price",
                "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
            },
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["x", "y"]}},
            {"name": "tags", "type": {"type": "map", "values": "long"}},
        ],
    }
    schemas.add(1, schema)
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    record = {
        "at": at,
        "day": at.date(),
        "price": Decimal("12.50"),
        "kind": "y",
        "tags": {"a": 1},
    }
    assert reader(schemas)(framed(1, schema, record)) == {
        "at": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "price": 12.5,
        "kind": "y",
        "tags": {"a": 1},
    }


def test_a_reader_schema_resolves_what_older_and_newer_producers_wrote(
    schemas: Schemas, tmp_path: Path
) -> None:
    old = {**POST, "fields": [{"name": "id", "type": "int"}, {"name": "body", "type": "string"}]}
    new = {**POST, "fields": [*POST["fields"], {"name": "lang", "type": "string"}]}
    wanted = {
        **POST,
        "fields": [
            POST["fields"][0],
            {"name": "text", "type": "string", "aliases": ["body"]},
            POST["fields"][2],
        ],
    }
    path = tmp_path / "post.avsc"
    path.write_text(json.dumps(wanted))
    schemas.add(1, old)
    schemas.add(2, new)
    read = AvroReader(SchemaRegistryConfig(url=schemas.url), path)
    assert read(framed(1, old, {"id": 1, "body": "hi"})) == {"id": 1, "text": "hi", "label": None}
    record = {"id": 2, "text": "hi", "label": "a", "lang": "de"}
    assert read(framed(2, new, record)) == {"id": 2, "text": "hi", "label": "a"}
    path.write_text("{}")
    with pytest.raises(FormatError, match="no Avro schema"):
        AvroReader(SchemaRegistryConfig(url=schemas.url), path)


def test_schemas_that_refer_to_others(schemas: Schemas) -> None:
    user = {"type": "record", "name": "User", "fields": [{"name": "name", "type": "string"}]}
    post = {**POST, "fields": [*POST["fields"], {"name": "by", "type": "User"}]}
    whole = {**POST, "fields": [*POST["fields"], {"name": "by", "type": user}]}
    schemas.subjects["user value", 3] = {"schema": json.dumps(user)}
    schemas.subjects["user%20value", 3] = schemas.subjects["user value", 3]
    schemas.add(1, post, references=[{"name": "User", "subject": "user value", "version": 3}])
    record = {"id": 1, "text": "hi", "label": None, "by": {"name": "me"}}
    assert reader(schemas)(framed(1, whole, record)) == record


def test_what_is_no_record_is_refused_with_its_reason(schemas: Schemas) -> None:
    schemas.add(7, POST)
    schemas.add(8, {"type": "string"})
    schemas.add(9, POST, schemaType="PROTOBUF")
    schemas.ids[10] = {"schema": "{broken"}
    good = framed(7, POST, {"id": 1, "text": "hi", "label": None})
    read = reader(schemas)
    bad = [
        (b"", Reason.INVALID_AVRO, "Confluent wire format"),
        (b'{"text": "hi"}', Reason.INVALID_AVRO, "Confluent wire format"),
        (good[:8], Reason.INVALID_AVRO, "not a record of schema 7"),
        (good + b"more", Reason.INVALID_AVRO, "4 bytes follow"),
        (framed(8, {"type": "string"}, "hi"), Reason.NOT_AN_OBJECT, "schema 8 is no record"),
        (b"\x00\x00\x00\x00\x09x", Reason.UNKNOWN_SCHEMA, "PROTOBUF"),
        (b"\x00\x00\x00\x00\x0ax", Reason.UNKNOWN_SCHEMA, "no Avro schema"),
        (b"\x00\x00\x00\x00\x63x", Reason.UNKNOWN_SCHEMA, "the schema registry has no"),
    ]
    for value, reason, says in bad:
        with pytest.raises(RefusedError, match=says) as caught:
            read(value)
        assert caught.value.reason == reason
    # What is not there is not asked for with every record.
    asked = len(schemas.asked)
    with pytest.raises(RefusedError):
        read(b"\x00\x00\x00\x00\x63x")
    assert len(schemas.asked) == asked


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_registry_that_refuses_is_waited_for(schemas: Schemas, status: int) -> None:
    schemas.add(7, POST)
    schemas.status = status
    read = reader(schemas)
    value = framed(7, POST, {"id": 1, "text": "hi", "label": None})
    with pytest.raises(FormatAway, match=str(status)):
        read(value)
    with pytest.raises(FormatAway):
        read(value)
    assert len(schemas.asked) == 1  # no sooner than after a second
    schemas.status = 200
    read._registry._again = 0.0
    assert read(value)["text"] == "hi"


def test_the_login_is_sent_and_never_printed(schemas: Schemas) -> None:
    schemas.add(7, POST)
    value = framed(7, POST, {"id": 1, "text": "hi", "label": None})
    config = SchemaRegistryConfig(url=schemas.url, username="me", password="hunter2")
    AvroReader(config)(value)
    assert schemas.logins == ["Basic bWU6aHVudGVyMg=="]
    assert "hunter2" not in repr(config)


def test_a_stream_waits_for_its_registry_and_loses_nothing(
    broker: Any,
    fast_group: dict[str, int],
    schemas: Schemas,
    eventually: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = broker.topic()
    schemas.add(7, POST)
    schemas.stop()
    values = [framed(7, POST, {"id": n, "text": f"t{n}", "label": "a"}) for n in range(20)]
    broker.produce(topic, [*values[:10], b"junk", *values[10:]])
    config = Config.model_validate(
        {
            "source": {
                "kind": "kafka",
                "topic": topic,
                "bootstrap_servers": broker.bootstrap,
                "options": fast_group,
                "format": "avro",
                "schema_registry": {"url": schemas.url},
            }
        }
    )
    source = open_source(config)
    source.start({})
    texts: list[str] = []
    refused = []

    def read() -> None:
        polled = source.poll(100, 0.1)
        texts.extend(polled.batch.inputs.tolist())
        refused.extend((r.reason, r.offset) for r in polled.rejected)

    with caplog.at_level(logging.INFO, "driftd"):
        eventually(lambda: (read(), "events wait until it answers" in caplog.text)[1])
        for _ in range(5):
            read()
        assert (texts, refused) == ([], [])
        assert source.positions().get((topic, 0), 0) == 0
        assert not source.connected
        schemas.start()
        eventually(lambda: (read(), len(texts) == 20)[1])
    assert texts == [f"t{n}" for n in range(20)]
    assert refused == [(Reason.INVALID_AVRO, 10)]
    assert source.connected
    assert source.positions() == {(topic, 0): 21}
    assert caplog.text.count("events wait until it answers") == 1
    assert "answers again" in caplog.text
    source.close()


# ------------------------------------------------------------------ plug-ins


def decoded(read: Any, *values: bytes) -> tuple[Any, list[Any]]:
    decoder = Decoder(FieldsConfig(id="id"), EventsConfig(), read=read)
    n = len(values)
    return decoder.decode(Records(list(values), ["t"] * n, [0] * n, list(range(n)), [-1] * n))


def test_the_example_decoder_runs() -> None:
    read = plugged("examples.decoder:decode")
    batch, rejected = decoded(read, b"id=17 score=0.25 text=hello world", b"?", b"id=1 score=x")
    assert (batch.ids.tolist(), batch.inputs.tolist()) == (["17"], ["hello world"])
    assert [r.reason for r in rejected] == [Reason.REFUSED_BY_DECODER] * 2
    assert rejected[0].detail == "there is no name=value in the line"
    assert "could not convert" in rejected[1].detail


class Decoders:
    """Of all kinds that go wrong."""

    number = 7

    @staticmethod
    def broken(value: bytes) -> dict[str, Any]:
        return {"id": value[100]}

    @staticmethod
    def empty(value: bytes) -> None:
        return None


def test_a_decoder_that_fails_stops_nothing() -> None:
    read = plugged(f"{__name__}:Decoders.broken")
    _, rejected = decoded(read, b"short")
    assert rejected[0].reason == Reason.REFUSED_BY_DECODER
    assert "failed with IndexError" in rejected[0].detail
    _, rejected = decoded(plugged(f"{__name__}:Decoders.empty"), b"short")
    assert "returned NoneType" in rejected[0].detail


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "no decoder 'nothing'"),
        ("no.such.module:f", "cannot be loaded"),
        ("examples.decoder:nothing", "cannot be loaded"),
        (f"{__name__}:Decoders.number", "is no function"),
    ],
)
def test_a_decoder_that_is_not_there_is_said_so(name: str, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        plugged(name)
    source = KafkaSourceConfig(
        kind="kafka", topic="t", bootstrap_servers=("x:1",), format="plugin", decoder=name
    )
    with pytest.raises(SourceError, match=says):
        open_source(Config(source=source))


def test_a_decoder_can_be_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lines-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[driftd.decoders]\nlines = examples.decoder:decode\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = KafkaSourceConfig(
        kind="kafka", topic="t", bootstrap_servers=("x:1",), format="plugin", decoder="lines"
    )
    assert open_reader(config)(b"id=1") == {"id": "1"}


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    for more, says in [
        ("format: plugin", "format: plugin and decoder belong together"),
        ("decoder: a:b", "format: plugin and decoder belong together"),
        ("format: avro", "is needed for format: avro"),
        ("reader_schema: x.avsc", "need format: avro"),
        ("schema_registry: {url: 'ftp://x'}, format: avro", "url"),
        ("schema_registry: {url: 'http://x', username: me}, format: avro", "belong together"),
    ]:
        path.write_text(f"source: {{kind: kafka, topic: t, bootstrap_servers: 'x:1', {more}}}\n")
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        assert says in str(caught.value)
