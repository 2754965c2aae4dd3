"""The command line: every verb explains itself, obeys, answers in JSON, and exits with meaning."""

from __future__ import annotations

import json

import pytest

from daemon.cli.app import run
from registry import ManifestDraft, open_registry

VERBS = [
    "run",
    "serve",
    "up",
    "status",
    "versions",
    "show",
    "diff",
    "rollback",
    "route",
    "promote",
    "pin",
    "unpin",
    "pause",
    "resume",
    "refresh",
    "journal",
    "init",
    "check",
    "export",
]


@pytest.fixture
def place(tmp_path):
    registry = open_registry(tmp_path / "registry", create=True)
    files = tmp_path / "files"
    files.mkdir()
    (files / "model.int8.onnx").write_bytes(b"x")
    draft = ManifestDraft(strategy="head", rung="head", task="text", labels=["a"])
    for _ in range(2):
        version = registry.publish(files, draft, actor="test").id
        registry.promote(version, actor="test", reason="because")
    return ["--registry", str(tmp_path / "registry")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert run([verb, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_versions_as_json(place, capsys):
    assert run(["versions", "--json", *place]) == 0
    assert "v0002" in json.dumps(json.loads(capsys.readouterr().out))


def test_rollback_needs_a_reason_and_works_without_a_daemon(place, capsys):
    assert run(["rollback", *place]) == 2
    assert run(["rollback", "--reason", "errors since noon", *place]) == 0
    registry = open_registry(place[1])
    assert registry.state().champion == "v0001"
    assert registry.state().move.reason == "errors since noon"
    assert run(["promote", "v0002", "--reason", "try again", *place]) == 1
    assert "v0002" in capsys.readouterr().err


def test_what_is_not_there(place):
    assert run(["show", "v0099", *place]) == 3
    assert run(["versions", "--registry", place[1] + "-absent"]) == 3


def test_init_writes_a_config_that_check_accepts(tmp_path, capsys):
    path = tmp_path / "driftd.yaml"
    assert run(["init", "-o", str(path)]) == 0
    assert run(["init", "-o", str(path)]) != 0
    assert run(["check", "-c", str(path)]) == 0


def test_check_names_the_line_of_a_typo(tmp_path, capsys):
    path = tmp_path / "driftd.yaml"
    path.write_text("name: m\nsource:\n  kind: file\n  pathh: x\n")
    assert run(["check", "-c", str(path)]) == 2
    said = capsys.readouterr()
    assert "4" in said.out + said.err
    assert "path" in said.out + said.err


def test_pin_pause_and_the_journal(place, capsys):
    for verb in ("pin", "unpin", "pause", "resume"):
        assert run([verb, "--reason", "a drill", *place]) == 0
    capsys.readouterr()
    assert run(["journal", "--json", *place]) == 0
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds[-4:] == ["pin", "unpin", "pause", "resume"]
