"""What the first version, frozen, would have answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daemon.baseline import Baseline
from daemon.served import Answer, Opinion
from registry import NotFound

IDS = np.array([f"e{n}" for n in range(1000)], dtype=object)
TRUTH = np.zeros(1000, dtype=np.int64)
INPUTS = np.arange(1000)


def answer(predicted: Any) -> Answer:
    nothing = np.zeros((len(predicted), 2), np.float32)
    return Answer(np.asarray(predicted), nothing, nothing)


def version(name: str, wrong: int) -> Any:
    """One that is wrong about all, or about none."""

    def predict(inputs: Any, embeddings: Any, encoder: str) -> Opinion:
        assert encoder == "encoder"
        assert len(inputs) == len(embeddings)
        return Opinion(np.full(len(inputs), wrong), np.ones(len(inputs), np.float32))

    return SimpleNamespace(version=name, encoder="encoder", predict=predict)


def observe(baseline: Baseline, champion: Any, opened: Any, share: float = 0.1) -> None:
    events = IDS, INPUTS, answer(TRUTH), TRUTH
    baseline.observe(share, *events, champion, None, opened)


def test_it_is_the_champion_until_another_serves_and_is_opened_once() -> None:
    baseline = Baseline()
    opened: list[str] = []

    def open_version(name: str) -> Any:
        opened.append(name)
        return version(name, wrong=1)

    observe(baseline, version("v0001", 0), open_version)
    assert baseline.accuracies == {}  # none serves
    baseline.version = "v0001"
    observe(baseline, version("v0001", 0), open_version)
    assert (baseline.accuracies, opened) == ({"frozen": 1.0, "champion": 1.0}, [])
    for _ in range(10):
        observe(baseline, version("v0002", 0), open_version)
    assert (baseline.accuracies, opened) == ({"frozen": 0.0, "champion": 1.0}, ["v0001"])
    found = baseline.as_dict()
    assert found is not None
    assert found["events"] == pytest.approx(1100, rel=0.3)  # a tenth, always the same ones
    again = Baseline()
    again.restore("v0001", baseline.arrays())
    assert again.as_dict() == found


def test_where_it_is_gone_the_daemon_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", logger="driftd.baseline")
    baseline = Baseline()
    baseline.version = "v0001"

    def gone(name: str) -> Any:
        raise NotFound(f"there is no {name}")

    for _ in range(3):
        observe(baseline, version("v0009", 0), gone)
    assert baseline.accuracies == {}
    assert caplog.text.count("compared no longer: there is no v0001") == 1
