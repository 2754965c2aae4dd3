"""The one configuration: every room's settings as one tree, from one YAML file and the environment.

`Config` composes the rooms' own models, so that a default stands in the room that uses it.
`load_config` reads it and, where something is wrong, says all of it at once: which line or which
variable, which key, what is wrong, and what was probably meant. Secrets are never printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field, model_validator

from daemon import yaml_lines
from daemon.config_reading import ConfigError, DisagreementError, Problem, load
from daemon.policy_config import (
    BootstrapConfig,
    CheckpointConfig,
    GateConfig,
    GuardConfig,
    HttpConfig,
    LogConfig,
    PolicyConfig,
    ProbationConfig,
    Section,
    TrainerConfig,
)
from daemon.stream_config import (
    DeadLettersConfig,
    EventsConfig,
    FieldsConfig,
    FileLettersConfig,
    KafkaSourceConfig,
    SharingConfig,
    SourceConfig,
    TopicLettersConfig,
)
from deploy.config import ExportConfig, ServerConfig
from drift.config import DriftConfig
from learn.config import LearnConfig, MemoryConfig, ModelConfig
from registry.config import RegistryConfig

__all__ = ["Config", "ConfigError", "LogConfig", "Problem", "load_config"]


class Config(Section):
    """Everything that driftd can be told."""

    name: str = Field(
        default="model",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The model's name, in metrics and as the Kafka group `driftd-<name>`.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of everything random. The same events and seed give the same versions.",
    )
    model: ModelConfig = Field(
        default_factory=ModelConfig, description="What is learned: the task and the model for it."
    )
    source: SourceConfig = Field(description="Where events come from.")
    fields: FieldsConfig = Field(
        default_factory=FieldsConfig, description="What the fields of your events are called."
    )
    events: EventsConfig = Field(
        default_factory=EventsConfig, description="What is still an event."
    )
    sharing: SharingConfig = Field(
        default_factory=SharingConfig, description="Several daemons of one model."
    )
    dead_letters: DeadLettersConfig = Field(
        default_factory=lambda: FileLettersConfig(kind="file"),
        description="Where records go that are no events.",
    )
    drift: DriftConfig = Field(default_factory=DriftConfig, description="When to raise an alarm.")
    memory: MemoryConfig = Field(
        default_factory=MemoryConfig, description="Which events are kept for training."
    )
    learn: LearnConfig = Field(default_factory=LearnConfig, description="How updates are trained.")
    bootstrap: BootstrapConfig = Field(
        default_factory=BootstrapConfig, description="The first version."
    )
    policy: PolicyConfig = Field(
        default_factory=PolicyConfig, description="Which repair is tried after an alarm."
    )
    gate: GateConfig = Field(
        default_factory=GateConfig, description="The test before a version serves."
    )
    probation: ProbationConfig = Field(
        default_factory=ProbationConfig, description="The watch after a promotion."
    )
    guard: GuardConfig = Field(
        default_factory=GuardConfig, description="Labels that are held back."
    )
    trainer: TrainerConfig = Field(
        default_factory=TrainerConfig, description="Limits of the process that trains."
    )
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="Where the daemon keeps its state."
    )
    registry: RegistryConfig = Field(
        default_factory=RegistryConfig, description="Where the versions lie."
    )
    export: ExportConfig = Field(
        default_factory=ExportConfig, description="How a model becomes ONNX, and that INT8."
    )
    server: ServerConfig = Field(
        default_factory=ServerConfig, description="The inference server, `driftd serve`."
    )
    http: HttpConfig = Field(
        default_factory=HttpConfig, description="The daemon's metrics and status."
    )
    log: LogConfig = Field(default_factory=LogConfig, description="What is logged.")

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        found = list(disagreements(self))
        if found:
            raise DisagreementError(found)
        return self

    @property
    def checkpoint_name(self) -> str | None:
        """Whose checkpoints they are in the registry's store, where anything says so."""
        member = self.source.instance_id if isinstance(self.source, KafkaSourceConfig) else None
        return self.checkpoint.name or member


