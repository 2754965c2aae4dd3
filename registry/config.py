"""The registry's settings: where it lies and how much it keeps.

One model, read from the ``registry:`` section of the daemon's configuration.
Everything that opens a registry takes it, or a bare path for the defaults.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RegistryConfig(BaseModel):
    """Where the versions lie, and which of them stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        default="driftd-registry",
        min_length=1,
        description="Folder of the registry. Daemon, servers and operators' commands share it, "
        "so it must be one file system with working locks (local disk, or NFS 4).",
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
    lock_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds to wait for another process to finish writing. A write takes "
        "milliseconds; half a minute means that its process hangs or its disk does.",
    )
