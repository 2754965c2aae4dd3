"""Models of river beside the champion: the same events, honest counts, nothing of them stored."""

import json
import threading

import numpy as np
import pytest

pytest.importorskip("river")

from river import forest

from daemon.config import Config, ConfigError
from daemon.replay import PolicyError, Replay, parse, read
from daemon.rivals import Rivals, table_rows
from deploy.river_model import RiverModel
from learn.config import FeatureConfig, ModelConfig
from tests.daemon.loops import loop_of
from tests.daemon.tables import write_turning

WARM_UP, TURN, ROWS = 300, 600, 1100


@pytest.fixture
def config(tmp_path):
    """What the classes mean turns over at `TURN`; a pinned champion does not follow."""
    write_turning(tmp_path / "events.jsonl", ROWS, TURN)
    features = [{"name": "x"}, {"name": "kind", "kind": "categorical"}]
    rivals = [{"model": "hoeffding-adaptive-tree"}]
    rivals += [{"model": "adaptive-random-forest", "parameters": {"n_models": 3}}]
    return Config.model_validate(
        {
            "model": {
                "task": "tabular",
                "features": features,
                "random_features": 16,
                "rivals": rivals,
            },
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id", "time": "at"},
            "bootstrap": {"warmup_events": WARM_UP},
            "dead_letters": {"kind": "none"},
            "policy": {"online_head": False, "rungs": ["recall"]},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state")},
        }
    )


def test_it_answers_as_river_itself_does():
    random = np.random.default_rng(0)
    inputs = np.empty(200, [("x", "<f8"), ("kind", "O")])
    inputs["x"], inputs["kind"] = random.normal(size=200), random.choice(["p", "q"], 200)
    inputs["x"][5], inputs["kind"][7] = np.nan, None
    labels = np.where(inputs["x"] > 0, "yes", "no").astype(object)
    features = [FeatureConfig(name="x"), FeatureConfig(name="kind", kind="categorical")]
    ours = RiverModel("adaptive-random-forest", {"n_models": 3}, ["kind"], seed=4)
    found = ours.learn(table_rows(inputs, features), labels.tolist())
    theirs = forest.ARFClassifier(n_models=3, seed=4, nominal_attributes=["kind"])
    for i, row in enumerate(inputs):
        known = {"x": row["x"], "kind": row["kind"]}
        if i in (5, 7):
            del known["x" if i == 5 else "kind"]
        assert found[i] == theirs.predict_one(known)
        theirs.learn_one(known, labels[i])


def test_rivals_are_counted_beside_the_champion_and_never_serve(config):
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    status = loop.status()["rivals"]
    tree, forest3 = "river:hoeffding-adaptive-tree", "river:adaptive-random-forest(n_models=3)"
    assert list(status) == [tree, forest3]
    found = status[forest3]
    # Batches in which there was no champion yet only teach.
    assert 0 < found["events"] <= ROWS - WARM_UP
    assert found["accuracy"] > found["accuracy_other"] + 0.1
    assert found["verdict"] == "better"
    assert found["recent_accuracy"] == round(loop.state.rivals[forest3].score.recent_accuracy, 4)
    rows = list(loop.registry.journal.rows(kinds=["rival-better"]))
    assert forest3 in [row.fields["rival"] for row in rows]
    assert [v.id for v in loop.registry.versions()] == ["v0001"]
    assert f'rival="{tree}"'.encode() in loop.metrics.exposition()
    loop.close("the test is over")

    again = loop_of(config)
    again.start()
    after = again.status()["rivals"]
    assert after == status
    # It has learned again, from what is in memory.
    recent = again.state.memory.recent(200, since=0)
    names = np.array(again.state.classes.names, dtype=object)[recent.labels]
    assert (again.state.rivals[forest3].answer(recent.inputs) == names).mean() > 0.75
    again.close("the test is over")


def test_a_number_has_rivals_compared_by_their_scores(config, tmp_path):
    lines = []
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        row = json.loads(line)
        turned = int(row["id"][1:]) >= TURN
        size = (row["x"] or 0.0) * (10.0 if row["kind"] == "p" else -10.0)
        lines.append(json.dumps({**row, "label": -size if turned else size}))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    settings = config.model_dump()
    settings["model"] |= {"target": "number"}
    loop = loop_of(Config.model_validate(settings))
    loop.start()
    loop.run(threading.Event())
    found = loop.status()["rivals"]["river:hoeffding-adaptive-tree"]
    assert found["events"] > 500
    assert 0 < found["accuracy"] < 1
    assert found["accuracy"] > found["accuracy_other"]
    loop.close("the test is over")
    settings["model"]["rivals"] = [{"model": "leveraging-bagging"}]
    with pytest.raises(ConfigError, match="predicts numbers"):
        Rivals(ModelConfig.model_validate(settings["model"]), 0, 0.05)


def test_wrong_parameters_are_a_problem_of_the_configuration():
    rivals = [{"model": "adaptive-random-forest", "parameters": {"trees": 3}}]
    model = {"task": "tabular", "features": [{"name": "x"}], "rivals": rivals}
    with pytest.raises(ConfigError, match=r"model\.rivals.*trees"):
        Rivals(ModelConfig.model_validate(model), 0, 0.05)
    with pytest.raises(ValueError, match="for task: tabular"):
        ModelConfig.model_validate({"rivals": [{"model": "leveraging-bagging"}]})
    with pytest.raises(ValueError, match="kind"):
        ModelConfig.model_validate({**model, "rivals": [{"kind": "pickle", "model": "x"}]})


@pytest.mark.timeout(600)
def test_a_replay_can_answer_with_one(config, tmp_path):
    policies = parse(["frozen", "river:hoeffding-adaptive-tree"], config)
    assert policies[0].config.model.rivals == ()
    replay = Replay(config, read(config), policies, tmp_path / "replay")
    replay.prepare(resume=False)
    frozen, river = replay.run()
    truth = replay.recording.truth
    right = [
        (np.array(o.classes, dtype=object)[o.predicted[TURN + 150 :]] == truth[TURN + 150 :]).mean()
        for o in (frozen, river)
    ]
    assert right[1] > right[0] + 0.1
    with pytest.raises(PolicyError, match="the models of river are"):
        parse(["river:forest"], config)
