"""The registry's settings: where it lies and how much it keeps.

One model, read from the ``registry:`` section of the daemon's configuration.
Everything that opens a registry takes it, or a bare path for the defaults.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class RegistryConfig(BaseModel):
    """Where the versions lie, and which of them stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        default="driftd-registry",
        min_length=1,
        description="Folder of the registry, or s3://BUCKET/PREFIX. Daemon, servers and commands "
        "share it: a folder must be on a file system with working locks (local disk, or NFS 4), "
        "a bucket must have conditional writes (the extra `s3`).",
    )
    endpoint: str | None = Field(
        default=None,
        description="URL of an S3-compatible server. Empty: Amazon's, or what AWS_ENDPOINT_URL "
        "says. Credentials are never set here: they come from where AWS tools look for them.",
    )
    cache: Path = Field(
        default=Path("driftd-registry-cache"),
        description="Local folder for copies of versions, where the registry is on S3. Each "
        "process may have its own; it can be deleted at any time.",
    )
    keep: int = Field(
        default=20,
        ge=1,
        description="Newest versions that retention leaves alone, whatever their fate. Twenty are "
        "weeks of refreshes, and cheap, for unchanged files are shared between versions.",
    )
    history: int = Field(
        default=10,
        ge=1,
        description="Earlier champions that stay ready for rollback, beyond the newest `keep`. "
        "Ten steps back reach past any damage that is noticed within days.",
    )
    signing_key: Path | None = Field(
        default=None,
        description="File with the private key (Ed25519, PEM; `driftd keygen`) that signs what is "
        "published. Empty: versions are not signed, and the folder's permissions are all there is.",
    )
    trusted_keys: tuple[Path, ...] = Field(
        default=(),
        description="Files with public keys. With any, a version that none of them has signed is "
        "neither promoted nor loaded, by daemon, server or command. Several, while keys change.",
    )
    lock_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds to wait for another process to finish writing. A write takes "
        "milliseconds; half a minute means that its process hangs or its disk does.",
    )
