"""Files and standard input as sources: resuming, following, files that are not what they were."""

import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.decode import Decoder, Reason
from daemon.events import Rejected
from daemon.sources import LinesSource, Partition, SourceError
from daemon.stream_config import EventsConfig, FieldsConfig, FileSourceConfig, StdinSourceConfig

Event = Callable[[int], bytes]


def open_file(path: Path, *, follow: bool = False, max_bytes: int = 1024 * 1024) -> LinesSource:
    config = FileSourceConfig(kind="file", path=path, follow=follow)
    decoder = Decoder(FieldsConfig(), EventsConfig(max_event_bytes=max_bytes))
    return LinesSource(config, decoder, max_bytes=max_bytes)


def read_all(
    source: LinesSource, positions: dict[Partition, int] | None = None, max_events: int = 7
) -> tuple[list[str], list[Rejected]]:
    """Everything to the end of the file, in polls of a few."""
    source.start(positions or {})
    texts: list[str] = []
    rejected: list[Rejected] = []
    while not source.ended:
        polled = source.poll(max_events, 0.05)
        assert len(polled.batch) + len(polled.rejected) <= max_events
        texts += polled.batch.inputs.tolist()
        rejected += polled.rejected
    source.close()
    return texts, rejected


def test_a_file_is_read_once_in_order_and_ends(tmp_path: Path, event: Event) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(event(i) + b"\n" for i in range(100)))
    source = open_file(path)
    texts, rejected = read_all(source)
    assert texts == [f"event {i}" for i in range(100)]
    assert not rejected
    assert source.positions() == {(str(path), 0): 100}
    assert source.lag() == 0


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n\n  \n"])
@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resuming_at_any_line_reads_exactly_the_rest(
    tmp_path: Path, event: Event, start: int, ending: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(event(i) for i in range(5)) + ending)
    texts, _ = read_all(open_file(path), {(str(path), 0): start})
    assert texts == [f"event {i}" for i in range(start, 5)]


def test_offsets_are_line_numbers_blank_lines_included(tmp_path: Path, event: Event) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0) + b"\n\n" + event(1) + b"\n{broken\n" + event(2) + b"\n")
    source = open_file(path)
    source.start({})
    polled = source.poll(100, 0)
    assert polled.batch.offsets.tolist() == [0, 2, 4]
    assert polled.batch.ids.tolist()[1] == f"{path}:0:2"
    assert [(r.reason, r.offset, r.value) for r in polled.rejected] == [
        (Reason.INVALID_JSON, 3, b"{broken")
    ]
    assert polled.positions == {(str(path), 0): 5}


def test_lines_longer_than_a_chunk_arrive_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    long = "x" * 3_000_000
    path.write_text(f'{{"text": "a"}}\n{{"text": "{long}"}}\n{{"text": "b"}}\n')
    texts, rejected = read_all(open_file(path, max_bytes=4_000_000))
    assert texts == ["a", long, "b"]
    assert not rejected


@pytest.mark.parametrize("newline", [True, False])
def test_a_huge_line_is_refused_without_being_held_in_memory(
    tmp_path: Path, event: Event, newline: bool
) -> None:
    path = tmp_path / "events.jsonl"
    size = 40 * 1024 * 1024
    with path.open("wb") as file:
        file.write(event(0) + b"\n")
        for _ in range(40):
            file.write(b"y" * (1024 * 1024))
        if newline:
            file.write(b"\n" + event(1) + b"\n")
    source = open_file(path)
    tracemalloc.start()
    texts, rejected = read_all(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts == ["event 0", "event 1"][: 2 if newline else 1]
    assert [r.reason for r in rejected] == [Reason.TOO_LARGE]
    assert f"{size} bytes" in rejected[0].detail
    assert rejected[0].value.startswith(b"yyy")
    assert len(rejected[0].value) <= 64 * 1024
    assert peak < 8 * 1024 * 1024
    # And it is skipped as one line when resuming.
    assert read_all(open_file(path), {(str(path), 0): 2})[0] == (["event 1"] if newline else [])


def test_the_limit_of_a_line_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    fits = b'{"text": "' + b"x" * 88 + b'"}'
    assert len(fits) == 100
    path.write_bytes(fits + b"\n" + fits + b" \n" + fits)
    texts, rejected = read_all(open_file(path, max_bytes=100))
    assert len(texts) == 2
    assert [(r.reason, r.offset) for r in rejected] == [(Reason.TOO_LARGE, 1)]


def test_a_byte_order_mark_is_no_part_of_the_first_event(tmp_path: Path, event: Event) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + event(0) + b"\r\n" + event(1) + b"\r\n")
    assert read_all(open_file(path)) == (["event 0", "event 1"], [])


