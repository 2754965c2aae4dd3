"""The ladder's strategies, one file each behind `learn.strategy.Strategy`."""

from __future__ import annotations

from learn.config import LearnConfig
from learn.strategy import Strategy

NAMES = ("head", "partial", "lora", "full")


def open_strategy(name: str, config: LearnConfig) -> Strategy:
    """The strategy of that name. Raises ValueError for an unknown one."""
    if name == "head":
        from learn.strategies.head import HeadRefit

        return HeadRefit(config)
    if name == "partial":
        from learn.strategies.unfreeze import Partial

        return Partial(config)
    if name == "lora":
        from learn.strategies.lora import Lora

        return Lora(config)
    if name == "full":
        from learn.strategies.unfreeze import Full

        return Full(config)
    raise ValueError(f"unknown strategy {name!r}: there are {', '.join(NAMES)}")
