"""SIGHUP: the configuration is read again, and what may change while the daemon runs is taken up.

Thresholds, intervals and limits are looked at when they are needed, so that a new value counts
from the next decision on; an open trial goes on under the settings that it began with. What was
built into the state (memory, detectors, the source) cannot change without a restart, and is named.
A file that cannot be used changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from daemon.config import Config, ConfigError
from daemon.logs import set_up

if TYPE_CHECKING:
    from daemon.loop import Loop

log = logging.getLogger("driftd.reload")

# Sections and keys that may change, and keys of them that may not.
LIVE = (
    "bootstrap",
    "policy",
    "gate",
    "probation",
    "guard",
    "learn",
    "trainer",
    "log",
    "drift.same_regime",
    "checkpoint.every_seconds",
    "checkpoint.every_events",
    "checkpoint.stop_seconds",
    "http.stalled_seconds",
    "registry.keep",
    "registry.history",
)
FIXED = ("probation.late_events", "guard.flood_labels", "learn.online", "trainer.job")
# Of the inference server, which is another process.
OTHERS = ("server",)
# Mappings whose keys are a user's own: each is one setting.
OWN_MAPPINGS = frozenset(
    {
        "policy.min_labelled_by_rung",
        "source.options",
        "fields.features",
        "dead_letters.connection.options",
    }
)


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs between two configurations; secrets are not shown."""

    key: str
    old: Any
    new: Any

    @property
    def live(self) -> bool:
        """Whether it counts without a restart."""
        return _within(self.key, LIVE) and not _within(self.key, FIXED)

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def changes(old: Config, new: Config) -> list[Change]:
    """What differs, setting by setting, without what is the inference server's."""
    before, after = dict(_settings(old.model_dump())), dict(_settings(new.model_dump()))
    # The same in plain values; a secret is stars there, and would not be seen to differ.
    olds = dict(_settings(old.model_dump(mode="json")))
    news = dict(_settings(new.model_dump(mode="json")))
    return [
        Change(key, olds.get(key), news.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not _within(key, OTHERS)
    ]


def reload(loop: Loop, read: Callable[[], Config]) -> None:
    """Read the configuration again and take up what may change. Never raises for a wrong one."""
    try:
        new = read()
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
        for problem in problems:
            log.error("the configuration stays as it was: %s", problem)
        loop.journal.write("reload-refused", problems=problems)
        return
    found = changes(loop.config, new)
    live = [change for change in found if change.live]
    later = [change.key for change in found if not change.live]
    try:
        merged = _merged(loop.config, new, live)
    except ValidationError as error:
        problem = f"what may change now does not go with what needs a restart: {error.errors()}"
        log.error("the configuration stays as it was: %s", problem)
        loop.journal.write("reload-refused", problems=[problem])
        return
    loop.reconfigure(merged)
    set_up(merged.log)
    for change in live:
        log.info("reloaded: %s", change)
    for key in later:
        log.warning("%s changed in the file, and needs a restart", key)
    if not found:
        log.info("reloaded: nothing has changed")
    loop.journal.write(
        "reloaded",
        changed={change.key: [change.old, change.new] for change in live},
        needs_restart=later,
    )


def _merged(old: Config, new: Config, live: list[Change]) -> Config:
    """The old configuration with the live changes. Raises `ValidationError` if they disagree."""
    values, wanted = old.model_dump(), new.model_dump()
    for change in live:
        path = change.key.split(".")
        here, there = values, wanted
        for step in path[:-1]:
            here, there = here[step], there[step]
        here[path[-1]] = there[path[-1]]
    return Config.model_validate(values)


def _settings(values: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    for name, value in values.items():
        key = f"{section}{name}"
        if isinstance(value, dict) and key not in OWN_MAPPINGS:
            yield from _settings(value, f"{key}.")
        else:
            yield key, value


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
