"""The Open Inference Protocol (V2) and the plain form for people, as pure functions.

JSON in, with binary tensors behind it or not, named arrays out, and back; no HTTP and no model
here. Everything wrong with a request is an `InputError` that says where.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import orjson
from numpy.typing import NDArray

from deploy.binary import pack, pack_texts, unpack
from deploy.errors import InputError
from deploy.preprocess import Tensors, TensorSpec
from deploy.session import Prediction

PLATFORM = "onnxruntime_onnx"

_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
_DATATYPES = ("BOOL", *_INTEGERS, *_FLOATS, "BYTES")

LABEL, PROBABILITIES, EMBEDDING = "label", "probabilities", "embedding"
_OUTPUTS = (LABEL, PROBABILITIES, EMBEDDING)
_DEFAULT_OUTPUTS = (LABEL, PROBABILITIES)

# Labels a person wants to see of one answer; programs take them all from V2.
_SHOWN = 5


class InferRequest(NamedTuple):
    """A V2 request. Every tensor's first axis is the item.

    outputs: those wanted; binary: those of them that are wanted as bytes.
    """

    id: str | None
    tensors: Tensors
    outputs: tuple[str, ...]
    binary: frozenset[str] = frozenset()

    @property
    def items(self) -> int:
        """How many items it holds."""
        return len(next(iter(self.tensors.values())))


class InferResponse(NamedTuple):
    """The body of a V2 response. json_bytes: how many of its bytes are JSON, if not all."""

    body: bytes
    json_bytes: int | None = None


class PlainRequest(NamedTuple):
    """A plain request: one value an item; ``single`` if it asked for one without a list."""

    values: list[object]
    single: bool


@dataclass(frozen=True, slots=True)
class Described:
    """What the metadata of a model says."""

    name: str
    versions: Sequence[str]
    inputs: Sequence[TensorSpec]
    labels: Sequence[str]
    dimension: int

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it can answer with."""
        return (
            TensorSpec(LABEL, "BYTES", (-1,)),
            TensorSpec(PROBABILITIES, "FP32", (-1, len(self.labels))),
            TensorSpec(EMBEDDING, "FP32", (-1, self.dimension)),
        )


def read_infer(body: bytes, json_bytes: int | None = None) -> InferRequest:
    """Parse the body of an infer request. Raises `InputError`.

    json_bytes: how many of its first bytes are JSON, where binary tensors follow.
    """
    if json_bytes is None:
        request, tail = _object(body), _Tail(b"")
    elif 0 < json_bytes <= len(body):
        request, tail = _object(body[:json_bytes]), _Tail(body[json_bytes:])
    else:
        raise InputError(
            f"inference-header-content-length is {json_bytes}; it must be the length "
            f"of the JSON at the beginning of the body, which has {len(body)} bytes"
        )
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InputError("'id' must be a string")
    listed = request.get("inputs")
    if not isinstance(listed, list) or not listed:
        raise InputError("'inputs' must be a list of at least one tensor")
    tensors = gather(_tensor(value, position, tail) for position, value in enumerate(listed))
    if tail.left:
        raise InputError(f"{tail.left} bytes behind the JSON belong to no tensor")
    outputs, binary = _wanted(request.get("outputs"), _says(request, "binary_data_output"))
    return InferRequest(identity, tensors, outputs, binary)


