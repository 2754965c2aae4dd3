"""What may be learned from, and what never."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from learn.config import MemoryConfig
from learn.examples import Examples
from learn.memory import Memory, replay_weights


def events(
    ids: list[str],
    labels: list[int] | None = None,
    first: int = 0,
    inputs: np.ndarray[Any, Any] | None = None,
    dimension: int | None = 3,
) -> Examples:
    n = len(ids)
    numbers = np.arange(first, first + n)
    if inputs is None:
        inputs = np.array([f"text {i}" for i in ids], dtype=object)
    return Examples(
        ids=np.array(ids, dtype=object),
        times=numbers.astype(np.float64),
        inputs=inputs,
        labels=np.array(labels if labels is not None else [0] * n, dtype=np.int64),
        embeddings=None if dimension is None else np.full((n, dimension), first, np.float32),
        weights=np.ones(n, np.float32),
        topics=np.array(["t"] * n, dtype=object),
        partitions=np.zeros(n, np.int32),
        offsets=numbers.astype(np.int64),
        arrivals=numbers.astype(np.int64),
    )


def names(first: int, n: int) -> list[str]:
    return [f"e{i}" for i in range(first, first + n)]


def assert_same(one: Examples, two: Examples) -> None:
    for name in Examples.__dataclass_fields__:
        a, b = getattr(one, name), getattr(two, name)
        if a is None or b is None:
            assert a is b, name
            continue
        assert a.dtype == b.dtype, name
        if a.dtype == object:
            assert a.tolist() == b.tolist(), name
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def filled(config: MemoryConfig, n: int, step: int = 37) -> Memory:
    memory = Memory(config)
    for first in range(0, n, step):
        size = min(step, n - first)
        labels = [i % 3 for i in range(first, first + size)]
        memory.add(events(names(first, size), labels, first), "v1")
    return memory


def test_held_out_events_never_train() -> None:
    memory = filled(MemoryConfig(recent=100, replay=60), 1000)
    for found in (
        memory.recent(1000, training=True),
        memory.training_set(since=950, replay=50, replay_weight=0.1, seed=0),
        memory.training_set(since=0, replay=500, replay_weight=0.1, seed=1),
        memory._replay,
    ):
        assert len(found)
        assert not memory.held_out(found.ids).any()
    assert memory.held_out(memory.recent(1000).ids).any()
    share = memory.held_out(np.array(names(0, 4000), dtype=object)).mean()
    assert 0.17 < share < 0.23


def test_unseen_are_the_held_out_and_the_later_ones() -> None:
    memory = filled(MemoryConfig(recent=400), 300)
    found = memory.unseen(since=100, cutoff=250, limit=1000)
    assert set(range(250, 300)) <= set(found.arrivals.tolist())
    early = found.take(found.arrivals < 250)
    assert len(early)
    assert memory.held_out(early.ids).all()
    assert early.arrivals.min() >= 100
    assert memory.unseen(100, 250, 5).arrivals.tolist() == list(range(295, 300))


def test_bounded_in_events() -> None:
    memory = filled(MemoryConfig(recent=100, replay=30), 2000)
    assert memory.sizes()["recent"] <= 150
    assert len(memory) <= 130
    assert memory.recent(10).arrivals.tolist() == list(range(1990, 2000))


def test_bounded_in_bytes() -> None:
    memory = Memory(MemoryConfig(max_bytes=1024 * 1024, replay=0))
    for first in range(0, 100, 10):
        texts = np.array(["x" * 50_000] * 10, dtype=object)
        memory.add(events(names(first, 10), first=first, inputs=texts), "v1")
    assert 12 <= len(memory) <= 14
    assert memory.recent(1).arrivals.tolist() == [99]


def test_every_part_counts_towards_the_bytes() -> None:
    limit = 1024 * 1024
    memory = Memory(MemoryConfig(recent=100, max_bytes=limit, replay=2000))
    for first in range(0, 600, 10):
        # Not Latin: two bytes a character.
        texts = np.array(["\u4e2d" * 5_000] * 10, dtype=object)
        memory.add(events(names(first, 10), [i % 3 for i in range(10)], first, texts), "v1")
        if first == 100:
            memory.set_anchor(since=0, seed=0)
        assert memory.size_bytes <= limit
    sizes = memory.sizes()
    assert 5 <= sizes["anchor"] <= 10  # of 10 kB each, in a tenth
    assert 20 <= sizes["replay"] <= 26  # in a quarter
    assert np.bincount(memory._replay.labels).min() >= 6
    assert sizes["recent"] > 50


def test_the_anchor_stays_whatever_comes_and_is_never_learned() -> None:
    config = MemoryConfig(recent=400, replay=60, anchor=30)
    memory = filled(config, 300)
    memory.set_anchor(since=0, seed=0)
    anchor = memory.anchor
    assert len(anchor) == 30
    assert memory.held_out(anchor.ids).all()
    assert np.bincount(anchor.labels).tolist() == [10, 10, 10]
    for first in range(300, 3000, 50):
        memory.add(events(names(first, 50), [i % 3 for i in range(50)], first), "v1")
    assert_same(memory.anchor, anchor)
    learned = memory.training_set(since=0, replay=5000, replay_weight=1.0, seed=0)
    assert not set(learned.ids) & set(anchor.ids)
    again = Memory(config)
    again.restore(load(save(memory.state())))
    assert_same(again.anchor, anchor)


def test_an_anchored_event_whose_label_is_put_right_keeps_the_newest() -> None:
    memory = filled(MemoryConfig(recent=400), 300)
    memory.set_anchor(since=0, seed=0)
    name = str(memory.anchor.ids[0])
    memory.add(events([name], [7], first=300), "v2")
    assert memory.anchor.labels[0] == 7
    assert memory.anchor.embeddings is not None
    assert np.isnan(memory.anchor.embeddings).all()


def test_replay_is_balanced_over_the_classes() -> None:
    memory = Memory(MemoryConfig(recent=100, replay=60))
    labels = [0 if i % 20 else 1 for i in range(3000)]
    for first in range(0, 3000, 50):
        memory.add(events(names(first, 50), labels[first : first + 50], first), "v1")
    assert np.bincount(memory._replay.labels).tolist() == [30, 30]
    drawn = memory.training_set(since=2900, replay=20, replay_weight=0.25, seed=3)
    old = drawn.take(drawn.arrivals < 2900)
    assert np.bincount(old.labels).tolist() == [10, 10]
    assert set(old.weights.tolist()) == {0.25}
    assert set(drawn.take(drawn.arrivals >= 2900).weights.tolist()) == {1.0}
    assert_same(drawn, memory.training_set(2900, 20, 0.25, 3))


def test_a_class_that_came_no_more_is_replayed_at_the_weight_of_the_others() -> None:
    fresh = np.array([0] * 30 + [1] * 10)
    weights = replay_weights(np.array([0, 0, 2, 2, 2, 2, 3]), fresh, 0.1)
    np.testing.assert_allclose(weights, [0.1, 0.1, 5, 5, 5, 5, 10])
    assert set(replay_weights(np.array([2, 3]), fresh[:0], 0.1)) == {np.float32(0.1)}
    assert set(replay_weights(np.array([2, 3]), fresh, 0.0)) == {0.0}
    assert not len(replay_weights(fresh[:0], fresh, 0.1))


def test_the_newest_label_of_an_event_wins() -> None:
    memory = Memory(MemoryConfig(recent=100))
    memory.add(events(["a", "b"], [0, 0]), "v1")
    memory.add(events(["a"], [1], first=2), "v1")
    found = memory.recent(10)
    assert dict(zip(found.ids, found.labels.tolist(), strict=True)) == {"a": 1, "b": 0}


def test_the_newest_label_wins_over_a_replayed_one() -> None:
    memory = filled(MemoryConfig(recent=100, replay=300), 600)
    old = str(memory._replay.ids[0])
    memory.add(events([old], [2 - int(memory._replay.labels[0]) or 1], first=600), "v1")
    memory.recent(1)
    everything = memory.training_set(since=0, replay=1000, replay_weight=1.0, seed=0)
    assert everything.ids.tolist().count(old) == 1
    memory.add(events(names(700, 150), first=700), "v1")
    assert len(set(memory._replay.ids)) == len(memory._replay)


def test_another_encoder_makes_old_embeddings_unknown() -> None:
    memory = Memory(MemoryConfig())
    memory.add(events(["a"], first=1, dimension=3), "v1")
    memory.add(events(["b"], first=2, dimension=5), "v2")
    found = memory.recent(10).embeddings
    assert found is not None
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [2.0] * 5


def test_class_counts_leave_out_the_held_out() -> None:
    memory = filled(MemoryConfig(recent=400), 300)
    assert sum(memory.class_counts().values()) == len(memory.recent(1000, training=True))


def test_an_empty_memory() -> None:
    memory = Memory(MemoryConfig())
    assert len(memory) == 0
    assert len(memory.training_set(0, 10, 0.1, 0)) == 0
    assert memory.class_counts() == {}
    again = Memory(MemoryConfig())
    again.restore(load(save(memory.state())))
    assert len(again) == 0


def record(n: int) -> np.ndarray[Any, Any]:
    # Fields in an order that no sorting by name or by type would give.
    table = np.empty(n, dtype=[("zeta", "f8"), ("colour@x", "O"), ("alpha", "?"), ("mid", "f4")])
    table["zeta"] = np.linspace(-1, np.nan, n) if n else 0
    table["colour@x"] = [None if i % 3 == 0 else "rød" * (i % 2) for i in range(n)]
    table["alpha"] = np.arange(n) % 2 == 0
    table["mid"] = np.arange(n) / 3
    return table


@pytest.mark.parametrize("kind", ["text", "table"])
@pytest.mark.parametrize("dimension", [3, None])
@pytest.mark.parametrize("stored", [False, True])
def test_arrays_round_trip_exactly(kind: str, dimension: int | None, stored: bool) -> None:
    texts = np.array(["", "naïve 😀", "\ud800", None, "last"], dtype=object)
    inputs = texts if kind == "text" else record(5)
    one = events(names(0, 5), [4, 3, 2, 1, 0], inputs=inputs, dimension=dimension)
    arrays = one.to_arrays()
    if stored:
        arrays = load(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    two = Examples.from_arrays(arrays)
    if kind == "text":
        assert_same(one, two)
    else:
        assert two.inputs.dtype == one.inputs.dtype
        for name in record(0).dtype.names or ():
            np.testing.assert_array_equal(one.inputs[name], two.inputs[name])
        assert len(Examples.concatenate([one, two])) == 10


def test_a_restored_memory_goes_on_exactly() -> None:
    config = MemoryConfig(recent=100, replay=30)
    memory, again = filled(config, 500), Memory(config)
    again.restore(load(save(memory.state())))
    assert again.encoder == "v1"
    for first in range(500, 800, 30):
        for each in (memory, again):
            each.add(events(names(first, 30), [i % 3 for i in range(30)], first), "v1")
    assert_same(memory.recent(1000), again.recent(1000))
    assert_same(memory.training_set(700, 20, 0.1, 5), again.training_set(700, 20, 0.1, 5))
    assert memory.sizes() == again.sizes()


def test_lineage_is_exact_ranges() -> None:
    one = events(names(0, 6)).take(np.array([5, 0, 1, 3]))
    ranges = [(row["start"], row["end"]) for row in one.lineage()]
    assert ranges == [(0, 2), (3, 4), (5, 6)]


def test_embeddings_made_elsewhere_are_kept() -> None:
    memory = Memory(MemoryConfig(recent=100, replay=60))
    memory.add(events(names(0, 150), dimension=None), "")
    made = np.arange(450, dtype=np.float32).reshape(150, 3)
    ids = np.array(names(0, 150), dtype=object)
    memory.adopt(ids[:140], made[:140], "v1")
    assert memory.encoder == "v1"
    found = memory.recent(100)
    np.testing.assert_array_equal(found.embeddings[:90], made[50:140])
    assert np.isnan(found.embeddings[90:]).all()
    memory.adopt(ids, made + 1, "another encoder")
    np.testing.assert_array_equal(memory.recent(100).embeddings[:90], made[50:140])
    memory.adopt(np.array(["gone"], dtype=object), made[:1], "v1")
    memory.adopt(ids[140:], made[140:], "v1")
    assert np.isfinite(memory.recent(100).embeddings).all()
    replayed = memory.training_set(since=150, replay=60, replay_weight=0.1, seed=0)
    assert np.isfinite(replayed.embeddings).all()


def test_the_anchor_is_held_out_balanced_and_kept_for_good() -> None:
    memory = Memory(MemoryConfig(recent=400, anchor=20))
    memory.add(events([f"e{i}" for i in range(300)], [int(i % 10 == 0) for i in range(300)]), "v1")
    memory.set_anchor(since=0, seed=0)
    anchor = memory.anchor
    assert memory.held_out(anchor.ids).all()
    counts = np.bincount(anchor.labels, minlength=2)
    assert counts.sum() == 20
    assert counts[1] > 300 * 0.2 * 0.1 / 2  # evenly, it would be 2 of 20
    memory.add(events([f"n{i}" for i in range(900)], [0] * 900, first=300), "v1")
    again = Memory(memory.config)
    again.restore(memory.state())
    assert again.anchor.ids.tolist() == anchor.ids.tolist()
    assert memory.sizes()["anchor"] == 20
    again.set_anchor(since=300, seed=0)
    assert set(again.anchor.labels.tolist()) == {0}
    assert not set(again.anchor.ids) & set(anchor.ids)


def test_excluded_events_are_forgotten_and_never_taken_in_again() -> None:
    memory = filled(MemoryConfig(recent=100, replay=60, holdout=0.2), 300)
    assert memory.exclude([("t", 0, 120, 260), ("t", 1, 0, 300), ("other", 0, 0, 300)]) > 40
    kept = np.concatenate([memory._recent.offsets, memory._replay.offsets])
    assert len(kept)
    assert not ((kept >= 120) & (kept < 260)).any()
    assert memory.sizes()["held_out"] == int(memory.held_out(memory._recent.ids).sum())
    again = Memory(memory.config)
    again.restore(load(save(memory.state())))
    for one in (memory, again):
        before = len(one)
        one.add(events(names(250, 10), first=250), "e")
        assert len(one) == before
        one.add(events(names(300, 10), first=300), "e")
        assert len(one) >= before
        assert 309 in one.recent(10).offsets
