"""Settings of the stream: where events come from, what their fields are called, what is refused.

Users keep their own JSON: `fields` maps names, `events` sets limits, `dead_letters` says where a
record that is no event goes. Each source has its own section, told apart by `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from daemon.policy_config import Section
from deploy.kafka_config import KafkaConnection, split_commas

SOURCE_KINDS = "`kafka` (a topic), `file` (JSON lines) or `stdin` (JSON lines)."
LETTER_KINDS = "`topic` (in Kafka), `file` (JSON lines) or `none` (only logged and counted)."


class SchemaRegistryConfig(Section):
    """A Confluent schema registry, for Avro."""

    url: str = Field(
        pattern=r"^https?://\S+$", description="Where it answers, such as https://schemas:8081."
    )
    username: str | None = Field(default=None, description="User name for the login, if it asks.")
    password: SecretStr | None = Field(
        default=None, description="Password for the login; never printed."
    )
    password_file: Path | None = Field(
        default=None, description="File that holds the password, such as a mounted secret."
    )
    tls_ca_file: Path | None = Field(
        default=None, description="Certificate authority (PEM) that signed it; empty: system's."
    )
    timeout_seconds: float = Field(
        default=2.0,
        gt=0,
        le=30,
        description="Longest wait for one answer. A schema is asked for once; the loop waits.",
    )

    @model_validator(mode="after")
    def _login_complete(self) -> SchemaRegistryConfig:
        given = (self.password is not None) + (self.password_file is not None)
        if given != (self.username is not None):
            raise ValueError("username and one of password, password_file belong together")
        return self

    def secret(self) -> str | None:
        """The password. Raises OSError if its file is away."""
        if self.password_file is not None:
            return self.password_file.read_text().strip()
        return self.password.get_secret_value() if self.password else None


class FormatConfig(Section):
    """How the records of a topic are written."""

    format: Literal["json", "avro", "plugin"] = Field(
        default="json",
        description="`json`: an object a record. `avro`: Confluent's wire format, with a schema"
        " registry (extra `avro`). `plugin`: a decoder of your own.",
    )
    schema_registry: SchemaRegistryConfig | None = Field(
        default=None, description="Where the schemas of Avro records are asked for."
    )
    reader_schema: Path | None = Field(
        default=None,
        description="File (.avsc) with the schema that Avro records are resolved to, so that"
        " producers may add fields and rename them by alias. Empty: as they were written.",
    )
    decoder: str | None = Field(
        default=None,
        min_length=1,
        description="The plug-in: `package.module:function`, or the name of an entry point of"
        " `driftd.decoders`. It takes the bytes of a record and returns its fields by name.",
    )

    @model_validator(mode="after")
    def _format_complete(self) -> FormatConfig:
        if (self.decoder is not None) != (self.format == "plugin"):
            raise ValueError("format: plugin and decoder belong together")
        if self.format != "avro" and (self.schema_registry or self.reader_schema):
            raise ValueError("schema_registry and reader_schema need format: avro")
        return self


class LabelsConfig(FormatConfig):
    """Labels that come later than their events, on a topic of their own on the same cluster.

    Both are joined by the event's id (`fields.id`), within a window that is kept on disk beside the
    checkpoints.
    """

    topic: str = Field(
        min_length=1, max_length=249, description="Topic of the labels; one label a record."
    )
    id: str | None = Field(
        default=None,
        min_length=1,
        description="Field of a label's record with the event's id; empty: `fields.id`.",
    )
    label: str | None = Field(
        default=None,
        min_length=1,
        description="Field of a label's record with the true class; empty: `fields.label`.",
    )
    labeller: str | None = Field(
        default=None,
        min_length=1,
        description="Field of a label's record that says who gave it; empty: `fields.labeller`.",
    )
    time: str | None = Field(
        default=None,
        min_length=1,
        description="Field of a label's record with the time at which it was given: of two labels"
        " of one event the later counts. Empty: the record's own time.",
    )
    window_seconds: float = Field(
        default=7 * 86_400.0,
        gt=0,
        description="How long an event waits for its label, and a label for its event. A week"
        " covers most reviews; an event whose window ran out is not learned from.",
    )
    max_events: int = Field(
        default=200_000,
        ge=1,
        description="Most events that wait for their label; beyond, the oldest wait no longer. As"
        " many labels may wait for their event, and as many ids are remembered after it.",
    )
    max_bytes: int = Field(
        default=1024**3,
        ge=1024,
        description="Most bytes on disk of the events that wait: their input, and its embedding,"
        " so that it is not encoded twice (1.5 KiB an event for a MiniLM).",
    )


class KafkaSourceConfig(KafkaConnection, FormatConfig):
    """Events from a Kafka topic."""

    kind: Literal["kafka"] = Field(description=SOURCE_KINDS)
    topic: str = Field(
        min_length=1, max_length=249, description="Topic to read; one event a record."
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
    labels: LabelsConfig | None = Field(
        default=None,
        description="Where labels come from, if not with their events. Empty: in the events.",
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
    prediction: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the class that the served model answered, where the events carry"
        " it. Every event then counts for the accuracy as it was answered, and only a part is run"
        " through the model once more, for drift and learning (`events.looks_share`).",
    )
    version: str | None = Field(
        default=None,
        min_length=1,
        description="Field with the version that made the prediction; empty: the champion.",
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
    looks_share: float = Field(
        default=0.03,
        gt=0,
        le=1,
        description="Of the events that carry their prediction (`fields.prediction`), as many are"
        " looked at for drift and learning as take this share of the loop's time; the others are"
        " only counted. That is some 20 short texts a second, or a thousand rows of a table.",
    )
    behind_events: int | None = Field(
        default=None,
        ge=1,
        description="Events that wait in the source from which on only a sample is learned from, so"
        " that predicting and watching catch up. Empty: all are, however far behind; a topic"
        " waits.",
    )
    behind_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of the labelled events that is learned from while behind.",
    )


class SharingConfig(Section):
    """Several daemons of one model, in one consumer group: one leads, all observe."""

    enabled: bool = Field(
        default=False,
        description="Whether other daemons may read the same topic for the same registry. Each has"
        " a `checkpoint.path` of its own; partitions and what was learned from them lie in the"
        " registry's store.",
    )
    lease_seconds: float = Field(
        default=10.0,
        ge=0.5,
        description="How long a leader that has stopped or frozen still counts. Another takes over"
        " after at most 1.4 times as long. Shorter: more writes to the registry's store, one each"
        " third of it.",
    )
    topic: str | None = Field(
        default=None,
        min_length=1,
        max_length=249,
        description="Topic through which the daemons hand labelled events and their counts over to"
        " the leader, on the source's cluster; make it with `cleanup.policy=compact`. Empty: the"
        " leader learns from its own partitions only.",
    )
    handover_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of the labelled events that is handed over, by a hash of their id. The"
        " leader learns from these and from all of its own.",
    )
    handover_slots: int = Field(
        default=2000,
        ge=1,
        description="Events of each partition that the topic keeps for a leader that is new.",
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
