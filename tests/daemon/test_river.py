"""A model of river as champion: versions, gate, rollback and restart as of any other model."""

import threading

import numpy as np
import pytest

pytest.importorskip("river")

from daemon.config import Config
from daemon.online import OnRiver
from deploy.river_version import RIVER_FILE
from deploy.session import MODEL_FILE
from learn.config import ModelConfig
from tests.daemon.loops import loop_of
from tests.daemon.tables import write_turning

TURN, ROWS = 900, 2600


@pytest.fixture
def config(tmp_path):
    """What the classes mean turns over at `TURN`; a number beside it follows the same."""
    write_turning(tmp_path / "events.jsonl", ROWS, TURN)
    features = [{"name": "x"}, {"name": "kind", "kind": "categorical"}]
    return Config.model_validate(
        {
            "model": {
                "task": "tabular",
                "table": "river",
                "features": features,
                "river": {"parameters": {"n_models": 3}, "events": 800},
            },
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id", "time": "at"},
            "bootstrap": {"warmup_events": 300},
            "dead_letters": {"kind": "none"},
            "gate": {"min_events": 50, "negative_flips": 0.5},
            "policy": {
                "settle_events": 200,
                "cooldown_events": 100,
                "follow": {"events": 100, "seconds": 0},
            },
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state")},
        }
    )


def finish(config):
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    return loop


def test_it_bootstraps_follows_a_drift_rolls_back_and_goes_on_after_a_restart(config):
    loop = finish(config)
    state, registry = loop.state, loop.registry
    first = registry.path("v0001")
    assert (first / RIVER_FILE).exists()
    assert not (first / MODEL_FILE).exists()
    metrics = registry.version("v0001").manifest.metrics
    assert metrics["accuracy"] > 0.8
    assert metrics["size_bytes"] > 0

    rows = list(registry.journal.rows())
    kinds = [row.kind for row in rows]
    assert {"alarm", "verdict", "promote", "followed"} <= set(kinds)
    verdict = next(row for row in rows if row.kind == "verdict" and row.fields["rung"] == "online")
    agreement = next(c for c in verdict.fields["checks"] if c["name"] == "agreement")
    assert agreement["value"] == 1.0
    assert "events learned anew" in agreement["sentence"]
    champion = registry.state().champion
    assert champion != "v0001"
    assert loop.status()["accuracy"]["recent"] > 0.8

    # It holds no more than it may, and a version answers as what learns does.
    online = state.online
    assert isinstance(online, OnRiver)
    assert 800 <= len(online.model) < 1600 + 256
    recent = state.memory.recent(300, since=0)
    nothing = np.empty((len(recent), 0), np.float32)
    served = loop.open_version(champion)
    said = served.answer(recent.inputs)
    assert (said.predicted == recent.labels).mean() > 0.9
    assert said.embeddings.shape[1] == 1 + len(online.model.classes)
    assert served.place == slice(None, 1)
    expected = online.judge(recent.inputs, nothing)
    loop.close("the test is over")

    again = loop_of(config)
    again.start()
    assert again.state.champion == champion
    np.testing.assert_array_equal(again.state.online.judge(recent.inputs, nothing), expected)
    registry.rollback(actor="operator", reason="a test")
    again.step()
    assert again.champion is not None
    back = registry.state().champion
    assert again.champion.version == back != champion
    again.close("the test is over")


def test_a_number_is_predicted_by_one(config):
    settings = config.model_dump()
    settings["model"] |= {"target": "number"}
    settings["fields"] |= {"label": "size"}
    loop = finish(Config.model_validate(settings))
    state = loop.state
    assert loop.champion is not None
    assert loop.champion.scale is not None
    assert loop.champion.version != "v0001"
    assert state.residuals.recent["r2"] > 0.3
    loop.close("the test is over")


def test_what_it_cannot_be_is_said(config):
    settings = config.model_dump()
    settings["bootstrap"] |= {"strategy": "full"}
    with pytest.raises(ValueError, match="must be head, as model.table is river"):
        Config.model_validate(settings)
    model = {"task": "tabular", "table": "river", "target": "number"}
    with pytest.raises(ValueError, match="does not predict numbers"):
        ModelConfig.model_validate({**model, "river": {"model": "leveraging-bagging"}})
