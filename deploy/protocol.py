"""The Open Inference Protocol (V2) and the plain form for people, as pure functions.

JSON in, named arrays out, and back; no HTTP and no model here. Everything wrong with a request is
an `InputError` that says where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from deploy.errors import InputError
from deploy.preprocess import Tensors, TensorSpec
from deploy.session import Prediction

PLATFORM = "onnxruntime_onnx"

_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
_DATATYPES = ("BOOL", *_INTEGERS, *_FLOATS, "BYTES")

LABEL, PROBABILITIES, EMBEDDING, VALUE = "label", "probabilities", "embedding", "value"
_OUTPUTS = (LABEL, PROBABILITIES, EMBEDDING, VALUE)
# By default, and all: of a model of classes, and of one that predicts a number.
_OF_CLASSES = (LABEL, PROBABILITIES), (LABEL, PROBABILITIES, EMBEDDING)
_OF_A_NUMBER = (VALUE,), (VALUE, EMBEDDING)

# Labels a person wants to see of one answer; programs take them all from V2.
_SHOWN = 5


class InferRequest(NamedTuple):
    """A V2 request. Every tensor's first axis is the item; ``outputs``: those wanted, if told."""

    id: str | None
    tensors: Tensors
    outputs: tuple[str, ...]


class PlainRequest(NamedTuple):
    """A plain request: one value an item; ``single`` if it asked for one without a list."""

    values: list[object]
    single: bool


@dataclass(frozen=True, slots=True)
class Described:
    """What the metadata of a model says; no labels: it predicts a number."""

    name: str
    versions: Sequence[str]
    inputs: Sequence[TensorSpec]
    labels: Sequence[str]
    dimension: int


def read_infer(body: bytes) -> InferRequest:
    """Parse the body of an infer request. Raises `InputError`."""
    request = _object(body)
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InputError("'id' must be a string")
    listed = request.get("inputs")
    if not isinstance(listed, list) or not listed:
        raise InputError("'inputs' must be a list of at least one tensor")
    tensors: dict[str, NDArray[Any]] = {}
    for position, value in enumerate(listed):
        name, tensor = _tensor(value, position)
        if name in tensors:
            raise InputError(f"tensor {name!r} is given twice")
        tensors[name] = tensor
    counts = {len(tensor) for tensor in tensors.values()}
    if len(counts) > 1:
        raise InputError(f"tensors differ in their number of items: {sorted(counts)}")
    if counts == {0}:
        raise InputError("the tensors hold no item")
    return InferRequest(identity, tensors, _wanted(request.get("outputs")))


def write_infer(
    request: InferRequest, name: str, version: str, labels: Sequence[str], prediction: Prediction
) -> bytes:
    """The body of an infer response; no labels: the model predicts a number.

    Raises `InputError` for an output that such a model does not have.
    """
    usual, possible = _OF_CLASSES if labels else _OF_A_NUMBER
    outputs = []
    for output in request.outputs or usual:
        if output not in possible:
            raise InputError(f"this model has no output {output!r}: there are {possible}")
        if output == VALUE:
            outputs.append(
                _output(output, "FP32", (len(prediction),), prediction.logits[:, 0].copy())
            )
        elif output == LABEL:
            n = len(prediction)
            chosen = [labels[i] for i in prediction.probabilities.argmax(axis=1).tolist()]
            outputs.append(_output(output, "BYTES", (n,), chosen))
        else:
            array = prediction.probabilities if output == PROBABILITIES else prediction.embeddings
            outputs.append(
                _output(output, "FP32", array.shape, np.ascontiguousarray(array).ravel())
            )
    response: dict[str, object] = {"model_name": name, "model_version": version}
    if request.id is not None:
        response["id"] = request.id
    response["outputs"] = outputs
    return dump(response)


def read_plain(body: bytes) -> PlainRequest:
    """Parse ``{"text": …}``, ``{"features": {…}}`` or ``{"inputs": […]}``. Raises `InputError`."""
    request = _object(body)
    if set(request) == {"text"}:
        if not isinstance(request["text"], str):
            raise InputError("'text' must be a string; for several send {\"inputs\": [...]}")
        return PlainRequest([request["text"]], True)
    if set(request) == {"features"}:
        if not isinstance(request["features"], dict):
            raise InputError("'features' must be an object; for several send {\"inputs\": [...]}")
        return PlainRequest([request["features"]], True)
    if set(request) == {"inputs"}:
        inputs = request["inputs"]
        if not isinstance(inputs, list) or not inputs:
            raise InputError("'inputs' must be a list of at least one input")
        return PlainRequest(inputs, False)
    raise InputError('send {"text": "..."}, {"features": {...}} or {"inputs": [...]}, nothing else')


