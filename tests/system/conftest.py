"""A stack of processes that is always taken down, and the table that they work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.system.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """An empty folder with free ports; whatever was started in it is ended."""
    from examples.demo.broker import free_port

    made = Stack(tmp_path, free_port(), free_port())
    yield made
    made.end()


@pytest.fixture(scope="session")
def table() -> Callable[..., list[bytes]]:
    """Rows of a two-feature table; ``turned`` ones carry the opposite label."""

    def make(n: int, *, seed: int, turned: bool = False, label: str = "") -> list[bytes]:
        random = np.random.default_rng(seed)
        rows = []
        for i in range(n):
            a, b = random.normal(size=2)
            truth = bool(a + 0.5 * b > 0) != turned
            event = {
                "id": f"{seed}-{i}",
                "time": 1.7e9 + i,
                "a": a,
                "b": b,
                "label": label or ("yes" if truth else "no"),
            }
            rows.append(json.dumps(event).encode())
        return rows

    return make