def disagreements(config: Config) -> Iterator[tuple[yaml_lines.Path, str]]:
    letters, source = config.dead_letters, config.source
    if isinstance(letters, TopicLettersConfig):
        if not isinstance(source, KafkaSourceConfig):
            if letters.connection is None:
                yield ("dead_letters", "connection"), "is needed, as the source is not Kafka"
        elif letters.connection is None and letters.topic == source.topic:
            yield ("dead_letters", "topic"), "must not be the source's own topic"
    if isinstance(source, KafkaSourceConfig):
        for where, section in (("source", source), ("labels", source.labels)):
            if (
                section is not None
                and section.format == "avro"
                and not (section.schema_registry or source.schema_registry)
            ):
                path = ("source",) if where == "source" else ("source", "labels")
                yield (*path, "schema_registry"), "is needed for format: avro"
    if isinstance(source, KafkaSourceConfig) and source.labels is not None:
        if config.fields.id is None:
            yield ("fields", "id"), "is needed to join events and labels (source.labels)"
        if source.labels.topic == source.topic:
            yield ("source", "labels", "topic"), "must not be the topic of the events"
        if isinstance(letters, TopicLettersConfig) and letters.topic == source.labels.topic:
            yield ("dead_letters", "topic"), "must not be the topic of the labels"
    if config.sharing.enabled:
        if not isinstance(source, KafkaSourceConfig):
            yield ("sharing", "enabled"), "needs a Kafka topic as the source"
        elif config.sharing.topic in (source.topic, getattr(letters, "topic", "")):
            yield ("sharing", "topic"), "must be a topic of its own"
        if config.model.task == "tabular" and not config.model.features:
            yield ("sharing", "enabled"), "needs the table's columns declared (model.features)"
        if isinstance(source, KafkaSourceConfig) and source.labels is not None:
            yield ("sharing", "enabled"), "cannot go with source.labels yet: what waits is local"
    if config.checkpoint.store == "registry":
        if config.checkpoint.ledger:
            yield (
                ("checkpoint", "ledger"),
                "needs a folder that survives (checkpoint.store: folder)",
            )
        if config.sharing.enabled and not config.checkpoint_name:
            yield ("checkpoint", "name"), "is needed, one for each of the daemons that share"
    if config.model.number:
        if config.sharing.enabled:
            yield ("sharing", "enabled"), "cannot go with a number as model.target yet"
        if isinstance(source, KafkaSourceConfig) and source.labels is not None:
            yield ("source", "labels"), "cannot go with a number as model.target yet"
    if config.fields.prediction is not None:
        what = ("fields", "prediction")
        if config.model.number:
            yield what, "cannot go with a number as model.target yet"
        if isinstance(source, KafkaSourceConfig) and source.labels is not None:
            yield what, "cannot go with source.labels yet: each event waits with its input"
        if config.sharing.enabled:
            yield what, "cannot go with sharing yet: what is only counted is not handed over"
    if config.events.unknown_label == "reject" and not config.model.labels:
        yield (
            ("events", "unknown_label"),
            "'reject' needs the known labels: list them in model.labels",
        )
    if config.http.port and (config.http.host, config.http.port) == (
        config.server.host,
        config.server.port,
    ):
        yield ("http", "port"), f"{config.http.port} is the inference server's port too"
    if config.http.port and config.http.port == config.server.grpc_port:
        yield ("http", "port"), f"{config.http.port} is the inference server's gRPC port too"
    if config.model.number and config.bootstrap.strategy != "head":
        yield ("bootstrap", "strategy"), "must be head, as model.target is a number"
    if config.model.table == "river" and config.bootstrap.strategy != "head":
        yield ("bootstrap", "strategy"), "must be head, as model.table is river"
    if config.model.task == "tabular" and config.model.features:
        names = {feature.name for feature in config.model.features}
        for name in config.fields.features.keys() - names:
            yield ("fields", "features", name), "is not a feature of the model (model.features)"
        for name in set(config.gate.slices) - names:
            yield ("gate", "slices"), f"{name!r} is not a feature of the model (model.features)"


def load_config(path: Path | str, environ: Mapping[str, str]) -> Config:
    """Read the YAML file at ``path``, let the environment override it, and validate.

    ``DRIFTD_SOURCE__TOPIC=posts`` sets ``source.topic``. A value is read as YAML, so lists and
    numbers work; where the setting is a text, it is taken exactly as it stands.

    Raises:
        ConfigError: with every problem found.
    """
    return load(Config, path, environ)
