"""A version exported anew: both graphs, measured on what no training saw; and as a version."""

import json
import threading

import numpy as np
import pytest
import yaml

from daemon.cli.app import run
from daemon.config import Config, load_config
from daemon.exporting import FP32_FILE, CannotExport, export
from deploy.session import MODEL_FILE, QUANTISATION_FILE, Session
from registry import open_registry
from tests.daemon.loops import loop_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A daemon that has made its first version of a table, and stopped."""
    folder = tmp_path_factory.mktemp("daemon")
    random = np.random.default_rng(1)
    lines = []
    for i in range(900):
        x, kind = random.normal(), str(random.choice(["p", "q"]))
        label = "yes" if (x > 0) == (kind == "p") else "no"
        lines.append(json.dumps({"id": f"e{i}", "x": x, "kind": kind, "label": label}))
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    settings = {
        "model": {
            "task": "tabular",
            "features": [{"name": "x"}, {"name": "kind", "kind": "categorical"}],
            "random_features": 32,
        },
        "source": {"kind": "file", "path": str(folder / "events.jsonl")},
        "fields": {"id": "id"},
        "bootstrap": {"warmup_events": 400},
        "dead_letters": {"kind": "none"},
        "export": {"activations": "static", "calibration_events": 100},
        "registry": {"path": str(folder / "registry")},
        "checkpoint": {"path": str(folder / "state")},
    }
    (folder / "driftd.yaml").write_text(yaml.safe_dump(settings))
    loop = loop_of(Config.model_validate(settings))
    loop.start()
    loop.run(threading.Event())
    loop.close("the test is over")
    return folder


def command(place, *arguments):
    return run([*arguments, "-c", str(place / "driftd.yaml")])


def test_a_daemon_set_to_static_makes_such_versions(place):
    folder = open_registry(str(place / "registry")).path("v0001")
    about = json.loads((folder / QUANTISATION_FILE).read_text())
    assert about["activations"] == "static"
    assert about["events"] == 100
    assert b"DynamicQuantizeLinear" not in (folder / MODEL_FILE).read_bytes()


def test_it_writes_both_graphs_and_measures_them_on_held_out_events(place, tmp_path):
    config = load_config(place / "driftd.yaml", {})
    registry = open_registry(config.registry)
    versions = len(registry.versions())
    done = export(config, registry, "v0001", tmp_path / "out")
    assert 100 < done.events < 260  # a fifth of them
    assert done.metrics["agreement"] > 0.97
    assert done.metrics["accuracy"] > 0.7
    assert {"fp32_latency_ms", "size_ratio", "items_per_second"} <= done.metrics.keys()
    assert (tmp_path / "out" / FP32_FILE).stat().st_size == done.metrics["fp32_size_bytes"]
    inputs = np.array([(0.5, "p")], [("x", "<f8"), ("kind", "O")])
    ours, theirs = Session.open(tmp_path / "out"), Session.open(registry.path("v0001"))
    ours.warm()
    np.testing.assert_allclose(
        ours.predict(inputs).logits, theirs.predict(inputs).logits, atol=0.05
    )
    assert len(registry.versions()) == versions
    with pytest.raises(CannotExport, match="not empty"):
        export(config, registry, "v0001", tmp_path / "out")


def test_the_command_publishes_what_nobody_serves_yet(place, capsys, tmp_path):
    code = command(place, "export", "champion", "--activations", "dynamic", "--publish", "--json")
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    registry = open_registry(str(place / "registry"))
    made = registry.version(found["published"]).manifest
    assert made.parent == found["version"] == registry.state().champion
    assert made.strategy == "export"
    assert made.lineage["export"]["activations"] == "dynamic"
    folder = registry.path(made.version)
    assert not (folder / QUANTISATION_FILE).exists()
    assert b"DynamicQuantizeLinear" in (folder / MODEL_FILE).read_bytes()
    Session.open(folder).warm()

    assert command(place, "export", "champion", "-o", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "activations: static" in said
    assert "INT8" in said
    assert command(place, "export", "champion") == 2
    assert command(place, "export", "champion", "-o", str(tmp_path / "out")) == 1
    assert "not empty" in capsys.readouterr().err


def test_without_events_it_says_so(place, tmp_path):
    config = load_config(place / "driftd.yaml", {})
    empty = config.checkpoint.model_copy(update={"path": tmp_path / "nothing"})
    with pytest.raises(CannotExport, match="no checkpoint"):
        export(
            config.model_copy(update={"checkpoint": empty}),
            open_registry(config.registry),
            "v0001",
            tmp_path / "out",
        )
