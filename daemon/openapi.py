"""The OpenAPI document of the daemon's pages and verbs, from the table that makes them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from daemon.control_form import ORDER, VERBS, Parameter, Schema, Verb

TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
FLAG, OBJECT = {"type": "boolean"}, {"type": "object"}


def _or_null(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(required: str, **properties: Schema) -> Schema:
    """An object that has these properties, and may have more."""
    return {"type": "object", "properties": properties, "required": required.split()}


CONTROL = _object("since actor reason", since=TEXT, actor=TEXT, reason=TEXT)
STATE = _object(
    "generation champion challenger previous withdrawn pinned paused",
    generation=WHOLE,
    champion=_or_null(TEXT),
    challenger=_or_null(TEXT),
    previous=_or_null(TEXT),
    chain=_list(TEXT),
    withdrawn=_list(TEXT),
    removed=_list(TEXT),
    pinned=_or_null(_ref("Control")),
    paused=_or_null(_ref("Control")),
    champion_move=_or_null(OBJECT),
    sentence={**TEXT, "description": "What an order did, for people."},
    repeated={**OBJECT, "description": "The row of the order that had this request_id first."},
)
SCHEMAS: dict[str, Schema] = {
    "Error": _object("error", error={**TEXT, "description": "What went wrong, and what to do."}),
    "Control": CONTROL,
    "State": STATE,
    "Status": _object(
        "registry daemon missing",
        registry=_or_null(_ref("State")),
        daemon=_or_null(OBJECT),
        missing=_or_null(TEXT),
    ),
    "Row": OBJECT,
    "Rows": _object("rows last", rows=_list(_ref("Row")), last=WHOLE),
    "Version": _object(
        "version role strategy labels metrics lineage files",
        version=TEXT,
        role=TEXT,
        strategy=TEXT,
        parent=_or_null(TEXT),
        labels=_list(TEXT),
        metrics=OBJECT,
        lineage=OBJECT,
        files=OBJECT,
        evidence=_list(OBJECT),
        history=_list(_ref("Row")),
    ),
    "Versions": _list(_ref("Version")),
    "Difference": _object("a b differences", a=TEXT, b=TEXT, differences=OBJECT),
    "Verified": _list(
        _object(
            "version problem",
            version=TEXT,
            files=_or_null(WHOLE),
            bytes=_or_null(WHOLE),
            signed_by=_or_null(TEXT),
            problem=_or_null(TEXT),
        )
    ),
    "Explained": _object("seq kind story", seq=WHOLE, kind=TEXT, story=_list(_ref("Row"))),
    "Distances": OBJECT,
    "Cases": _list(OBJECT),
    "Routing": _object(
        "generation mode challenger champion share slow_seconds",
        generation=WHOLE,
        mode=TEXT,
        challenger=_or_null(TEXT),
        champion=_or_null(TEXT),
        share=NUMBER,
        slow_seconds=NUMBER,
        traffic={**OBJECT, "description": "Requests, errors and slow ones, by side."},
        sentence={**TEXT, "description": "What an order did, for people."},
    ),
    "Request": _object("id sentence", id=TEXT, kind=TEXT, sentence=TEXT),
}
ERRORS = {
    "400": "what was given does not fit",
    "401": "a token is needed",
    "403": "the token is not good for that",
    "404": "there is no such version, alarm, case or registry",
    "409": "refused: pinned, withdrawn, serving already, or somebody else was first",
    "503": "the registry's storage does not answer",
}


def document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    paths: dict[str, Any] = {f"/v1/{verb.name}": _verb(verb) for verb in VERBS.values()}
    for path, name, summary, codes in (
        ("/health/live", "live", "Whether the loop turns.", ()),
        ("/health/ready", "ready", "Whether it knows its position and its champion.", ()),
        ("/status", "snapshot", "What the running daemon says of itself.", ("401", "403")),
        ("/openapi.json", "openapi", "This document.", ()),
    ):
        paths[path] = {"get": _operation(name, summary, None, codes)}
        if path.startswith("/health/"):
            paths[path]["get"]["responses"]["503"] = {**_answer(OBJECT), "description": "no"}
    paths["/journal"] = {
        "get": _operation("last_rows", "The last rows.", None, ("400", "401", "403"))
    }
    paths["/journal"]["get"]["responses"]["200"] = _answer(_list(_ref("Row")))
    paths["/journal"]["get"]["parameters"] = [
        _query("limit", Parameter({**WHOLE, "default": 100}, "Most rows to answer with.")),
        _query("kind", Parameter(_list(TEXT), "Only rows of this kind; may be repeated.")),
    ]
    paths["/metrics"] = {
        "get": {
            "operationId": "metrics",
            "summary": "Metrics in Prometheus' text format.",
            "responses": {"200": {"description": "OK", "content": {"text/plain": {}}}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "driftd's control API",
            "version": _release(),
            "description": "The operators' verbs, as `driftd` has them. Orders need a token with "
            "the scope `operate`, and go to the journal with who and why.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _verb(verb: Verb) -> dict[str, Any]:
    codes = ("400", "401", "403", "404", "503")
    if not verb.orders:
        found = _operation(verb.name, verb.summary, verb.answer, codes)
        found["parameters"] = [_query(name, p) for name, p in verb.parameters.items()]
        return {"get": {**found, "security": [{"token": ["read"]}, {}]}}
    found = _operation(verb.name, verb.summary, verb.answer, (*codes, "409"))
    given = {**verb.parameters, **ORDER}
    found["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {name: _described(p) for name, p in given.items()},
                    "required": [name for name, p in given.items() if p.required],
                    "additionalProperties": False,
                }
            }
        },
    }
    return {"post": {**found, "security": [{"token": ["operate"]}]}}


def _operation(
    name: str, summary: str, answer: str | None, codes: tuple[str, ...]
) -> dict[str, Any]:
    errors = {code: {**_answer(_ref("Error")), "description": ERRORS[code]} for code in codes}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _answer(_ref(answer) if answer else OBJECT), **errors},
    }


def _answer(schema: Schema) -> dict[str, Any]:
    return {"description": "OK", "content": {"application/json": {"schema": schema}}}


def _query(name: str, parameter: Parameter) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": parameter.text,
        "required": parameter.required,
        "schema": parameter.schema,
    }


def _described(parameter: Parameter) -> Schema:
    return {**parameter.schema, "description": parameter.text}


def _release() -> str:
    try:
        return version("driftd")
    except PackageNotFoundError:
        return "unknown"
