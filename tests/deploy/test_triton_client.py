"""The Open Inference Protocol as a client sees it that others wrote: tritonclient."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.session import Session

http = pytest.importorskip("tritonclient.http", reason='pip install "tritonclient[http]"')


@pytest.fixture
def served(serving, request, publish, tmp_path):
    """A server of the text or the table model: its address, and its session to compare with."""

    def served(kind):
        sample = request.getfixturevalue(kind)
        version = publish(sample, promote=True)
        session = Session.open(tmp_path / "registry" / "versions" / version)
        return sample, version, session, serving()

    return served


def feeds(module, arrays, **options):
    inputs = []
    for name, (datatype, array) in arrays.items():
        each = module.InferInput(name, list(array.shape), datatype)
        each.set_data_from_numpy(array, **options)
        inputs.append(each)
    return inputs


def test_http_text_with_and_without_binary_data(served):
    sample, version, session, server = served("text")
    texts = sample.inputs[:5]
    expected = session.predict(texts)
    with server as (running, _):
        client = http.InferenceServerClient(running.url.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("driftd")
        assert client.is_model_ready("driftd", version)
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("driftd")
        assert metadata["inputs"][0]["name"] == "text"
        names = [each["name"] for each in metadata["outputs"]]
        for binary in (True, False):
            inputs = feeds(http, {"text": ("BYTES", texts)}, binary_data=binary)
            outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in names]
            result = client.infer("driftd", inputs, outputs=outputs, request_id="r1")
            assert result.get_response()["id"] == "r1"
            assert result.get_response()["model_version"] == version
            probabilities = result.as_numpy("probabilities")
            assert probabilities.dtype == np.float32
            assert np.abs(probabilities - expected.probabilities).max() < 0.05
            assert result.as_numpy("embedding").shape == (5, 32)
            labels = [
                each.decode() if binary else each for each in result.as_numpy("label").tolist()
            ]
            assert labels == [sample.labels[i] for i in probabilities.argmax(1)]
        # Without outputs the client asks for all of them as bytes.
        result = client.infer("driftd", feeds(http, {"text": ("BYTES", texts)}), version)
        assert result.as_numpy("probabilities").shape == (5, 3)
        with pytest.raises(http.InferenceServerException, match="the text is empty"):
            client.infer("driftd", feeds(http, {"text": ("BYTES", np.array(["", "a"], object))}))
        with pytest.raises(http.InferenceServerException, match="not loaded here"):
            client.infer("driftd", feeds(http, {"text": ("BYTES", texts)}), "v0099")
        client.close()


def test_http_numbers(served):
    sample, _, session, server = served("table")
    rows = sample.inputs[:3]
    with server as (running, _):
        client = http.InferenceServerClient(running.url.removeprefix("http://"))
        columns = {
            "price": ("FP64", rows["price"].copy()),
            "peak": ("BOOL", rows["peak"].astype(bool)),
            "region": ("BYTES", rows["region"].copy()),
        }
        result = client.infer("driftd", feeds(http, columns))
        expected = session.predict(rows).probabilities
        assert np.abs(result.as_numpy("probabilities") - expected).max() < 0.02
        raw = session.preprocessor(rows)
        datatypes = {"float32": "FP32", "int64": "INT64"}
        arrays = {name: (datatypes[str(feed.dtype)], feed) for name, feed in raw.items()}
        result = client.infer("driftd", feeds(http, arrays))
        assert np.abs(result.as_numpy("probabilities") - expected).max() < 0.02
        client.close()


def test_http_many_at_once(served):
    sample, _, session, server = served("text")
    expected = session.predict(sample.inputs).embeddings
    wanted = [http.InferRequestedOutput("embedding")]
    with server as (running, _):
        client = http.InferenceServerClient(running.url.removeprefix("http://"), concurrency=16)
        asked = [
            client.async_infer("driftd", feeds(http, {"text": ("BYTES", text)}), outputs=wanted)
            for text in np.split(sample.inputs, 60)
        ]
        for answer, ours in zip(asked, expected, strict=True):
            assert answer.get_result().as_numpy("embedding")[0] @ ours > 0.98
        client.close()