def test_an_empty_file_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    assert read_all(open_file(path)) == ([], [])


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read source\.path .*No such file"):
        open_file(tmp_path / "nothing.jsonl").start({})


def test_a_file_with_fewer_lines_than_were_read_is_a_clear_error(
    tmp_path: Path, event: Event
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0) + b"\n" + event(1) + b"\n")
    with pytest.raises(SourceError, match="has 2 lines, but the checkpoint has read 5"):
        open_file(path).start({(str(path), 0): 5})


# ------------------------------------------------------------------ following


def test_a_followed_file_goes_on_where_it_ended(tmp_path: Path, event: Event) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0) + b"\n")
    source = open_file(path, follow=True)
    source.start({})
    assert source.poll(10, 0).batch.inputs.tolist() == ["event 0"]
    assert not source.poll(10, 0.05)
    assert source.lag() == 0
    with path.open("ab") as file:
        file.write(event(1)[:10])  # a line is an event once it is complete
        file.flush()
        assert not source.poll(10, 0.1)
        file.write(event(1)[10:] + b"\n" + event(2) + b"\n")
    assert source.poll(10, 5).batch.inputs.tolist() == ["event 1", "event 2"]
    assert not source.ended
    assert source.positions() == {(str(path), 0): 3}
    source.close()


def test_a_poll_returns_as_soon_as_there_is_a_line(tmp_path: Path, event: Event) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    source = open_file(path, follow=True)
    source.start({})
    timer = threading.Timer(0.2, lambda: path.write_bytes(event(0) + b"\n"))
    timer.start()
    assert len(source.poll(10, 60).batch) == 1
    timer.join()
    source.close()


@pytest.mark.parametrize("how", ["truncated", "moved or replaced"])
def test_rotation_is_a_clear_error(tmp_path: Path, event: Event, how: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0) + b"\n" + event(1) + b"\n")
    source = open_file(path, follow=True)
    source.start({})
    assert len(source.poll(10, 0).batch) == 2
    if how == "truncated":
        os.truncate(path, 0)
    else:
        os.rename(path, tmp_path / "events.jsonl.1")
        path.write_bytes(event(2) + b"\n")
    with pytest.raises(SourceError, match=f"was {how} while driftd was reading it"):
        source.poll(10, 0)
    source.close()


# ------------------------------------------------------------------ standard input


def test_standard_input_is_numbered_on_from_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, event: Event
) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        source = LinesSource(
            StdinSourceConfig(kind="stdin"),
            Decoder(FieldsConfig(), EventsConfig()),
            max_bytes=1000,
        )
        source.start({("stdin", 0): 40})
        assert not source.poll(10, 0.05)  # an open pipe with nothing in it does not block
        os.write(write, event(0) + b"\n" + event(1)[:5])
        polled = source.poll(10, 5)
        assert polled.batch.offsets.tolist() == [40]
        assert not source.ended
        os.write(write, event(1)[5:])
        os.close(write)
        while not source.ended:
            polled = source.poll(10, 0.05)
        assert polled.batch.ids.tolist() == ["stdin:0:41"]
        assert source.positions() == {("stdin", 0): 42}
        source.close()
        source.close()
