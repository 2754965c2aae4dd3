"""A fresh registry, and a way to fill it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from registry import ManifestDraft, Registry, open_registry


def made_by(parent: str | None = None) -> ManifestDraft:
    return ManifestDraft(
        parent=parent, strategy="head", rung="head", task="text", labels=["a", "b"]
    )


@pytest.fixture
def draft() -> Callable[..., ManifestDraft]:
    return made_by


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
