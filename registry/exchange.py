"""Versions to and from an MLflow model registry, with their digests and their lineage.

A version travels as files: what driftd published, its manifest included. Nothing is executed or
unpickled on either way, and nothing that the manifest does not name comes in. Needs the extra
``mlflow``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import Conflict, DigestMismatch, Invalid, NotFound, RegistryError, StorageError
from .manifest import MANIFEST, SIGNATURE, Manifest, ManifestDraft
from .registry import Registry, Version, check_file
from .sealed import BrokenSeal, unseal

EXPERIMENT = "driftd"
FOLDER = "version"  # of a run's artifacts
TAG = "driftd.version"


def export_version(
    registry: Registry, id: str, model: str, *, tracking_uri: str | None = None
) -> str:
    """Make the version ``id`` a version of the registered model ``model``; its number there.

    It gets the alias ``champion`` if it serves. tracking_uri: of the MLflow server; else as MLflow
    finds it. Raises `Conflict` if it is there already, `StorageError` if MLflow refuses.
    """
    manifest = registry.version(id).manifest
    folder = registry.path(id)
    with _mlflow(tracking_uri) as client:
        _make_model(client, model)
        for known in client.search_model_versions(f"name='{model}'"):
            if known.tags.get(TAG) == id and known.tags.get("driftd.created") == manifest.created:
                raise Conflict(f"{id} is version {known.version} of {model} already")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        run = client.create_run(number, run_name=f"{model} {id}").info.run_id
        client.log_artifacts(run, str(folder), FOLDER)
        client.log_dict(run, {"evidence": registry.evidence(id)}, "evidence.json")
        for name, value in manifest.metrics.items():
            if isinstance(value, int | float):
                client.log_metric(run, name, value)
        for name in ("strategy", "rung", "parent", "task"):
            client.log_param(run, name, getattr(manifest, name))
        client.set_terminated(run)
        tags = {TAG: id, "driftd.created": manifest.created}
        source = f"{client.get_run(run).info.artifact_uri}/{FOLDER}"
        made = client.create_model_version(model, source, run, tags=tags)
        if registry.state().champion == id:
            client.set_registered_model_alias(model, "champion", made.version)
    return str(made.version)


def import_version(
    registry: Registry, model: str, wanted: str, *, actor: str, tracking_uri: str | None = None
) -> Version:
    """Publish what `export_version` made as a new version of this registry.

    ``wanted``: its number there, or ``@`` and an alias. Digests are checked, and the signature
    where ``registry.trusted_keys`` asks for one. The parent stays behind: it is another
    registry's. Raises `NotFound`, `DigestMismatch`, `Untrusted`, or `StorageError`.
    """
    with tempfile.TemporaryDirectory() as place:
        with _mlflow(tracking_uri) as client:
            found = (
                client.get_model_version_by_alias(model, wanted[1:])
                if wanted.startswith("@")
                else client.get_model_version(model, wanted)
            )
            source = _downloaded(found.source, Path(place, "down"), tracking_uri)
        manifest = _manifest(source)
        data, signature = (source / MANIFEST).read_bytes(), _read(source / SIGNATURE)
        registry.check_signature(manifest.version, data, signature)
        clean = Path(place, "clean")
        clean.mkdir()
        for name, entry in manifest.files.items():
            check_file(manifest.version, source / name, entry)
            shutil.move(source / name, clean / name)
        origin = {
            "model": model,
            "version": str(found.version),
            "as": manifest.version,
            "parent": manifest.parent,
        }
        values = manifest.model_dump(include=set(ManifestDraft.model_fields))
        values |= {"parent": None, "lineage": {**manifest.lineage, "imported_from": origin}}
        return registry.publish(clean, ManifestDraft(**values), actor=actor, given=True)


def _make_model(client: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(model)


def _downloaded(source: str, place: Path, tracking_uri: str | None) -> Path:
    import mlflow.artifacts

    place.mkdir()
    found = mlflow.artifacts.download_artifacts(
        artifact_uri=source, dst_path=str(place), tracking_uri=tracking_uri
    )
    return Path(found)


def _manifest(source: Path) -> Manifest:
    try:
        manifest = Manifest(**unseal(_read(source / MANIFEST) or b""))
    except (BrokenSeal, ValidationError, TypeError) as error:
        raise DigestMismatch(
            f"what MLflow has there is no version of driftd, or damaged: {error}",
            source / MANIFEST,
        ) from error
    if any(Path(name).name != name for name in manifest.files):
        raise Invalid("the manifest names files outside the version")
    return manifest


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


@contextmanager
def _mlflow(tracking_uri: str | None) -> Iterator[Any]:
    """A client, with its errors in this room's words."""
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise Invalid('this needs MLflow: pip install "driftd[mlflow]"') from error
    try:
        yield MlflowClient(tracking_uri)
    except MlflowException as error:
        known: type[RegistryError] = StorageError
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            known = NotFound
        raise known(f"MLflow: {error.message}") from error
