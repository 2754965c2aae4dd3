"""Every operation of the server's HTTP face, and the OpenAPI document about them.

`OPERATIONS` is the one table: the routes, the scopes they need and the document come from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from deploy.access import OPEN, Scope, Scopes
from deploy.answering import ID, KEY
from deploy.config import ServerConfig
from deploy.protocol import DATATYPES, OUTPUTS
from deploy.repository import STATES

Schema = dict[str, Any]

_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"
_REPOSITORY = "/v2/repository/models/{name}"

ASKING: Scopes = frozenset({Scope.INFER})
# Clients of the V2 protocol look at the metadata before they ask.
LOOKING: Scopes = frozenset({Scope.READ, Scope.INFER})
READING: Scopes = frozenset({Scope.READ})
OPERATING: Scopes = frozenset({Scope.OPERATE})

# Of errors that any inference can end with.
_ASKED = (400, 404, 408, 413, 429, 500, 503, 504)

DEADLINE = "X-Driftd-Deadline-Ms"
JSON_BYTES = "Inference-Header-Content-Length"


class Operation(NamedTuple):
    """One method of one path. handler: what answers it; body, answer: names of schemas.

    errors: HTTP statuses beside 200, and beside 401 and 403 where a scope is needed.
    """

    handler: str
    method: str
    path: str
    scopes: Scopes
    summary: str
    answer: str | None
    body: str | None = None
    errors: tuple[int, ...] = ()


OPERATIONS = (
    Operation("index", "GET", "/", LOOKING, "What is where", "Index"),
    Operation("document", "GET", "/openapi.json", LOOKING, "This document", "Document"),
    Operation("exposition", "GET", "/metrics", OPEN, "Metrics for Prometheus", None),
    Operation("predict", "POST", "/predict", ASKING, "Ask, plainly", "Answer", "Question", _ASKED),
    Operation("server", "GET", "/v2", LOOKING, "About the server", "Server"),
    Operation("live", "GET", "/v2/health/live", OPEN, "Whether the process lives", "Live"),
    Operation(
        "ready", "GET", "/v2/health/ready", OPEN, "Whether it answers", "Ready", errors=(503,)
    ),
    *(
        operation
        for path, which in ((_MODEL, "the champion"), (_VERSION, "a version"))
        for operation in (
            Operation("model", "GET", path, LOOKING, f"About {which}", "Model", errors=(404, 503)),
            Operation(
                "model_ready",
                "GET",
                path + "/ready",
                LOOKING,
                f"Whether {which} answers",
                "Ready",
                errors=(404, 503),
            ),
            Operation(
                "infer",
                "POST",
                path + "/infer",
                ASKING,
                f"Ask {which}",
                "InferResponse",
                "InferRequest",
                _ASKED,
            ),
        )
    ),
    Operation(
        "repository_index",
        "POST",
        "/v2/repository/index",
        READING,
        "The registry's versions, and what has become of them here",
        "RepositoryIndex",
        "RepositoryIndexRequest",
        (400, 408, 413, 503),
    ),
    Operation(
        "repository_load",
        "POST",
        _REPOSITORY + "/load",
        OPERATING,
        "Make sure that a version is loaded, by default the champion",
        "Loaded",
        "RepositoryLoadRequest",
        (400, 404, 408, 409, 413, 503),
    ),
    Operation(
        "repository_unload",
        "POST",
        _REPOSITORY + "/unload",
        OPERATING,
        "Refused: what serves is decided in the registry",
        "Loaded",
        errors=(404, 409),
    ),
)


def needed(config: ServerConfig, method: str, path: str) -> Scopes:
    """The scopes that open a path; of one that there is not, those that see that."""
    if path.startswith("/v2/health/") or (path == "/metrics" and config.access.open_metrics):
        return OPEN
    if path == "/metrics":
        return READING
    if method != "POST":
        return LOOKING
    if path.startswith("/v2/repository/"):
        return READING if path == "/v2/repository/index" else OPERATING
    return ASKING


def document(config: ServerConfig, release: str) -> Schema:
    """The OpenAPI document for a server of that configuration."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        described = _described(operation, config)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"driftd: inference by {config.name}",
            "version": release,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(config),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation, config: ServerConfig) -> Schema:
    scopes = needed(config, operation.method, operation.path)
    refusals = (401, 403) if scopes and config.access.tokens else ()
    responses = {
        str(status): {
            "description": _STATUSES[status],
            "content": _json("Ready" if operation.answer == "Ready" and status == 503 else "Error"),
        }
        for status in (*operation.errors, *refusals)
    }
    if operation.answer == "Ready" and "{" in operation.path:
        responses["503"]["content"] = {
            "application/json": {"schema": {"anyOf": [_reference("Ready"), _reference("Error")]}}
        }
    content = (
        {"text/plain": {"schema": {"type": "string"}}}
        if operation.answer is None
        else _json(operation.answer)
    )
    identity = operation.handler + ("_version" if "{version}" in operation.path else "")
    described: Schema = {
        "operationId": identity,
        "summary": operation.summary,
        "responses": {"200": {"description": "Done", "content": content}, **responses},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in (
            ("name", {"type": "string", "examples": [config.name]}),
            ("version", {"type": "string", "examples": ["v0001"]}),
        )
        if f"{{{name}}}" in operation.path
    ]
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.scopes == ASKING,
            "content": _json(operation.body),
        }
    if operation.scopes == ASKING:
        parameters += [
            {"name": name, "in": "header", "description": sentence, "schema": schema}
            for name, sentence, schema in (
                (
                    DEADLINE,
                    "Milliseconds after which the answer is of no use.",
                    {"type": "integer", "minimum": 1},
                ),
                (KEY, "What stays with one version while a challenger has a share.", _TEXT),
                (ID, "The request's id, where its body has none.", _TEXT),
            )
        ]
        if config.prediction_log is not None:
            described["responses"]["200"]["headers"] = {
                ID: {"description": "The id that the server made, if it did.", "schema": _TEXT}
            }
    if operation.handler == "infer":
        parameters.append(
            {
                "name": JSON_BYTES,
                "in": "header",
                "description": "Length of the JSON, where binary tensors follow it.",
                "schema": {"type": "integer", "minimum": 1},
            }
        )
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        described["requestBody"]["content"].update(binary)
        content.update(binary)
    if parameters:
        described["parameters"] = parameters
    if scopes and config.access.tokens:
        described["security"] = [{"token": []}]
        described["description"] = f"Needs the scope {' or '.join(sorted(scopes))}."
    return described


