"""The ledger agrees with the checkpoint: after any crash, no line is missing and none is double."""

import json
from pathlib import Path

import numpy as np
import pytest

from daemon.checkpoint import CheckpointError
from daemon.events import EventBatch
from daemon.ledger import MOST_BYTES, Ledger


def batch(*numbers: int) -> EventBatch:
    def column(*values: str) -> np.ndarray:
        return np.array(values, dtype=object)

    n = len(numbers)
    return EventBatch(
        ids=column(*(f"e{i}" for i in numbers)),
        times=np.zeros(n),
        inputs=column(*("a text" for _ in numbers)),
        labels=column(*("a" for _ in numbers)),
        topics=column(*("events" for _ in numbers)),
        partitions=np.zeros(n, dtype=np.int32),
        offsets=np.array(numbers, dtype=np.int64),
    )


def note(ledger: Ledger, *numbers: int) -> None:
    yes, no = np.ones(len(numbers), dtype=bool), np.zeros(len(numbers), dtype=bool)
    ledger.note(batch(*numbers), yes, no)


def ids(path: Path) -> list[str]:
    return [json.loads(line)[0] for line in path.read_text().splitlines()]


def test_a_line_says_which_event_it_was_and_what_became_of_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    labelled, held = np.array([True, True, False]), np.array([False, True, False])
    ledger.note(batch(0, 1, 2), labelled, held)
    ledger.sync()
    rows = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert rows == [
        ["e0", "events", 0, 0, "labelled"],
        ["e1", "events", 0, 1, "held"],
        ["e2", "events", 0, 2, "unlabelled"],
    ]


def test_a_label_that_comes_by_itself_has_a_line_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.later(batch(2, 1), np.array([False, True]))
    ledger.sync()
    rows = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert rows == [["e2", "events", 0, 2, "joined"], ["e1", "events", 0, 1, "held"]]


def test_what_was_noted_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    note(ledger, 0, 1)
    size = ledger.sync()
    note(ledger, 2, 3)
    ledger.sync()  # and then the checkpoint was not written
    again = Ledger(ledger.path)
    again.restore(size)
    note(again, 2, 3, 4)
    again.sync()
    assert ids(ledger.path) == ["e0", "e1", "e2", "e3", "e4"]


def test_a_line_written_in_part_is_overwritten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    note(ledger, 0)
    ledger.sync()
    with ledger.path.open("ab") as file:
        file.write(b'["e1", "ev')
    note(ledger, 1)
    ledger.sync()
    assert ids(ledger.path) == ["e0", "e1"]


def test_lines_wait_for_a_disk_that_is_away_and_say_when_they_are_too_many(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "away"
    ledger = Ledger(folder / "ledger.jsonl")
    note(ledger, 0)
    with pytest.raises(CheckpointError, match=r"cannot write the ledger .*No such file"):
        ledger.sync()
    assert not ledger.full
    while not ledger.full:
        note(ledger, *range(1, 10_000))
    assert ledger._bytes < MOST_BYTES + 1_000_000
    folder.mkdir()
    ledger.sync()
    assert not ledger.full
    assert ids(ledger.path)[:3] == ["e0", "e1", "e2"]
