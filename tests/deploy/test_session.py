"""A version's folder as a session: order, padding, heads fed per run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from deploy.config import BatchConfig
from deploy.errors import InputError, LoadError
from deploy.onnx_bytes import pointing
from deploy.session import MODEL_FILE, Head, Session, batches


@pytest.fixture(scope="module")
def version(text, tmp_path_factory):
    return text.write(tmp_path_factory.mktemp("version") / "v")


def test_predict_keeps_the_order(text, version):
    session = Session.open(version)
    together = session.predict(text.inputs)
    assert together.probabilities.shape == (60, 3)
    assert together.embeddings.shape == (60, 32)
    assert together.probabilities.dtype == np.float32
    alone = np.concatenate([session.predict(text.inputs[i : i + 1]).logits for i in range(60)])
    # Dynamic quantisation sees the whole batch, so equal only nearly.
    assert np.abs(together.logits - alone).max() < 0.2
    assert np.abs(together.logits - alone).mean() < 0.02


def test_predict_nothing(text, version):
    answer = Session.open(version).predict(text.inputs[:0])
    assert answer.probabilities.shape == (0, 3)
    assert answer.embeddings.shape == (0, 32)


def test_logits_are_embeddings_times_head(text, version):
    session = Session.open(version)
    answer = session.predict(text.inputs)
    np.testing.assert_allclose(
        answer.logits, answer.embeddings @ session.head.weight + session.head.bias, atol=1e-5
    )


def test_a_head_of_other_size_can_be_fed(text, version):
    session = Session.open(version)
    head = Head(np.random.default_rng(0).normal(size=(32, 7)).astype("f4"), np.ones(7, "f4"))
    answer = session.predict(text.inputs[:5], head)
    assert answer.probabilities.shape == (5, 7)
    np.testing.assert_allclose(answer.logits, answer.embeddings @ head.weight + 1, atol=1e-5)
    assert session.predict(text.inputs[:5]).logits.shape == (5, 3)


def test_table_session(table, tmp_path):
    session = Session.open(table.write(tmp_path / "v"))
    session.warm()
    assert session.predict(table.inputs).probabilities.shape == (50, 2)
    assert session.labels == ("no", "yes")


def test_a_bad_item_is_named(text, version):
    inputs = text.inputs.copy()
    inputs[7] = ""
    with pytest.raises(InputError, match="item 7"):
        Session.open(version).predict(inputs)


def test_batches_are_bounded_and_complete():
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    limits = BatchConfig(max_items=32, padding=1.1)
    groups = list(batches(lengths, limits))
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    for group in groups:
        assert len(group) <= 32
        assert lengths[group].max() * len(group) <= 1.1 * lengths[group].sum() + 1e-9


def _no_graph(folder):
    (folder / "model.int8.onnx").unlink()


def _torn_graph(folder):
    path = folder / "model.int8.onnx"
    path.write_bytes(path.read_bytes()[:-5000])


def _no_labels(folder):
    (folder / "model.json").write_text("{}")


def _more_labels(folder):
    (folder / "model.json").write_text(json.dumps({"labels": ["a", "b", "c", "d"]}))


def _flat_head(folder):
    save_file({"weight": np.ones(3, "f4"), "bias": np.ones(3, "f4")}, folder / "head.safetensors")


def _other_head(folder):
    head = {"weight": np.ones((32, 3), "f4"), "bias": np.ones(3, "f4")}
    save_file(head, folder / "head.safetensors")


def _garbage_head(folder):
    (folder / "head.safetensors").write_bytes(b"garbage")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (_no_graph, "bad_files"),
        (_torn_graph, "bad_graph"),
        (_no_labels, "bad_files"),
        (_more_labels, "mismatch"),
        (_flat_head, "bad_files"),
        (_garbage_head, "bad_files"),
        (_other_head, "mismatch"),
    ],
)
def test_damaged_folders_do_not_serve(text, tmp_path, damage, cause):
    folder = text.write(tmp_path / "v")
    damage(folder)
    with pytest.raises(LoadError) as caught:
        Session.open(folder).warm()
    assert caught.value.cause == cause


def test_a_mapped_graph_answers_bit_for_bit_the_same(text, tmp_path, monkeypatch):
    folder = text.write(tmp_path / "version")
    copied = Session.open(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    monkeypatch.setattr("deploy.onnx_bytes._LARGE", 64)
    mapped = Session.open(folder, mapped=True)
    assert f"{folder}/{MODEL_FILE}" in Path("/proc/self/maps").read_text()
    ours, theirs = mapped.predict(text.inputs), copied.predict(text.inputs)
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
    head = Head(*text.head(seed=1))
    assert not np.array_equal(mapped.predict(text.inputs, head).logits, ours.logits)


def test_a_graph_that_points_at_its_values_is_the_same_graph(text, monkeypatch):
    monkeypatch.setattr("deploy.onnx_bytes._LARGE", 64)
    model = onnx.load_from_string(pointing(text.int8))
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) > 5
    onnx.external_data_helper.load_external_data_for_model(model, str(text.int8.parent))
    whole = onnx.load(str(text.int8))
    for ours, theirs in zip(model.graph.initializer, whole.graph.initializer, strict=True):
        assert (ours.name, ours.dims, ours.raw_data) == (theirs.name, theirs.dims, theirs.raw_data)
    del model.graph.initializer[:], whole.graph.initializer[:]
    assert model == whole


def test_a_mapped_file_that_is_no_graph_is_a_load_error(text, tmp_path):
    folder = text.write(tmp_path / "version")
    model = folder / MODEL_FILE
    model.unlink()
    model.write_bytes(b"\x3a\xff\xff\xff\xff\xff")
    with pytest.raises(LoadError, match="cannot be opened"):
        Session.open(folder, mapped=True)
