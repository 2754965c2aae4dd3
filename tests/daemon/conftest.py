"""Small makers of events, and waiting for what takes a moment."""

import time
from collections.abc import Callable

import orjson
import pytest


@pytest.fixture(scope="session")
def event() -> Callable[[int], bytes]:
    """The n-th event: a text that tells it from all others, and a label."""

    def make(n: int) -> bytes:
        return orjson.dumps({"text": f"event {n}", "label": "ab"[n % 2]})

    return make


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Calls a function until it is true; fails after half a minute."""

    def wait(true: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.02)

    return wait
