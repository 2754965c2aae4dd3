"""The part of the configuration that serving and operating need, and nothing else of it.

`driftd serve` and the operators' commands must work where the training extra is not installed,
and a rollback must work while some other section is broken. So they read these sections only;
`driftd run` and `driftd check` read and judge the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from daemon.config_reading import load
from daemon.policy_config import HttpConfig, LogConfig
from deploy.config import ServerConfig
from registry.config import RegistryConfig


class OperatingConfig(BaseModel):
    """The sections ``registry``, ``server``, ``http`` and ``log``."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    log: LogConfig = Field(default_factory=LogConfig)


def load_operating(path: Path | str, environ: Mapping[str, str]) -> OperatingConfig:
    """Read these sections of the YAML file, with the environment's overrides.

    Raises:
        ConfigError: with every problem found in them.
    """
    return load(OperatingConfig, path, environ)
