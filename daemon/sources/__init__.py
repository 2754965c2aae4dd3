"""Where events come from, behind one protocol.

`Source` is the protocol; `KafkaSource` reads a topic, `LinesSource` a file of JSON lines or
standard input. All resume from the positions of a checkpoint: those, not Kafka's own offsets, are
the truth, so that an event is learned exactly once. `open_source` makes the configured one;
kafka-python is imported only when it is a topic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.decode import Decoder
from daemon.decode_labels import LabelDecoder
from daemon.formats import FormatError, open_reader, read_json
from daemon.sources.jsonl import LinesSource
from daemon.sources.source import Partition, Poll, Source, SourceError
from daemon.stream_config import KafkaSourceConfig, LabelsConfig

if TYPE_CHECKING:
    from daemon.config import Config

__all__ = ["LinesSource", "Partition", "Poll", "Source", "SourceError", "open_source"]


def open_source(config: Config, decoder: Decoder | None = None) -> Source:
    """The configured source, not yet started. A Kafka group is named after the model.

    ``decoder``: another than the one for the declared features.
    """
    features = config.model.features if config.model.task == "tabular" else None
    source = config.source
    try:
        read = open_reader(source) if isinstance(source, KafkaSourceConfig) else read_json
    except FormatError as error:
        raise SourceError(str(error)) from error
    decoder = decoder or Decoder(config.fields, config.events, features)
    decoder.read = read
    decoder.know(config.model.labels or ())
    if isinstance(source, KafkaSourceConfig):
        from daemon.sources.kafka import KafkaSource

        group = source.group or f"driftd-{config.name}"
        labels = None
        if source.labels is not None:
            decoder.labels_expected = False
            labels = _label_decoder(config, source, source.labels, decoder)
        shared = config.sharing.enabled
        return KafkaSource(source, decoder, group=group, labels=labels, shared=shared)
    return LinesSource(source, decoder, max_bytes=config.events.max_event_bytes)


def _label_decoder(
    config: Config, source: KafkaSourceConfig, labels: LabelsConfig, decoder: Decoder
) -> LabelDecoder:
    try:
        read = open_reader(labels, source.schema_registry)
    except FormatError as error:
        raise SourceError(f"source.labels: {error}") from error
    return LabelDecoder(config.fields, config.events, labels, decoder.known, read=read)
