"""Export, INT8 and patches: the graph computes what the module computes, whichever way it came."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploy.config import ExportConfig
from deploy.errors import ExportError, PatchError
from deploy.export import _fused, calibration, export_onnx, export_version, quantize_int8
from deploy.patch import patch_head, patch_weights, quantize
from deploy.preprocess import TextPreprocessor
from deploy.session import HEAD_BIAS, HEAD_WEIGHT, run_graph


def weights_of(graph: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(graph)).graph.initializer}


def disturb(module: torch.nn.Module, *parts: str) -> dict[str, np.ndarray]:
    """Change the parameters whose names hold one of the parts; the changed ones."""
    changed = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in parts):
                parameter.add_(torch.randn_like(parameter) * 0.05)
                changed[name] = parameter.detach().numpy().copy()
    return changed


def assert_same_weights(ours: Path, theirs: Path) -> None:
    left, right = weights_of(ours), weights_of(theirs)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("kind", ["text", "table"])
def test_fp32_graph_equals_the_module(kind, request):
    sample = request.getfixturevalue(kind)
    feeds = sample.preprocessor(sample.inputs)
    answer = run_graph(sample.fp32, feeds)
    with torch.no_grad():
        embedding, logits, probabilities = sample.module(
            **{name: torch.from_numpy(feed) for name, feed in feeds.items()}
        )
    np.testing.assert_allclose(answer.embeddings, embedding.numpy(), atol=2e-5)
    np.testing.assert_allclose(answer.logits, logits.numpy(), atol=2e-5)
    np.testing.assert_allclose(answer.probabilities, probabilities.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["text", "table"])
def test_int8_graph_is_near_and_keeps_the_contract(kind, request):
    sample = request.getfixturevalue(kind)
    feeds = sample.preprocessor(sample.inputs)
    exact, int8 = run_graph(sample.fp32, feeds), run_graph(sample.int8, feeds)
    same = (exact.logits.argmax(1) == int8.logits.argmax(1)).mean()
    assert same >= 0.9
    assert np.abs(exact.logits - int8.logits).mean() < 0.1
    graph = onnx.load(str(sample.int8)).graph
    weights = weights_of(sample.int8)
    assert weights[HEAD_WEIGHT].dtype == weights[HEAD_BIAS].dtype == np.float32
    inputs = [value.name for value in graph.input]
    assert inputs == [*feeds, HEAD_WEIGHT, HEAD_BIAS]
    assert [value.name for value in graph.output] == ["embedding", "logits", "probabilities"]
    assert any(weight.dtype == np.int8 for weight in weights.values())


def test_the_module_is_left_as_it_was(text_model, text, tmp_path):
    module = text_model().train()
    before = copy.deepcopy(module.state_dict())
    export_onnx(module, text.preprocessor(text.inputs[:1]), tmp_path / "m.onnx")
    assert module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "parts",
    [("head",), ("layer.1",), ("layer", "embeddings", "head"), ("LayerNorm", "bias")],
)
def test_a_patch_equals_a_fresh_export(text, tmp_path, parts):
    module = copy.deepcopy(text.module)
    changed = disturb(module, *parts)
    patch_weights(text.int8, changed, tmp_path / "patched.onnx")
    export_onnx(module, text.preprocessor(text.inputs[:2]), tmp_path / "fresh.onnx")
    quantize_int8(tmp_path / "fresh.onnx", tmp_path / "fresh.int8.onnx")
    assert_same_weights(tmp_path / "patched.onnx", tmp_path / "fresh.int8.onnx")
    feeds = text.preprocessor(text.inputs)
    patched = run_graph(tmp_path / "patched.onnx", feeds).logits
    fresh = run_graph(tmp_path / "fresh.int8.onnx", feeds).logits
    np.testing.assert_array_equal(patched, fresh)
    assert np.abs(patched - run_graph(text.int8, feeds).logits).max() > 0.01


def dequantised(weights, name):
    name = name.removesuffix("_quantized")
    levels = weights[f"{name}_quantized"].astype(np.float32)
    return (levels - weights[f"{name}_zero_point"]) * weights[f"{name}_scale"]


@pytest.mark.parametrize("kind", ["text", "table"])
def test_static_activations_do_not_depend_on_what_shares_the_batch(kind, request, tmp_path):
    sample = request.getfixturevalue(kind)
    config = ExportConfig(activations="static", calibration_events=40)
    out = tmp_path / "static.onnx"
    feeds = sample.preprocessor(sample.inputs)
    quantize_int8(sample.fp32, out, config, calibration(sample.preprocessor, sample.inputs, config))
    exact, static = run_graph(sample.fp32, feeds).logits, run_graph(out, feeds).logits
    assert (exact.argmax(1) == static.argmax(1)).mean() >= 0.9
    assert np.abs(exact - static).mean() < 0.1
    weights, dynamic = weights_of(out), weights_of(sample.int8)
    for name in (name for name in dynamic if name.endswith("_quantized")):
        ours, theirs = dequantised(weights, name), dequantised(dynamic, name)
        np.testing.assert_allclose(ours, theirs, atol=np.abs(theirs).max() / 127)
    alone = [run_graph(out, sample.preprocessor(sample.inputs[i : i + 1])).logits for i in (0, 7)]
    np.testing.assert_allclose(np.concatenate(alone), static[[0, 7]], atol=1e-5)
    dynamic = run_graph(sample.int8, feeds).logits
    lone = run_graph(sample.int8, sample.preprocessor(sample.inputs[7:8])).logits
    assert np.abs(lone[0] - dynamic[7]).max() > 1e-5
    fixed = weights.keys() - weights_of(sample.int8).keys()
    assert all(weights[name].dtype == np.uint8 for name in fixed if name.endswith("_zero_point"))
    operators = {node.op_type for node in onnx.load(str(out)).graph.node}
    assert "DynamicQuantizeLinear" not in operators


def test_a_patch_of_a_static_graph_keeps_its_scales(text, tmp_path):
    config = ExportConfig(activations="static")
    static = tmp_path / "static.onnx"
    quantize_int8(text.fp32, static, config, calibration(text.preprocessor, text.inputs, config))
    module = copy.deepcopy(text.module)
    patch_weights(static, disturb(module, "layer.1", "head"), tmp_path / "patched.onnx")
    feeds = text.preprocessor(text.inputs)
    with torch.inference_mode():
        wanted = module(**{k: torch.from_numpy(v) for k, v in feeds.items()})[1].numpy()
    found = run_graph(tmp_path / "patched.onnx", feeds).logits
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.9
    assert np.abs(found - run_graph(static, feeds).logits).max() > 0.01


def test_static_activations_need_inputs(text, tmp_path):
    with pytest.raises(ExportError, match="inputs to calibrate on"):
        quantize_int8(text.fp32, tmp_path / "x.onnx", ExportConfig(activations="static"))


def test_one_call_exports_quantises_and_measures(text, tmp_path):
    folder = text.write(tmp_path / "version")
    (folder / "model.int8.onnx").unlink()
    labels = np.array([i % 3 for i in range(len(text.inputs))])
    found = export_version(text.module, folder, text.inputs, labels, fp32=tmp_path / "fp32.onnx")
    assert found["size_bytes"] == (folder / "model.int8.onnx").stat().st_size
    assert found["fp32_size_bytes"] == (tmp_path / "fp32.onnx").stat().st_size
    assert found["agreement"] >= 0.9
    assert {"accuracy", "latency_ms", "fp32_latency_ms", "size_ratio"} <= found.keys()


def test_a_patch_of_the_fp32_graph_and_of_a_table(table, tmp_path):
    module = copy.deepcopy(table.module)
    changed = disturb(module, "encoder")
    export_onnx(module, table.preprocessor(table.inputs[:2]), tmp_path / "fresh.onnx")
    quantize_int8(tmp_path / "fresh.onnx", tmp_path / "fresh.int8.onnx")
    patch_weights(table.fp32, changed, tmp_path / "patched.onnx")
    patch_weights(table.int8, changed, tmp_path / "patched.int8.onnx")
    assert_same_weights(tmp_path / "patched.onnx", tmp_path / "fresh.onnx")
    assert_same_weights(tmp_path / "patched.int8.onnx", tmp_path / "fresh.int8.onnx")


def test_a_patch_of_the_same_shapes_writes_no_message_anew(text, tmp_path, monkeypatch):
    monkeypatch.delattr("deploy.patch.onnx.save")
    changed = disturb(copy.deepcopy(text.module), "layer.1", "head")
    patch_weights(text.int8, changed, tmp_path / "patched.onnx")
    assert (tmp_path / "patched.onnx").stat().st_size == text.int8.stat().st_size
    onnx.checker.check_model(str(tmp_path / "patched.onnx"))


@pytest.mark.parametrize("name", ["text", "table"])
def test_int8_nodes_are_fused_already_and_parameters_are_whole(name, request):
    model = onnx.load(str(request.getfixturevalue(name).int8))
    assert "com.microsoft" in {node.domain for node in model.graph.node}
    kinds = {node.op_type for node in model.graph.node}
    assert kinds & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert {each.domain for each in model.opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize("ways", [["Neg"], ["Neg", "Identity"]])
def test_nodes_stay_apart_where_fusing_would_swallow_a_parameter(ways):
    nodes = [helper.make_node(way, ["w"], [f"w{i}"]) for i, way in enumerate(ways)]
    nodes += [helper.make_node("Mul", ["x", f"w{i}"], [f"y{i}"]) for i in range(len(ways))]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
        for name in ("x", *(f"y{i}" for i in range(len(ways))))
    ]
    weight = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [weight])
    opsets = [helper.make_opsetid("", 17)]
    assert _fused(helper.make_model(graph, opset_imports=opsets, ir_version=8)) is None


@pytest.mark.parametrize("large", [64 * 1024, 1])
def test_a_patch_may_replace_its_own_file_and_grow_the_head(text, tmp_path, monkeypatch, large):
    monkeypatch.setattr("deploy.onnx_bytes._LARGE", large)  # what is not read but to be copied
    graph = tmp_path / "m.onnx"
    graph.write_bytes(text.int8.read_bytes())
    weight = np.random.default_rng(0).normal(size=(32, 9)).astype(np.float32)
    patch_head(graph, weight, np.zeros(9), graph)
    answer = run_graph(graph, text.preprocessor(text.inputs))
    np.testing.assert_allclose(answer.logits, answer.embeddings @ weight, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"encoder.layer.9.weight": np.ones((2, 2))}, "no parameter 'encoder.layer.9.weight'"),
        ({"encoder.embeddings.LayerNorm.bias": np.ones(31)}, "the architecture changed"),
        ({"encoder.embeddings.LayerNorm.bias": np.full(32, np.nan)}, "training diverged"),
        ({HEAD_WEIGHT: np.ones((32, 4))}, "give both together"),
        ({HEAD_WEIGHT: np.ones((32, 4)), HEAD_BIAS: np.ones(3)}, "give both together"),
        ({HEAD_WEIGHT: np.ones((31, 4)), HEAD_BIAS: np.ones(4)}, "the architecture changed"),
    ],
)
def test_patches_that_do_not_fit(text, tmp_path, weights, message):
    with pytest.raises(PatchError, match=message):
        patch_weights(text.int8, weights, tmp_path / "m.onnx")


@pytest.mark.parametrize("data", [b"", b"\x03", b"\x80" * 50])
def test_what_is_no_graph_is_not_patched(tmp_path, data):
    (tmp_path / "no.onnx").write_bytes(data)
    with pytest.raises(PatchError):
        patch_head(tmp_path / "no.onnx", np.ones((2, 2)), np.ones(2), tmp_path / "m.onnx")


def test_parameters_that_the_graph_does_not_use_are_passed_over(text, tmp_path):
    patch_weights(
        text.int8, {"encoder.pooler.dense.weight": np.ones((32, 32))}, tmp_path / "m.onnx"
    )
    assert_same_weights(text.int8, tmp_path / "m.onnx")


class Warped(torch.nn.Module):
    """Its logits are not embedding @ weight + bias."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = inner.encoder, inner.head
        self.forward_inner = inner.forward

    def forward(self, **feeds):
        embedding, logits, _ = self.forward_inner(**feeds)
        return embedding, 2 * logits, (2 * logits).softmax(-1)


