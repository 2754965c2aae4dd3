"""The figures of an INT8 graph beside its FP32 original."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.measure import measure
from deploy.session import Session


@pytest.fixture(scope="module")
def session(text, tmp_path_factory):
    return Session.open(text.write(tmp_path_factory.mktemp("measure") / "v", seed=3))


def test_beside_the_fp32_file(text, session):
    # What the session itself answers is right by definition, so that the figures are known.
    labels = session.predict(text.inputs).probabilities.argmax(axis=1)
    figures = measure(session, text.fp32, text.inputs, labels)
    assert figures["accuracy"] == 1.0
    # The FP32 file holds another head: it must be run with the session's.
    assert figures["fp32_accuracy"] == figures["agreement"] >= 0.9
    assert figures["size_ratio"] == session.size_bytes / text.fp32.stat().st_size
    for name in ("latency_ms", "fp32_latency_ms", "items_per_second", "fp32_items_per_second"):
        assert figures[name] > 0


def test_beside_a_function(text, session):
    labels = np.zeros(60, np.int64)
    figures = measure(
        session, lambda some: np.eye(3)[np.zeros(len(some), int)], text.inputs, labels
    )
    assert figures["fp32_accuracy"] == 1.0
    assert figures["agreement"] == figures["accuracy"]
    assert "size_ratio" not in figures


def test_alone_and_on_nothing(text, session):
    assert set(measure(session, None, text.inputs, np.zeros(60, np.int64))) == {
        "size_bytes",
        "accuracy",
        "latency_ms",
        "items_per_second",
    }
    with pytest.raises(ValueError, match="nothing to measure"):
        measure(session, None, text.inputs[:0], np.zeros(0, np.int64))
