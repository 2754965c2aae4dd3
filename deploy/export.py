"""A torch module to FP32 ONNX, and that to INT8. The only module here that needs torch.

The exporter writes the encoder; the head is appended by hand, so that it is always one FP32
MatMul and Add, under the same names, and can be fed or replaced. Every parameter keeps its name
in the graph, so that later weights are patched in and not exported again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from deploy.config import ExportConfig
from deploy.errors import ExportError
from deploy.graph import ZERO_POINT, Marks, initializers
from deploy.measure import Alike, measure
from deploy.preprocess import Feeds, Inputs, Preprocessor, load_preprocessor
from deploy.session import (
    HEAD_BIAS,
    HEAD_WEIGHT,
    MODEL_FILE,
    QUANTISATION_FILE,
    Prediction,
    Session,
    fused_graph,
    run_graph,
)

Arrays = dict[str, NDArray[np.float32]]

# The feeds whose second axis is a length, not a width.
_SEQUENCES = ("input_ids", "attention_mask", "token_type_ids")
_QUANTISED = ("MatMul", "Gather")
_CALIBRATED_AT_ONCE = 16
_ORT_WARNING, _ORT_ERROR = 2, 3  # onnxruntime's levels; the first is its default
_HEAD_NODES = ("head/MatMul", "head/Add", "head/Softmax")


def export_onnx(
    module: torch.nn.Module, feeds: Feeds, out: Path, config: ExportConfig | None = None
) -> None:
    """Write the FP32 graph of ``module`` to ``out``.

    module: takes the feeds by name and returns (embedding [n, d], logits [n, k], probabilities
    [n, k]); its head is ``head.weight`` [d, k] and ``head.bias`` [k]. It is left as it was.
    feeds: an example of the graph's inputs; the first axis, and the second of token tensors,
    will be free.

    Raises `ExportError` if the graph does not compute what the module computes.
    """
    config = config or ExportConfig()
    feeds = _at_least_two(feeds)
    state = _state(module)
    if HEAD_WEIGHT not in state or HEAD_BIAS not in state:
        raise ExportError(f"the module has no parameters {HEAD_WEIGHT} [d, k] and {HEAD_BIAS} [k]")
    template = _template(module)
    model = _trace(template, feeds, config.opset)
    _split_gemms(model)
    marks = _name_parameters(model, _state(template), state)
    _append_head(model, state[HEAD_WEIGHT], state[HEAD_BIAS])
    marks.write(model)
    onnx.save(model, str(out))
    _verify(module, out, feeds, marks, config.tolerance)


def quantize_int8(
    fp32: Path,
    out: Path,
    config: ExportConfig | None = None,
    calibration: Iterable[Feeds] = (),
) -> None:
    """Write the INT8 form of a graph made by `export_onnx`.

    Weights are signed and symmetric, one scale a column; activations are quantised as they come
    (dynamic), or by their extremes on ``calibration``, batches of feeds, if the config says static.
    Embedding tables are INT8 too; the head stays FP32 and overridable.

    Raises `ExportError` for static activations without a batch to calibrate on.
    """
    config = config or ExportConfig()
    # The exporter leaves some tensors without a type; all of them are float.
    options: dict[str, Any] = {"DefaultTensorType": TensorProto.FLOAT}
    common: dict[str, Any] = {"op_types_to_quantize": list(_QUANTISED), "extra_options": options}
    common |= {"per_channel": config.per_channel, "weight_type": QuantType.QInt8}
    with _quiet():
        if config.activations == "dynamic":
            quantize_dynamic(str(fp32), str(out), nodes_to_exclude=list(_HEAD_NODES), **common)
        else:
            batches = _Batches(calibration)
            # What a product gives stays FP32: quantising that too costs half a point, and time.
            options["OpTypesToExcludeOutputQuantization"] = list(_QUANTISED)
            quantize_static(
                str(fp32),
                str(out),
                batches,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,  # signed ones run no faster than FP32
                nodes_to_exclude=[*_HEAD_NODES, *_products_of_activations(fp32)],
                **common,
            )
    model = onnx.load(str(out))
    onnx.save(_with_values(_fused(model) or model, lambda _, array: array), str(out))


def quantize_version(
    fp32: Path,
    folder: Path,
    preprocessor: Preprocessor,
    inputs: Inputs,
    config: ExportConfig | None = None,
) -> None:
    """Write the INT8 graph of the version in ``folder``, and what its scales rest on, if static.

    inputs: [n], of which the first `calibration_events` fix static activations.
    """
    config = config or ExportConfig()
    graph, note = folder / MODEL_FILE, folder / QUANTISATION_FILE
    for old in (graph, note):  # they may be links to another version's
        old.unlink(missing_ok=True)
    quantize_int8(fp32, graph, config, calibration(preprocessor, inputs, config))
    if config.activations == "static":
        # Two encoders of the same weights embed alike only if they are quantised alike.
        digest = hashlib.sha256(graph.read_bytes()).hexdigest()
        about = {"activations": "static", "events": min(len(inputs), config.calibration_events)}
        note.write_text(json.dumps({**about, "calibrated": digest}, indent=1))


def export_version(
    module: torch.nn.Module,
    folder: Path,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    fp32: Path,
    calibrate_on: Inputs | None = None,
    right: Alike = np.equal,
    config: ExportConfig | None = None,
) -> dict[str, float]:
    """All of it in one call: export, quantise and measure a version's module.

    folder: has the version's other files (`Session.open` says which), and gets its INT8 graph; the
    FP32 graph goes to ``fp32``. inputs [n], labels [n], right: as `deploy.measure.measure` takes
    them. calibrate_on: what fixes static activations, by default the inputs themselves.

    Returns what `measure` does. Raises `ExportError`, and `LoadError` if the parts do not fit.
    """
    preprocessor = load_preprocessor(folder)
    export_onnx(module, preprocessor(inputs[:2]), fp32, config)
    quantize_version(
        fp32, folder, preprocessor, inputs if calibrate_on is None else calibrate_on, config
    )
    session = Session.open(folder)
    session.warm()
    return measure(session, fp32, inputs, labels, right=right)


def calibration(
    preprocessor: Preprocessor, inputs: Inputs, config: ExportConfig
) -> Iterator[Feeds]:
    """Batches for `quantize_int8` of the first `calibration_events` of inputs [n]."""
    some = inputs[: config.calibration_events]
    for start in range(0, len(some), _CALIBRATED_AT_ONCE):
        yield preprocessor(some[start : start + _CALIBRATED_AT_ONCE])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which gains nothing here, and its sessions' on the head."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(_ORT_ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        onnxruntime.set_default_logger_severity(_ORT_WARNING)


class _Batches:
    """Feeds, one batch after the other, as the quantiser asks for them."""

    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._batches = iter(batches)
        self._first = next(self._batches, None)
        if self._first is None:
            raise ExportError("static activations need inputs to calibrate on: there are none")

    def get_next(self) -> Feeds | None:
        """The next batch, None after the last."""
        first, self._first = self._first, None
        return first if first is not None else next(self._batches, None)


def _products_of_activations(fp32: Path) -> list[str]:
    """The products without a constant factor, as in attention: quantising them gains no size."""
    model = onnx.load(str(fp32))
    constants = initializers(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and not constants.keys() & set(node.input)
    ]


def _fused(model: ModelProto) -> ModelProto | None:
    """The graph with its nodes fused, as the runtime would fuse them at each opening.

    That takes half of the opening. None where a parameter's values have gone into anything but
    the parameter: with other values something else would have come out, and a patch would miss it.
    """
    fused = _fusing(model)
    other = _fusing(_with_values(model, _different))
    parameters = {tensor.name for tensor in model.graph.initializer}
    same = _all_but(fused, parameters) == _all_but(other, parameters)
    return fused if same and parameters <= initializers(fused).keys() else None


def _fusing(model: ModelProto) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        plain, fused = Path(folder, "plain.onnx"), Path(folder, "fused.onnx")
        onnx.save(model, str(plain))
        fused_graph(plain, fused)
        made = onnx.load(str(fused))
    used = {node.domain for node in made.graph.node}
    domains = [each for each in made.opset_import if each.domain in used]
    del made.opset_import[:]  # it names all that the runtime knows
    made.opset_import.extend(domains)
    return made


def _different(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.float32:
        return 2 * array + 1
    # Of symmetric weights it is always zero, and fusions count on it.
    zero = array.dtype == np.int8 and name.endswith(ZERO_POINT)
    return array if zero else array ^ 1


def _with_values(
    model: ModelProto, values: Callable[[str, NDArray[Any]], NDArray[Any]]
) -> ModelProto:
    """A copy whose every tensor has other values, as bytes that a patch can write over."""
    other = ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        array = np.ascontiguousarray(values(tensor.name, numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(array.reshape(tuple(tensor.dims)), tensor.name))
    return other


def _all_but(model: ModelProto, parameters: set[str]) -> tuple[list[bytes], dict[str, bytes]]:
    """The nodes of a graph, and its tensors beside the parameters."""
    tensors = {t.name: t.SerializeToString() for t in model.graph.initializer}
    nodes = [node.SerializeToString() for node in model.graph.node]
    return nodes, {name: data for name, data in tensors.items() if name not in parameters}


class _Encoder(torch.nn.Module):
    """The module's embedding alone, with positional arguments as the exporter wants them."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.module(**dict(zip(self.names, tensors, strict=True)))[0]
        return embedding


