"""Settings of the stream: where events come from, what their fields are called, what is refused.

Users keep their own JSON: `fields` maps names, `events` sets limits, `dead_letters` says where a
record that is no event goes. Each source has its own section, told apart by `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from daemon.policy_config import Section
from deploy.kafka_config import KafkaConnection, split_commas

SOURCE_KINDS = "`kafka` (a topic), `file` (JSON lines) or `stdin` (JSON lines)."
LETTER_KINDS = "`topic` (in Kafka), `file` (JSON lines) or `none` (only logged and counted)."


class KafkaSourceConfig(KafkaConnection):
    """Events from a Kafka topic."""

    kind: Literal["kafka"] = Field(description=SOURCE_KINDS)
    topic: str = Field(
        min_length=1, max_length=249, description="Topic to read; one event a record, as JSON."
    )
    group: str | None = Field(
        default=None,
        min_length=1,
        description="Consumer group; empty: `driftd-` and the model's name. Offsets of record lie"
        " in the checkpoint; the group's are a copy for lag tools.",
    )
    instance_id: str | None = Field(
        default=None,
        min_length=1,
        description="Static member id of this daemon in the group. A restart within the session"
        " time-out then moves no partition.",
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest",
        description="Where to begin a partition that neither the checkpoint nor the group knows."
        " History is what the first model learns from.",
    )
    on_gap: Literal["continue", "stop"] = Field(
        default="continue",
        description="What to do when the next event is no longer in the topic (retention, topic"
        " made anew): go on with the oldest one and say so, or stop.",
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        default="read_committed",
        description="Whether records of aborted transactions are skipped. They never happened, so"
        " nothing should be learned from them.",
    )


class FileSourceConfig(Section):
    """Events from a file of JSON lines."""

    kind: Literal["file"] = Field(description=SOURCE_KINDS)
    path: Path = Field(description="File to read, one event a line. It may only grow.")
    follow: bool = Field(
        default=False,
        description="Wait for more lines at the end, as `tail -f` does, instead of finishing.",
    )


class StdinSourceConfig(Section):
    """Events from standard input, as JSON lines. It cannot be read twice: see `docs`."""

    kind: Literal["stdin"] = Field(description=SOURCE_KINDS)


SourceConfig = Annotated[
    KafkaSourceConfig | FileSourceConfig | StdinSourceConfig, Field(discriminator="kind")
]


class FieldsConfig(Section):
    """What the fields of your events are called. `user.name` reaches into nested objects."""

    input: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = Field(
        default=("text",),
        min_length=1,
        description="Field with the text to classify; several, as a list, are joined by line"
        " breaks. Not used for tables.",
    )
    features: dict[str, str] = Field(
        default={},
        description="For tables: where a feature lies in the event, as `feature: field`. A"
        " feature that is not listed has the same name in the event.",
    )
    label: str = Field(
        default="label",
        min_length=1,
        description="Field with the true class: text, whole number or boolean. Absent, null or"
        " empty: the event is predicted but not learned from.",
    )
    id: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the event's id; empty: topic:partition:offset. With a field,"
        " every event must have it.",
    )
    labeller: str | None = Field(
        default=None,
        min_length=1,
        description="Field that says who gave the label: a person, a tool, a site. With it, a"
        " labeller whose labels contradict all others', or flood them, is held back (`guard`).",
    )
    time: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the event's time: ISO 8601 (UTC unless it says otherwise) or"
        " seconds, milli-, micro- or nanoseconds since 1970. Empty: the record's own time. With"
        " a field, every event must have it.",
    )


class EventsConfig(Section):
    """What is still an event, and what is refused and goes to the dead letters."""

    max_event_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        description="Largest record in bytes. 1 MiB is Kafka's own default limit.",
    )
    max_future_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="How far an event's time may lie ahead of this machine's clock; more is a"
        " broken clock or a wrong unit.",
    )
    max_age_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Oldest event to accept. Empty: any age, so that histories can be replayed.",
    )
    unknown_label: Literal["grow", "reject"] = Field(
        default="grow",
        description="A label that the model does not know: grow a class for it, or refuse the"
        " event.",
    )
    max_labels: int = Field(
        default=1000,
        ge=2,
        description="Most classes that a model may grow to; beyond, new labels are refused. Stops"
        " a wrong label field, such as an id, from growing a class an event.",
    )


class LetterLimits(Section):
    """What all kinds of dead letters have in common."""

    max_value_bytes: int = Field(
        default=64 * 1024,
        ge=0,
        description="Bytes of a refused record that are kept; the rest is cut off.",
    )
    max_pending_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        description="Undelivered letters held in memory; when full, reading pauses until they"
        " are delivered.",
    )


class TopicLettersConfig(LetterLimits):
    """Refused records go to a Kafka topic."""

    kind: Literal["topic"] = Field(description=LETTER_KINDS)
    topic: str = Field(
        min_length=1, max_length=249, description="Topic for refused records. It must exist."
    )
    connection: KafkaConnection | None = Field(
        default=None, description="Cluster of that topic; empty: the source's."
    )


class FileLettersConfig(LetterLimits):
    """Refused records go to a file of JSON lines."""

    kind: Literal["file"] = Field(description=LETTER_KINDS)
    path: Path = Field(
        default=Path("dead-letters.jsonl"), description="File that refused records are appended to."
    )
    max_file_bytes: int = Field(
        default=100 * 1024 * 1024,
        ge=1024,
        description="Size at which the file is put aside as `<path>.1`, replacing the one before,"
        " so that a flood of bad records cannot fill the disk.",
    )


class NoLettersConfig(LetterLimits):
    """Refused records are counted and logged, then dropped."""

    kind: Literal["none"] = Field(description=LETTER_KINDS)


DeadLettersConfig = Annotated[
    TopicLettersConfig | FileLettersConfig | NoLettersConfig, Field(discriminator="kind")
]
