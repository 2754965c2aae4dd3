"""Every default of the deploy room, once, with its reason.

`ServerConfig` is for what serves, `ExportConfig` for what makes the ONNX files.
The daemon's configuration file embeds both; nothing else in this room holds a default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deploy.kafka_config import KafkaConnection


def usable_cpus() -> int:
    """How many cores this process may use: its affinity mask, not the machine's total."""
    return len(os.sched_getaffinity(0))


class BatchConfig(BaseModel):
    """How many items, and of which lengths, share one run of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_items: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Most items in one run. Beyond 32 a CPU gains nothing, and every request in "
        "the batch waits longer.",
    )
    padding: float = Field(
        default=1.1,
        ge=1.0,
        description="Most work a batch may do relative to its real tokens. Batching gains about "
        "a quarter on a CPU, so padding must cost clearly less than that.",
    )


class AccessConfig(BaseModel):
    """Who may use a port: bearer tokens by scope."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Path | None = Field(
        default=None,
        description="File of bearer tokens, a line each: NAME SCOPE[,SCOPE] TOKEN. Read again "
        "when it changes. Empty: everyone who reaches the port may use it.",
    )
    open_metrics: bool = Field(
        default=True,
        description="Metrics need no token: scrapers seldom have one, and metrics hold no inputs. "
        "If false, they need a token with the scope `read`.",
    )


