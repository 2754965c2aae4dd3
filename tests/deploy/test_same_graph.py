"""An update of the head alone: the session that runs goes on, with the new head fed to it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import registry
from deploy.patch import patch_head, patch_weights
from deploy.same_graph import same_but_head
from deploy.session import MODEL_FILE, Head, Session, read_head


@pytest.fixture
def graphs(text, tmp_path):
    """The graph of a version, and that of one with another head."""
    old = text.write(tmp_path / "old") / MODEL_FILE
    new = text.write(tmp_path / "new", seed=1)
    return old, new / MODEL_FILE, read_head(new)[1]


def test_another_head_is_told_from_another_graph(graphs, text, tmp_path):
    old, new, head = graphs
    assert same_but_head(old, new, head)
    assert same_but_head(old, old, read_head(old.parent)[1])
    assert not same_but_head(old, new, read_head(old.parent)[1])  # not the head it holds

    name, weight = next(
        (name, value.numpy())
        for name, value in text.module.state_dict().items()
        if name.endswith("query.weight")
    )
    other = tmp_path / "other.onnx"
    patch_weights(new, {name: weight * 1.01}, other)
    assert other.stat().st_size == new.stat().st_size
    assert not same_but_head(old, other, head)


def test_one_byte_makes_another_graph_wherever_it_lies(graphs, tmp_path):
    old, new, head = graphs
    data = new.read_bytes()
    weight = data.index(head.weight.tobytes())
    other = tmp_path / "other.onnx"
    for at in (0, weight - 1, weight + head.weight.nbytes, *range(1, len(data), len(data) // 23)):
        other.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not same_but_head(old, other, head)


def test_more_classes_are_another_graph(graphs, tmp_path):
    old, _, head = graphs
    wider = tmp_path / "wider.onnx"
    patch_head(old, np.ones((32, 4), np.float32), np.ones(4, np.float32), wider)
    assert not same_but_head(old, wider, head)


@pytest.mark.parametrize("damage", [b"", b"\x3a\xff\xff\xff\xff\xff", b"\x03", b"\x80" * 50])
def test_what_is_no_graph_is_no_reason_to_fail(graphs, damage, tmp_path):
    old, new, head = graphs
    data = new.read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(damage + data[len(damage) :])
    assert not same_but_head(old, broken, head) or damage == b""
    assert not same_but_head(old, tmp_path / "absent.onnx", head)
    broken.write_bytes(damage)
    assert not same_but_head(broken, broken, head)


@pytest.mark.parametrize("kind", ["text", "table"])
def test_a_head_update_runs_in_the_session_that_is_there(kind, request, follower, publish):
    sample = request.getfixturevalue(kind)
    publish(sample, promote=True)
    assert follower.watcher.step()
    second = publish(sample, seed=1, promote=True)
    assert follower.watcher.step()
    champion, previous, _ = follower.engine.lineup
    assert champion.version == second
    assert champion.session._runtime is previous.session._runtime
    fresh = Session.open(follower.root / "versions" / second)
    ours = champion.session.predict(sample.inputs[:20])
    np.testing.assert_allclose(
        ours.logits, fresh.predict(sample.inputs[:20]).logits, rtol=1e-5, atol=1e-5
    )
    theirs = previous.session.predict(sample.inputs[:20])
    assert np.abs(theirs.logits - ours.logits).max() > 0.1


def test_heads_follow_heads(follower, text, publish):
    publish(text, promote=True)
    runtimes = set()
    for seed in range(4):
        version = publish(text, seed=seed, promote=True)
        assert follower.watcher.step()
        session = follower.engine.lineup.champion.session
        runtimes.add(id(session._runtime))
        assert session.path.parent.name == version
        expected = read_head(session.path.parent)[1]
        np.testing.assert_array_equal(session.head.weight, expected.weight)
    assert len(runtimes) == 1


def test_a_new_class_is_loaded_whole(follower, text, publish, tmp_path):
    publish(text, promote=True)
    assert follower.watcher.step()
    folder = text.write(tmp_path / "grown")
    head = Head(np.ones((32, 4), np.float32), np.ones(4, np.float32))
    labels = [*text.labels, "new"]
    (folder / "model.json").write_text(json.dumps({"kind": "text", "labels": labels}))
    save_file({"weight": head.weight, "bias": head.bias}, folder / "head.safetensors")
    patch_head(text.int8, head.weight, head.bias, folder / MODEL_FILE)
    draft = registry.ManifestDraft(strategy="t", rung="head", task="text", labels=labels)
    store = registry.open_registry(str(follower.root))
    store.promote(store.publish(folder, draft, actor="t").id, actor="t", reason="t")
    assert follower.watcher.step()
    champion, previous, _ = follower.engine.lineup
    assert champion.session.labels[-1] == "new"
    assert champion.session._runtime is not previous.session._runtime


def test_a_head_that_answers_nonsense_never_serves(follower, text, publish, tmp_path):
    first = publish(text, promote=True)
    assert follower.watcher.step()
    folder = text.write(tmp_path / "broken")
    weight, bias = np.full((32, 3), np.nan, np.float32), np.ones(3, np.float32)
    save_file({"weight": weight, "bias": bias}, folder / "head.safetensors")
    graph = bytearray((folder / MODEL_FILE).read_bytes())
    old = np.ascontiguousarray(text.head()[0]).tobytes()
    at = graph.index(old)
    graph[at : at + len(old)] = weight.tobytes()
    old = text.head()[1].tobytes()
    at = graph.index(old)
    graph[at : at + len(old)] = bias.tobytes()
    (folder / MODEL_FILE).write_bytes(graph)
    draft = registry.ManifestDraft(strategy="t", rung="head", task="text", labels=[])
    store = registry.open_registry(str(follower.root))
    version = store.publish(folder, draft, actor="t").id
    store.promote(version, actor="t", reason="t")
    assert not follower.watcher.step()
    assert follower.engine.lineup.versions == (first,)
    counter = follower.metrics.counter("driftd_server_load_failures_total", version, "bad_graph")
    assert counter._value.get() == 1


def test_the_old_folder_may_be_gone(follower, text, publish):
    first = publish(text, promote=True)
    assert follower.watcher.step()
    second = publish(text, seed=1)
    shutil.rmtree(follower.root / "versions" / first)
    registry.open_registry(str(follower.root)).promote(second, actor="t", reason="t")
    follower.watcher.step()  # whose previous is gone
    assert follower.engine.lineup.champion.version == second