def test_a_module_with_another_head_is_refused(text_model, text, tmp_path):
    module = Warped(text_model())
    with pytest.raises(ExportError, match="logits of the graph differ"):
        export_onnx(module, text.preprocessor(text.inputs[:2]), tmp_path / "m.onnx")


def test_a_module_without_a_head_is_refused(text, tmp_path):
    with pytest.raises(ExportError, match=r"head\.weight"):
        export_onnx(torch.nn.Linear(2, 2), {"numeric": np.ones((2, 2), "f4")}, tmp_path / "m.onnx")


def test_quantize_handles_zeros():
    levels, scale, zero = quantize(np.zeros((3, 2), np.float32), symmetric=True, per_column=True)
    assert not levels.any()
    assert (scale == 1).all()
    assert not zero.any()


def test_minilm_with_lora_and_top_layers(minilm_folder, text_model, tmp_path):
    """The real encoder: size, nearness, and patches of top layers and of merged LoRA weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    module = text_model(AutoModel.from_pretrained(str(minilm_folder)), 384, 77).eval()
    preprocessor = TextPreprocessor(minilm_folder / "tokenizer.json", 128)
    inputs = np.array(
        ["I lost my card", "where is my money?", "the transfer has not arrived yet"], object
    )
    feeds = preprocessor(inputs)
    fp32, int8 = tmp_path / "m.onnx", tmp_path / "m.int8.onnx"
    export_onnx(module, feeds, fp32)
    quantize_int8(fp32, int8)
    assert int8.stat().st_size <= 0.26 * fp32.stat().st_size
    exact, near = run_graph(fp32, feeds).embeddings, run_graph(int8, feeds).embeddings
    assert (exact * near).sum(axis=1).min() > 0.98

    before = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    lora = get_peft_model(
        copy.deepcopy(module.encoder), LoraConfig(r=4, target_modules=["query", "value"])
    )
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    module.encoder = lora.merge_and_unload()
    disturb(module, "layer.5.output", "head")
    changed = {
        f"encoder.{name}": tensor.numpy()
        for name, tensor in module.encoder.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert len(changed) == 6 * 2 + 4
    changed |= {
        HEAD_WEIGHT: module.head.weight.detach().numpy(),
        HEAD_BIAS: module.head.bias.detach().numpy(),
    }
    patch_weights(int8, changed, tmp_path / "patched.onnx")
    export_onnx(module, feeds, fp32, ExportConfig())
    quantize_int8(fp32, int8)
    assert_same_weights(tmp_path / "patched.onnx", int8)
    np.testing.assert_allclose(
        run_graph(tmp_path / "patched.onnx", feeds).logits, run_graph(int8, feeds).logits, atol=1e-4
    )
