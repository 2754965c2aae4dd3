"""Avro in the Confluent wire format: a zero byte, the id of a schema, and a record written by it.

The schema is asked of a schema registry once and kept. With a reader schema the record is resolved
to it by Avro's own rules, so that producers may go ahead. Needs the extra ``avro``.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
from fastavro.schema import SchemaParseException

from daemon.formats import FormatError
from daemon.refusals import Reason, RefusedError, kind_of
from daemon.schema_registry import NoSuchSchema, SchemaRegistry
from daemon.stream_config import SchemaRegistryConfig

MAGIC = 0
HEADER = 5  # bytes before the record


class AvroReader:
    """Reads records whose schema the registry knows."""

    def __init__(self, config: SchemaRegistryConfig, reader_schema: Path | None = None) -> None:
        self._registry = SchemaRegistry(config)
        self._schemas: dict[int, Any] = {}  # parsed, by id
        self._wanted = None if reader_schema is None else _read_schema(reader_schema)

    def __call__(self, value: bytes) -> dict[str, Any]:
        """The fields of one record. Raises RefusedError, or FormatAway (see `formats`)."""
        if len(value) < HEADER or value[0] != MAGIC:
            what = f"not Avro in the Confluent wire format: it begins with {value[:HEADER]!r}"
            raise RefusedError(Reason.INVALID_AVRO, what)
        number = int.from_bytes(value[1:HEADER], "big")
        schema = self._schema(number)
        body = io.BytesIO(value)
        body.seek(HEADER)
        try:
            found = fastavro.schemaless_reader(body, schema, self._wanted)
        except Exception as error:  # whatever fastavro makes of bytes that are something else
            what = f"not a record of schema {number}: {type(error).__name__}: {error}"
            raise RefusedError(Reason.INVALID_AVRO, what) from None
        if body.tell() != len(value):
            what = f"{len(value) - body.tell()} bytes follow the record of schema {number}"
            raise RefusedError(Reason.INVALID_AVRO, what)
        if not isinstance(found, dict):
            what = f"schema {number} is no record: this is {kind_of(found)}"
            raise RefusedError(Reason.NOT_AN_OBJECT, what)
        return {name: _plain(field) for name, field in found.items()}

    def _schema(self, number: int) -> Any:
        if number not in self._schemas:
            try:
                text, named = self._registry.schema(number)
                known: dict[str, Any] = {}
                for needed in named:
                    fastavro.parse_schema(json.loads(needed), named_schemas=known)
                parsed = fastavro.parse_schema(json.loads(text), named_schemas=known)
            except NoSuchSchema as error:
                raise RefusedError(Reason.UNKNOWN_SCHEMA, str(error)) from None
            except (SchemaParseException, ValueError, KeyError, TypeError) as error:
                what = f"schema {number} of the registry is no Avro schema: {error}"
                raise RefusedError(Reason.UNKNOWN_SCHEMA, what) from None
            self._schemas[number] = parsed
        return self._schemas[number]


def _read_schema(path: Path) -> Any:
    try:
        return fastavro.parse_schema(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FormatError(f"cannot read reader_schema {path}: {error.strerror}") from error
    except (SchemaParseException, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"reader_schema {path} is no Avro schema: {error}") from error


def _plain(value: Any) -> Any:
    """The value as JSON would have it: what the fields of events are made of."""
    if isinstance(value, dict):
        return {name: _plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return str(value) if isinstance(value, UUID) else value
