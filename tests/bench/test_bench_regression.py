"""The benchmark of numbers tests before it teaches, for the peer and for ours."""

import numpy as np
import pytest

from bench._tabular_ours import Setting
from bench.regression import Answers, run

pytest.importorskip("river")

from bench import _tabular_peers as peers


def test_a_peer_is_tested_and_taught_as_by_river() -> None:
    from river import evaluate, linear_model, metrics

    x = np.random.default_rng(0).normal(size=(200, 2))
    y = x @ np.array([2.0, -1.0])
    rows = ((dict(enumerate(row)), v) for row, v in zip(x.tolist(), y.tolist(), strict=True))
    metric = metrics.MAE()
    evaluate.progressive_val_score(rows, linear_model.LinearRegression(), metric)
    values, seconds = peers.regress(linear_model.LinearRegression, x, y)
    assert np.abs(values - y).mean() == pytest.approx(metric.get())
    assert seconds > 0


def test_ours_answers_before_it_learns_and_is_scored_on_all() -> None:
    x, y = peers.friedman("gra", 400)
    assert x.shape == (400, 10)
    found = run(x, y, Setting(lagged_labels=1, number=True))
    assert found.values[0] != y[0]
    other = y.copy()
    other[300] += 100.0
    again = run(x, other, Setting(lagged_labels=1, number=True))
    np.testing.assert_allclose(again.values[:301], found.values[:301], atol=1e-4)
    assert Answers(y, 0.0).r2(y) == 1.0
    assert "MAE" in found.note(y)
