"""Settings of the stream: where events come from, what their fields are called, what is refused.

Users keep their own JSON: `fields` maps names, `events` sets limits, `dead_letters` says where a
record that is no event goes. Each source has its own section, told apart by `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from daemon.policy_config import Section

Scalar = str | int | float | bool

SOURCE_KINDS = "`kafka` (a topic), `file` (JSON lines) or `stdin` (JSON lines)."
LETTER_KINDS = "`topic` (in Kafka), `file` (JSON lines) or `none` (only logged and counted)."

# Settings of the Kafka client that the daemon's promises rest on; `options` may not touch them.
RESERVED_OPTIONS = frozenset(
    {
        "auto_offset_reset",
        "bootstrap_servers",
        "enable_auto_commit",
        "group_id",
        "group_instance_id",
        "isolation_level",
        "key_deserializer",
        "key_serializer",
        "sasl_mechanism",
        "sasl_plain_password",
        "sasl_plain_username",
        "security_protocol",
        "ssl_cafile",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
        "value_deserializer",
        "value_serializer",
    }
)


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class KafkaConnection(Section):
    """How to reach a Kafka cluster."""

    bootstrap_servers: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        min_length=1,
        description="Brokers to ask first, as host:port; a list, or one text with commas.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="Encryption and login, by Kafka's own names. Use SASL_SSL or SSL outside of"
        " a trusted network.",
    )
    tls_ca_file: Path | None = Field(
        default=None,
        description="Certificate authority (PEM) that signed the brokers; empty: system's.",
    )
    tls_cert_file: Path | None = Field(
        default=None, description="Client certificate (PEM), where the brokers ask for one."
    )
    tls_key_file: Path | None = Field(
        default=None, description="Private key of the client certificate."
    )
    tls_check_hostname: bool = Field(
        default=True, description="Whether a broker's certificate must carry its host name."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="Login method; needed with the SASL protocols."
    )
    sasl_username: str | None = Field(default=None, description="User name for the login.")
    sasl_password: SecretStr | None = Field(
        default=None,
        description="Password for the login. Better given by the environment or by"
        " `sasl_password_file` than written here; it is never printed.",
    )
    sasl_password_file: Path | None = Field(
        default=None, description="File that holds the password, such as a mounted secret."
    )
    options: dict[str, Scalar] = Field(
        default={},
        description="Further settings of the kafka-python client, by its names, for what this"
        " page does not cover; for instance `session_timeout_ms: 10000`.",
    )

    @model_validator(mode="after")
    def _login_complete(self) -> KafkaConnection:
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism is None or self.sasl_username is None:
                raise ValueError(f"{self.security_protocol} needs sasl_mechanism and sasl_username")
            if (self.sasl_password is None) == (self.sasl_password_file is None):
                raise ValueError("give either sasl_password or sasl_password_file")
        elif self.sasl_mechanism is not None:
            raise ValueError("sasl_mechanism needs security_protocol SASL_SSL or SASL_PLAINTEXT")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together")
        reserved = sorted(RESERVED_OPTIONS & self.options.keys())
        if reserved:
            raise ValueError(f"options may not set {', '.join(reserved)}: driftd sets it itself")
        return self

    def client_options(self) -> dict[str, Any]:
        """Arguments for any kafka-python client. Raises OSError if the password file is away."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap_servers),
            "security_protocol": self.security_protocol,
            "reconnect_backoff_max_ms": 1000,  # the client's 30 s would outlast most restarts
        }
        if self.security_protocol.endswith("SSL"):
            options["ssl_check_hostname"] = self.tls_check_hostname
            for name, path in (
                ("ssl_cafile", self.tls_ca_file),
                ("ssl_certfile", self.tls_cert_file),
                ("ssl_keyfile", self.tls_key_file),
            ):
                if path is not None:
                    options[name] = str(path)
        if self.sasl_mechanism is not None:
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.sasl_username
            if self.sasl_password is not None:
                options["sasl_plain_password"] = self.sasl_password.get_secret_value()
            elif self.sasl_password_file is not None:
                options["sasl_plain_password"] = self.sasl_password_file.read_text().strip()
        return options | self.options


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

    input: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
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
