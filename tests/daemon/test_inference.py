"""Features that nobody declared: what is inferred, where it is kept, and that it serves."""

import json
import subprocess
import sys
import threading

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from daemon.api import Health
from daemon.checkpoint import CheckpointStore
from daemon.cli.app import driftd
from daemon.config import Config, ConfigError
from daemon.dead_letters import open_dead_letters
from daemon.inference import infer
from daemon.journal import JournalWriter
from daemon.loop import Loop
from daemon.sources import SourceError
from daemon.stream_config import FieldsConfig
from daemon.trainer import Trainer
from daemon.undeclared import look, open_known, remembered, undeclared, with_features
from registry import open_registry


def test_each_kind_is_recognised():
    rows = [
        {
            "amount": i / 3,
            "count": i,
            "quoted": str(i),
            "zip": f"0{i % 7}123",
            "express": i % 2 == 0,
            "said": "true" if i % 2 else "false",
            "country": ["DE", "FR", None][i % 3],
            "customer": {"id": f"c{i % 120}", "city": "x"},
            "note": f"text number {i}",
            "tags": ["a"],
            "absent": None,
            "~": 1,
            "when": "2026-01-01",
            "key": f"e{i}",
            "label": "ab"[i % 2],
        }
        for i in range(300)
    ]
    found = infer(rows, FieldsConfig(time="when", id="key", features={"town": "customer.city"}))
    assert {f.name: f.kind for f in found.features} == {
        "amount": "numeric",
        "count": "numeric",
        "quoted": "numeric",
        "zip": "categorical",
        "express": "boolean",
        "said": "categorical",
        "country": "categorical",
        "customer.id": "hashed",
        "town": "categorical",
    }
    notes = "\n".join(found.notes)
    for word in ("tags holds lists", "note is another text", "absent has no value", "~ is left"):
        assert word in notes


def test_a_few_words_among_numbers_are_refused_and_many_make_a_category():
    rows = [{"x": "n/a" if i < 4 else i, "y": "n/a" if i < 30 else i % 5} for i in range(100)]
    found = infer(rows, FieldsConfig())
    assert {f.name: f.kind for f in found.features} == {"x": "numeric", "y": "categorical"}
    assert found.notes == ("x is no number in 4 of 100 events: such events are refused",)


@pytest.fixture
def config(tmp_path):
    random = np.random.default_rng(1)
    lines = []
    for i in range(700):
        price, kind = random.normal(), str(random.choice(["x", "y"]))
        row = {"price": price, "shop": {"kind": kind}, "vip": bool(random.integers(2))}
        row |= {"user": f"u{random.integers(90)}"}
        row["label"] = "up" if (price > 0) == (kind == "x") else "down"
        lines.append(json.dumps({"id": f"e{i}", **row}))
    lines.insert(40, '{"id": "bad", ')
    lines.insert(650, json.dumps({"id": "odd", "price": "dear", "shop": {}, "label": "up"}))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    return Config.model_validate(
        {
            "model": {"task": "tabular", "random_features": 32, "infer_events": 150},
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id", "features": {"kind": "shop.kind"}},
            "bootstrap": {"warmup_events": 400},
            "dead_letters": {"kind": "file", "path": str(tmp_path / "letters.jsonl")},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state")},
        }
    )


EXPECTED = {"price": "numeric", "kind": "categorical", "vip": "boolean", "user": "hashed"}


def opened(config, stop=None):
    """The configuration with its features, its source, and the registry."""
    registry = open_registry(config.registry, create=True)
    checkpoints = CheckpointStore(config.checkpoint.path / "checkpoints")
    journal = JournalWriter(registry.journal, lambda: 0)
    stop = stop or threading.Event()
    known, source = open_known(config, registry, checkpoints, journal, Health(), stop)
    return known, source, registry, checkpoints


def test_what_is_inferred_is_learned_from_kept_and_served(config, tmp_path):
    known, source, registry, checkpoints = opened(config)
    assert {f.name: f.kind for f in known.model.features} == EXPECTED
    (row,) = registry.journal.rows(kinds=["features-inferred"])
    assert row.fields["from_events"] >= 150
    loop = Loop(
        known,
        registry,
        source,
        open_dead_letters(known),
        checkpoints=checkpoints,
        trainer=Trainer(config.checkpoint.path / "jobs", config.trainer),
    )
    loop.start()
    loop.run(threading.Event())
    assert loop.status()["features"] == EXPECTED
    # No event was lost or learned twice, not those that were kept back either.
    assert loop.state.events == 700
    loop.close("the test is over")
    letters = [
        orjson.loads(line) for line in (tmp_path / "letters.jsonl").read_bytes().splitlines()
    ]
    assert [letter["reason"] for letter in letters] == ["invalid_json", "wrong_type"]
    assert "its kind was inferred" in letters[1]["detail"]

    version = registry.version(registry.state().champion)
    schema = {f["name"]: f["kind"] for f in version.manifest.input_schema["features"]}
    assert schema == EXPECTED

    again, source, *_ = opened(config)  # nothing to infer any more: it goes on
    assert again.model.features == known.model.features
    assert len(list(registry.journal.rows(kinds=["features-inferred"]))) == 1
    source.close()
    (tmp_path / "registry").rename(tmp_path / "elsewhere")
    empty = open_registry(config.registry, create=True)
    assert tuple(remembered(empty, checkpoints)) == known.model.features

    assert_served(tmp_path / "elsewhere")


def assert_served(place):
    """The version answers a request in a server's own process, without torch and river."""
    program = f"""
import sys
for name in ("torch", "transformers", "peft", "onnx", "kafka", "river", "scipy", "pandas"):
    sys.modules[name] = None
from pathlib import Path
from deploy.session import Session
from registry import RegistryConfig, open_registry
registry = open_registry(RegistryConfig(path={str(place)!r}))
session = Session.open(registry.path(registry.state().champion))
session.warm()
rows = [{{"price": p, "kind": k, "vip": v, "user": u}} for p, k, v, u in
        [(2.0, "x", True, "u7"), (2.0, "y", False, "never seen"), (-2.0, "x", None, None)]]
found = session.predict(session.preprocessor.rows(rows))
print([session.labels[i] for i in found.probabilities.argmax(axis=1)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['up', 'down', 'down']"


def test_it_ends_when_told_to_and_says_when_there_is_nothing_to_infer(config, tmp_path):
    stop = threading.Event()
    stop.set()
    known, source, *_ = opened(config, stop)
    assert undeclared(known)
    source.close()
    (tmp_path / "events.jsonl").write_text('{"id": "a", "label": "up", "tags": [1]}\n')
    with pytest.raises(SourceError, match=r"tags holds lists.*declare model\.features"):
        look(config)


def test_settings_that_name_other_features_are_told_so(config):
    features = look(config).features
    wrong = config.model_copy(update={"gate": config.gate.model_copy(update={"slices": ("town",)})})
    with pytest.raises(ConfigError, match=r"'town' is not a feature.*price, kind, vip, user"):
        with_features(wrong, features)


def test_check_shows_what_would_be_inferred(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "driftd.yaml").write_text(
        "model: {task: tabular}\nsource: {kind: file, path: events.jsonl}\nfields: {id: id}\n"
    )
    result = CliRunner().invoke(driftd, ["check", "--connect"])
    assert "price (numeric), shop.kind (categorical), vip (boolean), user (" in result.output
    shown = CliRunner().invoke(driftd, ["check", "--connect", "--json"])
    assert json.loads(shown.output)["features"][0] == {"name": "price", "kind": "numeric"}
