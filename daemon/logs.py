"""Logging of the daemon and the server: to standard error, as text or as one JSON object a line."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from daemon.policy_config import LogConfig


def set_up(config: LogConfig) -> None:
    """Send all log lines of the process to standard error, as configured."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    level = getattr(logging, config.level.upper())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The Kafka client repeats every failed attempt; the source says it once for each change.
    client = logging.getLogger("kafka")
    client.addHandler(logging.NullHandler())  # without any, Python would print its errors itself
    client.propagate = config.level == "debug"


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00Z warning source: what happened``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, with the traceback below it where there is one."""
        name = record.name.removeprefix("driftd.")
        line = f"{_time(record)} {record.levelname.lower()} {name}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """Keys ``time``, ``level``, ``logger``, ``message``, and ``trace`` after a crash."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one JSON object."""
        body = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            body["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(body).decode()


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
