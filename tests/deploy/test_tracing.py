"""Traces: what a request's trace holds, that it goes on from the client's, and where it is sent."""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk", reason='pip install "driftd[otel]"')

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode

from deploy.batcher import Job, Ran
from deploy.errors import BindError
from deploy.server import _traces
from deploy.tracing import Traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def traces(spans):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Traces("1.2.3", provider)


@pytest.fixture
def traced(serving, publish, text, traces, monkeypatch):
    """A server whose spans stay in memory."""
    publish(text, promote=True)
    monkeypatch.setattr("deploy.server._traces", lambda: traces)
    return lambda **settings: serving(traces=True, **settings)


def by_name(spans, count, eventually):
    """The spans by name, once there are so many: a request's own ends after its answer."""
    eventually(lambda: len(spans.get_finished_spans()) >= count)
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_request_goes_on_with_the_clients_trace(traced, spans, eventually):
    with traced() as (_, client):
        answer = client.post("/predict", json={"text": "my card is lost"}, headers=TRACEPARENT)
        client.get("/v2/health/ready")
        client.get("/metrics")
        found = by_name(spans, 4, eventually)
        probe = found.pop("POST /predict")
        assert set(found) == {"queue", "batch", "run"}  # nothing for health and metrics
    assert probe.kind is SpanKind.SERVER
    assert f"{probe.context.trace_id:032x}" == TRACE
    assert f"{probe.parent.span_id:016x}" == PARENT
    assert probe.attributes["http.response.status_code"] == 200
    assert probe.attributes["driftd.version"] == answer.json()["version"]
    assert probe.status.status_code is StatusCode.UNSET
    queue, batch, run = found["queue"], found["batch"], found["run"]
    assert queue.parent.span_id == batch.parent.span_id == probe.context.span_id
    assert run.parent.span_id == batch.context.span_id
    assert probe.start_time <= queue.start_time <= queue.end_time == batch.start_time
    assert batch.start_time == run.start_time < run.end_time == batch.end_time <= probe.end_time
    told = str([dict(span.attributes) for span in (probe, queue, batch, run)])
    assert "lost" not in told


def test_a_refused_request_says_why(traced, spans, eventually):
    with traced(max_items=1) as (_, client):
        tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "the"]}
        client.post("/v2/models/driftd/infer", json={"inputs": [tensor]})
        span = by_name(spans, 1, eventually)["POST /v2/models/NAME/infer"]
    assert span.attributes["error.type"] == "too_large"
    assert span.attributes["http.response.status_code"] == 413
    assert span.status.status_code is StatusCode.UNSET  # the client's fault, not the server's


def test_what_the_server_is_to_blame_for_is_an_error(traced, spans, eventually, monkeypatch):
    with traced() as (server, client):
        monkeypatch.setattr(server.engine, "pick", lambda *_: 1 / 0)
        client.post("/predict", json={"text": "the"})
        span = by_name(spans, 1, eventually)["POST /predict"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "internal"


def test_a_client_that_samples_nothing_is_followed(traced, spans):
    unsampled = {"traceparent": TRACEPARENT["traceparent"][:-1] + "0"}
    with traced() as (_, client):
        assert client.post("/predict", json={"text": "the"}, headers=unsampled).is_success
    assert spans.get_finished_spans() == ()


def test_a_call_of_grpc_goes_on_with_the_clients_trace(traced, spans, eventually):
    triton = pytest.importorskip("tritonclient.grpc", reason='pip install "tritonclient[grpc]"')
    with traced(grpc_port=0) as (server, _):
        eventually(lambda: server.grpc_port)
        with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
            tensor = triton.InferInput("text", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([b"my card"], object))
            client.infer("driftd", [tensor], headers=TRACEPARENT)
        found = by_name(spans, 4, eventually)
    call = found["inference.GRPCInferenceService/ModelInfer"]
    assert f"{call.parent.span_id:016x}" == PARENT
    assert call.attributes["rpc.system"] == "grpc"
    assert found["queue"].parent.span_id == found["batch"].parent.span_id == call.context.span_id


def test_a_run_is_linked_to_all_requests_it_was_for(traces, spans):
    jobs = []
    for name in ("one", "two"):
        with traces.request(name, {}, {}):
            jobs.append(Job(None, [], deadline=0.0, span=traces.current()))
    jobs.append(Job(None, [], deadline=0.0))  # of a request that is not traced
    traces.ran("v0001", Ran(None, 3, 0.5, [0.0] * 3, time.monotonic(), jobs))
    found = spans.get_finished_spans()
    batches = [span for span in found if span.name == "batch"]
    (run,) = (span for span in found if span.name == "run")
    assert [batch.attributes["driftd.requests"] for batch in batches] == [3, 3]
    assert run.parent.span_id == batches[0].context.span_id
    assert [link.context.span_id for link in run.links] == [batches[1].context.span_id]
    assert run.end_time - run.start_time == pytest.approx(0.5e9, abs=1e6)


def test_spans_go_where_the_environment_says(serving, publish, text, monkeypatch):
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        port = collector.server_address[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=here")
        publish(text, promote=True)
        with serving(traces=True) as (_, client):
            client.post("/predict", json={"text": "my card is lost"})
    finally:  # the server's end sends what is left
        collector.shutdown()
        thread.join(10)
        collector.server_close()
    assert {path for path, _ in received} == {"/v1/traces"}
    groups = [group for _, request in received for group in request.resource_spans]
    said = {a.key: a.value.string_value for a in groups[0].resource.attributes}
    assert said["service.name"] == "driftd"
    assert said["deployment.environment.name"] == "here"
    names = {s.name for group in groups for scope in group.scope_spans for s in scope.spans}
    assert names == {"POST /predict", "queue", "batch", "run"}


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "deploy.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(BindError, match=r'pip install "driftd\[otel\]"'):
        _traces()
