"""A client of a Confluent schema registry: which schema has this id?

Only that one question is asked, once an id. A registry that does not answer, or answers with an
error of its own, is waited for; one that answers that it has no such schema is believed, for a
while.
"""

from __future__ import annotations

import base64
import json
import logging
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from daemon.formats import FormatAway, FormatError
from daemon.stream_config import SchemaRegistryConfig

log = logging.getLogger("driftd.schemas")

RETRY_SECONDS = 1.0
UNKNOWN_SECONDS = 30.0  # a schema may be registered after its first record was written
MOST_UNKNOWN = 1000  # ids remembered that there are no schemas of: noise is full of them
MOST_BYTES = 4 * 1024 * 1024  # of one answer
DEEPEST = 20  # references to references
SCHEMA_NOT_FOUND, SUBJECT_NOT_FOUND, VERSION_NOT_FOUND = 40403, 40401, 40402


class NoSuchSchema(Exception):  # noqa: N818 - an answer, not a mistake
    """The registry says that there is no such Avro schema."""


class SchemaRegistry:
    """Asks for schemas by their id. Raises FormatError for files that cannot be read."""

    def __init__(self, config: SchemaRegistryConfig) -> None:
        self._url = config.url.rstrip("/")
        self._timeout = config.timeout_seconds
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        try:
            password = config.secret()
            if config.username is not None:
                login = base64.b64encode(f"{config.username}:{password}".encode()).decode()
                self._headers["Authorization"] = f"Basic {login}"
            context = ssl.create_default_context(cafile=config.tls_ca_file)
        except OSError as error:
            raise FormatError(f"cannot read {error.filename}: {error.strerror}") from error
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _NoRedirect()
        )
        self._again = 0.0
        self._away = ""
        self._unknown: dict[int, tuple[float, str]] = {}

    def schema(self, number: int) -> tuple[str, list[str]]:
        """The text of the schema, and of those that it refers to, in order of their need.

        Raises:
            NoSuchSchema: there is none, or it is not Avro.
            FormatAway: the registry does not answer; asked again no sooner than after a second.
        """
        now = time.monotonic()
        until, why = self._unknown.get(number, (0.0, ""))
        if now < until:
            raise NoSuchSchema(why)
        if now < self._again:
            raise FormatAway(self._away)
        try:
            found = self._ask(f"/schemas/ids/{number}")
            kind = found.get("schemaType", "AVRO")
            if kind != "AVRO":
                raise NoSuchSchema(f"schema {number} is {kind}, not Avro")
            named: dict[tuple[str, int], str] = {}
            self._refer(found.get("references") or [], named, 0)
        except NoSuchSchema as error:
            self._unknown[number] = now + UNKNOWN_SECONDS, str(error)
            if len(self._unknown) > MOST_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]
            self._back()
            raise
        except FormatAway as error:
            self._again = time.monotonic() + RETRY_SECONDS
            if not self._away:
                log.warning("%s; events wait until it answers", error)
            self._away = str(error)
            raise
        self._back()
        return str(found["schema"]), list(named.values())

    def _back(self) -> None:
        if self._away:
            log.info("the schema registry at %s answers again", self._url)
            self._away = ""

    def _refer(
        self, references: list[dict[str, Any]], named: dict[tuple[str, int], str], depth: int
    ) -> None:
        if depth > DEEPEST:
            raise NoSuchSchema("its references lead in a circle")
        for reference in references:
            subject, version = str(reference["subject"]), int(reference["version"])
            if (subject, version) in named:
                continue
            place = f"/subjects/{urllib.parse.quote(subject, safe='')}/versions/{version}"
            found = self._ask(place)
            self._refer(found.get("references") or [], named, depth + 1)
            named[subject, version] = str(found["schema"])

    def _ask(self, place: str) -> dict[str, Any]:
        request = urllib.request.Request(self._url + place, headers=self._headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                found = json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            code = _error_code(error)
            if code in (SCHEMA_NOT_FOUND, SUBJECT_NOT_FOUND, VERSION_NOT_FOUND):
                raise NoSuchSchema(f"the schema registry has no {place}") from None
            hint = ": see schema_registry.username" if error.code in (401, 403) else ""
            raise FormatAway(
                f"the schema registry at {self._url} answers {error.code}{hint}"
            ) from None
        except (OSError, ValueError) as error:  # no connection, no answer in time, no JSON
            raise FormatAway(
                f"the schema registry at {self._url} does not answer: {error}"
            ) from None
        if not isinstance(found, dict) or "schema" not in found:
            raise FormatAway(f"{self._url} does not answer as a schema registry does")
        return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A login must not be sent on to wherever an answer points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _error_code(error: urllib.error.HTTPError) -> int | None:
    try:
        found = json.loads(error.read(MOST_BYTES))
    except (OSError, ValueError):
        return None
    code = found.get("error_code") if isinstance(found, dict) else None
    return code if isinstance(code, int) else None
