"""The manifest: what a version is, where it came from, and the digest of each of its files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
RESERVED = frozenset({MANIFEST, SIGNATURE})  # names that no file of a version's maker may have


class FileEntry(BaseModel):
    """A file of a version: its SHA-256 in hex, and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class ManifestDraft(BaseModel):
    """What the maker of a version says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str | None = None
    strategy: str
    rung: str
    task: str
    labels: list[str]
    input_schema: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)


class Manifest(ManifestDraft):
    """The draft, and what `Registry.publish` adds. ``created``: UTC, ISO 8601."""

    schema_version: int = SCHEMA
    version: str
    created: str
    files: dict[str, FileEntry]
