"""The OpenAPI document: a valid one, true to the routes and scopes; and fuzzing by it."""

from __future__ import annotations

import json
import string
from urllib.parse import quote

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from deploy.access import OPEN
from deploy.config import AccessConfig, ServerConfig
from deploy.openapi import OPERATIONS, document, needed

TOKENS = ServerConfig(access=AccessConfig(tokens="tokens"))


@pytest.mark.parametrize("config", [ServerConfig(), ServerConfig(name="intents"), TOKENS])
def test_the_document_is_valid(config):
    validate(json.loads(json.dumps(document(config, "0.1.0"))))


def test_every_operation_is_there_once_and_needs_what_the_guard_asks():
    paths = document(TOKENS, "0.1.0")["paths"]
    assert sum(len(methods) for methods in paths.values()) == len(OPERATIONS)
    identities = [each["operationId"] for methods in paths.values() for each in methods.values()]
    assert len(set(identities)) == len(identities)
    for operation in OPERATIONS:
        path = operation.path.format(name="driftd", version="v0001")
        assert needed(TOKENS, operation.method, path) == operation.scopes
        described = paths[operation.path][operation.method.lower()]
        assert ("security" in described) == (operation.scopes != OPEN)
        assert ("401" in described["responses"]) == (operation.scopes != OPEN)


def test_the_routes_are_those_of_the_document(serving):
    """Each is found, and with its method only."""
    with serving(ready=False) as (_, client):
        served = client.get("/openapi.json").json()
        assert served["paths"].keys() == {operation.path for operation in OPERATIONS}
        for path, methods in served["paths"].items():
            path = path.format(name="driftd", version="v0001")
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
                status = client.request(method, path).status_code
                assert (status == 405) == (method.lower() not in methods), (method, path)


# ------------------------------------------------------------------ fuzzing

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["my card"]}
# Once in so often a part is replaced by what it must not be, or may not know.
DAMAGE = 12


def mostly(usual, other, once_in=4):
    return st.integers(1, once_in).flatmap(lambda chance: other if chance == 1 else usual)


def values(schema, components):
    """A strategy for what a schema describes, damaged here and there."""
    return mostly(sound(schema, components), JUNK, DAMAGE)


def sound(schema, components):
    if "$ref" in schema:
        return sound(components[schema["$ref"].rpartition("/")[2]], components)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return st.one_of([values(each, components) for each in schema[word]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        return st.one_of([sound(schema | {"type": each}, components) for each in kind])
    if kind == "object":
        return objects(schema, components)
    if kind == "array":
        return st.lists(
            values(schema["items"], components), min_size=schema.get("minItems", 0), max_size=3
        )
    if kind == "integer":
        low = schema.get("minimum", -3)
        return st.integers(low, low + 4) | st.integers(low, schema.get("maximum", 2**70))
    return {
        "string": st.text(max_size=20),
        "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "boolean": st.booleans(),
        "null": st.none(),
    }[kind]


@st.composite
def objects(draw, schema, components):
    required = schema.get("required", ())
    found = {}
    for name, inner in schema.get("properties", {}).items():
        if name in required or draw(st.booleans()):
            found[name] = draw(values(inner, components))
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        found |= draw(st.dictionaries(st.text(max_size=6), values(more, components), max_size=3))
    return found


def requests(path, method, described, components):
    """A strategy for requests of an operation: path, headers and body."""
    names = mostly(st.just("driftd"), st.text(max_size=6))
    versions = mostly(st.just("v0001"), st.sampled_from(["v0002", "v0099"]) | st.text(max_size=6))
    paths = st.builds(
        lambda name, version: path.format(name=quote(name, ""), version=quote(version, "")),
        names,
        versions,
    )
    content = described.get("requestBody", {}).get("content", {})
    bodies = st.binary(max_size=30) | st.text(string.printable, max_size=30).map(str.encode)
    if "application/json" in content:
        body = values(content["application/json"]["schema"], components)
        if path.endswith("/infer"):
            body = st.one_of(st.just({"inputs": [TENSOR]}), body, body.map(with_the_right_tensor))
        written = body.map(lambda value: json.dumps(value).encode())
        tails = st.just(b"") | st.just(b"") | st.binary(max_size=12)
        bodies = st.one_of(
            written, written, st.builds(lambda head, tail: head + tail, written, tails), bodies
        )
    lengths = mostly(st.none(), st.integers(-1, 200))
    return st.tuples(paths, bodies, lengths)


def with_the_right_tensor(value):
    return value | {"inputs": [TENSOR], "outputs": []} if isinstance(value, dict) else value


def test_fuzzed_by_the_document_it_never_fails(serving, text, publish):
    publish(text, promote=True)
    publish(text, seed=1)
    with serving() as (_, client):
        served = client.get("/openapi.json").json()
        components = served["components"]["schemas"]
        seen = set()

        def check(path, method, described):
            @settings(
                max_examples=80 if method == "post" else 8,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(requests(path, method, described, components))
            def ask(request):
                where, body, length = request
                headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
                content = body if method == "post" else None
                response = client.request(method, where, content=content, headers=headers)
                seen.add((described["operationId"], response.status_code))
                assert response.status_code < 500, (where, body, response.text)
                assert "Traceback" not in response.text
                sent = response.request.url.path  # the client takes "." and ".." out of it
                if response.status_code in (404, 405) and sent.count("/") != path.count("/"):
                    return  # a name that made another path of it
                expected = described["responses"].get(str(response.status_code))
                if expected is None:
                    assert response.status_code == 404
                    return
                kind = response.headers["content-type"].partition(";")[0]
                schema = expected["content"][kind]["schema"]
                if kind == "application/json":
                    whole = {**schema, "components": served["components"]}
                    jsonschema.validate(response.json(), whole)

            ask()

        for path, methods in served["paths"].items():
            for method, described in methods.items():
                check(path, method, described)
        assert client.post("/predict", json={"text": "my card"}).status_code == 200
        exposed = client.get("/metrics").text
    assert 'reason="internal"' not in exposed
    # It came through to the model, and was turned away, in every operation that asks.
    for operation in ("predict", "infer", "infer_version"):
        assert {(operation, 200), (operation, 400)} <= seen, seen
    assert ("repository_load", 200) in seen
    assert ("repository_index", 200) in seen
