"""A table's ensemble in the daemon: learns online, serves as a version, survives a restart."""

import json
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file

from daemon.config import Config
from daemon.online import OnRows
from daemon.served import Served
from tests.daemon.loops import loop_of

TURN = 700


@pytest.fixture
def config(tmp_path):
    """Rows of a number whose level and meaning move at `TURN`, and a category."""
    random = np.random.default_rng(1)
    lines = []
    for i in range(2400):
        turned = i >= TURN
        price, kind = random.normal(), str(random.choice(["x", "y"]))
        label = (price > 0) == ((kind == "x") != turned)
        row = {"price": 5.0 * turned + price, "kind": kind, "label": "up" if label else "down"}
        lines.append(json.dumps({"id": f"e{i}", **row}))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    features = [{"name": "price"}, {"name": "kind", "kind": "categorical"}]
    return Config.model_validate(
        {
            "model": {
                "task": "tabular",
                "features": features,
                "random_features": 64,
                "relative": True,
                "lagged_labels": 1,
            },
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id"},
            "bootstrap": {"warmup_events": 300},
            "dead_letters": {"kind": "none"},
            "policy": {"rungs": ["online"], "settle_events": 200, "cooldown_events": 100},
            "gate": {"min_events": 50, "negative_flips": 0.5},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state")},
        }
    )


def test_the_online_ensemble_is_served_after_the_gate_and_goes_on_after_a_restart(config):
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    state = loop.state
    online = state.online
    assert isinstance(online, OnRows)
    recent = state.memory.recent(400, since=0)
    inputs, truth = recent.inputs, recent.labels
    assert inputs.dtype.names == tuple(column.name for column in config.model.columns)

    promoted = [row for row in loop.registry.journal.rows() if row.kind == "promote"]
    assert len(promoted) >= 2
    found = loop.registry.version(loop.registry.state().champion)
    assert found.manifest.rung == "online"
    moved = load_file(loop.registry.path(found.id) / "delta.safetensors")
    assert set(moved) == {"encoder.shift", "encoder.gain"}
    # Versions of one ensemble share its draw of random features, and what learned goes on.
    first = loop.open_version("v0001")
    assert online.fits(OnRows.beside(first, 2))
    champion = loop.open_version(found.id)
    before = (first.answer(inputs).predicted == truth).mean()
    assert (champion.answer(inputs).predicted == truth).mean() > before + 0.2
    expected = online.judge(inputs, np.empty((len(inputs), 0), np.float32))
    loop.close("the test is over")

    again = loop_of(config)
    again.start()
    assert isinstance(again.state.online, OnRows)
    answers = again.state.online.judge(inputs, np.empty((len(inputs), 0), np.float32))
    np.testing.assert_array_equal(answers, expected)
    assert again.state.past.values() == state.past.values()
    again.close("the test is over")


def test_a_version_of_the_online_ensemble_answers_as_it_does(config, tmp_path):
    from daemon.job import VERSION, Job
    from daemon.served import Classes
    from daemon.trainer_main import run
    from deploy.session import Session
    from learn.examples import Examples

    random = np.random.default_rng(0)
    n = 600
    inputs = np.empty(
        n,
        [
            ("price", "<f8"),
            ("kind", "O"),
            ("price~2", "<f8"),
            ("price~8", "<f8"),
            ("price~32", "<f8"),
            ("price~128", "<f8"),
            ("label~1", "O"),
        ],
    )
    for name in inputs.dtype.names:
        inputs[name] = random.normal(size=n)
    inputs["kind"] = random.choice(["x", "y", None], n)
    inputs["label~1"] = random.choice(["up", "down"], n)
    labels = (inputs["price"] * np.where(inputs["kind"] == "x", 1, -1) > 0).astype(np.int64)
    number = np.arange(n)
    names = np.array([f"e{i}" for i in number], dtype=object)
    examples = Examples(
        names,
        number.astype(float),
        inputs,
        labels,
        None,
        np.ones(n, np.float32),
        names,
        np.zeros(n, np.int32),
        number,
        number,
    )

    def job(name, parent):
        return Job(
            name,
            "head" if parent is None else "online",
            "head",
            ["down", "up"],
            parent,
            1,
            1,
            60.0,
            config.model.model_dump(mode="json"),
            config.learn.model_dump(mode="json"),
        )

    job("first", None).write(tmp_path / "first", examples)
    assert run(tmp_path / "first").outcome == "trained"
    folder = tmp_path / "first" / VERSION
    (folder / "manifest.json").write_text('{"metrics": {"size_ratio": 0.3}}')
    served = Served("v1", Session.open(folder), "", Classes(["down", "up"]), folder)
    online = OnRows.beside(served, 2)
    online.learn(inputs, np.empty((n, 0), np.float32), labels)
    given = online.weights(np.array([0, 1]))
    job("second", str(folder)).write(tmp_path / "second", examples, given)
    result = run(tmp_path / "second")
    assert result.outcome == "trained", result.reason
    assert result.metrics["size_ratio"] == 0.3
    version = Session.open(tmp_path / "second" / VERSION)
    version.warm()
    expected = online.ensemble.logits(version.preprocessor(inputs))
    answers = np.concatenate([version.predict(inputs[i : i + 1]).logits for i in range(n)])
    assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.99
    assert (answers.argmax(axis=1) == labels).mean() > 0.9