class TlsConfig(BaseModel):
    """Encryption of a port."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path | None = Field(
        default=None,
        description="File with the certificate and its chain, PEM. Renewed files are taken up "
        "without a restart. Empty: no TLS, as where a proxy or mesh speaks it.",
    )
    key: Path | None = Field(
        default=None, description="File with the certificate's private key, PEM, no passphrase."
    )
    client_ca: Path | None = Field(
        default=None,
        description="File with the authorities whose clients may connect, PEM. With it every "
        "client needs a certificate, health checks too. Empty: clients need none.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs a certificate and a key for the server too")
        return self


class PredictionLogConfig(KafkaConnection):
    """A Kafka topic to which the server writes what it predicted; needs the extra `log`."""

    topic: str = Field(
        min_length=1, max_length=249, description="Topic to write; one item a record, as JSON."
    )
    inputs: bool = Field(
        default=True,
        description="Write the inputs too, so that a record is an event the daemon can learn from "
        "once its label has come. Without them only ids and predictions leave the server.",
    )
    embedding: bool = Field(
        default=False,
        description="Write each item's embedding: 4 bytes a dimension in base64, 2 KiB for a "
        "MiniLM. Saves the reader a pass of the model.",
    )
    queue_items: int = Field(
        default=10_000,
        ge=1,
        description="Most items that wait for the broker; beyond that they are dropped and "
        "counted. A minute of 150 items a second; inputs wait in memory.",
    )
    flush_seconds: float = Field(
        default=5.0,
        ge=0,
        description="At the end, after the last request: longest wait for the broker to take what "
        "is left.",
    )


class ServerConfig(BaseModel):
    """How the inference server listens, batches, limits and swaps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(
        default="127.0.0.1",
        description="Address to bind. Loopback, so that nothing is open to a network before "
        "someone asks for it; a container sets 0.0.0.0.",
    )
    port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="Port to bind; 0 lets the system choose. 8080 is what inference clients of "
        "the V2 protocol try first.",
    )
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for gRPC, beside HTTP: the same protocol, tokens and TLS; 0 lets the "
        "system choose. Empty: none, as it needs the extra `grpc`. Clients try 8001 first.",
    )
    name: str = Field(
        default="driftd",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The model's name in URLs and metrics. A registry holds one model, so one "
        "fixed name is enough until several servers share a dashboard.",
    )
    access: AccessConfig = Field(
        default_factory=AccessConfig, description="Who may ask. Empty: everyone."
    )
    tls: TlsConfig = Field(default_factory=TlsConfig, description="Encryption. Empty: none.")
    workers: int = Field(
        default_factory=usable_cpus,
        ge=1,
        description="Threads that run the model, each on one core: two one-thread workers answer "
        "a third more requests than one session with two threads.",
    )
    processes: int = Field(
        default=1,
        ge=1,
        description="Processes that share the port, and among them `workers` and `queue_limit`. "
        "One answers some thousand requests a second; more are for fast models on many cores. "
        "Each holds the versions in its own memory, save what `map_files` shares.",
    )
    batch: BatchConfig = Field(default_factory=BatchConfig, description="How items share a run.")
    queue_limit: int = Field(
        default=1024,
        ge=1,
        description="Most items that wait. At 500 items a second this is two seconds of work: "
        "beyond that, saying so at once (429) serves a client better than a late answer.",
    )
    max_items: int = Field(
        default=256,
        ge=1,
        description="Most items in one request: keeps one client from holding the queue.",
    )
    max_body_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=1024,
        description="Longest request body. 256 items of 16 kB each; more is a mistake.",
    )
    body_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Longest that the head of a request may take to arrive, and then its body, so "
        "that slow clients cannot pile up.",
    )
    deadline_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Work that waited longer than this is dropped unstarted (504): by then "
        "clients have given up, and working for them would delay the others.",
    )
    poll_seconds: float = Field(
        default=0.02,
        gt=0,
        description="Time between two looks at a registry in a folder: the stat of two files. "
        "Bounds how long a rollback takes to be noticed; fifty looks a second cost 0.3 % of a "
        "core.",
    )
    poll_seconds_bucket: float = Field(
        default=0.2,
        gt=0,
        description="Time between two looks at a registry on S3: two requests each, which cost "
        "money.",
    )
    shadow_limit: int = Field(
        default=256,
        ge=0,
        description="Most copied items that wait for a challenger in shadow; beyond that copies "
        "are dropped. Copies are worked on while no request waits, so this only bounds memory.",
    )
    report_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Time between two reports of what was counted while a challenger sees "
        "traffic: a small file in the registry, from which the daemon judges a canary's step.",
    )
    retry_seconds: float = Field(
        default=2.0,
        gt=0,
        description="First pause before a version that failed to load is tried again; it doubles "
        "with every failure. A move in the registry is tried at once.",
    )
    retry_seconds_max: float = Field(
        default=60.0,
        gt=0,
        description="Longest pause between two tries: a repaired disk is noticed in a minute.",
    )
    keep_previous: bool = Field(
        default=True,
        description="Keep the previous version warm, so that a rollback needs no load. Costs one "
        "model's memory.",
    )
    map_files: bool = Field(
        default=False,
        description="Map a version's weights from its file instead of copying them, so that "
        "processes share what onnxruntime does not pack anew: the embeddings, half of a MiniLM. "
        "Only where files lie on a disk of this machine: storage that goes away, or a file that is "
        "cut short, would take the server with it.",
    )
    prediction_log: PredictionLogConfig | None = Field(
        default=None,
        description="Where predictions are written for those who bring labels later. Empty: "
        "nowhere. A broker that is slow or away never delays or fails a request.",
    )
    traces: bool = Field(
        default=False,
        description="Trace inference by OpenTelemetry, and send the spans by OTLP to where the "
        "environment says (`OTEL_EXPORTER_OTLP_ENDPOINT`). Needs the extra `otel` and a collector: "
        "off until there is one.",
    )
    notice_seconds: float = Field(
        default=2.0,
        ge=0,
        description="On SIGTERM: how long to go on serving while readiness already says no, so "
        "that load balancers stop sending before the socket closes. SIGINT skips it.",
    )
    drain_seconds: float = Field(
        default=20.0,
        ge=0,
        description="On SIGTERM: longest wait for requests in flight after the socket closed. "
        "With the notice it stays below Kubernetes' 30 seconds of grace.",
    )
    keepalive_seconds: int = Field(
        default=75,
        ge=1,
        description="Idle connections stay open this long: longer than the usual 60 seconds of "
        "load balancers, so that they, not the server, close first.",
    )
    backlog: int = Field(
        default=2048,
        ge=1,
        description="Connections the kernel holds while the server is busy; bursts of clients "
        "should wait a moment rather than be refused.",
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port and self.port == self.grpc_port:
            raise ValueError(f"port and grpc_port are both {self.port}: give gRPC its own")
        return self

    def share(self) -> Self:
        """The settings of one of the processes."""
        return self.model_copy(
            update={
                "processes": 1,
                "workers": max(1, self.workers // self.processes),
                "queue_limit": self.queue_limit // self.processes,
            }
        )

    @model_validator(mode="after")
    def _one_request_fits_the_queue(self) -> Self:
        if self.max_items > self.queue_limit // self.processes:
            raise ValueError(
                f"max_items ({self.max_items}) is larger than queue_limit ({self.queue_limit}), or "
                "than a process's share of it: "
                "such a request could never be accepted; raise queue_limit or lower max_items"
            )
        return self


class ExportConfig(BaseModel):
    """How a torch module becomes FP32 and INT8 ONNX."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    opset: int = Field(
        default=17,
        ge=17,
        le=20,
        description="ONNX operator set: 17 is the first with LayerNormalization as one node, and "
        "every onnxruntime since 1.12 runs it.",
    )
    per_channel: bool = Field(
        default=True,
        description="One INT8 scale per output column. One per tensor costs 0.3 points more.",
    )
    activations: Literal["dynamic", "static"] = Field(
        default="dynamic",
        description="Scale of INT8 activations. dynamic: of each batch as it comes, so that an "
        "answer moves a little with what shares its batch. static: fixed by the newest events in "
        "memory, so that it does not; as accurate on MiniLM and 5 % slower, but inputs far "
        "from those events are cut off.",
    )
    calibration_events: int = Field(
        default=512,
        ge=16,
        description="Events that fix static activations. Their extremes count: a few hundred meet "
        "most, more take longer (5 ms each on MiniLM).",
    )
    tolerance: float = Field(
        default=1e-3,
        gt=0,
        description="Largest difference in logits and embeddings between the module and its FP32 "
        "graph, relative to the largest value; float32 rounding stays a hundred times below it.",
    )