_STATUSES = {
    400: "The request is not understood; the error says where",
    401: "No token, or one that is not known",
    403: "The token lacks the scope",
    404: "No such model or version here",
    408: "The body came too slowly",
    409: "Not this server's to do; the error says what would",
    413: "Too many bytes or items",
    429: "The queue is full; Retry-After says when to come back",
    500: "The model failed on this input",
    503: "Not ready",
    504: "The request waited for too long",
}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> dict[str, Schema]:
    return {"application/json": {"schema": _reference(name)}}


def _object(required: str = "", **properties: Schema) -> Schema:
    """An object; ``required``: names of properties, apart by spaces."""
    found: Schema = {"type": "object", "properties": properties}
    return {**found, "required": required.split()} if required else found


def _list(items: Schema, **more: int) -> Schema:
    return {"type": "array", "items": items, **more}


_TEXT: Schema = {"type": "string"}
_TEXTS = _list(_TEXT)
_BOOL: Schema = {"type": "boolean"}
_SIZE: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_VALUE: Schema = {"type": ["string", "number", "boolean", "null"]}
_FEATURES: Schema = {"type": "object", "additionalProperties": _VALUE}
_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def _schemas(config: ServerConfig) -> dict[str, Schema]:
    shape = _list(_SIZE, minItems=1)
    datatype: Schema = {"enum": list(DATATYPES)}
    metadata = _object(
        "name datatype shape",
        name=_TEXT,
        datatype=datatype,
        shape=_list({"type": "integer", "minimum": -1}),
    )
    one: Schema = {
        "anyOf": [
            _object(
                "label probability probabilities",
                label=_TEXT,
                probability=_PROBABILITY,
                probabilities={"type": "object", "additionalProperties": _PROBABILITY},
                version=_TEXT,
            ),
            _object("value", value={"type": "number"}, version=_TEXT),
        ]
    }
    only = {"additionalProperties": False}
    return {
        "Error": _object("error", error=_TEXT),
        "Index": {"type": "object", "additionalProperties": _TEXT},
        "Document": {"type": "object"},
        "Live": _object("live", live=_BOOL),
        "Ready": _object("ready", ready=_BOOL),
        "Server": _object("name version extensions", name=_TEXT, version=_TEXT, extensions=_TEXTS),
        "Model": _object(
            "name versions platform inputs outputs",
            name=_TEXT,
            versions=_TEXTS,
            platform=_TEXT,
            inputs=_list(metadata),
            outputs=_list(metadata),
            parameters=_object(labels=_TEXTS),
        ),
        "Question": {
            "oneOf": [
                _object("text", text=_TEXT) | only,
                _object("features", features=_FEATURES) | only,
                _object(
                    "inputs",
                    inputs=_list(
                        {"anyOf": [_TEXT, _FEATURES]}, minItems=1, maxItems=config.max_items
                    ),
                )
                | only,
            ]
        },
        "Answer": {
            "oneOf": [
                one,
                _object("predictions version", predictions=_list(one), version=_TEXT),
            ]
        },
        "InferRequest": _object(
            "inputs",
            id=_TEXT,
            inputs=_list(
                _object(
                    "name datatype shape",
                    name=_TEXT,
                    datatype=datatype,
                    shape=shape,
                    data=_list({"anyOf": [_VALUE, _list(_VALUE)]}),
                    parameters=_object(binary_data_size=_SIZE),
                ),
                minItems=1,
            ),
            outputs=_list(
                _object("name", name={"enum": list(OUTPUTS)}, parameters=_object(binary_data=_BOOL))
            ),
            parameters=_object(binary_data_output=_BOOL),
        ),
        "InferResponse": _object(
            "model_name model_version outputs",
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            outputs=_list(
                _object(
                    "name datatype shape",
                    name=_TEXT,
                    datatype=datatype,
                    shape=shape,
                    data=_list({"type": ["string", "number"]}),
                    parameters=_object(binary_data_size=_SIZE),
                )
            ),
        ),
        "RepositoryIndexRequest": _object(ready=_BOOL),
        "RepositoryIndex": _list(
            _object(
                "name version state reason",
                name=_TEXT,
                version=_TEXT,
                state={"enum": list(STATES)},
                reason=_TEXT,
            )
        ),
        "RepositoryLoadRequest": _object(parameters=_object(version=_TEXT)),
        "Loaded": {"type": "object"},
    }
