"""The prediction log: what it writes to a real broker, and that no trouble hurts a request."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from daemon.decode import Decoder, Records
from daemon.stream_config import EventsConfig, FieldsConfig
from deploy.config import PredictionLogConfig, ServerConfig
from deploy.errors import LogError
from deploy.metrics import Metrics
from deploy.prediction_log import Answered, PredictionLog, plain_items
from deploy.server import InferenceServer
from deploy.session import Prediction

INFER = "/v2/models/driftd/infer"


def settings(bootstrap, topic="predictions", **more):
    return PredictionLogConfig(bootstrap_servers=[bootstrap], topic=topic, **more)


def counted(metrics, version, outcome):
    name = "driftd_server_logged_items_total"
    return metrics.counter(name, version, outcome)._value.get()


def read(broker, topic, n):
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap,
        auto_offset_reset="earliest",
        group_id=None,
        fetch_max_wait_ms=100,
    )
    found, end = [], time.monotonic() + 30
    while len(found) < n and time.monotonic() < end:
        for records in consumer.poll(timeout_ms=200).values():
            found += records
    consumer.close()
    assert len(found) == n
    return {record.key.decode(): json.loads(record.value) for record in found}


def nowhere():
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_every_item_reaches_the_topic_and_is_an_event_of_the_daemon(
    serving, text, publish, broker, eventually
):
    version, topic = publish(text, promote=True), broker.topic()
    body = {
        "id": "two",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["my", "card"]}],
        "outputs": [{"name": "embedding"}, {"name": "probabilities"}],
    }
    with serving(prediction_log=settings(broker.bootstrap, topic, embedding=True)) as (
        server,
        client,
    ):
        embedding, probabilities = client.post(INFER, json=body).json()["outputs"]
        named = client.post("/predict", json={"text": "lost"}, headers={"x-request-id": "named"})
        made = client.post("/predict", json={"text": "late"})
        eventually(lambda: counted(server.metrics, version, "sent") == 4)
    assert "x-request-id" not in named.headers
    records = read(broker, topic, 4)
    assert set(records) == {"two:0", "two:1", "named", made.headers["x-request-id"]}
    second = records["two:1"]
    assert (second["id"], second["text"]) == ("two:1", "card")
    assert abs(second["time"] - time.time()) < 60
    said = second["prediction"]
    assert said["version"] == version
    ours = np.reshape(probabilities["data"], probabilities["shape"])[1]
    assert list(said["probabilities"]) == list(text.labels)
    assert list(said["probabilities"].values()) == pytest.approx(ours.tolist(), abs=1e-6)
    assert said["label"] == text.labels[ours.argmax()]
    row = np.frombuffer(base64.b64decode(said["embedding"]), "<f4")
    assert row.tolist() == pytest.approx(np.reshape(embedding["data"], (2, 32))[1].tolist())

    values = [json.dumps(record).encode() for record in records.values()]
    raw = Records(values, ["p"] * 4, [0] * 4, list(range(4)), [-1] * 4)
    decoder = Decoder(FieldsConfig(id="id", time="time"), EventsConfig())
    events, rejected = decoder.decode(raw)
    assert rejected == []
    assert set(events.ids) == set(records)
    assert set(events.labels) == {None}


def test_rows_of_a_table_are_fields_and_missing_numbers_are_null(
    serving, table, publish, broker, eventually
):
    version, topic = publish(table, promote=True), broker.topic()
    with serving(prediction_log=settings(broker.bootstrap, topic)) as (server, client):
        columns = {"price": [3.5, None], "peak": [1.0, 0.0], "region": ["north", None]}
        inputs = [
            {
                "name": name,
                "datatype": "BYTES" if name == "region" else "FP64",
                "shape": [2],
                "data": data,
            }
            for name, data in columns.items()
        ]
        assert client.post(INFER, json={"id": "a", "inputs": inputs}).status_code == 200
        plain = {"features": {"price": 2, "peak": None, "region": "south"}}
        client.post("/predict", json=plain, headers={"x-request-id": "b"})
        eventually(lambda: counted(server.metrics, version, "sent") == 3)
    records = read(broker, topic, 3)
    assert records["a:1"] | {"time": 0, "prediction": 0} == {
        "id": "a:1",
        "time": 0,
        "price": None,
        "peak": 0.0,
        "region": None,
        "prediction": 0,
    }
    assert records["b"]["region"] == "south"
    assert "embedding" not in records["b"]["prediction"]


def test_inputs_can_stay_in_the_server(serving, text, publish, broker, eventually):
    version, topic = publish(text, promote=True), broker.topic()
    with serving(prediction_log=settings(broker.bootstrap, topic, inputs=False)) as (
        server,
        client,
    ):
        client.post("/predict", json={"text": "secret"}, headers={"x-request-id": "x"})
        eventually(lambda: counted(server.metrics, version, "sent") == 1)
    assert set(read(broker, topic, 1)["x"]) == {"id", "time", "prediction"}


def test_what_waits_is_written_at_the_end(serving, text, publish, broker):
    publish(text, promote=True)
    topic = broker.topic()
    with serving(prediction_log=settings(broker.bootstrap, topic)) as (_, client):
        inputs = [str(each) for each in text.inputs[:40]]
        client.post("/predict", json={"inputs": inputs}, headers={"x-request-id": "x"})
    assert len(read(broker, topic, 40)) == 40


def test_without_a_broker_requests_go_on_and_drops_are_counted(serving, text, publish, eventually):
    version = publish(text, promote=True)
    config = settings(nowhere(), queue_items=10, flush_seconds=0.2)
    with serving(prediction_log=config) as (server, client):
        begun = time.monotonic()
        for _ in range(30):
            assert client.post("/predict", json={"text": "my card"}).status_code == 200
        assert time.monotonic() - begun < 10
        assert counted(server.metrics, version, "dropped") == 20
        text_page = client.get("/metrics").text
        assert 'driftd_server_log_queue_items{model="driftd"} 10.0' in text_page
    assert counted(server.metrics, version, "dropped") == 30


def test_a_broker_that_comes_later_gets_what_waited(serving, text, publish, fragile, eventually):
    version = publish(text, promote=True)
    with serving(prediction_log=settings(fragile.bootstrap, "later")) as (server, client):
        client.post("/predict", json={"text": "my card"})
        time.sleep(0.5)
        assert counted(server.metrics, version, "sent") == 0
        fragile.proxy.start()
        eventually(lambda: counted(server.metrics, version, "sent") == 1, 40)


def answered(n=1, inputs=lambda: None):
    one = np.full((n, 2), 0.5, np.float32)
    return Answered("x", 1e9, "v0001", ["a", "b"], Prediction(one, one, one), inputs)


def test_an_input_that_cannot_be_written_fails_alone(broker, eventually):
    metrics, topic = Metrics("m"), broker.topic()
    log = PredictionLog(settings(broker.bootstrap, topic), metrics)
    log.start()
    log.write(answered(inputs=lambda: [{"a": object()}]))
    log.write(answered(inputs=lambda: ["fine"]))
    eventually(lambda: counted(metrics, "v0001", "sent") == 1)
    assert counted(metrics, "v0001", "failed") == 1
    log.close()


def test_a_request_is_logged_whole_or_not_at_all():
    metrics = Metrics("m")
    log = PredictionLog(settings(nowhere(), queue_items=3), metrics)
    log.write(answered(2))
    log.write(answered(2))
    log.write(answered(1))
    assert (log.waiting, counted(metrics, "v0001", "dropped")) == (3, 2)


def test_raw_feeds_have_no_plain_items(text):
    feeds = text.preprocessor(text.inputs[:2])
    assert plain_items(feeds, text.preprocessor) is None


def test_the_extra_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("deploy.prediction_log.find_spec", lambda name: None)
    config = ServerConfig(port=0, prediction_log=settings("localhost:9092"))
    with pytest.raises(LogError, match=r"pip install \"driftd\[log\]\""):
        InferenceServer(config, "nowhere")


def test_without_it_the_client_is_not_even_imported():
    program = "import sys, deploy.server; assert 'kafka' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=60)


def test_the_password_is_not_shown():
    config = settings(
        "b:1",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="u",
        sasl_password="hidden",
    )
    assert "hidden" not in repr(config)
    assert config.client_options()["sasl_plain_password"] == "hidden"
    with pytest.raises(ValueError, match="sasl_mechanism and sasl_username"):
        settings("b:1", security_protocol="SASL_SSL")
