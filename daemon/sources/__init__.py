"""Where events come from, behind one protocol.

`Source` is the protocol; `KafkaSource` reads a topic, `LinesSource` a file of JSON lines or
standard input. All resume from the positions of a checkpoint: those, not Kafka's own offsets, are
the truth, so that an event is learned exactly once. `open_source` makes the configured one;
kafka-python is imported only when it is a topic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.decode import Decoder
from daemon.sources.jsonl import LinesSource
from daemon.sources.source import Partition, Poll, Source, SourceError
from daemon.stream_config import KafkaSourceConfig

if TYPE_CHECKING:
    from daemon.config import Config

__all__ = ["LinesSource", "Partition", "Poll", "Source", "SourceError", "open_source"]


def open_source(config: Config, decoder: Decoder | None = None) -> Source:
    """The configured source, not yet started. A Kafka group is named after the model.

    ``decoder``: another than the one for the declared features.
    """
    features = config.model.features if config.model.task == "tabular" else None
    decoder = decoder or Decoder(config.fields, config.events, features)
    decoder.know(config.model.labels or ())
    source = config.source
    if isinstance(source, KafkaSourceConfig):
        from daemon.sources.kafka import KafkaSource

        return KafkaSource(source, decoder, group=source.group or f"driftd-{config.name}")
    return LinesSource(source, decoder, max_bytes=config.events.max_event_bytes)
