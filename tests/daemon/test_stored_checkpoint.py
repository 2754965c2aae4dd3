"""Checkpoints in the registry's store: whole, small to write, and one daemon's at a time."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.checkpoint import Arrays, CheckpointError, CheckpointTaken
from daemon.config import Config, ConfigError
from daemon.pieces import PIECE_BYTES, cut, level
from daemon.stored_checkpoint import MOST_PACKS, StoredCheckpoints
from learn.examples import Examples
from registry import StorageError, Store, open_registry
from tests.daemon.test_delayed_labels import Daemon, rows

random = np.random.default_rng(0)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Of an empty registry, on a folder and on a bucket."""
    if request.param == "local":
        return open_registry(tmp_path / "registry", create=True).store
    return open_registry(request.getfixturevalue("s3_config")(), create=True).store


class Watched:
    """A store that counts what is written, and can be made to fail."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.written = 0
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def write(self, name: str, data: bytes) -> None:
        if self.fails and self.fails in name:
            raise StorageError("away")
        self.written += len(data)
        self.store.write(name, data)

    def swap(self, name: str, data: bytes, token: str | None) -> bool:
        moved = bool(self.store.swap(name, data, token))
        if self.fails == "answer":
            raise StorageError("the answer was lost")
        return moved


def claimed(store: Any, name: str = "daemon", owner: str = "test") -> StoredCheckpoints:
    made = StoredCheckpoints(store, name)
    made.claim(owner)
    return made


def same(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)


def memory(first: int, stop: int) -> Arrays:
    """Events of these numbers, with embeddings, as the memory keeps them."""
    n = stop - first
    made = [np.random.default_rng(i) for i in range(first, stop)]
    texts = np.array([f"text {i} " * int(r.integers(1, 9)) for i, r in enumerate(made)], object)
    return Examples(
        ids=np.array([f"e{i}" for i in range(first, stop)], object),
        times=1.7e9 + np.arange(first, stop),
        inputs=texts,
        labels=np.array([int(r.integers(0, 3)) for r in made]),
        embeddings=np.stack([r.normal(size=384).astype(np.float32) for r in made]),
        weights=np.ones(n, np.float32),
        topics=np.array(["t"] * n, object),
        partitions=np.zeros(n, np.int64),
        offsets=np.arange(first, stop),
        arrivals=np.arange(first, stop),
    ).to_arrays()


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize(
    "array",
    [
        random.normal(size=(3000, 384)).astype(np.float32),
        random.integers(0, 2, 900_000).astype(np.bool_),
        random.integers(97, 122, 700_001).astype(np.uint8),
        np.zeros((50_000, 3)),
        np.arange(5),
        np.zeros((0, 4), np.float32),
        np.array(3.5),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_pieces_make_up_the_array(array: np.ndarray) -> None:
    pieces = cut(array)
    assert b"".join(pieces) == array.tobytes()
    assert all(len(piece) <= 4 * PIECE_BYTES + array.itemsize for piece in pieces)
    assert len(pieces) <= 1 + 4 * array.nbytes / PIECE_BYTES


def test_differences_can_be_summed_up_again() -> None:
    wild = random.integers(-(2**63), 2**63 - 1, 20_000, dtype=np.int64)
    np.testing.assert_array_equal(np.cumsum(level(wild)), wild)


# ------------------------------------------------------------------ the store


def test_what_is_saved_is_found_again(store: Store) -> None:
    checkpoints = claimed(store, "daemon/of-0")
    assert checkpoints.load() is None
    arrays: Arrays = {
        "big": random.normal(size=(2000, 100)).astype(np.float32),
        "grows": np.arange(100_000) * 3 + 5,
        "flags": np.array([True, False]),
        "none": np.zeros((0, 7), np.float32),
        "one": np.array(2.5),
        "bytes": np.frombuffer(b"abc", np.uint8),
    }
    size = checkpoints.save({"events": 7, "bad": float("inf")}, arrays)
    assert size > 800_000
    for reader in (checkpoints, StoredCheckpoints(store, "daemon/of-0")):
        found = reader.load()
        assert found is not None
        assert (found.values, found.sequence, found.fallback) == (
            {"events": 7, "bad": float("inf")},
            1,
            None,
        )
        same(found.arrays, arrays)
    assert StoredCheckpoints(store, "another").load() is None


def test_only_what_is_new_is_written(store: Store) -> None:
    watched: Any = Watched(store)
    checkpoints = claimed(watched)
    size = checkpoints.save({}, memory(0, 4000))
    whole = watched.written
    assert whole < 1.2 * size
    watched.written = 0
    checkpoints.save({}, memory(300, 4300))
    assert watched.written < 0.3 * whole
    # Also by one that has begun anew, from what it has loaded.
    again = claimed(watched)
    assert again.load() is not None
    watched.written = 0
    again.save({}, memory(400, 4400))
    assert watched.written < 0.3 * whole
    found = StoredCheckpoints(store, "daemon").load()
    assert found is not None
    same(found.arrays, memory(400, 4400))


def test_what_is_out_of_date_goes_and_a_restart_reads_little(tmp_path: Path) -> None:
    store = open_registry(tmp_path / "registry", create=True).store
    checkpoints = claimed(store)
    size, rows = 0, random.normal(size=(4300, 384)).astype(np.float32)
    for step in range(0, 3000, 50):
        arrays: Arrays = {"rows": rows[step : step + 1300], "volatile": random.normal(size=500)}
        size = checkpoints.save({"step": step}, arrays)
    folder = tmp_path / "registry/checkpoints/daemon"
    packs = list((folder / "packs").iterdir())
    assert len(list((folder / "indexes").iterdir())) == 2
    assert len(packs) <= 2 * MOST_PACKS
    assert sum(pack.stat().st_size for pack in packs) < 3 * size
    (folder / "packs" / "left").write_bytes(b"half-done")
    after = claimed(store)
    assert {path.name for path in (folder / "packs").iterdir()} == {pack.name for pack in packs}
    found = after.load()
    assert found is not None
    assert found.values == {"step": 2950}


@pytest.mark.parametrize("kind", ["packs", "indexes"])
def test_damage_falls_back_to_the_one_before(tmp_path: Path, kind: str) -> None:
    store = open_registry(tmp_path / "registry", create=True).store
    checkpoints = claimed(store)
    folder = tmp_path / "registry/checkpoints/daemon" / kind
    checkpoints.save({"events": 1}, {"a": np.arange(3)})
    before = set(folder.iterdir())
    checkpoints.save({"events": 2}, {"a": np.arange(4)})
    (newest,) = set(folder.iterdir()) - before
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    after = claimed(store)
    found = after.load()
    assert found is not None
    assert found.values == {"events": 1}
    assert found.fallback is not None
    assert "digest mismatch" in found.fallback
    # The damaged one does not count among those that are kept.
    after.save({"events": 3}, {"a": np.arange(5)})
    for path in set(folder.iterdir()) - before:
        path.write_bytes(b"")
    found = StoredCheckpoints(store, "daemon").load()
    assert found is not None
    assert found.values == {"events": 1}
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="start over"):
        StoredCheckpoints(store, "daemon").load()


def test_one_that_was_thought_dead_cannot_write(store: Store) -> None:
    first = claimed(store, owner="first")
    first.save({"events": 1}, {"a": np.arange(3)})
    second = claimed(store, owner="second")
    with pytest.raises(CheckpointTaken, match="second has taken over"):
        first.save({"events": 9}, {"a": np.arange(4)})
    found = second.load()
    assert found is not None
    assert found.values == {"events": 1}
    second.save({"events": 2}, {"a": np.arange(3)})
    # Nothing that the first had written in vain is in the way of a third.
    found = claimed(store).load()
    assert found is not None
    assert found.values == {"events": 2}


def test_one_elsewhere_keeps_its_own_while_it_writes(tmp_path: Path) -> None:
    store = open_registry(tmp_path / "registry", create=True).store
    first = claimed(store, owner="first")
    first.save({"events": 1}, {})
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.05):
            first.save({"events": 2}, {})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(CheckpointError, match="another daemon, first, runs on"):
            StoredCheckpoints(store, "daemon").claim("second", 30)
    finally:
        done.set()
        writer.join()
    StoredCheckpoints(store, "daemon").claim("first", 30)  # restarted: at once
    StoredCheckpoints(store, "daemon").claim("second", 0.2)  # silent for long enough


def test_a_store_that_is_away_leaves_the_last_one(store: Store) -> None:
    watched: Any = Watched(store)
    checkpoints = claimed(watched)
    checkpoints.save({"events": 1}, {"a": np.arange(3)})
    for fails in ("packs", "indexes", "answer"):
        watched.fails = fails
        with pytest.raises(CheckpointError, match="Nothing is lost"):
            checkpoints.save({"events": 2}, {"a": random.normal(size=4)})
    watched.fails = ""
    checkpoints.save({"events": 3}, {"a": np.arange(5)})  # though its token was out of date
    found = StoredCheckpoints(store, "daemon").load()
    assert found is not None
    assert found.values == {"events": 3}


# ------------------------------------------------------------------ the daemon


def test_a_daemon_whose_disk_is_gone_goes_on_where_it_was(tmp_path: Path, s3_config: Any) -> None:
    """State, positions, and the events that wait for their labels."""
    daemon = Daemon(tmp_path, checkpoint="registry", registry=s3_config())
    events, labels = rows(0, 600)
    daemon.put("events", events[:400])
    daemon.put("labels", labels[:350])
    daemon.turn()
    daemon.bootstrap()
    daemon.turn()
    daemon.loop.checkpoint()
    kept, known = daemon.counts(), daemon.memory()
    assert kept["pending"] == 50
    daemon.put("events", events[400:])
    daemon.turn()  # after the checkpoint: read again
    shutil.rmtree(tmp_path / "state")
    daemon.kill()
    assert daemon.counts() == kept
    assert daemon.memory() == known
    assert daemon.loop.state.positions == {("events", 0): 400, ("labels", 0): 350}
    daemon.put("labels", labels[350:])
    daemon.turn()
    assert daemon.counts()["joined"] + daemon.counts()["early"] == 600
    assert daemon.memory() == {row["id"]: row["label"] for row in labels}
    # Another daemon goes on from it: this one ends.
    daemon.claimed().claim("another")
    with pytest.raises(CheckpointTaken):
        daemon.loop._checkpoint_or_later()
    daemon.loop.repair.close()


def test_what_does_not_go_together_is_refused() -> None:
    kafka = {"kind": "kafka", "bootstrap_servers": "b:1", "topic": "t"}
    for sections, message in (
        ({"checkpoint": {"store": "registry", "ledger": True}}, "needs a folder that survives"),
        (
            {"checkpoint": {"store": "registry"}, "sharing": {"enabled": True}},
            "one for each of the daemons",
        ),
    ):
        with pytest.raises((ValueError, ConfigError), match=message):
            Config.model_validate({"source": kafka, **sections})
