"""A table whose features nobody declared: inferred once, and kept for as long as a version serves.

Who serves decides: the features of the champion's input schema; else those in the checkpoint; else
they are inferred from the first events, which are kept meanwhile and learned from afterwards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from daemon.config import Config, ConfigError, Problem, disagreements
from daemon.decode import Decoder, Records
from daemon.events import EMPTY, NO_LABELS, EventBatch, LabelBatch, Rejected
from daemon.inference import Inferred, infer
from daemon.sources import Partition, Poll, Source, SourceError, event_reader, open_source
from daemon.sources.source import Positions
from daemon.yaml_lines import dotted
from learn.config import HALF_LIVES, FeatureConfig, ModelConfig

if TYPE_CHECKING:
    from daemon.api import Health
    from daemon.checkpoint import Checkpoints
    from daemon.journal import JournalWriter
    from registry import Registry

log = logging.getLogger("driftd.undeclared")

AT_ONCE = 256
POLL_SECONDS = 0.2
# Where labels are rare or late, unlabelled events tell as much about columns.
UNLABELLED = 10
HINT = "; its kind was inferred, model.features can declare another"


def undeclared(config: Config) -> bool:
    """Whether the features have to be found out."""
    return config.model.task == "tabular" and not config.model.features


def with_features(config: Config, features: Sequence[FeatureConfig]) -> Config:
    """The configuration as if these features had been declared.

    Raises:
        ConfigError: other settings name features that are not among them.
    """
    listed = [feature.model_dump() for feature in features]
    model = ModelConfig.model_validate(config.model.model_dump() | {"features": listed})
    made = config.model_copy(update={"model": model})
    if found := list(disagreements(made)):
        words = f" (the features are {', '.join(feature.name for feature in features)})"
        raise ConfigError([Problem(dotted(path), message + words) for path, message in found])
    return made


def remembered(registry: Registry, checkpoints: Checkpoints | None) -> list[FeatureConfig]:
    """The features that are in use already; empty where there are none."""
    champion = registry.state().champion
    schema = registry.version(champion).manifest.input_schema if champion else {}
    found = schema.get("features")
    if not found and checkpoints is not None and (checkpoint := checkpoints.load()):
        found = checkpoint.values.get("features")
    features = [FeatureConfig.model_validate(feature) for feature in found or ()]
    names = [feature.name for feature in features]
    added = {f"{name}~{h}" for name in names for h in HALF_LIVES}
    added |= {f"label~{lag}" for lag in range(1, len(names))}
    return [feature for feature in features if feature.name not in added]


def open_known(
    config: Config,
    registry: Registry,
    checkpoints: Checkpoints,
    journal: JournalWriter,
    health: Health,
    stop: threading.Event,
) -> tuple[Config, Source]:
    """The configuration with its features, and its source, whatever was declared.

    Where features must be inferred it waits for events; once ``stop`` is set, it returns at once.

    Raises:
        SourceError: the source has ended, and held nothing that could be a feature.
    """
    if not undeclared(config):
        return config, open_source(config)
    if features := remembered(registry, checkpoints):
        known = with_features(config, features)
        decoder = Decoder(
            config.fields,
            config.events,
            features,
            hint=HINT,
            numbers=config.model.number,
            read=event_reader(config),
        )
        return known, open_source(known, decoder)
    source = Undeclared(config)
    source.start({})
    found = source.infer(stop, health)
    if found is None:
        return config, source
    log.info("features: %s", found.sentence)
    for note in found.notes:
        log.warning("features: %s", note)
    journal.write(
        "features-inferred",
        features=found.listed,
        notes=list(found.notes),
        from_events=found.events,
    )
    journal.flush()
    return with_features(config, found.features), source


def look(config: Config) -> Inferred:
    """What would be inferred from the beginning of the source, which is closed again.

    Raises:
        SourceError: it cannot be read, or holds nothing that could be a feature.
    """
    source = Undeclared(config)
    source.start({})
    try:
        found = source.infer(threading.Event(), None)
    finally:
        source.close()
    assert found is not None
    return found


class Keeping(Decoder):
    """Keeps records as they are until it is told the columns of the table."""

    def __init__(self, config: Config) -> None:
        numbers, read = config.model.number, event_reader(config)
        super().__init__(config.fields, config.events, (), hint=HINT, numbers=numbers, read=read)
        self.kept = Records()
        self.labelled: list[dict[str, Any]] = []
        self.unlabelled: list[dict[str, Any]] = []
        self._declared = False

    def decode(self, records: Records) -> tuple[EventBatch, list[Rejected]]:
        """See `Decoder.decode`; nothing at all before `declare`."""
        if self._declared:
            return super().decode(records)
        glances = [
            self.glance(value, records.oversized.get(i)) for i, value in enumerate(records.values)
        ]
        for event in glances:
            if event is not None:
                known = self.has_label(event)
                (self.labelled if known else self.unlabelled).append(event)
        self.kept.extend(records)
        return EMPTY, []

    def declare(self, features: Sequence[FeatureConfig]) -> tuple[EventBatch, list[Rejected]]:
        """Decode from now on; what was kept, decoded."""
        self.read_rows(features)
        self._declared = True
        kept, self.kept = self.kept, Records()
        self.labelled, self.unlabelled = [], []
        return super().decode(kept)


class Undeclared:
    """A source that keeps its first events back until their features are known.

    What was read meanwhile comes in one piece with the first `poll` afterwards, and its positions
    with it: a crash before that loses nothing.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._decoder = Keeping(config)
        self._source = open_source(config, self._decoder)
        self._started = False
        self._moved: dict[Partition, int] = {}
        self._rejected: list[Rejected] = []  # of the labels' topic
        self._labels = NO_LABELS
        self._first: Poll | None = None

    def infer(self, stop: threading.Event, health: Health | None) -> Inferred | None:
        """Read until there are events enough; None if ``stop`` was set before."""
        want, decoder = self._config.model.infer_events, self._decoder
        while True:
            seen = len(decoder.labelled)
            if seen >= want or len(decoder.unlabelled) >= UNLABELLED * want or self._source.ended:
                break
            if stop.is_set():
                return None
            polled = self._source.poll(AT_ONCE, POLL_SECONDS)
            self._moved |= polled.positions
            self._rejected += polled.rejected
            if len(polled.labels):
                self._labels = LabelBatch.join([self._labels, polled.labels])
            if health is not None:
                health.turned = time.monotonic()
                health.why = f"no features yet: {seen} of {want} labelled events to infer them from"
        found = infer(decoder.labelled or decoder.unlabelled, self._config.fields)
        if not found.features:
            why = "; ".join(found.notes) or "there were no events"
            raise SourceError(f"no features could be inferred ({why}): declare model.features")
        batch, rejected = decoder.declare(found.features)
        rejected = self._rejected + rejected
        self._first = Poll(batch, rejected, dict(self._moved), self._labels)
        return found

    @property
    def connected(self) -> bool:
        """See `Source.connected`."""
        return self._source.connected

    @property
    def ended(self) -> bool:
        """See `Source.ended`."""
        return self._first is None and self._source.ended

    @property
    def caught_up(self) -> bool:
        """See `Source.caught_up`."""
        return self._first is None and self._source.caught_up

    def start(self, positions: Positions) -> None:
        """See `Source.start`; a second call is the loop's, which has nothing to resume from."""
        if not self._started:
            self._source.start(positions)
            self._started = True

    def poll(self, max_events: int, timeout: float) -> Poll:
        """See `Source.poll`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return self._source.poll(max_events, timeout)

    def hold(self) -> None:
        """See `Source.hold`."""
        self._source.hold()

    def moves(self) -> tuple[set[Partition], set[Partition]]:
        """See `Source.moves`."""
        return self._source.moves()

    def begin(self, place: Partition, position: int | None) -> None:
        """See `Source.begin`."""
        self._source.begin(place, position)

    def leave(self, place: Partition) -> None:
        """See `Source.leave`."""
        self._source.leave(place)

    def positions(self) -> dict[Partition, int]:
        """See `Source.positions`."""
        return self._source.positions()

    def checkpointed(self, positions: Positions) -> None:
        """See `Source.checkpointed`."""
        self._source.checkpointed(positions)

    def lag(self) -> int | None:
        """See `Source.lag`."""
        return self._source.lag()

    def lags(self) -> dict[Partition, int]:
        """See `Source.lags`."""
        return self._source.lags()

    def know(self, labels: Iterable[str]) -> None:
        """See `Source.know`."""
        self._source.know(labels)

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()
