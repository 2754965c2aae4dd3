"""Logging of the daemon and the server: to standard error, as text or as one JSON object a line.

With JSON nothing else is written there: warnings of Python, crashes and the command's last words
are lines, too. What the process knows of itself (`know`) stands on each of them.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

import orjson

from daemon.policy_config import LogConfig

log = logging.getLogger("driftd")

Facts = Callable[[], dict[str, Any]]


class _Process:
    """What this process has said of its lines; there is one."""

    as_json = False
    facts: Facts = staticmethod(dict)


def know(facts: Facts) -> None:
    """Put what ``facts`` returns on every JSON line from now on.

    It is called on whatever thread logs, must be quick, and must not log.
    """
    _Process.facts = staticmethod(facts)


def as_json() -> bool:
    """Whether standard error takes JSON lines only."""
    return _Process.as_json


def set_up(config: LogConfig) -> None:
    """Send all log lines of the process to standard error, as configured; again to change it."""
    _Process.as_json = config.format == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    logging.captureWarnings(_Process.as_json)
    sys.excepthook = _crashed if _Process.as_json else sys.__excepthook__
    threading.excepthook = _thread_crashed if _Process.as_json else threading.__excepthook__
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
    """Keys ``time``, ``level``, ``logger``, ``message``, ``release``, and ``trace`` after a crash.

    Then what the process knows of itself: of a daemon ``model``, ``version`` (the champion),
    ``event`` and ``offsets``, the next one by ``topic/partition``.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            self._release = version("driftd")
        except PackageNotFoundError:
            self._release = "unknown"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one JSON object."""
        body: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "release": self._release,
            **_Process.facts(),
        }
        if record.exc_info:
            body["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(body, default=str).decode()


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("crashed: %s", error, exc_info=(kind, error, trace))


def _thread_crashed(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is not None:
        name = what.thread.name if what.thread else "a thread"
        found = (what.exc_type, what.exc_value, what.exc_traceback)
        log.critical("%s crashed: %s", name, what.exc_value, exc_info=found)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
