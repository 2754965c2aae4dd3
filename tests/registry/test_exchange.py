"""A version goes to a real MLflow store and comes back the same, or not at all."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import app
from registry import (
    Conflict,
    DigestMismatch,
    ManifestDraft,
    NotFound,
    Registry,
    RegistryConfig,
    Untrusted,
    open_registry,
)

pytest.importorskip("mlflow", reason="pip install 'driftd[mlflow]'")
pytest.importorskip("sqlalchemy", reason="a local MLflow store needs sqlalchemy")
from registry.exchange import export_version, import_version

Publish = Callable[..., str]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store on SQLite; artifacts beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return open_registry(tmp_path / "other", create=True)


def artifact(tracking: str, model: str, number: str, name: str) -> Path:
    from mlflow import MlflowClient

    source = MlflowClient(tracking).get_model_version(model, number).source
    return Path(source.removeprefix("file://")) / name


def test_there_and_back(
    registry: Registry,
    other: Registry,
    tracking: str,
    tmp_path: Path,
    draft: Callable[..., ManifestDraft],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model").write_bytes(bytes(range(256)) * 100)
    (source / "head").write_text("a head")
    lineage = {"trained_on": [{"topic": "t", "partition": 0, "start": 0, "end": 9}]}
    made = draft().model_copy(update={"metrics": {"accuracy": 0.9}, "lineage": lineage})
    version = registry.publish(source, made, actor="test").id
    registry.attach(version, "gate", {"decision": "promote"})
    registry.promote(version, actor="test", reason="good")
    place = ["--registry", registry.config.path, "--tracking-uri", tracking]
    assert app.run(["export-mlflow", "champion", "--model", "orders", *place]) == 0
    assert f"{version} is version 1 of orders" in capsys.readouterr().out
    with pytest.raises(Conflict, match="already"):
        export_version(registry, version, "orders", tracking_uri=tracking)

    place[1] = other.config.path
    assert app.run(["import-mlflow", "orders", "@champion", *place]) == 0
    (came,) = other.versions()
    assert came.manifest.files == registry.version(version).manifest.files
    assert came.manifest.metrics == {"accuracy": 0.9}
    assert came.manifest.lineage["trained_on"] == lineage["trained_on"]
    assert came.manifest.lineage["imported_from"]["as"] == version
    assert (other.path(came.id) / "head").read_text() == "a head"
    assert other.state().champion is None
    for wanted in ("7", "@nobody"):
        with pytest.raises(NotFound):
            import_version(other, "orders", wanted, actor="test", tracking_uri=tracking)


def test_what_was_changed_there_does_not_come_in(
    registry: Registry, other: Registry, publish: Publish, tracking: str
) -> None:
    version = publish(model="abc" * 100, head="xyz")
    number = export_version(registry, version, "changed", tracking_uri=tracking)
    arguments: dict[str, Any] = {"actor": "test", "tracking_uri": tracking}
    for name in ("model", "manifest.json"):
        file = artifact(tracking, "changed", number, name)
        sound = file.read_bytes()
        file.chmod(0o644)
        file.write_bytes(b"?" + sound[1:])
        with pytest.raises(DigestMismatch):
            import_version(other, "changed", number, **arguments)
        file.write_bytes(sound)
    artifact(tracking, "changed", number, "stranger").write_text("import os")
    came = import_version(other, "changed", number, **arguments)
    assert set(came.manifest.files) == {"model", "head"}


def test_signatures_travel_along(registry: Registry, tmp_path: Path, tracking: str) -> None:
    pytest.importorskip("cryptography")
    from registry.signature import new_keys

    private, public, _ = new_keys(tmp_path / "ours")
    source = tmp_path / "source"
    source.mkdir()
    (source / "model").write_text("model")
    draft = ManifestDraft(strategy="head", rung="head", task="text", labels=["a"])
    signing = open_registry(registry.config.model_copy(update={"signing_key": private}))
    for publishing in (registry, signing):
        version = publishing.publish(source, draft, actor="test").id
        export_version(registry, version, "signed", tracking_uri=tracking)
    config = RegistryConfig(path=str(tmp_path / "o"), signing_key=private, trusted_keys=(public,))
    strict = open_registry(config, create=True)
    with pytest.raises(Untrusted):
        import_version(strict, "signed", "1", actor="test", tracking_uri=tracking)
    came = import_version(strict, "signed", "2", actor="test", tracking_uri=tracking)
    assert strict.signed_by(came.id) == signing.signer().id
