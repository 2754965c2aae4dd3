"""The tabular benchmark counts as river does, and its delays are real."""

import numpy as np
import pytest

from bench._tabular_ours import Setting, run

river = pytest.importorskip("river")

from bench import _tabular_peers as peers  # noqa: E402
from bench.tabular import with_past  # noqa: E402


def stream(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 2))
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def test_a_peer_is_tested_and_taught_as_by_river() -> None:
    from river import evaluate, metrics, naive_bayes

    x, y = stream()
    rows = (
        (dict(enumerate(row)), label) for row, label in zip(x.tolist(), y.tolist(), strict=True)
    )
    metric = metrics.Accuracy()
    evaluate.progressive_val_score(rows, naive_bayes.GaussianNB(), metric)
    ours = peers.run(naive_bayes.GaussianNB, x, y)
    # The first event, which the model cannot answer yet, river leaves out; here it is an error.
    assert ours.right.sum() == pytest.approx(399 * metric.get())


def test_delayed_labels_teach_nothing_before_their_time() -> None:
    """Of one class only: the guess is the first one's until a label of the other is there."""
    x = np.random.default_rng(0).normal(size=(300, 2))
    y = np.ones(300, dtype=np.int64)
    right = run(x, y, Setting(), seed=0, delay=100).right
    assert not right[:100].any()
    assert right[140:].all()


def test_the_ensemble_learns_and_reports_its_cost() -> None:
    x, y = stream(1200)
    found = run(x, y, Setting(), seed=0)
    assert found.right[600:].mean() > 0.85
    assert found.size_bytes > 1e6
    assert found.events_per_second > 0
    again = run(x[:200], y[:200], Setting(), seed=0, block=1)
    assert (again.right != found.right[:200]).sum() <= 1  # the last digits differ, at most


def test_columns_of_the_past_stand_beside_the_features() -> None:
    x, _ = stream(50)
    found = with_past(x)
    assert found.shape == (50, 10)
    np.testing.assert_array_equal(found[:, :2], x)
    assert np.isfinite(found).all()
