"""New weights into an existing graph, FP32 or INT8: some milliseconds instead of an export.

A patched graph equals, bit for bit in its weights, the graph that exporting and quantising the
changed module would give. Needs onnx, not torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from deploy.errors import PatchError
from deploy.graph import QUANTIZED, SCALE, ZERO_POINT, Marks, initializers
from deploy.onnx_bytes import pointing, tensor_places
from deploy.session import HEAD_BIAS, HEAD_WEIGHT


def patch_head(
    graph: Path, weight: NDArray[np.floating[Any]], bias: NDArray[np.floating[Any]], out: Path
) -> None:
    """Write ``graph`` with another head: weight [d, k], bias [k], with any k, to ``out``."""
    patch_weights(graph, {HEAD_WEIGHT: weight, HEAD_BIAS: bias}, out)


def patch_weights(graph: Path, weights: Mapping[str, NDArray[np.floating[Any]]], out: Path) -> None:
    """Write ``graph`` with other values for these parameters to ``out``, which may be ``graph``.

    weights: parameter names, as in the module's state_dict, to arrays of the module's shapes;
    quantised as the graph's own weights are. A parameter that the graph does not use (a pooler)
    is passed over.

    Raises `PatchError` if a name is unknown, a shape does not fit, or a value is not finite.
    """
    try:  # values that stay as they are need not be read
        model = onnx.load_from_string(pointing(graph))
    except (ValueError, IndexError) as error:
        raise PatchError(f"{graph} is no ONNX graph: {error!r}") from error
    marks = Marks.read(model)
    tensors = initializers(model)
    patched: list[Any] = []
    for name, array in weights.items():
        values = np.asarray(array, np.float32)
        if not np.isfinite(values).all():
            raise PatchError(f"{name} holds values that are not finite: training diverged")
        if name in marks.transposed:
            values = values.T
        if name in tensors:
            free = name in (HEAD_WEIGHT, HEAD_BIAS)
            _fits(name, values, tensors[name], axes=values.ndim - 1 if free else values.ndim)
            tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
            patched.append(tensors[name])
        elif name + QUANTIZED in tensors:
            _fits(name, values, tensors[name + QUANTIZED], axes=values.ndim)
            patched += _replace_quantized(tensors, name, values)
        elif name not in marks.unused:
            raise PatchError(
                f"the graph {graph} has no parameter {name!r}: the architecture changed, export "
                "the module anew"
            )
    classes, biases = tensors[HEAD_WEIGHT].dims[1], tensors[HEAD_BIAS].dims[0]
    if classes != biases:
        raise PatchError(
            f"{HEAD_WEIGHT} has {classes} classes, {HEAD_BIAS} {biases}: give both together"
        )
    if not _write_in_place(graph, patched, out):
        load_external_data_for_model(model, str(graph.parent))
        onnx.save(model, str(out))


def quantize(
    values: NDArray[np.float32], *, symmetric: bool, per_column: bool
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float32], NDArray[np.integer[Any]]]:
    """INT8 (symmetric) or UINT8 (not) values, scale and zero point, as onnxruntime computes them.

    per_column: one scale for each index of the last axis; otherwise one for all.

    >>> quantize(np.float32([[-2, 1], [1, 0.5]]), symmetric=True, per_column=True)[0]
    array([[-127,  127],
           [  64,   64]], dtype=int8)
    """
    axes = tuple(range(values.ndim - 1)) if per_column else None
    low = np.minimum(values.min(axis=axes), 0).astype(np.float64)
    high = np.maximum(values.max(axis=axes), 0).astype(np.float64)
    kind: type[np.integer[Any]] = np.int8 if symmetric else np.uint8
    bottom, top = (-127, 127) if symmetric else (0, 255)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    exact = (high - low) / (top - bottom)
    flat = exact < np.finfo(np.float32).tiny  # nothing but zeros: any scale will do
    exact = np.where(flat, 1.0, exact)
    zero = np.zeros_like(exact) if symmetric else np.where(flat, 0, np.round(bottom - low / exact))
    scale = exact.astype(np.float32)
    levels = np.round(values / scale) + zero.astype(np.float32)
    # Rounding may reach one past the symmetric range; the type's own range is the bound.
    info = np.iinfo(kind)
    return np.clip(levels, info.min, info.max).astype(kind), scale, zero.astype(kind)


def _write_in_place(graph: Path, patched: Sequence[Any], out: Path) -> bool:
    """Copy ``graph`` and write other values into their places; False where one's size differs.

    Twice as fast as writing the message anew.
    """
    with graph.open("rb") as file:
        places = tensor_places(file, graph.stat().st_size, [tensor.name for tensor in patched])
    for tensor in patched:
        start, end = places.get(tensor.name, (0, -1))
        if end - start != len(tensor.raw_data):
            return False
    if not (out.exists() and out.samefile(graph)):
        shutil.copyfile(graph, out)
    with out.open("r+b", buffering=0) as file:
        for tensor in patched:
            os.pwrite(file.fileno(), tensor.raw_data, places[tensor.name].start)
    return True


def _replace_quantized(
    tensors: dict[str, Any], name: str, values: NDArray[np.float32]
) -> list[Any]:
    """What was replaced."""
    levels, scale, zero = (tensors[name + end] for end in (QUANTIZED, SCALE, ZERO_POINT))
    made = quantize(
        values,
        symmetric=levels.data_type == TensorProto.INT8,
        per_column=len(scale.dims) == 1 and scale.dims[0] == values.shape[-1],
    )
    for tensor, array in zip((levels, scale, zero), made, strict=True):
        shaped = np.ascontiguousarray(array).reshape(tuple(tensor.dims))
        tensor.CopyFrom(numpy_helper.from_array(shaped, tensor.name))
    return [levels, scale, zero]


def _fits(name: str, values: NDArray[np.float32], tensor: Any, axes: int) -> None:
    old = tuple(tensor.dims)
    if len(old) != values.ndim or values.shape[:axes] != old[:axes]:
        raise PatchError(
            f"{name} has shape {values.shape}, the graph's is {old}: the architecture changed, "
            "export the module anew"
        )
