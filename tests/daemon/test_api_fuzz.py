"""Whatever is sent to the control API is answered in JSON, and does no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from daemon.api import Health, application
from daemon.control_form import ORDER, VERBS
from daemon.metrics import Metrics
from daemon.policy_config import HttpConfig
from registry import ManifestDraft, Registry, open_registry

TOKEN = "ops-4f2d8b6c0a1e3d57"
KNOWN = sorted({name for verb in VERBS.values() for name in verb.parameters} | set(ORDER))
ODD = st.sampled_from(
    ["", " ", "v0001", "champion", "v" * 9000, "../../etc/passwd", "t:0:5-9", "\x00", "９", "-1"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), VALUES, max_size=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Registry]]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    registry = open_registry(folder / "registry", create=True)
    (folder / "files").mkdir()
    (folder / "files" / "model.int8.onnx").write_bytes(b"x")
    draft = ManifestDraft(strategy="head", rung="head", task="text", labels=["a"])
    for _ in range(3):
        version = registry.publish(folder / "files", draft, actor="test")
        registry.promote(version.id, actor="test", reason="x")
    (folder / "tokens").write_text(f"alice operate {TOKEN}\n")
    config = HttpConfig.model_validate({"access": {"tokens": str(folder / "tokens")}})
    app = application(Metrics("m"), Health(), dict, registry, config)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, headers=headers) as client:
        yield client, registry


def judge(answer: Any) -> None:
    assert answer.status_code in (200, 400, 404, 409), answer.text
    body = answer.json()
    if answer.status_code != 200:
        assert list(body) == ["error"]
        assert isinstance(body["error"], str)


quick = settings(
    max_examples=20,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", sorted(name for name, verb in VERBS.items() if verb.orders))
def test_orders(place: tuple[TestClient, Registry], name: str) -> None:
    client, registry = place

    @quick
    @given(BODIES)
    def send(body: dict[str, Any]) -> None:
        before = registry.state().generation
        try:
            data = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
        except (TypeError, ValueError):
            return  # no JSON: integers beyond 64 bits, lone surrogates
        answer = client.post(f"/v1/{name}", content=data)
        judge(answer)
        if answer.status_code != 200:
            assert registry.state().generation == before

    send()


@pytest.mark.parametrize("name", sorted(name for name, verb in VERBS.items() if not verb.orders))
def test_looking(place: tuple[TestClient, Registry], name: str) -> None:
    client, registry = place
    before = registry.state()

    @quick
    @given(
        st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), st.text() | ODD, max_size=3)
    )
    def ask(query: dict[str, str]) -> None:
        try:
            answer = client.get(f"/v1/{name}", params=query)
        except UnicodeEncodeError:
            return
        judge(answer)

    ask()
    assert registry.state() == before


@quick
@given(st.binary(max_size=300))
def test_bodies_that_are_no_json(place: tuple[TestClient, Registry], data: bytes) -> None:
    judge(place[0].post("/v1/pause", content=data))
