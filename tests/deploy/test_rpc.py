"""The server over gRPC, as tritonclient and bare calls see it; limits, tokens, TLS, deadlines."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

grpc = pytest.importorskip("grpc", reason='pip install "driftd[grpc]"')
client_module = pytest.importorskip("tritonclient.grpc", reason='pip install "tritonclient[grpc]"')

from google.protobuf import descriptor_pb2  # noqa: E402
from tritonclient.grpc import service_pb2 as theirs  # noqa: E402

import registry  # noqa: E402
from deploy.config import AccessConfig, PredictionLogConfig, TlsConfig  # noqa: E402
from deploy.errors import BindError, InputError  # noqa: E402
from deploy.prediction_log import PredictionLog  # noqa: E402
from deploy.routing import Split  # noqa: E402
from deploy.rpc import _read  # noqa: E402
from deploy.rpc_messages import MESSAGES  # noqa: E402
from deploy.session import Session  # noqa: E402
from tests.certificates import Authority  # noqa: E402

INFER = "/inference.GRPCInferenceService/ModelInfer"
INFERENCE = "inference.GRPCInferenceService"
CODE = grpc.StatusCode


def texts_request(*texts, model="driftd", **more):
    contents = theirs.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    tensor = theirs.ModelInferRequest.InferInputTensor(
        name="text", datatype="BYTES", shape=[len(texts)], contents=contents
    )
    return theirs.ModelInferRequest(model_name=model, inputs=[tensor], **more)


@pytest.fixture
def calling(serving, eventually):
    """A server with gRPC: the server, an HTTP client, and a channel."""

    @contextmanager
    def calling(**settings):
        with serving(grpc_port=0, **settings) as (server, http), ExitStack() as opened:
            eventually(lambda: server.grpc_port)
            channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
            yield server, http, opened.enter_context(channel)

    return calling


@pytest.fixture
def triton():
    @contextmanager
    def triton(server, **options):
        client = client_module.InferenceServerClient(f"localhost:{server.grpc_port}", **options)
        with client:
            yield client

    return triton


def infer(channel, request, **options):
    call = channel.unary_unary(INFER, lambda each: each.SerializeToString())
    answer, call = call.with_call(request, timeout=20, **options)
    return theirs.ModelInferResponse.FromString(answer)


def raw_call(channel, raw, path=INFER, **options):
    return channel.unary_unary(path)(raw, **({"timeout": 20} | options))


def failure(work, *arguments, **options):
    with pytest.raises(grpc.RpcError) as raised:
        work(*arguments, **options)
    return raised.value


def feeds(arrays):
    inputs = []
    for name, (datatype, array) in arrays.items():
        each = client_module.InferInput(name, list(array.shape), datatype)
        each.set_data_from_numpy(array)
        inputs.append(each)
    return inputs


def test_our_field_numbers_are_the_protocol_s():
    def fields(message):
        described = descriptor_pb2.DescriptorProto()
        message.CopyToProto(described)
        return {field.name: (field.number, field.type, field.label) for field in described.field}

    found = {}

    def look(messages):
        for message in messages:
            found[message.name] = fields(message)
            look(message.nested_types)

    look(theirs.DESCRIPTOR.message_types_by_name.values())
    checked = 0
    for name, message in MESSAGES.items():
        if not name.startswith("HealthCheck"):
            ours = fields(message.DESCRIPTOR)
            assert ours.items() <= found[name].items(), name
            checked += len(ours)
    assert checked > 40


def test_triton_text(calling, triton, text, publish, tmp_path):
    version = publish(text, promote=True)
    session = Session.open(tmp_path / "registry" / "versions" / version)
    inputs = text.inputs[:5]
    expected = session.predict(inputs).probabilities
    with calling() as (server, _, _channel), triton(server) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("driftd")
        assert client.is_model_ready("driftd", version)
        assert client.get_server_metadata().name == "driftd"
        metadata = client.get_model_metadata("driftd")
        assert [(each.name, each.datatype, each.shape) for each in metadata.outputs] == [
            ("label", "BYTES", [-1]),
            ("probabilities", "FP32", [-1, 3]),
            ("embedding", "FP32", [-1, 32]),
        ]
        assert metadata.versions == [version]
        result = client.infer("driftd", feeds({"text": ("BYTES", inputs)}), request_id="r1")
        assert result.get_response().id == "r1"
        assert result.get_response().model_version == version
        probabilities = result.as_numpy("probabilities")
        assert np.abs(probabilities - expected).max() < 0.05
        labels = [each.decode() for each in result.as_numpy("label")]
        assert labels == [text.labels[i] for i in probabilities.argmax(1)]
        wanted = [client_module.InferRequestedOutput("embedding")]
        result = client.infer(
            "driftd",
            feeds({"text": ("BYTES", inputs)}),
            version,
            outputs=wanted,
            parameters={"a": 1},
        )
        assert result.as_numpy("embedding").shape == (5, 32)
        assert result.as_numpy("label") is None
        for arguments, message in (
            (("other", feeds({"text": ("BYTES", inputs)})), "NOT_FOUND.*it is called 'driftd'"),
            (("driftd", feeds({"text": ("BYTES", inputs)}), "v0099"), "NOT_FOUND.*not loaded"),
            (("driftd", feeds({"texts": ("BYTES", inputs)})), "INVALID_ARGUMENT.*unexpected"),
            (("driftd", feeds({"text": ("FP32", np.zeros(3, np.float32))})), "INVALID_ARGUMENT"),
        ):
            with pytest.raises(client_module.InferenceServerException, match=message):
                client.infer(*arguments)


def test_numbers_raw_and_as_typed_contents(calling, triton, table, publish, tmp_path):
    version = publish(table, promote=True)
    session = Session.open(tmp_path / "registry" / "versions" / version)
    rows = table.inputs[5:8]
    expected = session.predict(rows).probabilities
    columns = {
        "price": ("FP64", rows["price"].copy()),
        "peak": ("BOOL", rows["peak"].astype(bool)),
        "region": ("BYTES", rows["region"].copy()),
    }
    tensor = theirs.ModelInferRequest.InferInputTensor
    typed = theirs.ModelInferRequest(
        model_name="driftd",
        inputs=[
            tensor(
                name="price", datatype="FP64", shape=[3], contents={"fp64_contents": rows["price"]}
            ),
            tensor(
                name="peak",
                datatype="BOOL",
                shape=[3],
                contents={"bool_contents": rows["peak"].astype(bool).tolist()},
            ),
            tensor(
                name="region",
                datatype="BYTES",
                shape=[3, 1],
                contents={"bytes_contents": [each.encode() for each in rows["region"]]},
            ),
        ],
    )
    with calling() as (server, _, channel), triton(server) as client:
        result = client.infer("driftd", feeds(columns))
        assert np.abs(result.as_numpy("probabilities") - expected).max() < 0.02
        answer = infer(channel, typed)
        assert not answer.raw_output_contents
        label, probabilities = answer.outputs
        ours = np.reshape(probabilities.contents.fp32_contents, probabilities.shape)
        assert np.abs(ours - expected).max() < 0.02
        names = [table.labels[i].encode() for i in ours.argmax(1)]
        assert label.contents.bytes_contents == names


def tensor_of(datatype, shape, raw=None, **contents):
    message = MESSAGES["ModelInferRequest"](model_name="driftd")
    added = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(added.contents, name).extend(values)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


@pytest.mark.parametrize(
    ("datatype", "field", "values", "dtype"),
    [
        ("BOOL", "bool_contents", [True, False], np.bool_),
        ("INT8", "int_contents", [-128, 127], np.int8),
        ("INT16", "int_contents", [-1, 1], np.int16),
        ("INT32", "int_contents", [-(2**31), 1], np.int32),
        ("INT64", "int64_contents", [-(2**63), 1], np.int64),
        ("UINT8", "uint_contents", [0, 255], np.uint8),
        ("UINT16", "uint_contents", [0, 65535], np.uint16),
        ("UINT32", "uint_contents", [0, 2**32 - 1], np.uint32),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], np.uint64),
        ("FP32", "fp32_contents", [0.5, np.nan], np.float32),
        ("FP64", "fp64_contents", [0.1, np.inf], np.float64),
        ("BYTES", "bytes_contents", ["é".encode(), b""], object),
    ],
)
def test_typed_contents_are_read(datatype, field, values, dtype):
    array = _read(tensor_of(datatype, [2], **{field: values})).tensors["x"]
    assert array.dtype == dtype
    values = ["é", ""] if datatype == "BYTES" else values
    assert str(array.tolist()) == str(np.array(values, dtype).tolist())


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (MESSAGES["ModelInferRequest"](), "has no inputs"),
        (tensor_of("INT8", [1], int_contents=[300]), "not all INT8"),
        (tensor_of("FP32", [2], fp32_contents=[1]), r"data of shape \[1\] for shape \[2\]"),
        (tensor_of("FP32", [-1], fp32_contents=[1]), "shape must be"),
        (tensor_of("FP32", [2], bool_contents=[True, True]), "data of shape"),
        (tensor_of("FP16", [1]), "send FP16 as raw_input_contents"),
        (tensor_of("NONE", [1]), "datatype must be one of"),
        (tensor_of("BYTES", [1], bytes_contents=[b"\xff"]), "not UTF-8"),
        (tensor_of("FP32", [1], b"1234", fp32_contents=[1]), "contents beside raw"),
        (tensor_of("FP32", [1], b"12345"), "5 bytes for 1 values"),
    ],
)
def test_bad_messages_say_why(message, complaint):
    with pytest.raises(InputError, match=complaint):
        _read(message)
    message.raw_input_contents.extend([b"", b""])
    with pytest.raises(InputError):
        _read(message)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["FP32", "BOOL", "BYTES", "INT64", "FP16", "UINT8", "?"]),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.none() | st.binary(max_size=20),
    st.dictionaries(
        st.sampled_from(["int64_contents", "bytes_contents", "uint_contents", "fp32_contents"]),
        st.just([]),
        max_size=2,
    ),
    st.lists(st.text(max_size=4), max_size=2),
)
def test_no_message_does_worse_than_an_input_error(datatype, shape, raw, contents, outputs):
    message = tensor_of(datatype, shape, raw, **contents)
    for output in outputs:
        message.outputs.add(name=output)
    with suppress(InputError):
        _read(message)


def test_bad_calls_do_no_harm(calling, text, publish):
    publish(text, promote=True)
    with calling(max_body_bytes=10_000, max_items=8) as (_, http, channel):
        assert failure(raw_call, channel, b"\xff" * 50).code() == CODE.INVALID_ARGUMENT
        error = failure(infer, channel, texts_request("card", " "))
        assert error.code() == CODE.INVALID_ARGUMENT
        assert "item 1: the text is empty" in error.details()
        assert failure(infer, channel, texts_request(*["a"] * 9)).code() == CODE.INVALID_ARGUMENT
        error = failure(infer, channel, texts_request("card " * 10_000))
        assert error.code() == CODE.RESOURCE_EXHAUSTED
        error = failure(raw_call, channel, b"", path=f"/{INFERENCE}/NoSuch")
        assert error.code() == CODE.UNIMPLEMENTED
        assert infer(channel, texts_request("card")).outputs
        exposed = http.get("/metrics").text
    assert 'code="200",model="driftd",protocol="grpc",version="v0001"} 1.0' in exposed
    assert 'code="400",model="driftd",protocol="grpc",version="v0001"} 1.0' in exposed
    assert 'code="413",model="driftd",protocol="grpc",version="v0001"} 1.0' in exposed
    assert 'code="400",model="driftd",protocol="grpc",version="none"} 1.0' in exposed


def test_a_crash_is_told_to_nobody(calling, text, publish, monkeypatch):
    publish(text, promote=True)

    def broken(*_):
        raise RuntimeError("secret detail")

    with calling() as (_, http, channel):
        monkeypatch.setattr("deploy.rpc._write", broken)
        error = failure(infer, channel, texts_request("card"))
        assert (error.code(), error.details()) == (CODE.INTERNAL, "internal error")
        monkeypatch.undo()
        assert infer(channel, texts_request("card")).outputs
        assert 'reason="internal"' in http.get("/metrics").text


def test_a_full_queue_says_when_to_come_back(calling, text, publish, held_back, eventually):
    publish(text, promote=True)
    with (
        calling(workers=1, queue_limit=2, max_items=2) as (server, _, channel),
        ThreadPoolExecutor(4) as pool,
    ):
        gate = held_back(server)
        first = pool.submit(infer, channel, texts_request("card"))
        assert gate.entered.wait(5)
        waiting = pool.submit(infer, channel, texts_request("card", "money"))
        eventually(lambda: server.engine.queued == 2)
        error = failure(infer, channel, texts_request("card"))
        assert error.code() == CODE.RESOURCE_EXHAUSTED
        trailing = dict(error.trailing_metadata())
        assert int(trailing["retry-after"]) * 1000 == int(trailing["grpc-retry-pushback-ms"]) > 0
        gate.open()
        assert first.result(10).outputs
        assert waiting.result(10).outputs


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_nobody_works_for_a_call_that_is_over(how, calling, text, publish, held_back, eventually):
    version = publish(text, promote=True)
    with calling(workers=1) as (server, _, channel), ThreadPoolExecutor(2) as pool:
        gate = held_back(server)
        first = pool.submit(infer, channel, texts_request("card"))
        assert gate.entered.wait(5)
        method = channel.unary_unary(INFER)
        timeout = 0.5 if how == "deadline" else 20
        call = method.future(texts_request("money lost").SerializeToString(), timeout=timeout)
        eventually(lambda: server.engine.queued == 1)
        if how == "cancel":
            call.cancel()
        else:
            assert call.exception(10).code() == CODE.DEADLINE_EXCEEDED

        def counted():
            errors = server.metrics.counter("driftd_server_errors_total", version, "client_gone")
            late = server.metrics.counter("driftd_server_errors_total", version, "deadline")
            return errors._value.get() + late._value.get()

        eventually(lambda: counted() == 1)
        gate.open()
        assert first.result(10).outputs
        eventually(lambda: server.engine.queued == 0)
        assert gate.runs == 1


def test_tokens(calling, triton, text, publish, tmp_path):
    publish(text, promote=True)
    tokens = {"shop": ("infer", "shop-7c1f2e90d3b84a55"), "graf": ("read", "graf-0d9c8b7a6f5e4d")}
    file = tmp_path / "tokens"
    file.write_text("\n".join(f"{name} {scope} {t}" for name, (scope, t) in tokens.items()))
    file.chmod(0o600)
    with calling(access=AccessConfig(tokens=file), ready=False) as (server, http, channel):
        with triton(server) as client:
            for _ in range(500):
                if client.is_server_ready():
                    break
                threading.Event().wait(0.02)
            error = failure(infer, channel, texts_request("card"))
            assert error.code() == CODE.UNAUTHENTICATED
            assert "Authorization: Bearer" in error.details()
            reader = (("authorization", f"Bearer {tokens['graf'][1]}"),)
            error = failure(infer, channel, texts_request("card"), metadata=reader)
            assert error.code() == CODE.PERMISSION_DENIED
            with pytest.raises(client_module.InferenceServerException, match="UNAUTHENTICATED"):
                client.get_model_metadata("driftd")
            headers = {"authorization": f"Bearer {tokens['shop'][1]}"}
            assert client.get_model_metadata("driftd", headers=headers).name == "driftd"
            assert infer(channel, texts_request("card"), metadata=tuple(headers.items())).outputs
        exposed = http.get("/metrics").text
    assert 'errors_total{model="driftd",reason="unauthorized",version="none"} 2.0' in exposed
    assert 'errors_total{model="driftd",reason="forbidden",version="none"} 1.0' in exposed


def test_tls_and_its_renewal(serving, eventually, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.tls._LOOK_SECONDS", 0.0)
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    certificate, key = first.issue("server")
    tls = TlsConfig(certificate=certificate, key=key)

    def live(authority):
        client = client_module.InferenceServerClient(
            f"localhost:{server.grpc_port}", ssl=True, root_certificates=str(authority.ca)
        )
        with client:
            try:
                return client.is_server_live(client_timeout=3)
            except client_module.InferenceServerException:
                return False

    with serving(ready=False, grpc_port=0, client={"verify": False}, tls=tls) as (server, _):
        eventually(lambda: server.grpc_port)
        assert live(first)
        assert not live(second)
        for old, new in zip((certificate, key), second.issue("renewed"), strict=True):
            old.write_bytes(new.read_bytes())
        assert live(second)


def health(channel, service=""):
    request = MESSAGES["HealthCheckRequest"](service=service).SerializeToString()
    answer = raw_call(channel, request, path="/grpc.health.v1.Health/Check")
    return MESSAGES["HealthCheckResponse"].FromString(answer).status


def test_health(calling, text, publish, eventually):
    with calling(ready=False, notice_seconds=0) as (server, _, channel):
        request = MESSAGES["HealthCheckRequest"]().SerializeToString()
        watched = channel.unary_stream("/grpc.health.v1.Health/Watch")(request, timeout=30)
        statuses = (MESSAGES["HealthCheckResponse"].FromString(each).status for each in watched)
        assert next(statuses) == 2
        assert health(channel) == 2
        publish(text, promote=True)
        assert next(statuses) == 1
        assert health(channel, INFERENCE) == 1
        assert failure(health, channel, "other").code() == CODE.NOT_FOUND
        server.engine.close()
        assert next(statuses) == 2
        assert list(statuses) == []


def test_calls_under_way_end_before_the_server_does(calling, text, publish, held_back, eventually):
    publish(text, promote=True)
    with calling(workers=1) as (server, _, channel), ThreadPoolExecutor(2) as pool:
        gate = held_back(server)
        under_way = pool.submit(infer, channel, texts_request("card"))
        assert gate.entered.wait(5)
        server.stop()
        eventually(lambda: server.engine.closing)
        threading.Event().wait(0.3)
        error = failure(infer, channel, texts_request("card"))
        assert error.code() == CODE.UNAVAILABLE
        gate.open()
        assert under_way.result(10).outputs


def test_a_port_in_use_is_named(calling, tmp_path):
    from deploy.config import ServerConfig
    from deploy.server import InferenceServer

    with calling(ready=False) as (server, _, _channel):
        config = ServerConfig(port=0, grpc_port=server.grpc_port)
        with pytest.raises(BindError, match=f"{server.grpc_port}.*server.grpc_port to a free one"):
            InferenceServer(config, str(tmp_path / "registry")).run()


# ------------------------------------------------------------------ as over HTTP


def test_a_canary_answers_its_keys(calling, text, publish, tmp_path, eventually):
    first, second = publish(text, promote=True), publish(text, seed=1)
    store = registry.open_registry(str(tmp_path / "registry"))
    keys = [f"user-{i}" for i in range(30)]
    rule = Split(1, "canary", second, 50, 0.25)
    with calling() as (server, http, channel):
        store.route(second, mode="canary", share=50, actor="test", reason="because")
        eventually(lambda: server.engine.lineup.trial is not None)
        for key in keys:
            expected = second if rule.chooses(key) else first
            by_key = infer(channel, texts_request("hi"), metadata=[("x-driftd-key", key)])
            by_id = infer(channel, texts_request("hi", id=key))
            named = infer(channel, texts_request("hi", id=key, model_version=first))
            assert by_key.model_version == by_id.model_version == expected
            assert named.model_version == first
            over_http = http.post("/predict", json={"text": "hi"}, headers={"x-driftd-key": key})
            assert over_http.json()["version"] == expected
        index = http.post("/v2/repository/index", json={"ready": True}).json()
        assert {entry["reason"] for entry in index} == {
            "champion",
            "challenger: the routing gives it traffic",
        }
    chosen = sum(rule.chooses(key) for key in keys)
    total = store.traffic(1)
    assert total.challenger == registry.Counts(3 * chosen, 0, 0)
    assert total.champion.requests == 3 * (30 - chosen) + 30


def test_answers_are_logged_under_ids(calling, text, publish, monkeypatch):
    publish(text, promote=True)
    logged = []
    monkeypatch.setattr(PredictionLog, "write", lambda self, answered: logged.append(answered))
    nowhere = PredictionLogConfig(
        bootstrap_servers=["127.0.0.1:1"], topic="predictions", flush_seconds=0
    )
    with calling(prediction_log=nowhere) as (_, http, channel):
        infer(channel, texts_request("my card", id="named"))
        infer(channel, texts_request("my card"), metadata=[("x-request-id", "beside")])
        ask = channel.unary_unary(INFER, lambda each: each.SerializeToString())
        _, call = ask.with_call(texts_request("my", "card"), timeout=20)
        made = dict(call.trailing_metadata())["x-request-id"]
        operation = http.get("/openapi.json").json()["paths"]["/predict"]["post"]
        assert "x-request-id" in operation["responses"]["200"]["headers"]
    assert [(each.id, list(each.inputs())) for each in logged] == [
        ("named", ["my card"]),
        ("beside", ["my card"]),
        (made, ["my", "card"]),
    ]
