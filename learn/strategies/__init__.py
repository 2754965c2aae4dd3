"""The ladder's strategies, behind `learn.strategy.Strategy`."""

from __future__ import annotations

from importlib import import_module

from learn.config import LearnConfig
from learn.strategy import Strategy

# Name, module and maker; imported only when opened, for most need torch.
_MAKERS = {
    "head": ("head", "HeadRefit"),
    "partial": ("unfreeze", "Partial"),
    "progressive": ("progressive", "Progressive"),
    "ia3": ("ia3", "Ia3"),
    "lora": ("lora", "Lora"),
    "adapter": ("added", "adapter"),
    "prefix": ("added", "prefix"),
    "prompt": ("added", "prompt"),
    "full": ("unfreeze", "Full"),
    "student": ("student", "Student"),
}
NAMES = tuple(_MAKERS)


def open_strategy(name: str, config: LearnConfig) -> Strategy:
    """The strategy of that name. Raises ValueError for an unknown one."""
    if name not in _MAKERS:
        raise ValueError(f"unknown strategy {name!r}: there are {', '.join(NAMES)}")
    module, maker = _MAKERS[name]
    made: Strategy = getattr(import_module(f"learn.strategies.{module}"), maker)(config)
    return made
