"""From the bytes of one record to an object with fields: JSON, Avro, or a decoder of your own.

A reader takes the bytes and returns the fields by name. It raises `RefusedError` for a record that
is no event, and `FormatAway` where it cannot tell for now; then nothing is lost and nothing is
refused, and the record is read again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, cast

import orjson

from daemon.refusals import Reason, RefusedError, kind_of
from daemon.stream_config import FormatConfig, SchemaRegistryConfig

GROUP = "driftd.decoders"

#: Fields by name, of the bytes of one record.
Reader = Callable[[bytes], dict[str, Any]]
#: What a plug-in is: it may raise ValueError, whose text becomes the reason in the dead letter.
Plugin = Callable[[bytes], object]


class FormatError(Exception):
    """The format cannot be used as it is configured; the message says what to do."""


class FormatAway(Exception):  # noqa: N818 - a state, not a mistake
    """What the format needs does not answer for now: wait, and read the record again."""


def open_reader(config: FormatConfig, registry: SchemaRegistryConfig | None = None) -> Reader:
    """The reader of a topic; ``registry`` where its own section names none. Raises FormatError."""
    if config.format == "avro":
        try:
            from daemon.avro import AvroReader
        except ImportError as error:
            raise FormatError("format: avro needs the extra: pip install 'driftd[avro]'") from error

        found = config.schema_registry or registry
        if found is None:
            raise FormatError("format: avro needs a schema_registry")
        return AvroReader(found, config.reader_schema)
    if config.format == "plugin":
        return plugged(config.decoder or "")
    return read_json


def read_json(value: bytes) -> dict[str, Any]:
    """The fields of a JSON object.

    >>> read_json(b'{"text": "hi"}')
    {'text': 'hi'}
    """
    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        what = "the value is empty" if not value.strip() else f"not valid JSON: {error}"
        raise RefusedError(Reason.INVALID_JSON, what) from None
    if type(event) is not dict:
        raise RefusedError(
            Reason.NOT_AN_OBJECT, f"an event is a JSON object, this is {kind_of(event)}"
        )
    return event


def plugged(name: str) -> Reader:
    """The reader that is the plug-in ``name``: an entry point, or ``package.module:function``.

    It is called with the bytes of one record and returns its fields by name: text, numbers,
    booleans, None, and lists and mappings of these. Any error means that the record is no event;
    of a ValueError the text is told too.
    """
    decode = _found(name)

    def read(value: bytes) -> dict[str, Any]:
        try:
            event = decode(value)
        except ValueError as error:
            raise RefusedError(Reason.REFUSED_BY_DECODER, str(error)) from None
        except Exception as error:
            what = f"{name} failed with {type(error).__name__}: {error}"
            raise RefusedError(Reason.REFUSED_BY_DECODER, what) from None
        if isinstance(event, Mapping):
            return event if isinstance(event, dict) else dict(event)
        what = f"{name} returned {type(event).__name__}, and must return the fields by name"
        raise RefusedError(Reason.REFUSED_BY_DECODER, what)

    return read


def _found(name: str) -> Plugin:
    installed = entry_points(group=GROUP)
    try:
        if name in installed.names:
            return cast("Plugin", installed[name].load())
        module, _, attribute = name.partition(":")
        if not attribute:
            known = ", ".join(sorted(installed.names)) or "none"
            raise FormatError(
                f"there is no decoder {name!r}: give package.module:function, or the name of"
                f" an entry point of {GROUP} (installed: {known})"
            )
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise FormatError(f"the decoder {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise FormatError(f"the decoder {name!r} is no function")
    return cast("Plugin", found)