def write_plain(
    request: PlainRequest, version: str, labels: Sequence[str], prediction: Prediction
) -> bytes:
    """One answer, or ``{"predictions": […]}``; each with its most probable labels, best first.

    No labels: the model predicts a number, and each answer is its ``value``.
    """
    answers: list[dict[str, object]] = [{"value": v} for v in prediction.logits[:, 0].tolist()]
    if labels:
        answers = [_answer(row, labels) for row in prediction.probabilities]
    if request.single:
        return dump({**answers[0], "version": version})
    return dump({"predictions": answers, "version": version})


def write_metadata(model: Described) -> bytes:
    """The body of a model's metadata."""
    specs = {
        VALUE: TensorSpec(VALUE, "FP32", (-1,)),
        LABEL: TensorSpec(LABEL, "BYTES", (-1,)),
        PROBABILITIES: TensorSpec(PROBABILITIES, "FP32", (-1, len(model.labels))),
        EMBEDDING: TensorSpec(EMBEDDING, "FP32", (-1, model.dimension)),
    }
    _, possible = _OF_CLASSES if model.labels else _OF_A_NUMBER
    outputs = [specs[name] for name in possible]
    return dump(
        {
            "name": model.name,
            "versions": list(model.versions),
            "platform": PLATFORM,
            "inputs": [spec._asdict() for spec in model.inputs],
            "outputs": [spec._asdict() for spec in outputs],
            "parameters": {"labels": list(model.labels)},
        }
    )


def dump(value: Mapping[str, object]) -> bytes:
    """JSON, numpy arrays included."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = " (NaN is not JSON: send null for a missing value)" if b"NaN" in body else ""
        raise InputError(f"the body is not valid JSON: {error}{hint}") from error
    if not isinstance(value, dict):
        raise InputError(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def _tensor(value: object, position: int) -> tuple[str, NDArray[Any]]:
    if not isinstance(value, dict):
        raise InputError(f"inputs[{position}] must be an object")
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if not isinstance(name, str) or not name:
        raise InputError(f"inputs[{position}] has no name")
    if datatype not in _DATATYPES:
        raise InputError(f"tensor {name!r}: datatype must be one of {', '.join(_DATATYPES)}")
    if not isinstance(shape, list) or not shape or not all(_is_size(size) for size in shape):
        raise InputError(f"tensor {name!r}: shape must be a list of whole numbers")
    if "data" not in value:
        parameters = value.get("parameters")
        binary = isinstance(parameters, dict) and "binary_data_size" in parameters
        hint = "; binary tensors are not supported, send JSON" if binary else ""
        raise InputError(f"tensor {name!r} has no data{hint}")
    array = _array(name, datatype, value["data"])
    if array.size != math.prod(shape) or (array.ndim > 1 and list(array.shape) != shape):
        raise InputError(f"tensor {name!r}: data of shape {list(array.shape)} for shape {shape}")
    return name, array.reshape(shape)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _array(name: str, datatype: str, data: object) -> NDArray[Any]:
    """Row-major data, flat or nested, as an array that holds what the datatype says."""
    if not isinstance(data, list):
        raise InputError(f"tensor {name!r}: data must be a list")
    if datatype == "BYTES":
        array = np.array(data, dtype=object)
        if not all(item is None or isinstance(item, str) for item in array.flat):
            raise InputError(f"tensor {name!r}: BYTES data must be strings")
        return array
    try:
        array = np.array(data)
    except ValueError as error:
        raise InputError(f"tensor {name!r}: data is nested unevenly") from error
    kind = array.dtype.kind
    if not array.size:
        return array.astype(np.float32)
    if datatype == "BOOL" and kind == "b":
        return array
    if datatype in _INTEGERS and kind in "iu":
        info = np.iinfo(datatype.lower())
        if int(array.min()) >= info.min and int(array.max()) <= info.max:
            return array.astype(datatype.lower())
    if datatype in _FLOATS:
        if kind == "O" and all(item is None or type(item) in (int, float) for item in array.flat):
            array, kind = array.astype(np.float64), "f"  # null, a missing value, becomes NaN
        if kind in "iuf":
            with np.errstate(over="ignore"):
                return array.astype(_FLOATS[datatype])
    raise InputError(f"tensor {name!r}: data is not all {datatype}")


def _wanted(listed: object) -> tuple[str, ...]:
    if listed is None or listed == []:
        return ()
    if not isinstance(listed, list):
        raise InputError("'outputs' must be a list")
    names = [value.get("name") if isinstance(value, dict) else None for value in listed]
    for name in names:
        if name not in _OUTPUTS:
            raise InputError(f"unknown output {name!r}: there are {', '.join(_OUTPUTS)}")
    return tuple(dict.fromkeys(str(name) for name in names))


def _output(name: str, datatype: str, shape: Sequence[int], data: object) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def _answer(probabilities: NDArray[np.float32], labels: Sequence[str]) -> dict[str, object]:
    best = np.argsort(-probabilities, kind="stable")[:_SHOWN].tolist()
    return {
        "label": labels[best[0]],
        "probability": float(probabilities[best[0]]),
        "probabilities": {labels[i]: float(probabilities[i]) for i in best},
    }
