"""V2 and plain bodies as pure functions: what is read, what is refused, what is written."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.binary import pack_texts
from deploy.errors import InputError
from deploy.protocol import read_infer, read_plain, write_infer, write_plain
from deploy.session import Prediction

PREDICTION = Prediction(
    np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32),
    np.zeros((2, 3), np.float32),
    np.array([[1, 2], [3, 4]], np.float32),
)
LABELS = ("a", "b", "c")


def body(*tensors, **more):
    return json.dumps({"inputs": list(tensors), **more}).encode()


def tensor(data, datatype="FP32", shape=None, name="x"):
    shape = [len(data)] if shape is None else shape
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "dtype"),
    [
        ([1, 2.5], "FP64", [2], np.float64),
        ([1, 2, 3, 4], "FP32", [2, 2], np.float32),
        ([[1, 2], [3, 4]], "INT64", [2, 2], np.int64),
        ([True, False], "BOOL", [2], np.bool_),
        (["x", "y"], "BYTES", [2, 1], object),
        ([["x"], ["y"]], "BYTES", [2, 1], object),
        ([0, 255], "UINT8", [2], np.uint8),
    ],
)
def test_tensors_are_read(data, datatype, shape, dtype):
    array = read_infer(body(tensor(data, datatype, shape))).tensors["x"]
    assert array.dtype == dtype
    assert list(array.shape) == shape
    assert array.ravel().tolist() == np.array(data, dtype).ravel().tolist()


def test_null_is_a_missing_number():
    array = read_infer(body(tensor([1.5, None], "FP64"))).tensors["x"]
    assert np.isnan(array).tolist() == [False, True]


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"inputs": [NaN]}', "send null for a missing value"),
        (b"[1]", "must be a JSON object, not list"),
        (b"{}", "'inputs' must be a list"),
        (b'{"inputs": []}', "'inputs' must be a list"),
        (b'{"inputs": [7]}', r"inputs\[0\] must be an object"),
        (body({"datatype": "FP32"}), r"inputs\[0\] has no name"),
        (body(tensor([1], "FLOAT")), "datatype must be one of BOOL"),
        (body(tensor([1], "FP32", [-1])), "shape must be"),
        (body(tensor([1], "FP32", "1")), "shape must be"),
        (body(tensor([1], "FP32", [True])), "shape must be"),
        (body(tensor([1], "FP32", [2])), r"data of shape \[1\] for shape \[2\]"),
        (body(tensor([[1, 2]], "FP32", [2, 1])), "data of shape"),
        (body(tensor([[1], [1, 2]], "FP32", [3])), "nested unevenly"),
        (body(tensor(["1"], "FP32")), "not all FP32"),
        (body(tensor([1.5], "INT64")), "not all INT64"),
        (body(tensor([300], "UINT8")), "not all UINT8"),
        (body(tensor([2**70], "INT64")), "not all INT64"),
        (body(tensor([1], "BOOL")), "not all BOOL"),
        (body(tensor([None], "INT64")), "not all INT64"),
        (body(tensor([1], "BYTES")), "BYTES data must be strings"),
        (body(tensor("abc", "BYTES", [1])), "data must be a list"),
        (body(tensor([], "FP32")), "hold no item"),
        (body(tensor([1]), tensor([1])), "given twice"),
        (body(tensor([1]), tensor([1, 2], name="y")), "differ in their number"),
        (body({"name": "x", "datatype": "FP32", "shape": [1]}), "has no data"),
        (
            body(
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1],
                    "parameters": {"binary_data_size": 4},
                }
            ),
            "binary_data_size is 4, but 0 bytes are left behind the JSON",
        ),
        (body(tensor([1]), outputs=[{"name": "loss"}]), "unknown output 'loss'"),
        (body(tensor([1]), outputs={}), "'outputs' must be a list"),
        (body(tensor([1]), outputs=["label"]), "unknown output None"),
        (body(tensor([1]), id=7), "'id' must be a string"),
    ],
)
def test_bad_requests_say_where(request_body, message):
    with pytest.raises(InputError, match=message):
        read_infer(request_body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3) | VALUES,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", "BYTES", "FP16", "UINT64"]) | VALUES,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | VALUES,
        "data": VALUES,
    }
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=3) | VALUES, "outputs": VALUES}))
def test_no_body_does_worse_than_an_input_error(value):
    for read in (read_infer, read_plain):
        with suppress(InputError):
            read(json.dumps(value).encode())


def test_responses_hold_what_was_asked():
    request = read_infer(body(tensor([1, 2]), id="7"))
    response = orjson.loads(write_infer(request, "m", "v0003", LABELS, PREDICTION).body)
    assert response == {
        "model_name": "m",
        "model_version": "v0003",
        "id": "7",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["b", "a"]},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [2, 3],
                "data": [0.1, 0.7, 0.2, 0.5, 0.25, 0.25],
            },
        ],
    }
    request = read_infer(body(tensor([1, 2]), outputs=[{"name": "embedding"}]))
    response = orjson.loads(write_infer(request, "m", "v0003", LABELS, PREDICTION).body)
    assert "id" not in response
    (output,) = response["outputs"]
    assert output == {
        "name": "embedding",
        "datatype": "FP32",
        "shape": [2, 2],
        "data": [1, 2, 3, 4],
    }


def with_tail(*tensors, tail=b"", **more):
    """A body whose tensors are (name, datatype, shape, bytes), and how much of it is JSON."""
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, datatype, shape, raw in tensors
    ]
    head = body(*inputs, **more)
    return head + b"".join(raw for *_, raw in tensors) + tail, len(head)


@pytest.mark.parametrize(
    ("datatype", "dtype", "values"),
    [
        ("BOOL", np.bool_, [True, False]),
        ("INT8", np.int8, [-128, 127]),
        ("INT16", np.int16, [-32768, 32767]),
        ("INT32", np.int32, [-(2**31), 1]),
        ("INT64", np.int64, [-(2**63), 2**63 - 1]),
        ("UINT8", np.uint8, [0, 255]),
        ("UINT16", np.uint16, [0, 65535]),
        ("UINT32", np.uint32, [0, 2**32 - 1]),
        ("UINT64", np.uint64, [0, 2**64 - 1]),
        ("FP16", np.float16, [0.5, np.nan]),
        ("FP32", np.float32, [0.5, np.inf]),
        ("FP64", np.float64, [0.1, -0.0]),
    ],
)
def test_binary_tensors_are_read(datatype, dtype, values):
    array = np.array(values, dtype)
    sent, json_bytes = with_tail(("x", datatype, [1, 2], array.tobytes()))
    read = read_infer(sent, json_bytes).tensors["x"]
    assert read.dtype == dtype
    assert read.shape == (1, 2)
    assert read.tobytes() == array.tobytes()


def test_binary_texts_beside_json_tensors_are_read_in_order():
    words = ["", "héé", "x" * 300]
    sent, json_bytes = with_tail(
        ("a", "BYTES", [3], pack_texts(words)), ("b", "INT8", [3], b"\x01\x02\xff")
    )
    mixed = json.loads(sent[:json_bytes])
    mixed["inputs"].insert(1, tensor([1, 2, 3], name="c"))
    head = json.dumps(mixed).encode()
    tensors = read_infer(head + sent[json_bytes:], len(head)).tensors
    assert list(tensors) == ["a", "c", "b"]
    assert tensors["a"].tolist() == words
    assert tensors["b"].tolist() == [1, 2, -1]


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "message"),
    [
        ("FP32", [2], b"1234567", "7 bytes for 2 values of FP32, which take 8"),
        ("FP32", [2**31 - 1, 2**31 - 1, 9], b"", "0 bytes for"),
        ("BOOL", [2], b"\x01\x02", "BOOL bytes must be 0 or 1"),
        ("BYTES", [1], b"\x09\0\0\0abc", "BYTES item 0 is longer than its tensor"),
        ("BYTES", [1], b"\xff\xff\xff\xffabc", "BYTES item 0 is longer than its tensor"),
        ("BYTES", [2], b"\x04\0\0\0abcd", "the bytes end before BYTES item 1"),
        ("BYTES", [2**31 - 1], b"\0\0\0\0", "too few for 2147483647 BYTES items"),
        ("BYTES", [1], b"\x01\0\0\0\xff", "BYTES item 0 is not UTF-8"),
        ("BYTES", [1], b"\x01\0\0\0ab", "1 bytes are left over"),
    ],
)
def test_bad_binary_tensors_say_why(datatype, shape, raw, message):
    sent, json_bytes = with_tail(("x", datatype, shape, raw))
    with pytest.raises(InputError, match=f"tensor 'x': {message}|{message}"):
        read_infer(sent, json_bytes)


def test_what_does_not_fit_the_tail_is_refused():
    sent, json_bytes = with_tail(("x", "INT8", [1], b"a"), tail=b"bc")
    with pytest.raises(InputError, match="2 bytes behind the JSON belong to no tensor"):
        read_infer(sent, json_bytes)
    for wrong in (0, len(sent) + 1):
        with pytest.raises(InputError, match="must be the length of the JSON"):
            read_infer(sent, wrong)
    for size in (-1, "1", 1.0, True):
        inner = tensor([1]) | {"parameters": {"binary_data_size": size}}
        del inner["data"]
        with pytest.raises(InputError, match="binary_data_size must be a whole number"):
            read_infer(body(inner))
    both = tensor([1]) | {"parameters": {"binary_data_size": 4}}
    with pytest.raises(InputError, match="give one of them"):
        read_infer(body(both))
    with pytest.raises(InputError, match="'parameters' must be an object"):
        read_infer(body(tensor([1]) | {"parameters": [1]}))
    with pytest.raises(InputError, match="'binary_data' must be true or false"):
        read_infer(body(tensor([1]), outputs=[{"name": "label", "parameters": {"binary_data": 1}}]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 90), TENSOR, st.integers(0, 40))
def test_no_tail_does_worse_than_an_input_error(tail, json_bytes, value, size):
    value = {**value, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [value]}).encode()
    for stated in (json_bytes, len(head)):
        with suppress(InputError):
            read_infer(head + tail, stated)


def test_binary_responses():
    outputs = [{"name": "embedding", "parameters": {"binary_data": True}}, {"name": "label"}]
    request = read_infer(body(tensor([1, 2]), outputs=outputs))
    answer = write_infer(request, "m", "v0003", LABELS, PREDICTION)
    embedding, label = orjson.loads(answer.body[: answer.json_bytes])["outputs"]
    assert embedding["parameters"] == {"binary_data_size": 16}
    assert "data" not in embedding
    assert label["data"] == ["b", "a"]
    raw = answer.body[answer.json_bytes :]
    assert np.frombuffer(raw, "<f4").reshape(2, 2).tolist() == [[1, 2], [3, 4]]

    outputs[0]["parameters"] = {"binary_data": False}
    request = read_infer(
        body(tensor([1, 2]), outputs=outputs, parameters={"binary_data_output": True})
    )
    assert request.binary == {"label"}
    answer = write_infer(request, "m", "v0003", LABELS, PREDICTION)
    assert answer.body[answer.json_bytes :] == pack_texts(["b", "a"])
    request = read_infer(body(tensor([1, 2]), parameters={"binary_data_output": True}))
    assert request.binary == {"label", "probabilities"}


@pytest.mark.parametrize(
    ("request_body", "values", "single"),
    [
        (b'{"text": "hi"}', ["hi"], True),
        (b'{"features": {"a": 1}}', [{"a": 1}], True),
        (b'{"inputs": ["hi", "ho"]}', ["hi", "ho"], False),
    ],
)
def test_plain_requests(request_body, values, single):
    assert read_plain(request_body) == (values, single)


@pytest.mark.parametrize(
    "request_body",
    [
        b"{}",
        b'{"text": ["hi"]}',
        b'{"text": "hi", "inputs": []}',
        b'{"features": []}',
        b'{"inputs": "hi"}',
        b'{"inputs": []}',
        b'{"txt": "hi"}',
    ],
)
def test_bad_plain_requests(request_body):
    with pytest.raises(InputError):
        read_plain(request_body)


def test_plain_responses():
    one = orjson.loads(write_plain(read_plain(b'{"text": "x"}'), "v1", LABELS, PREDICTION))
    assert one["label"] == "b"
    assert one["version"] == "v1"
    assert list(one["probabilities"]) == ["b", "c", "a"]
    many = orjson.loads(write_plain(read_plain(b'{"inputs": ["x"]}'), "v1", LABELS, PREDICTION))
    assert [answer["label"] for answer in many["predictions"]] == ["b", "a"]
