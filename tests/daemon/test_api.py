"""The control API over real sockets: the same verbs as the commands, asked for by programs."""

from __future__ import annotations

import json
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from daemon.api import ApiServer, Health, application
from daemon.cli import app as cli
from daemon.control_form import ORDER, VERBS
from daemon.metrics import Metrics
from daemon.openapi import document
from daemon.policy_config import HttpConfig
from registry import ManifestDraft, Registry, open_registry
from tests.certificates import Authority

OPS, EYES = "ops-4f2d8b6c0a1e3d57", "eyes-9b7a5c3d1e0f2a4b"
CASE = {"case": "q0001", "cause": "labeller", "group": "eve", "held": 3, "sentence": "why"}
SNAPSHOT: dict[str, Any] = {
    "model": "shop",
    "state": "watching",
    "ready": True,
    "events": 42,
    "drift": {"watching": True, "distances": [{"sentence": "far away"}]},
    "quarantine": [CASE],
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions, the second of which serves; one alarm with its story."""
    made = open_registry(tmp_path / "registry", create=True)
    files = tmp_path / "files"
    files.mkdir()
    for n in (1, 2, 3):
        (files / "model.int8.onnx").write_bytes(b"model" * n)
        lineage = {"trained_on": [{"topic": "t", "partition": 0, "start": 0, "end": n * 100}]}
        draft = ManifestDraft(
            strategy="head", rung="head", task="text", labels=["a"], lineage=lineage
        )
        made.publish(files, draft, actor="test")
    for version in ("v0001", "v0002"):
        made.promote(version, actor="daemon", reason="better")
    made.attach("v0002", "gate", {"decision": "promote"})
    made.journal.append("alarm", event=5, sentence="errors rose", diagnosis={}, incident=None)
    made.journal.append("incident-opened", event=5, incident="i0001")
    made.journal.append("incident-closed", event=9, incident="i0001", outcome="repaired")
    return made


class Api:
    """A running server, and what a program sends to it."""

    def __init__(self, registry: Registry, config: HttpConfig, context: Any = None) -> None:
        self.health = Health()
        app = application(Metrics("shop"), self.health, lambda: SNAPSHOT, registry, config)
        self.server = ApiServer(app, config)
        self.context = context
        self.server.start()

    def __call__(
        self,
        path: str,
        body: Any = None,
        *,
        token: str | None = OPS,
        method: str | None = None,
        data: bytes | None = None,
    ) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else data
        request = urllib.request.Request(f"{self.server.url}{path}", data, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=20, context=self.context) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"alice operate {OPS}\neyes read {EYES}\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def api(registry: Registry, tokens: Path) -> Iterator[Api]:
    config = HttpConfig.model_validate({"port": 0, "access": {"tokens": str(tokens)}})
    running = Api(registry, config)
    yield running
    running.server.stop()


def test_what_looks_answers_as_the_command_does(
    api: Api, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--json", "--registry", str(tmp_path / "registry")]

    def command(*arguments: str) -> Any:
        capsys.readouterr()
        assert cli.run([*arguments, *place]) == 0
        return json.loads(capsys.readouterr().out)

    assert api("/v1/versions")[1] == command("versions")
    assert api("/v1/versions?number=1")[1] == command("versions", "-n", "1")
    assert api("/v1/show?version=champion")[1] == command("show", "champion")
    assert api("/v1/diff?a=v0001&b=champion")[1] == command("diff", "v0001", "champion")
    assert api("/v1/verify?versions=v0001&versions=previous")[1] == command(
        "verify", "v0001", "previous"
    )
    assert api("/v1/explain")[1] == command("explain")
    assert api("/v1/serving?at=2999-01-01")[1] == command("versions", "--at", "2999-01-01")
    assert api("/v1/status")[1]["registry"] == command("status")["registry"]
    assert api("/v1/status")[1]["daemon"] == SNAPSHOT
    assert api("/v1/quarantine")[1] == [CASE]
    assert api("/v1/distances")[1]["distances"] == [{"sentence": "far away"}]


def test_the_journal_is_read_page_by_page(api: Api, registry: Registry) -> None:
    whole = [row.as_dict() for row in registry.journal.rows()]
    found: list[Any] = []
    since = 0
    while True:
        page = api(f"/v1/journal?since={since}&oldest=true&limit=3")[1]
        if page["last"] == since:
            break
        assert len(page["rows"]) <= 3
        found, since = found + page["rows"], page["last"]
    assert found == whole
    last = api("/v1/journal?limit=2")[1]
    assert (last["rows"], last["last"]) == (whole[-2:], whole[-1]["seq"])
    promotions = api("/v1/journal?kinds=promote&kinds=alarm")[1]["rows"]
    assert [row["kind"] for row in promotions] == ["promote", "promote", "alarm"]


def test_an_order_is_journalled_with_who_and_why(api: Api, registry: Registry) -> None:
    code, found = api("/v1/promote", {"version": "v0003", "reason": "own test"})
    assert (code, found["champion"]) == (200, "v0003")
    assert found["sentence"] == "v0003 serves now; v0002 before."
    code, found = api("/v1/rollback", {"reason": "errors", "actor": "bob@laptop"})
    assert found["sentence"] == "v0002 serves again; v0003 is withdrawn."
    for verb in ("pin", "unpin", "pause", "resume"):
        assert api(f"/v1/{verb}", {"reason": "a drill"})[0] == 200
    code, found = api("/v1/refresh", {"reason": "x", "rung": "head", "without": ["t:0:5-9"]})
    assert (code, registry.requests()[0].id) == (200, found["id"])
    assert api("/v1/release", {"reason": "their backlog", "case": "q0001"})[0] == 200
    rows = list(registry.journal.rows())[-8:]
    assert [row.fields["actor"] for row in rows] == ["alice", "alice (bob@laptop)"] + ["alice"] * 6
    assert [(row.kind, row.fields["reason"]) for row in rows[:3]] == [
        ("promote", "own test"),
        ("rollback", "errors"),
        ("pin", "a drill"),
    ]
    assert rows[-1].fields["body"] == {"action": "release", "case": "q0001"}


def test_an_order_is_carried_out_once_under_its_id(
    api: Api, registry: Registry, tokens: Path
) -> None:
    api("/v1/promote", {"version": "v0003", "reason": "x"})
    body = {"reason": "errors", "request_id": "r-1"}
    answers: list[tuple[int, Any]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(api("/v1/rollback", body))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {code for code, _ in answers} == {200}
    assert sum("repeated" not in found for _, found in answers) == 1
    assert registry.state().champion == "v0002"
    assert [row.kind for row in registry.journal.rows()].count("rollback") == 1
    # Another daemon, or the same one after a restart, knows it too.
    other = Api(registry, HttpConfig(port=0, access={"tokens": tokens}))  # type: ignore[arg-type]
    try:
        code, found = other("/v1/rollback", body)
        assert (code, found["champion"]) == (200, "v0002")
        assert re.fullmatch(r"Carried out before, at .*: rollback by alice\.", found["sentence"])
        again = {"reason": "x", "request_id": "r-2"}
        ids = {other("/v1/refresh", again)[1]["id"] for _ in range(3)}
        assert {request.id for request in registry.requests()} == ids
        # A pin with a version is two moves; sent again, none of them is made again.
        for _ in range(2):
            body = {"reason": "audit", "version": "v0001", "request_id": "r-3"}
            assert other("/v1/pin", body)[1]["champion"] == "v0001"
    finally:
        other.server.stop()


@pytest.mark.parametrize(
    ("path", "body", "code", "sentence"),
    [
        ("/v1/promote", {"version": "v0099", "reason": "x"}, 404, "there is no version v0099"),
        ("/v1/promote", {"version": "v0002", "reason": "x"}, 409, "is the champion already"),
        ("/v1/promote", {"reason": "x"}, 400, "version is missing"),
        ("/v1/promote", {"version": "v0003"}, 400, "reason is missing"),
        ("/v1/promote", {"version": "v0003", "reason": "  "}, 400, "reason must not be empty"),
        ("/v1/promote", {"versoin": "v0003", "reason": "x"}, 400, "did you mean 'version'"),
        ("/v1/promote", {"version": 3, "reason": "x"}, 400, "version must be a text"),
        ("/v1/promote", {"version": "v0003", "reason": "x", "force": 1}, 400, "true or false"),
        ("/v1/promote", {"version": "v0003", "reason": "x" * 3000}, 400, "longer than 2000"),
        ("/v1/promote", ["v0003"], 400, "an order is a JSON object"),
        ("/v1/refresh", {"reason": "x", "rung": "huge"}, 400, "rung must be one of"),
        ("/v1/refresh", {"reason": "x", "without": ["t:0:5"]}, 400, "a range needs an end"),
        ("/v1/refresh", {"reason": "x", "without": "t:0:5-9"}, 400, "without must be a list"),
        ("/v1/rollback", {"reason": "x", "before_time": "noon"}, 400, "is no time"),
        ("/v1/rollback", {"reason": "x", "to": "v0001", "before_offset": "t:0:5"}, 400, "one of"),
        ("/v1/drop", {"reason": "x", "case": "q0007"}, 404, "there is no case q0007"),
        ("/v1/show?version=challenger", None, 404, "there is no challenger"),
        ("/v1/journal?limit=0", None, 400, "limit must be from 1 to 10000"),
        ("/v1/journal?limit=many", None, 400, "limit must be a whole number"),
        ("/v1/explain?alarm=999", None, 404, "no alarm 999"),
        ("/v1/promot", None, 404, "there is no page /v1/promot"),
        ("/v1/promote", None, 405, "does not take GET"),
    ],
)
def test_errors_are_a_sentence(
    api: Api, registry: Registry, path: str, body: Any, code: int, sentence: str
) -> None:
    before = registry.state()
    found, answer = api(path, body)
    assert (found, list(answer)) == (code, ["error"])
    assert sentence in answer["error"]
    assert registry.state() == before


def test_what_is_no_order_is_refused(api: Api) -> None:
    assert api("/v1/pause", data=b"{", method="POST")[0] == 400
    code, found = api("/v1/pause", data=b'{"reason": "' + b"x" * 100_000, method="POST")
    assert (code, found["error"]) == (413, "an order takes at most 65536 bytes")


def test_tokens_open_what_their_scope_says(api: Api, registry: Registry) -> None:
    order = {"reason": "x"}
    assert api("/v1/pause", order, token=None)[0] == 401
    assert api("/v1/pause", order, token=EYES)[0] == 403
    assert api("/v1/pause", order, token="wrong-token-of-no-one")[0] == 401
    for path in ("/v1/versions", "/status", "/journal"):
        assert api(path, token=None)[0] == 401, path
        assert api(path, token=EYES)[0] == 200, path
    assert api("/health/live", token=None)[0] == 200
    assert api("/openapi.json", token=None)[0] == 200
    assert registry.state().paused is None


def test_without_tokens_anyone_may_look_and_nobody_may_order(registry: Registry) -> None:
    api = Api(registry, HttpConfig(port=0))
    try:
        assert api("/v1/versions", token=None)[0] == 200
        code, found = api("/v1/rollback", {"reason": "x"}, token=None)
        assert (code, "set http.access.tokens" in found["error"]) == (403, True)
    finally:
        api.server.stop()


def test_tls(registry: Registry, tokens: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    certificate, key = authority.issue("daemon")
    tls = {"certificate": str(certificate), "key": str(key)}
    config = HttpConfig.model_validate({"port": 0, "access": {"tokens": str(tokens)}, "tls": tls})
    api = Api(registry, config, ssl.create_default_context(cafile=authority.ca))
    try:
        assert api.server.url.startswith("https://")
        assert api("/v1/pause", {"reason": "x"})[0] == 200
        api.context = ssl.create_default_context()
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            api("/v1/versions")
    finally:
        api.server.stop()


def test_a_loop_that_stalls_is_not_live(api: Api) -> None:
    assert api("/health/live")[0] == 200
    api.health.stalled_after = 0.0
    assert api("/health/live")[0] == 503
    assert api("/health/ready") == (503, {"ready": False, "reason": "starting"})


# ------------------------------------------------------------------ the document


def test_the_document_has_every_page_and_nothing_else(api: Api) -> None:
    found = api("/openapi.json")[1]
    assert found == json.loads(json.dumps(document()))
    assert {path for path in found["paths"] if path.startswith("/v1/")} == {
        f"/v1/{name}" for name in VERBS
    }
    ids = [op["operationId"] for methods in found["paths"].values() for op in methods.values()]
    assert len(ids) == len(set(ids))
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"].endswith("."), path
            if path != "/metrics":
                answer = api(path, {} if method == "post" else None)[1]
                assert "there is no page" not in str(answer), path
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert references == set(found["components"]["schemas"])


def test_answers_are_as_the_document_says(api: Api, registry: Registry) -> None:
    found = document()
    given: dict[str, Any] = {
        "serving": "at=2999-01-01",
        "show": "version=v0002",
        "diff": "a=v0001&b=v0002",
        "promote": {"version": "v0003"},
        "route": {"mode": "off"},
        "pin": {"version": "v0002"},
        "release": {"case": "q0001"},
        "drop": {"case": "q0001"},
    }
    for name, verb in VERBS.items():
        method = "post" if verb.orders else "get"
        operation = found["paths"][f"/v1/{name}"][method]
        if verb.orders:
            body = {**given.get(name, {}), "reason": "x"}
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            jsonschema.validate(body, schema)
            assert set(schema["properties"]) == {*verb.parameters, *ORDER}
            code, answer = api(f"/v1/{name}", body)
            if name == "pin":
                api("/v1/unpin", {"reason": "x"})
        else:
            code, answer = api(f"/v1/{name}?{given.get(name, '')}")
        assert code == 200, (name, answer)
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": found["components"]})
