"""Partitions that move between daemons: with what was learned, and never to two at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from daemon.partitions import Partitions
from learn.examples import Examples
from registry import StorageError, open_registry

PLACE = ("events", 3)


def examples(start: int, stop: int) -> Examples:
    n = stop - start
    ids = np.array([f"e{i}" for i in range(start, stop)], dtype=object)
    topics = np.full(n, "events", dtype=object)
    return Examples(
        ids,
        np.arange(start, stop, dtype=np.float64),
        ids,
        np.arange(start, stop, dtype=np.int64) % 2,
        np.ones((n, 3), dtype=np.float32),
        np.ones(n, dtype=np.float32),
        topics,
        np.full(n, 3, dtype=np.int32),
        np.arange(start, stop, dtype=np.int64),
        np.arange(n, dtype=np.int64),
    )


def two(tmp_path: Path) -> tuple[Partitions, Partitions]:
    registry = open_registry(tmp_path / "registry", create=True)
    return Partitions(registry.store, "one"), Partitions(registry.store, "two")


def test_the_successor_goes_on_with_what_was_learned(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    assert one.claim(PLACE).position is None
    assert one.commit(PLACE, 10, examples(0, 10), ("a", "b"))
    assert one.commit(PLACE, 20, examples(0, 20), ("a", "b"))
    found = other.claim(PLACE)
    assert (found.position, found.owner, found.epoch) == (20, "one", 1)
    assert found.examples.ids.tolist() == examples(0, 20).ids.tolist()
    assert found.labels == ("a", "b")
    assert found.examples.embeddings is None
    assert other.epochs == {PLACE: 2}


def test_who_was_frozen_cannot_commit_over_its_successor(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    one.claim(PLACE)
    one.commit(PLACE, 10, examples(0, 10), ("a", "b"))
    other.claim(PLACE)
    assert not one.commit(PLACE, 15, examples(0, 15), ("a", "b"))  # before its first commit, too
    assert PLACE not in one
    assert other.commit(PLACE, 12, examples(0, 12), ("a", "b"))
    held, _ = other.read(PLACE)
    assert (held.position, held.owner, len(held.examples)) == (12, "two", 12)
    # It may claim it again, as anybody.
    assert one.claim(PLACE).position == 12
    assert not other.commit(PLACE, 13, examples(0, 13), ("a", "b"))


def test_partitions_without_examples_and_strange_topics(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    place = ("../a b/c", 0)
    one.claim(place)
    assert one.commit(place, 5, Examples.empty(), ())
    assert other.claim(place).position == 5
    assert (tmp_path / "registry" / "partitions").is_dir()


def test_a_damaged_document_is_said_so(tmp_path: Path) -> None:
    one, _ = two(tmp_path)
    one.claim(PLACE)
    one.commit(PLACE, 5, examples(0, 5), ("a", "b"))
    path = tmp_path / "registry" / "partitions" / "events" / "3"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="damaged"):
        one.read(PLACE)