def gather(named: Iterable[tuple[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The tensors of a request by name, checked to hold the same items. Raises `InputError`."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in named:
        if name in tensors:
            raise InputError(f"tensor {name!r} is given twice")
        tensors[name] = tensor
    counts = {len(tensor) for tensor in tensors.values()}
    if len(counts) > 1:
        raise InputError(f"tensors differ in their number of items: {sorted(counts)}")
    if counts == {0}:
        raise InputError("the tensors hold no item")
    return tensors


def write_infer(
    request: InferRequest, name: str, version: str, labels: Sequence[str], prediction: Prediction
) -> InferResponse:
    """The body of an infer response; outputs wanted as bytes follow its JSON, in their order."""
    outputs = []
    tail: list[bytes] = []
    for output_name, (datatype, shape, data) in select(request.outputs, labels, prediction).items():
        output: dict[str, object] = {
            "name": output_name,
            "datatype": datatype,
            "shape": list(shape),
        }
        if output_name in request.binary:
            tail.append(pack_texts(data) if isinstance(data, list) else pack(data))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = data if isinstance(data, list) else np.ascontiguousarray(data).ravel()
        outputs.append(output)
    response: dict[str, object] = {"model_name": name, "model_version": version}
    if request.id is not None:
        response["id"] = request.id
    response["outputs"] = outputs
    head = dump(response)
    return InferResponse(b"".join((head, *tail)), len(head)) if tail else InferResponse(head)


def select(
    names: Sequence[str], labels: Sequence[str], prediction: Prediction
) -> dict[str, tuple[str, tuple[int, ...], list[str] | NDArray[np.float32]]]:
    """Of a prediction the outputs of these names: datatype, shape and values of each."""
    chosen: dict[str, tuple[str, tuple[int, ...], list[str] | NDArray[np.float32]]] = {}
    for name in names:
        if name == LABEL:
            best = prediction.probabilities.argmax(axis=1).tolist()
            chosen[name] = "BYTES", (len(prediction),), [labels[i] for i in best]
        else:
            array = prediction.probabilities if name == PROBABILITIES else prediction.embeddings
            chosen[name] = "FP32", array.shape, array
    return chosen


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
    """One answer, or ``{"predictions": […]}``; each with its most probable labels, best first."""
    answers = [_answer(row, labels) for row in prediction.probabilities]
    if request.single:
        return dump({**answers[0], "version": version})
    return dump({"predictions": answers, "version": version})


def write_metadata(model: Described) -> bytes:
    """The body of a model's metadata."""
    return dump(
        {
            "name": model.name,
            "versions": list(model.versions),
            "platform": PLATFORM,
            "inputs": [spec._asdict() for spec in model.inputs],
            "outputs": [spec._asdict() for spec in model.outputs],
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


class _Tail:
    """What follows the JSON of a body, taken tensor by tensor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, name: str, size: object) -> bytes:
        if not _is_size(size):
            raise InputError(f"tensor {name!r}: binary_data_size must be a whole number")
        if size > self.left:
            raise InputError(
                f"tensor {name!r}: binary_data_size is {size}, but {self.left} bytes are left "
                "behind the JSON; its length goes into the header inference-header-content-length"
            )
        self._at += size
        return self._data[self._at - size : self._at]


def _tensor(value: object, position: int, tail: _Tail) -> tuple[str, NDArray[Any]]:
    if not isinstance(value, dict):
        raise InputError(f"inputs[{position}] must be an object")
    name, datatype, shape = check_tensor(
        position, value.get("name"), value.get("datatype"), value.get("shape")
    )
    size = _parameters(value).get("binary_data_size")
    if size is not None:
        if "data" in value:
            raise InputError(f"tensor {name!r} has data and binary_data_size: give one of them")
        return name, unpack(name, datatype, shape, tail.take(name, size))
    if "data" not in value:
        raise InputError(f"tensor {name!r} has no data")
    return name, shaped(name, datatype, shape, value["data"])


def check_tensor(
    position: int, name: object, datatype: object, shape: object
) -> tuple[str, str, list[int]]:
    """Name, datatype and shape of the tensor at ``position`` of the inputs. Raises `InputError`."""
    if not isinstance(name, str) or not name:
        raise InputError(f"inputs[{position}] has no name")
    if not isinstance(datatype, str) or datatype not in _DATATYPES:
        raise InputError(f"tensor {name!r}: datatype must be one of {', '.join(_DATATYPES)}")
    if not isinstance(shape, list) or not shape or not all(_is_size(size) for size in shape):
        raise InputError(f"tensor {name!r}: shape must be a list of whole numbers")
    return name, datatype, shape


def shaped(name: str, datatype: str, shape: list[int], data: object) -> NDArray[Any]:
    """Row-major values, flat or nested, as a tensor of that shape. Raises `InputError`."""
    array = _array(name, datatype, data)
    if array.size != math.prod(shape) or (array.ndim > 1 and list(array.shape) != shape):
        raise InputError(f"tensor {name!r}: data of shape {list(array.shape)} for shape {shape}")
    return array.reshape(shape)


def _parameters(value: Mapping[str, Any]) -> dict[str, Any]:
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError("'parameters' must be an object")
    return parameters


def _says(value: Mapping[str, Any], parameter: str, otherwise: bool = False) -> bool:
    said = _parameters(value).get(parameter, otherwise)
    if not isinstance(said, bool):
        raise InputError(f"the parameter {parameter!r} must be true or false")
    return said


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _array(name: str, datatype: str, data: object) -> NDArray[Any]:
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


def _wanted(listed: object, binary: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """The names of the outputs wanted, and which of them as bytes; ``binary``: unless they say."""
    if listed is None or listed == []:
        return _DEFAULT_OUTPUTS, frozenset(_DEFAULT_OUTPUTS if binary else ())
    if not isinstance(listed, list):
        raise InputError("'outputs' must be a list")
    names: dict[str, bool] = {}
    for value in listed:
        name = known_output(value.get("name") if isinstance(value, dict) else None)
        names[name] = _says(value, "binary_data", binary)
    return tuple(names), frozenset(name for name, wanted in names.items() if wanted)


def known_output(name: object) -> str:
    """The name, if there is such an output. Raises `InputError`."""
    if isinstance(name, str) and name in _OUTPUTS:
        return name
    raise InputError(f"unknown output {name!r}: there are {', '.join(_OUTPUTS)}")


def _answer(probabilities: NDArray[np.float32], labels: Sequence[str]) -> dict[str, object]:
    best = np.argsort(-probabilities, kind="stable")[:_SHOWN].tolist()
    return {
        "label": labels[best[0]],
        "probability": float(probabilities[best[0]]),
        "probabilities": {labels[i]: float(probabilities[i]) for i in best},
    }
