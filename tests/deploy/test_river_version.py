"""A model of river as a version: the same one from its events; served, or refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("river")

import registry
from deploy import river_version
from deploy.errors import LoadError
from deploy.preprocess import TabularPreprocessor
from deploy.river_model import RiverModel
from deploy.river_version import RIVER_FILE, Recipe, RiverVersion
from deploy.same_graph import same_but_head
from deploy.session import Session

LABELS = ("no", "yes")
RECIPE = Recipe("adaptive-random-forest", {"n_models": 3}, seed=4, numbers=2, categories=1)
KINDS = {"price": "numeric", "peak": "boolean", "region": "categorical"}


def rows(seed, n=400):
    random = np.random.default_rng(seed)
    inputs = np.empty(n, [("price", "<f8"), ("peak", "<f8"), ("region", "O")])
    inputs["price"] = random.normal(30, 5, n)
    inputs["peak"] = random.integers(0, 2, n)
    inputs["region"] = random.choice(["north", "south"], n)
    inputs["price"][3], inputs["region"][4] = np.nan, None
    right = (inputs["price"] > 30) == (inputs["region"] == "north")
    return inputs, np.where(right, "yes", "no").astype(object)


INPUTS, TRUTH = rows(0)
PREPROCESSOR = TabularPreprocessor.fit(INPUTS, KINDS)


def learned(n=400, recipe=RECIPE):
    model = RiverVersion(recipe, LABELS)
    model.learn(PREPROCESSOR(INPUTS[:n]), TRUTH[:n])
    return model


def write(folder, model, labels=LABELS):
    folder.mkdir(parents=True)
    description = {"kind": "river", "labels": list(labels), "numbers": model.recipe.numbers}
    (folder / "model.json").write_text(json.dumps(description))
    weight, bias = model.head(labels)
    save_file({"weight": weight, "bias": bias}, folder / "head.safetensors")
    PREPROCESSOR.save(folder)
    (folder / RIVER_FILE).write_bytes(model.to_bytes())
    return folder


def alone(monkeypatch):
    """No model in this process is at hand: all is learned from the file."""
    monkeypatch.setattr(river_version, "_ALIVE", type(river_version._ALIVE)())


def test_a_version_answers_as_the_model_that_it_was_made_of(tmp_path, monkeypatch):
    model = learned()
    folder = write(tmp_path / "v1", model)
    alone(monkeypatch)
    session = Session.open(folder)
    session.warm()
    assert session.river is not None
    assert session.labels == LABELS
    later, truth = rows(1)
    found = session.predict(later)
    theirs = model.scores(PREPROCESSOR(later))
    np.testing.assert_allclose(found.logits, theirs, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(found.embeddings[:, 2:], theirs)
    assert (np.array(LABELS)[found.probabilities.argmax(axis=1)] == truth).mean() > 0.8
    # Both go on alike: the same model, not one as good.
    session.river.learn(PREPROCESSOR(later), truth)
    model.learn(PREPROCESSOR(later), truth)
    again = rows(2)[0]
    np.testing.assert_array_equal(
        session.river.scores(PREPROCESSOR(again)), model.scores(PREPROCESSOR(again))
    )


def test_it_is_river_s_own_model():
    from river import forest

    theirs = forest.ARFClassifier(n_models=3, seed=4, nominal_attributes=["category0"])
    feeds = PREPROCESSOR(INPUTS)
    ours = RiverModel(RECIPE.model, RECIPE.parameters, RECIPE.nominal, 4)
    found = ours.learn(RECIPE.rows(feeds), TRUTH.tolist())
    for i in range(len(INPUTS)):
        numeric, category = feeds["numeric"][i].tolist(), feeds["category"][i].tolist()
        row = {"numeric0": numeric[0], "numeric1": numeric[1], "category0": str(category[0])}
        assert found[i] == theirs.predict_one(row)
        theirs.learn_one(row, TRUTH[i])


def test_another_process_with_another_hash_seed_makes_the_same_model(tmp_path):
    model = learned()
    write(tmp_path / "v1", model)
    np.save(tmp_path / "inputs.npy", PREPROCESSOR(rows(1)[0])["numeric"])
    code = """
