"""A version that predicts a number: made by the trainer, served in V2 and in the plain form."""

import json
import shutil

import numpy as np
import orjson
import pytest
from safetensors.numpy import save_file

import registry
from daemon.job import VERSION, Job
from daemon.trainer_main import recall, run
from deploy.config import PredictionLogConfig
from deploy.errors import InputError
from deploy.patch import patch_head
from deploy.prediction_log import PredictionLog, records_of
from deploy.protocol import (
    Described,
    read_infer,
    read_plain,
    write_infer,
    write_metadata,
    write_plain,
)
from deploy.session import HEAD_FILE, Session
from learn.config import LearnConfig, ModelConfig
from learn.ensemble import TabularEnsemble
from learn.examples import Examples
from learn.number_scale import NumberScale

N = 700


def table(seed=0, n=N):
    random = np.random.default_rng(seed)
    inputs = np.empty(n, [("size", "<f8"), ("kind", "O")])
    inputs["size"] = random.normal(100.0, 20.0, n)
    inputs["kind"] = random.choice(["x", "y", None], n)
    noise = random.normal(0.0, 5.0, n)
    slope = np.where(inputs["kind"] == "x", 10, -5)
    return inputs, 1e6 + np.abs(inputs["size"] - 100) * slope + noise


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a first version, and the result of its job."""
    folder = tmp_path_factory.mktemp("numbers")
    inputs, targets = table()
    number = np.arange(N)
    names = np.array([f"e{i}" for i in number], dtype=object)
    examples = Examples(
        names,
        number.astype(float),
        inputs,
        np.zeros(N, np.int64),
        None,
        np.ones(N, np.float32),
        names,
        np.zeros(N, np.int32),
        number,
        number,
        targets,
    )
    features = [{"name": "size"}, {"name": "kind", "kind": "categorical"}]
    model = ModelConfig.model_validate(
        {"task": "tabular", "target": "number", "features": features, "random_features": 64}
    )

    def job(name, parent=None, rung="head", given=None):
        made = Job(
            name,
            rung,
            "head" if rung == "online" else rung,
            ["value"],
            parent,
            1,
            1,
            60.0,
            model.model_dump(mode="json"),
            LearnConfig().model_dump(mode="json"),
            candidates=[("v0001", str(folder / "first" / VERSION))],
        )
        made.write(folder / name, examples, given)
        return run(folder / name), folder / name / VERSION

    result, version = job("first")
    assert result.outcome == "trained", result.reason
    return result, version, job, examples


def test_the_trainer_measures_a_number_as_a_number(made):
    result, version, *_ = made
    metrics = result.metrics
    assert metrics["r2"] > 0.9
    assert 0 < metrics["mae"] < metrics["rmse"]
    scale = NumberScale.of(json.loads((version / "model.json").read_bytes()))
    assert scale is not None
    assert metrics["mae"] < scale.tolerance < 10 * metrics["mae"]
    # The tolerance is the error that the first version kept to in four of five unseen examples.
    assert metrics["accuracy"] == pytest.approx(0.8, abs=0.02)
    assert metrics["agreement"] > 0.9
    assert abs(metrics["parity_points"]) < 3


def test_versions_are_patched_recalled_and_refused_as_those_of_classes_are(made):
    result, version, job, examples = made
    (version / "manifest.json").write_text(json.dumps({"metrics": result.metrics}))
    session = Session.open(version)
    ensemble = TabularEnsemble.of(version, 1)
    assert ensemble is not None
    ensemble.learn(session.preprocessor(examples.inputs), examples.targets)
    head = ensemble.head
    given = {"head.weight": head.weight, "head.bias": head.bias, **ensemble.standardisation}
    online, second = job("second", str(version), "online", given)
    assert online.outcome == "trained", online.reason
    assert (second / "model.json").read_text().count("tolerance") == 1
    later, truth = table(seed=5)
    served = Session.open(second)
    served.warm()
    expected = ensemble.logits(served.preprocessor(later))[:, 0]
    singly = np.array([served.predict(later[i : i + 1]).logits[0, 0] for i in range(100)])
    spread = float(np.std(truth))
    assert np.median(np.abs(singly - expected[:100])) < 1e-3 * spread
    assert np.abs(expected - truth).mean() < 0.2 * spread

    found = recall(Job.read(version.parent), examples).recall
    assert found[0]["accuracy"] > 0.7
    refused, _ = job("third", str(version), "full")
    assert refused.outcome == "failed"
    assert "ask for head or online" in refused.reason


def test_the_protocol_answers_a_number(made):
    _, version, *_ = made
    session = Session.open(version)
    session.warm()
    assert session.number
    assert session.classes == ()
    rows = [{"size": 130.0, "kind": "x"}, {"size": None, "kind": None}]
    prediction = session.predict(session.preprocessor.rows(rows))
    inputs = [
        {"name": "size", "datatype": "FP64", "shape": [1], "data": [130.0]},
        {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["x"]},
    ]
    request = read_infer(orjson.dumps({"inputs": inputs}))
    answer = orjson.loads(write_infer(request, "m", "v1", session.classes, prediction).body)
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("value", "FP32", [2])
    assert output["data"][0] == pytest.approx(1e6 + 300, abs=40)
    for wrong in ("label", "probabilities"):
        request = read_infer(orjson.dumps({"inputs": inputs, "outputs": [{"name": wrong}]}))
        with pytest.raises(InputError, match=f"no output '{wrong}'"):
            write_infer(request, "m", "v1", session.classes, prediction)
    request = read_infer(orjson.dumps({"inputs": inputs, "outputs": [{"name": "value"}]}))
    with pytest.raises(InputError, match="no output 'value'"):
        write_infer(request, "m", "v1", ("a", "b"), prediction)

    as_bytes = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    request = read_infer(orjson.dumps(as_bytes))
    answer = write_infer(request, "m", "v1", session.classes, prediction)
    raw = np.frombuffer(answer.body[answer.json_bytes :], "<f4")
    assert raw.tolist() == [pytest.approx(value) for value in output["data"]]

    plain = read_plain(orjson.dumps({"features": rows[0]}))
    found = orjson.loads(write_plain(plain, "v1", session.classes, prediction))
    assert found == {"value": pytest.approx(output["data"][0]), "version": "v1"}
    described = Described("m", ["v1"], session.preprocessor.tensors(), session.classes, 9)
    outputs = orjson.loads(write_metadata(described))["outputs"]
    assert [o["name"] for o in outputs] == ["value", "embedding"]


@pytest.fixture
def published(made, tmp_path):
    """A registry with the version as its champion, and its name."""
    result, version, *_ = made
    store = registry.open_registry(str(tmp_path / "registry"), create=True)
    draft = registry.ManifestDraft(
        parent=None,
        strategy="head",
        rung="head",
        task="tabular",
        labels=["value"],
        input_schema=result.input_schema,
        metrics={},
        lineage={},
    )
    files = shutil.copytree(
        version, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json")
    )
    name = store.publish(files, draft, actor="test").id
    store.promote(name, actor="test", reason="a test")
    return store, files, draft, name


def test_the_server_serves_it(serving, published):
    *_, name = published
    with serving() as (_, client):
        found = client.post("/predict", json={"features": {"size": 130.0, "kind": "x"}}).json()
        assert found == {"value": pytest.approx(1e6 + 300, abs=40), "version": name}
        wrong = {"outputs": [{"name": "label"}], "inputs": []}
        size = {"name": "size", "datatype": "FP64", "shape": [1], "data": [130.0]}
        kind = {"name": "kind", "datatype": "BYTES", "shape": [1], "data": ["x"]}
        answer = client.post("/v2/models/driftd/infer", json={**wrong, "inputs": [size, kind]})
        assert answer.status_code == 400
        assert "no output 'label'" in answer.json()["error"]
        outputs = client.get("/v2/models/driftd").json()["outputs"]
        bytes_wanted = {"inputs": [size, kind], "parameters": {"binary_data_output": True}}
        answer = client.post("/v2/models/driftd/infer", json=bytes_wanted)
        ends = int(answer.headers["inference-header-content-length"])
        (value,) = np.frombuffer(answer.content[ends:], "<f4").tolist()
        assert value == found["value"]
        (described,) = orjson.loads(answer.content[:ends])["outputs"]
        assert (described["name"], described["parameters"]) == ("value", {"binary_data_size": 4})
        assert [output["name"] for output in outputs] == ["value", "embedding"]


def test_grpc_and_the_prediction_log_hold_numbers(serving, published, eventually, monkeypatch):
    pytest.importorskip("grpc")
    client_module = pytest.importorskip("tritonclient.grpc")
    *_, name = published
    logged = []
    monkeypatch.setattr(PredictionLog, "write", lambda self, answered: logged.append(answered))
    nowhere = PredictionLogConfig(bootstrap_servers=["127.0.0.1:1"], topic="t", flush_seconds=0)
    size = client_module.InferInput("size", [1], "FP64")
    size.set_data_from_numpy(np.array([130.0]))
    kind = client_module.InferInput("kind", [1], "BYTES")
    kind.set_data_from_numpy(np.array(["x"], dtype=object))
    with serving(grpc_port=0, prediction_log=nowhere) as (server, _):
        eventually(lambda: server.grpc_port)
        with client_module.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            metadata = client.get_model_metadata("driftd")
            assert [output.name for output in metadata.outputs] == ["value", "embedding"]
            (value,) = client.infer("driftd", [size, kind], request_id="r1").as_numpy("value")
    assert value == pytest.approx(1e6 + 300, abs=40)
    ((key, record),) = records_of(logged[0], inputs=True, embedding=False)
    assert key == b"r1"
    assert orjson.loads(record)["prediction"] == {"version": name, "value": pytest.approx(value)}


def test_a_shadow_s_numbers_are_the_same_within_the_tolerance(serving, published, eventually):
    store, files, draft, _ = published
    tolerance = Session.open(files).tolerance
    assert tolerance > 0
    others = []
    for away in (0.5 * tolerance, 2.0 * tolerance):
        weight, bias = Session.open(files).head
        moved = bias + np.float32(away)
        folder = shutil.copytree(files, files.parent / f"moved{away}")
        (folder / "model.int8.onnx").unlink()
        patch_head(files / "model.int8.onnx", weight, moved, folder / "model.int8.onnx")
        save_file({"weight": np.ascontiguousarray(weight), "bias": moved}, folder / HEAD_FILE)
        others.append(store.publish(folder, draft, actor="test").id)
    with serving() as (server, client):
        for other, outcome in zip(others, ("same", "differs"), strict=True):
            store.route(other, mode="shadow", actor="test", reason="a test")
            eventually(
                lambda other=other: (
                    (trial := server.engine.lineup.trial) is not None
                    and trial.split.challenger == other
                )
            )
            body = {"features": {"size": 130.0, "kind": "x"}}
            assert client.post("/predict", json=body).status_code == 200
            counter = server.metrics.counter("driftd_server_shadow_items_total", other, outcome)
            eventually(lambda counter=counter: counter._value.get() == 1)
