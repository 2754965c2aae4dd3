"""The head that learns with every batch."""

import numpy as np

from learn.config import OnlineConfig
from learn.head import Head, score
from learn.online import OnlineHead


def stream(seed: int, n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    points = np.eye(8)[labels] + 0.3 * generator.normal(size=(n, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), labels.astype(np.int64)


def test_it_learns_and_follows_a_swap_of_labels() -> None:
    online = OnlineHead(Head.zeros(8, 3), OnlineConfig())
    x, y = stream(0, 600)
    for i in range(0, 600, 10):
        online.learn(x[i : i + 10], y[i : i + 10])
    test_x, test_y = stream(1, 300)
    assert score(online.logits(test_x), test_y).accuracy > 0.9
    swapped = np.array([1, 0, 2])
    for i in range(0, 600, 10):
        online.learn(x[i : i + 10], swapped[y[i : i + 10]])
    assert score(online.logits(test_x), swapped[test_y]).accuracy > 0.9


def test_it_works_at_any_scale_of_embeddings() -> None:
    for scale in (0.1, 1.0, 100.0):
        online = OnlineHead(Head.zeros(8, 3), OnlineConfig())
        x, y = stream(0, 1000)
        for i in range(0, 1000, 100):
            online.learn(scale * x[i : i + 100], y[i : i + 100])
        assert np.isfinite(online.weight).all()
        if scale >= 1:
            assert score(online.logits(scale * x), y).accuracy > 0.8


def test_growing_keeps_the_old_logits() -> None:
    online = OnlineHead(Head.zeros(8, 3), OnlineConfig())
    x, y = stream(0, 200)
    online.learn(x, y)
    before = online.logits(x)
    online.grow(5)
    after = online.logits(x)
    assert after.shape == (200, 5)
    np.testing.assert_array_equal(after[:, :3], before)
    online.grow(2)
    assert online.head.classes == 5
    fives, labels = stream(2, 600, 5)
    for i in range(0, 600, 10):
        online.learn(fives[i : i + 10], labels[i : i + 10])
    assert score(online.logits(fives), labels).accuracy > 0.85


def test_rows_that_are_not_finite_are_skipped() -> None:
    online = OnlineHead(Head.zeros(8, 3), OnlineConfig())
    x, y = stream(0, 10)
    online.learn(np.full_like(x, np.nan), y)
    online.learn(x[:0], y[:0])
    assert not online.weight.any()
    x[3] = np.inf
    online.learn(x, y)
    assert np.isfinite(online.weight).all()
    assert online.weight.any()


def test_state_round_trip() -> None:
    online = OnlineHead(Head.zeros(8, 3), OnlineConfig())
    x, y = stream(0, 100)
    online.learn(x[:50], y[:50])
    again = OnlineHead.restored(online.state(), online.config)
    for each in (online, again):
        each.learn(x[50:], y[50:])
    np.testing.assert_array_equal(online.weight, again.weight)
    np.testing.assert_array_equal(online.bias, again.bias)


def test_the_head_given_out_is_a_copy() -> None:
    start = Head.zeros(8, 3)
    online = OnlineHead(start, OnlineConfig())
    copy = online.head
    online.learn(*stream(0, 100))
    assert not copy.weight.any()
    assert not start.weight.any()