import sys, numpy as np
from pathlib import Path
from deploy.river_version import RiverVersion
folder = Path(sys.argv[1])
numeric = np.load(folder / "inputs.npy")
model = RiverVersion.open(folder / "v1" / "model.river.safetensors")
feeds = {"numeric": numeric, "category": np.ones((len(numeric), 1), int)}
np.save(folder / "out.npy", model.scores(feeds))
"""
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            timeout=120,
            check=False,
        )
        assert done.returncode == 0
        numeric = np.load(tmp_path / "inputs.npy")
        feeds = {"numeric": numeric, "category": np.ones((len(numeric), 1), int)}
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.scores(feeds))


def test_a_copy_at_hand_goes_on_and_the_original_is_left_alone(tmp_path, monkeypatch):
    alone(monkeypatch)
    model = learned(200)
    before = model.scores(PREPROCESSOR(INPUTS))
    taught = []
    teach = RiverModel.teach
    monkeypatch.setattr(
        RiverModel,
        "teach",
        lambda self, rows, labels: (taught.append(len(rows)), teach(self, rows, labels)),
    )
    whole = RiverVersion(RECIPE, LABELS)
    whole.learn(PREPROCESSOR(INPUTS), TRUTH)
    events = whole.events
    del whole
    taught.clear()
    found = RiverVersion.taught(RECIPE, events)
    assert sum(taught) == 200
    np.testing.assert_array_equal(model.scores(PREPROCESSOR(INPUTS)), before)
    alone(monkeypatch)
    afresh = RiverVersion.taught(RECIPE, events)
    np.testing.assert_array_equal(
        found.scores(PREPROCESSOR(INPUTS)), afresh.scores(PREPROCESSOR(INPUTS))
    )
    other = RiverVersion.taught(replace(RECIPE, seed=5), events)
    assert not np.array_equal(
        other.scores(PREPROCESSOR(INPUTS)), afresh.scores(PREPROCESSOR(INPUTS))
    )


def test_it_grows_with_a_new_class_and_a_head_may_leave_one_out(tmp_path):
    model = learned()
    model.learn(PREPROCESSOR(INPUTS[:50]), np.array(["maybe"] * 50, object))
    assert model.classes == (*LABELS, "maybe")
    session = Session.open(write(tmp_path / "v1", model, ("maybe", "yes", "new")))
    session.warm()
    found = session.predict(INPUTS[:5]).logits
    np.testing.assert_allclose(found[:, :2], model.scores(PREPROCESSOR(INPUTS[:5]))[:, [2, 1]])
    assert (found[:, 2] < -10).all()


def test_beginning_anew_keeps_the_newest_events_only(monkeypatch):
    model = learned()
    model.begin_anew(100)
    assert len(model) == 100
    alone(monkeypatch)
    expected = RiverVersion(RECIPE, LABELS)
    expected.learn(PREPROCESSOR(INPUTS[300:]), TRUTH[300:])
    feeds = PREPROCESSOR(INPUTS)
    np.testing.assert_array_equal(model.scores(feeds), expected.scores(feeds))


def test_a_number(tmp_path):
    recipe = Recipe("hoeffding-adaptive-tree", {}, 1, 2, 1, number=True)
    model = RiverVersion(recipe)
    values = 3.0 * INPUTS["peak"] + 10.0
    model.learn(PREPROCESSOR(INPUTS), values)
    folder = write(tmp_path / "v1", model, ("value",))
    description = json.loads((folder / "model.json").read_text()) | {"target": "number"}
    (folder / "model.json").write_text(json.dumps(description))
    session = Session.open(folder)
    session.warm()
    assert session.number
    found = session.predict(INPUTS[50:100]).logits[:, 0]
    np.testing.assert_allclose(found, values[50:100], atol=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.array([0, 7])}, "outside"),
        ({"labels": np.array([0.5, 1.0])}, "float64"),
        ({"numeric": np.zeros((2, 3), np.float32)}, "numeric"),
        ({"category": np.zeros((1, 1), np.int64)}, "category"),
        ({"model": "os.system"}, "no model"),
        ({"parameters": {"model": {"a": 1}}}, "plain"),
        ({"parameters": {"trees": 1}}, "trees"),
        ({"hook": "x"}, "hook"),
        (None, "cannot read"),
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path, change, words):
    model = learned(2)
    path = tmp_path / RIVER_FILE
    path.write_bytes(model.to_bytes())
    arrays = load_file(path)
    about = asdict(RECIPE) | {"classes": LABELS, "river": "1"}
    if change is None:
        path.write_bytes(b"\\x80\\x04pickle" * 9)
    else:
        arrays |= {k: v for k, v in change.items() if k in arrays}
        about |= {k: v for k, v in change.items() if k not in arrays}
        save_file(arrays, path, metadata={"recipe": json.dumps(about)})
    with pytest.raises(LoadError, match=words) as caught:
        RiverVersion.open(path)
    assert caught.value.cause == "bad_files"


def test_without_river_the_server_says_what_to_do(tmp_path, monkeypatch):
    folder = write(tmp_path / "v1", learned(20))

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(river_version, "version", missing)
    with pytest.raises(LoadError, match=r"no ONNX graph.*pip install river") as caught:
        Session.open(folder)
    assert caught.value.cause == "needs_river"


def test_another_river_is_told_of_and_served(tmp_path, monkeypatch, caplog):
    folder = write(tmp_path / "v1", learned(20))
    monkeypatch.setattr(river_version, "version", lambda name: "99.0")
    Session.open(folder).warm()
    assert "is opened with 99.0" in caplog.text


def test_a_server_follows_its_versions(tmp_path, serving, monkeypatch):
    store = registry.open_registry(str(tmp_path / "registry"), create=True)

    def publish(model):
        draft = registry.ManifestDraft(
            parent=None,
            strategy="test",
            rung="online",
            task="tabular",
            labels=list(LABELS),
            input_schema=PREPROCESSOR.schema(),
            metrics={},
            lineage={},
        )
        folder = write(tmp_path / f"made-{len(model)}", model)
        found = store.publish(folder, draft, actor="test").id
        store.promote(found, actor="test", reason="a test")
        return found

    first, second = learned(100), learned(400)
    assert not same_but_head(
        write(tmp_path / "a", first) / RIVER_FILE, write(tmp_path / "b", second) / RIVER_FILE, None
    )
    publish(first)
    asked = {"inputs": [{"price": 36.0, "peak": True, "region": "north"}]}
    with serving() as (_, client):
        answer = client.post("/predict", json=asked)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["label"] in LABELS
        wanted = publish(second)
        deadline = time.monotonic() + 30
        while client.post("/predict", json=asked).json()["version"] != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = client.post("/predict", json=asked).json()["predictions"][0]
        scores = second.scores(PREPROCESSOR(PREPROCESSOR.rows(asked["inputs"])))[0]
        assert found["label"] == LABELS[scores.argmax()]
