"""The server over HTTP: V2, the plain form, metrics, limits, and what bad clients send."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

import registry
from deploy.config import ServerConfig
from deploy.errors import BindError
from deploy.listening import bind, turn_away
from deploy.server import InferenceServer, _collect_seldom
from deploy.session import Session

INFER = "/v2/models/driftd/infer"


def infer_body(*texts, **more):
    shape = [len(texts)]
    return {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": shape, "data": list(texts)}]
    } | more


def counter(server, name, *labels):
    return server.metrics.counter(name, *labels)._value.get()


def test_v2_text(serving, text, publish, tmp_path):
    version = publish(text, promote=True)
    session = Session.open(tmp_path / "registry" / "versions" / version)
    inputs = text.inputs[:3]
    with serving() as (_, client):
        response = client.post(INFER, json=infer_body(*inputs, id="abc"))
        assert response.status_code == 200
        answer = response.json()
        assert (answer["id"], answer["model_name"]) == ("abc", "driftd")
        assert answer["model_version"] == version
        label, probabilities = answer["outputs"]
        expected = session.predict(inputs)
        assert label["datatype"] == "BYTES"
        assert set(label["data"]) <= set(text.labels)
        assert probabilities["shape"] == [3, 3]
        ours = np.reshape(probabilities["data"], (3, 3))
        assert np.abs(ours - expected.probabilities).max() < 0.05
        assert label["data"] == [text.labels[i] for i in ours.argmax(1)]

        wanted = [{"name": "embedding"}, {"name": "label"}]
        outputs = client.post(INFER, json=infer_body("my card", outputs=wanted)).json()["outputs"]
        assert [(each["name"], each["shape"]) for each in outputs] == [
            ("embedding", [1, 32]),
            ("label", [1]),
        ]
        by_version = f"/v2/models/driftd/versions/{version}/infer"
        assert client.post(by_version, json=infer_body("my card")).json()["outputs"]


def test_a_request_of_many_lengths_keeps_its_order(serving, text, publish, tmp_path):
    version = publish(text, promote=True)
    expected = Session.open(tmp_path / "registry" / "versions" / version).predict(text.inputs)
    with serving() as (_, client):
        body = infer_body(*text.inputs, outputs=[{"name": "embedding"}])
        (output,) = client.post(INFER, json=body).json()["outputs"]
    ours = np.reshape(output["data"], output["shape"])
    assert (ours * expected.embeddings).sum(axis=1).min() > 0.98


def test_v2_raw_feeds_answer_like_text(serving, text, publish):
    publish(text, promote=True)
    feeds = text.preprocessor(text.inputs[:2])
    body = {
        "inputs": [
            {
                "name": name,
                "datatype": "INT64",
                "shape": list(feed.shape),
                "data": feed.ravel().tolist(),
            }
            for name, feed in feeds.items()
        ]
    }
    with serving() as (_, client):
        raw = client.post(INFER, json=body).json()["outputs"]
        plain = client.post(INFER, json=infer_body(*text.inputs[:2])).json()["outputs"]
        assert raw[0]["data"] == plain[0]["data"]


def test_v2_table_and_plain_table(serving, table, publish):
    publish(table, promote=True)
    columns = {
        "price": ("FP64", [30.5, None]),
        "peak": ("BOOL", [True, False]),
        "region": ("BYTES", ["north", None]),
    }
    body = {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [2], "data": data}
            for name, (datatype, data) in columns.items()
        ]
    }
    with serving() as (_, client):
        metadata = client.get("/v2/models/driftd").json()
        assert [each["name"] for each in metadata["inputs"]] == list(columns)
        response = client.post(INFER, json=body)
        assert response.json()["outputs"][1]["shape"] == [2, 2]
        rows = [
            {"price": 30.5, "peak": True, "region": "north"},
            {"price": None, "peak": False, "region": None},
        ]
        plain = client.post("/predict", json={"inputs": rows}).json()["predictions"]
        assert [each["label"] for each in plain] == response.json()["outputs"][0]["data"]
        one = client.post("/predict", json={"features": rows[0]}).json()
        assert one["label"] == plain[0]["label"]

        del rows[1]["peak"]
        response = client.post("/predict", json={"inputs": rows})
        assert response.status_code == 400
        assert "item 1: feature 'peak' is missing" in response.json()["error"]
        response = client.post("/predict", content=b'{"features": {"price": NaN}}')
        assert "send null for a missing value" in response.json()["error"]
        body["inputs"][0]["data"] = [1e400, 1]
        response = client.post(INFER, content=json.dumps(body).replace("Infinity", "1e999"))
        assert response.status_code == 400


def test_plain_text(serving, text, publish):
    version = publish(text, promote=True)
    with serving() as (_, client):
        one = client.post("/predict", json={"text": "my card is lost"}).json()
        assert one["version"] == version
        assert one["label"] in text.labels
        assert one["probability"] == max(one["probabilities"].values())
        many = client.post("/predict", json={"inputs": ["my card", "money"] * 40}).json()
        assert len(many["predictions"]) == 80


def test_metadata_and_health(serving, text, publish, eventually):
    with serving(ready=False) as (server, client):
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/driftd/ready").status_code == 503
        response = client.post("/predict", json={"text": "my card"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        first = publish(text, promote=True)
        eventually(lambda: client.get("/v2/health/ready").status_code == 200)
        second = publish(text, seed=1, promote=True)
        eventually(lambda: server.engine.lineup.versions == (second, first))

        assert client.get("/").json()["name"] == "driftd"
        assert client.get("/v2").json()["name"] == "driftd"
        model = client.get("/v2/models/driftd").json()
        assert model["versions"] == [second, first]
        assert model["platform"] == "onnxruntime_onnx"
        assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert model["parameters"]["labels"] == list(text.labels)
        assert client.get(f"/v2/models/driftd/versions/{first}/ready").status_code == 200
        answer = client.post(f"/v2/models/driftd/versions/{first}/infer", json=infer_body("card"))
        assert answer.json()["model_version"] == first
        for path in (
            "/v2/models/driftd/versions/v0099",
            "/v2/models/driftd/versions/v0099/ready",
            "/v2/models/other",
            "/v2/models/other/ready",
            "/nothing",
        ):
            response = client.get(path)
            assert response.status_code == 404
            assert response.json()["error"]
        response = client.post("/v2/models/driftd/versions/v0099/infer", json=infer_body("card"))
        assert response.status_code == 404
        assert "loaded: v0002, v0001" in response.json()["error"]
        response = client.get(INFER)
        assert response.status_code == 405
        assert response.json()["error"]


def test_metrics_tell_model_and_version(serving, text, publish):
    version = publish(text, promote=True)
    with serving(name="intents") as (_, client):
        client.post("/predict", json={"text": "my card"})
        client.post("/predict", json={"text": ""})
        client.post("/v2/models/wrong/infer", json=infer_body("card"))
        client.post("/v2/models/intents/infer", json=infer_body("card", "money"))
        exposed = client.get("/metrics").text
    both = f'model="intents",protocol="{{}}",version="{version}"'
    plain, v2 = both.format("plain"), both.format("v2")
    assert f'driftd_server_requests_total{{code="200",{plain}}} 1.0' in exposed
    assert f'driftd_server_requests_total{{code="400",{plain}}} 1.0' in exposed
    assert f'driftd_server_requests_total{{code="200",{v2}}} 1.0' in exposed
    assert 'code="404",model="intents",protocol="v2",version="none"' in exposed
    assert f"driftd_server_request_seconds_count{{{v2}}} 1.0" in exposed
    model = f'model="intents",version="{version}"'
    assert f"driftd_server_champion_info{{{model}}} 1.0" in exposed
    assert f'errors_total{{model="intents",reason="bad_input",version="{version}"}} 1.0' in exposed
    assert f"driftd_server_batch_items_sum{{{model}}} 4.0" in exposed  # with the first probe
    assert 'driftd_server_ready{model="intents"} 1.0' in exposed


TENSOR = infer_body("my card")["inputs"][0]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (json.dumps(infer_body("")), 400, "item 0: the text is empty"),
        (json.dumps(infer_body("card", "  ")), 400, "item 1: the text is empty"),
        (json.dumps({"inputs": [TENSOR | {"name": "texts"}]}), 400, "unexpected tensors"),
        (json.dumps({"inputs": [TENSOR | {"datatype": "FP32"}]}), 400, "not all FP32"),
        (json.dumps({"inputs": [TENSOR | {"datatype": "FP32", "data": [1]}]}), 400, "BYTES"),
        (json.dumps({"inputs": [TENSOR | {"shape": [2]}]}), 400, "for shape [2]"),
        (json.dumps({"inputs": [TENSOR | {"data": [None]}]}), 400, "expected a text"),
        (json.dumps(infer_body(*["card"] * 257)), 413, "the limit is 256"),
        (json.dumps(infer_body("card " * 3_000_000)), 413, "the limit is 4194304"),
        (b'{"inputs": [' + b"[" * 5000, 400, "not valid JSON"),
        (b'{"inputs": ["\\ud800"]}', 400, "not valid JSON"),
    ],
)
def test_bad_requests(minimal, content, status, message):
    _, client = minimal
    response = client.post(INFER, content=content)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "Traceback" not in response.text
    assert client.post(INFER, json=infer_body("my card")).status_code == 200


@pytest.fixture(scope="module")
def minimal(text, tmp_path_factory):
    """One server for all bad requests, so that each shows that the one before did no harm."""
    root = tmp_path_factory.mktemp("minimal")
    store = registry.open_registry(str(root / "registry"), create=True)
    draft = registry.ManifestDraft(strategy="test", rung="head", task="text", labels=["a"])
    version = store.publish(text.write(root / "v"), draft, actor="test").id
    store.promote(version, actor="test", reason="a test")
    server = InferenceServer(
        ServerConfig(port=0, workers=1, body_seconds=2, poll_seconds=0.05), store
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for _ in range(500):
            if client.get("/v2/health/ready").status_code == 200:
                break
            threading.Event().wait(0.02)
        yield server, client
    server.stop()
    thread.join(20)


def test_other_bad_headers(minimal):
    _, client = minimal
    body = json.dumps(infer_body("card")).encode()
    response = client.post(INFER, content=body, headers={"content-encoding": "gzip"})
    assert (response.status_code, "compressed" in response.text) == (400, True)
    for length, message in (
        ("10", "not valid JSON"),
        (str(len(body) + 1), "must be the length of the JSON"),
        ("-1", "must be a whole number"),
        ("0" * 5000, "must be a whole number"),
        ("9" * 5000, "must be a whole number"),
    ):
        headers = {"inference-header-content-length": length}
        response = client.post(INFER, content=body, headers=headers)
        assert (response.status_code, message in response.text) == (400, True)


def test_a_long_name_is_not_echoed_in_full(minimal):
    _, client = minimal
    response = client.post(INFER, json={"inputs": [TENSOR | {"name": "x" * 100_000}]})
    assert response.status_code == 400
    assert len(response.content) < 2000


def test_a_chunked_body_is_bounded(minimal):
    _, client = minimal

    def chunks():
        for _ in range(80):
            yield b" " * 65536

    response = client.post(INFER, content=chunks())
    assert response.status_code == 413


def test_a_long_text_does_not_stop_the_others(minimal):
    _, client = minimal
    response = client.post("/predict", json={"text": "card money " * 100_000})
    assert response.status_code == 200


def test_a_slow_body_is_given_up(minimal, raw_connection):
    server, client = minimal
    with raw_connection(server) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"in')
        assert b"408" in connection.recv(1000).split(b"\r\n")[0]
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("spaces", [0, 300_000])
def test_a_client_that_leaves_is_not_worked_for(
    minimal, raw_connection, held_back, eventually, spaces
):
    server, client = minimal
    gate = held_back(server)
    version = server.engine.lineup.champion.version
    gone = counter(server, "driftd_server_errors_total", version, "client_gone")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/predict", json={"text": "my card"})
        assert gate.entered.wait(5)
        body = json.dumps({"text": "lost money"}) + " " * spaces
        with raw_connection(server) as leaving:
            head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            leaving.sendall((head + body).encode())
            eventually(lambda: server.engine.queued == 1)
        eventually(
            lambda: (
                counter(server, "driftd_server_errors_total", version, "client_gone") == gone + 1
            )
        )
        gate.open()
        assert first.result(10).status_code == 200
    eventually(lambda: server.engine.queued == 0)
    assert gate.runs == 1


def test_overload_is_refused_at_once_and_late_work_dropped(
    serving, text, publish, held_back, eventually
):
    version = publish(text, promote=True)
    limits = {"workers": 1, "queue_limit": 4, "max_items": 4, "deadline_seconds": 0.5}
    with serving(**limits) as (server, client), ThreadPoolExecutor(8) as pool:
        gate = held_back(server)
        first = pool.submit(client.post, "/predict", json={"text": "my card"})
        assert gate.entered.wait(5)
        waiting = [pool.submit(client.post, "/predict", json={"text": "card"}) for _ in range(4)]
        eventually(lambda: server.engine.queued == 4)
        refused = client.post("/predict", json={"text": "my card"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "try again later" in refused.json()["error"]
        threading.Event().wait(0.6)
        gate.open()
        assert first.result(10).status_code == 200
        late = [each.result(10) for each in waiting]
        assert {each.status_code for each in late} == {504}
        assert counter(server, "driftd_server_errors_total", version, "deadline") == 4
        assert client.post("/predict", json={"text": "my card"}).status_code == 200


def test_a_model_failure_is_a_500_without_details(minimal, monkeypatch):
    server, client = minimal
    session = server.engine.lineup.champion.session

    def broken(self, encoded, head=None):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(session), "run", broken)
    response = client.post("/predict", json={"text": "my card"})
    assert response.status_code == 500
    assert response.json() == {"error": "the model failed on this input"}
    monkeypatch.undo()
    assert client.post("/predict", json={"text": "my card"}).status_code == 200


def test_answers_do_not_get_mixed_up(minimal, text):
    """Concurrent requests of all lengths each get the answer to their own input."""
    server, _ = minimal
    session = server.engine.lineup.champion.session
    expected = session.predict(text.inputs).embeddings

    async def ask(client, i):
        body = infer_body(text.inputs[i], outputs=[{"name": "embedding"}])
        response = await client.post(INFER, json=body)
        assert response.status_code == 200, response.text
        return i, response.json()["outputs"][0]["data"]

    async def ask_all():
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*(ask(client, i % 60) for i in range(240)))

    for i, embedding in asyncio.run(ask_all()):
        assert (expected @ np.array(embedding)).argmax() in np.flatnonzero(
            (expected @ expected[i]) > 0.999
        )


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port}: Address already in use; stop"):
            bind("127.0.0.1", port, 10)
    with pytest.raises(BindError, match="cannot listen on host"):
        bind("no-such-host.invalid", 0, 10)
    with pytest.raises(BindError, match="choose an address of this machine"):
        bind("192.0.2.1", 0, 10)


def test_turning_away_keeps_those_who_came_first():
    with bind("127.0.0.1", 0, 10) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5) as early:
            turn_away(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                listener.close()
                early.sendall(b"hello")
                assert accepted.recv(5) == b"hello"


def test_garbage_is_not_looked_for_every_few_requests():
    before = gc.get_threshold()
    try:
        _collect_seldom()
        looked = gc.get_stats()[0]["collections"]
        waiting = [[] for _ in range(30_000)]
        assert gc.get_stats()[0]["collections"] == looked
        assert len(waiting) == 30_000
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
