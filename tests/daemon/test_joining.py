"""What waits on disk: taken back to the checkpoint after a crash, kept in memory on a full disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daemon.joining import (
    HeldLabel,
    JoinError,
    JoinFull,
    Kept,
    Standing,
    Waiting,
    packed,
    unpacked,
)


def event(name: str, number: int = 0, **changes: object) -> Kept:
    made = Kept(
        id=name,
        standing=Standing.PENDING,
        number=number,
        time=1.7e9 + number,
        arrived=1.7e9,
        topic="events",
        partition=0,
        offset=number,
        version="v0001",
        predicted=1,
        label=None,
        labelled=None,
        encoder="abc",
        size=100,
        input=b"hello",
        embedding=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    made = Waiting(tmp_path / "waiting.sqlite")
    made.restore(0)
    return made


def sealed(waiting: Waiting) -> int:
    tick = waiting.seal()
    waiting.sealed()
    return tick


def test_a_crash_takes_back_what_is_younger_than_the_checkpoint(
    waiting: Waiting, tmp_path: Path
) -> None:
    waiting.keep([event("a", 0), event("b", 1)])
    waiting.hold([HeldLabel("z", "yes", None, 1.0, 1.0)])
    tick = sealed(waiting)
    # After the checkpoint: a is labelled, c comes, the held label goes; all of it is on the disk.
    waiting.end([event("a", 0)])
    waiting.keep(
        [event("a", 0, standing=Standing.LABELLED, input=None, label="yes"), event("c", 2)]
    )
    waiting.drop([HeldLabel("z", "yes", None, 1.0, 1.0)])
    waiting.flush()
    assert waiting.events(["a"])["a"].label == "yes"
    # Killed here: no close. SQLite's file is what the process left.
    again = Waiting(tmp_path / "waiting.sqlite")
    again.restore(tick)
    assert again.events(["a", "b", "c"]) == {"a": event("a", 0), "b": event("b", 1)}
    assert list(again.labels(["z"])) == ["z"]
    assert (again.pending, again.pending_bytes, again.held, again.remembered) == (2, 200, 1, 0)


def test_the_checkpoint_before_the_last_can_be_gone_back_to(
    waiting: Waiting, tmp_path: Path
) -> None:
    waiting.keep([event("a")])
    first = sealed(waiting)
    waiting.end([event("a")])
    second = sealed(waiting)
    waiting.keep([event("b")])
    waiting.flush()
    again = Waiting(tmp_path / "waiting.sqlite")
    again.restore(second)
    assert again.known(["a", "b"]) == set()
    again.restore(first)
    assert again.known(["a", "b"]) == {"a"}


def test_rows_that_no_checkpoint_needs_are_removed(waiting: Waiting) -> None:
    for n in range(10):
        waiting.keep([event(f"e{n}")])
        waiting.flush()
        waiting.end([event(f"e{n}")])
        sealed(waiting)
    waiting.flush()
    rows = waiting._db.execute("SELECT COUNT(*) FROM events").fetchone()[0]
    assert rows <= 2


def test_a_disk_that_is_full_loses_nothing(waiting: Waiting) -> None:
    pages = waiting._db.execute("PRAGMA page_count").fetchone()[0]
    waiting._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    waiting.keep([event(f"e{n}", n, input=b"x" * 5000) for n in range(10)])
    with pytest.raises(JoinFull, match="takes no more"):
        waiting.flush()
    assert waiting.unwritten
    assert waiting.known(["e0"]) == set()  # all or none
    waiting._db.execute("PRAGMA max_page_count = 100000")
    waiting.flush()
    assert waiting.known(["e0", "e9"]) == {"e0", "e9"}


def test_a_damaged_file_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "waiting.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(JoinError, match="move it away"):
        Waiting(path)


def test_many_ids_are_looked_up_at_once(waiting: Waiting) -> None:
    names = [f"e{n}" for n in range(3000)]
    waiting.keep([event(name, n) for n, name in enumerate(names)])
    waiting.flush()
    assert waiting.known([*names, "other"]) == set(names)
    assert [e.number for e in waiting.oldest(Standing.PENDING, 3)] == [0, 1, 2]


def test_inputs_come_back_as_they_were() -> None:
    texts = np.array(["", "naïve", "日本", "a\x00b"], dtype=object)
    assert unpacked(packed(texts), texts.dtype).tolist() == texts.tolist()
    kind = np.dtype([("a", "<f8"), ("b", object)])
    rows = np.array([(0.1, None), (float("nan"), "x"), (-1e300, "")], dtype=kind)
    back = unpacked(packed(rows), kind)
    assert back["b"].tolist() == rows["b"].tolist()
    np.testing.assert_array_equal(back["a"], rows["a"])