def _state(module: torch.nn.Module) -> Arrays:
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }


def _template(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose every parameter is noise of its own, so that it is found again by its values.

    With the true values the exporter merges parameters that happen to be equal and drops zeros;
    such a parameter could not be patched later.
    """
    template = copy.deepcopy(module).to("cpu", torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in template.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.02, generator=generator)
    for part in template.modules():
        # The plainest attention makes the graph that the runtime fuses best.
        choose = getattr(part, "set_attn_implementation", None)
        if choose is not None:
            choose("eager")
    return template


def _trace(template: torch.nn.Module, feeds: Feeds, opset: int) -> ModelProto:
    axes: dict[str, dict[int, str]] = {"embedding": {0: "n"}}
    for name in feeds:
        axes[name] = {0: "n", 1: "t"} if name in _SEQUENCES else {0: "n"}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        written = Path(folder, "encoder.onnx")
        # Deprecated in favour of the dynamo exporter, which takes eight times as long.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Encoder(template, list(feeds)),
            tuple(torch.from_numpy(array) for array in feeds.values()),
            written,
            input_names=list(feeds),
            output_names=["embedding"],
            opset_version=opset,
            dynamic_axes=axes,
            dynamo=False,
        )
        return onnx.load(str(written))


def _split_gemms(model: ModelProto) -> None:
    """Gemm with a constant matrix becomes MatMul and Add: the form that is quantised."""
    constants = initializers(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not plain or options.get("transA", 0):
            nodes.append(node)
            continue
        matrix = constants.get(node.input[1])
        if matrix is None:
            nodes.append(node)
            continue
        if options.get("transB", 0):
            array = numpy_helper.to_array(matrix).T
            matrix.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), matrix.name))
        left, right, *bias = node.input
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [left, right], [product], f"{node.name}/MatMul"))
        if bias:
            nodes.append(
                helper.make_node("Add", [product, *bias], list(node.output), f"{node.name}/Add")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _name_parameters(model: ModelProto, noise: Arrays, state: Arrays) -> Marks:
    """Give every initialiser that is a parameter its name and its true values."""
    # A matrix and its transpose share their first and last element.
    known = {(array.flat[0], array.flat[-1]): name for name, array in noise.items() if array.size}
    renamed: dict[str, str] = {}
    transposed: set[str] = set()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or not array.size:
            continue
        name = known.get((array.flat[0], array.flat[-1]))
        if name is None or name in renamed.values():
            continue
        if np.array_equal(array, noise[name]):
            true = state[name]
        elif np.array_equal(array, noise[name].T):
            true = state[name].T
            transposed.add(name)
        else:
            continue
        renamed[tensor.name] = name
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(true), name))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    unused = set(state) - set(renamed.values()) - {HEAD_WEIGHT, HEAD_BIAS}
    return Marks(frozenset(transposed), frozenset(unused))


def _append_head(model: ModelProto, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    graph = model.graph
    width = weight.shape[0]
    matmul, add, softmax = _HEAD_NODES
    graph.node.extend(
        [
            helper.make_node("MatMul", ["embedding", HEAD_WEIGHT], ["projection"], matmul),
            helper.make_node("Add", ["projection", HEAD_BIAS], ["logits"], add),
            helper.make_node("Softmax", ["logits"], ["probabilities"], softmax, axis=-1),
        ]
    )
    graph.initializer.extend(
        [numpy_helper.from_array(weight, HEAD_WEIGHT), numpy_helper.from_array(bias, HEAD_BIAS)]
    )
    # Inputs with a default: a caller may feed another head, with any number of classes k.
    for name, shape in ((HEAD_WEIGHT, [width, "k"]), (HEAD_BIAS, ["k"])):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    del graph.output[:]
    for name, last in (("embedding", width), ("logits", "k"), ("probabilities", "k")):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", last]))


def _verify(
    module: torch.nn.Module, graph: Path, feeds: Feeds, marks: Marks, tolerance: float
) -> None:
    """Compare graph and module on the example and on another shape of it."""
    more = {
        name: np.concatenate([array, array[:1]])[:, : array.shape[1] - (name in _SEQUENCES)]
        for name, array in feeds.items()
    }
    for example in (feeds, more):
        expected, answer = _run_module(module, example), run_graph(graph, example)
        for name in ("embeddings", "logits", "probabilities"):
            ours, theirs = getattr(answer, name), getattr(expected, name)
            worst = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else np.inf
            if not worst <= tolerance * max(1.0, float(np.abs(theirs).max())):
                raise ExportError(
                    f"{name} of the graph differ from the module's by up to {worst:.3g}. The "
                    "head must be embedding @ head.weight + head.bias, then softmax, and the "
                    "encoder must not depend on values while it is traced"
                    + (f"; not found in the graph: {sorted(marks.unused)}" if marks.unused else "")
                )


def _run_module(module: torch.nn.Module, feeds: Mapping[str, NDArray[Any]]) -> Prediction:
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            embedding, logits, probabilities = module(
                **{name: torch.from_numpy(array).to(device) for name, array in feeds.items()}
            )
    finally:
        module.train(training)
    return Prediction(*(t.float().cpu().numpy() for t in (probabilities, logits, embedding)))


def _at_least_two(feeds: Feeds) -> Feeds:
    """Axes of length one are traced as constants; make the free ones longer."""
    longer = {}
    for name, array in feeds.items():
        if array.ndim != 2 or not array.size:
            raise ExportError(f"the example of {name!r} must be [n, width], not {array.shape}")
        if len(array) < 2:
            array = np.repeat(array, 2, axis=0)
        if name in _SEQUENCES and array.shape[1] < 3:
            array = np.repeat(array, 3, axis=1)
        longer[name] = np.ascontiguousarray(array)
    return longer
