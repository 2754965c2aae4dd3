"""The schema of the chart's values: strict, so that a typo is refused before anything is installed.

Types follow from the defaults in values.yaml; what a default cannot say stands here. ``config`` is
held to the configuration's own model, less its secrets, which a manifest must not carry, and less
what the chart sets.
"""

from __future__ import annotations

from typing import Any

from daemon.config import Config
from helm.builder.values import read_values

JSON = dict[str, Any]

SECRETS = ("sasl_password", "password")
# What the chart sets itself, by the section's model; a second word about it would be lost.
OWNED = {
    "RegistryConfig": ("path", "endpoint", "cache", "signing_key", "trusted_keys"),
    "TrainingJobConfig": ("enabled", "template", "folder"),
    "CheckpointConfig": ("path", "store", "name"),
    "HttpConfig": ("host", "port"),
    "AccessConfig": ("tokens",),
    "TlsConfig": ("certificate", "key", "client_ca"),
    "ServerConfig": (
        *("host", "port", "grpc_port", "workers", "notice_seconds", "drain_seconds"),
        "traces",
    ),
}
DRAFT = "http://json-schema.org/draft-07/schema#"

_OPEN: JSON = {"type": "object"}
_NAMES: JSON = {"type": "array", "items": {"type": "string", "minLength": 1}}
_OBJECTS: JSON = {"type": "array", "items": _OPEN}
_COUNT: JSON = {"type": "integer", "minimum": 1}
_SECONDS: JSON = {"type": "number", "minimum": 0}
_PORT: JSON = {"type": "integer", "minimum": 1, "maximum": 65535}
_TEXTS: JSON = {"type": "object", "additionalProperties": {"type": "string"}}
_DIGEST: JSON = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}

SEVERAL = (("daemon", "replicas"), ("daemon", "keda", "maxReplicas"))
SPECIAL: dict[str, JSON] = {
    "mode": {"enum": ["together", "apart"]},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.pullSecrets": _NAMES,
    "global": {
        "type": "object",
        "properties": {"imageRegistry": {"type": "string"}, "imagePullSecrets": _NAMES},
    },
    "signing.publicSecret.keys": {**_NAMES, "minItems": 1},
    "daemon.image.digest": _DIGEST,
    "server.image.digest": _DIGEST,
    "training.job.image.digest": _DIGEST,
    "training.job.ttlSeconds": {"type": "integer", "minimum": 0},
    "registry.s3.url": {"type": "string", "pattern": "^(s3://.+)?$"},
    "daemon.keda.minReplicas": {"type": "integer", "minimum": 0},
    "daemon.terminationGracePeriodSeconds": {"type": "integer", "minimum": 30},
    "server.traces.endpoint": {"type": "string", "pattern": "^(https?://.+)?$"},
    "server.replicas": {"type": "integer", "minimum": 0},
    "server.drain.notice": _SECONDS,
    "server.drain.drain": _SECONDS,
    "server.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "server.service.port": _PORT,
    "server.autoscaling.cpu": {"type": "integer", "minimum": 0},
    "server.autoscaling.queueItems": {"type": "integer", "minimum": 0},
    "networkPolicy.brokerPorts": {"type": "array", "items": _PORT},
    "networkPolicy.collectorPorts": {"type": "array", "items": _PORT},
    "networkPolicy.storePorts": {"type": "array", "items": _PORT},
    "networkPolicy.apiPorts": {"type": "array", "items": _PORT},
    "monitoring.scrape": {"enum": ["none", "PodMonitor", "ServiceMonitor"]},
    "monitoring.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    "monitoring.rules.disabled": _NAMES,
    "monitoring.rules.overrides": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"expr": {"type": "string"}, "for": {"type": "string"}, "labels": _TEXTS},
        },
    },
    "gateway.hostnames": _NAMES,
    "serviceAccount.annotations": _TEXTS,
}


def values_schema(values: str) -> JSON:
    """The schema for the text of values.yaml."""
    config, definitions = config_schema()
    root: JSON = {
        "$schema": DRAFT,
        "title": "Values of the chart driftd",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
        "$defs": definitions,
    }
    root["allOf"] = [_several(*path) for path in SEVERAL]
    for value in read_values(values):
        parent = root
        for step in value.path[:-1]:
            nothing = {"type": "object", "additionalProperties": False, "properties": {}}
            parent = parent["properties"].setdefault(step, nothing)
        name = ".".join(value.path)
        found = config if name == "config" else SPECIAL.get(name) or _by_default(value.default)
        parent["properties"][value.path[-1]] = {**found, "description": value.says}
    return root


def _several(*path: str) -> JSON:
    """Where this value is more than one, there are several daemons: they must be told to share."""
    more: JSON = {"minimum": 2}
    for step in reversed(path):
        more = {"properties": {step: more}, "required": [step]}
    shared: JSON = {"const": True}
    for step in ("enabled", "sharing", "config"):
        shared = {"properties": {step: shared}, "required": [step]}
    return {"if": more, "then": shared}


def config_schema() -> tuple[JSON, JSON]:
    """The schema of driftd.yaml for a user of the chart, and the definitions that it refers to.

    ``source`` is not required here: the chart asks for it in words.
    """
    config = Config.model_json_schema(ref_template="#/$defs/{model}")
    definitions: JSON = config.pop("$defs")
    config.pop("required")
    for name, definition in definitions.items():
        for gone in (*SECRETS, *OWNED.get(name, ())):
            definition.get("properties", {}).pop(gone, None)
            if gone in definition.get("required", ()):
                definition["required"].remove(gone)
    _strip(config)
    _strip(definitions, names=True)
    # Brokers may be one text with commas, which the configuration itself takes apart.
    for definition in definitions.values():
        servers = definition.get("properties", {}).get("bootstrap_servers")
        if servers:
            servers["type"] = ["array", "string"]
    return config, definitions


def _strip(schema: Any, *, names: bool = False) -> None:
    """Leave out what docs/configuration.md says better, and what would change with every word.

    names: whether the keys are names of properties or definitions.
    """
    if isinstance(schema, list):
        for part in schema:
            _strip(part)
    elif isinstance(schema, dict):
        for word in () if names else ("title", "description", "default"):
            schema.pop(word, None)
        for key, part in schema.items():
            _strip(part, names=key == "properties" and not names)


def _by_default(default: Any) -> JSON:
    if isinstance(default, bool):
        return {"type": "boolean"}
    if isinstance(default, int):
        return _COUNT
    if isinstance(default, str):
        return {"type": "string"}
    if isinstance(default, list):
        return _OBJECTS
    return _OPEN
