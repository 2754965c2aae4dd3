"""The journal's file on a local disk: sealed JSON lines, appended one write at a time.

Rows are numbered by their ``seq`` field, from 1 and without gaps. A line that a crash left
half-written is moved to a file of its own before the next row; a damaged line in the middle
keeps its number and hides nothing after it. `registry.journal` gives the rows their meaning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .durable import make_folder, sync_folder, write_all, write_file
from .errors import explained
from .sealed import BrokenSeal, unseal

_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: its number, its fields (None if the line is damaged) and its bytes."""

    seq: int
    fields: dict[str, Any] | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class Torn:
    """The half-written end of a crashed append, and the file that keeps it."""

    size: int
    kept_as: str


class Log:
    """An append-only file. Readers take no lock; writers take the one they are given."""

    def __init__(self, path: Path, lock: Callable[[], AbstractContextManager[None]]) -> None:
        self.path = path
        self._lock = lock

    def last(self) -> int:
        """The number of the last row, 0 if there is none."""
        with self._reading() as fd:
            return _last(fd, _whole(fd)) if fd is not None else 0

    def read(self, after: int) -> Iterator[Entry]:
        """The rows with a number above ``after`` that are in the file now, oldest first."""
        with self._reading() as fd:
            if fd is None:
                return
            end = _whole(fd)
            start, seq = _start(fd, end, after)
            for line in _forwards(fd, start, end):
                entry = parse(line, seq)
                seq = entry.seq
                if seq > after:
                    yield entry

    def append(self, make: Callable[[int], bytes], after: int | None = None) -> int | None:
        """Append the line that ``make(number)`` returns; the number, once it is on the disk.

        None if the file's end needs `mend` first or, with ``after``, if that is no longer the
        last row. On any failure the file is as it was before.
        """
        with explained(self.path), self._lock():
            fd = self._open()
            try:
                end = os.fstat(fd).st_size
                if _whole(fd) != end:
                    return None
                last = _last(fd, end)
                if after is not None and last != after:
                    return None
                _write(fd, end, make(last + 1) + b"\n")
                return last + 1
            finally:
                os.close(fd)

    def mend(self) -> Torn | None:
        """Set aside what a crashed writer left half-written, if anything."""
        with self._reading() as fd:
            if fd is None or _whole(fd) == os.fstat(fd).st_size:
                return None
        with explained(self.path), self._lock():
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
            try:
                return self._mend(fd)
            finally:
                os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND
        try:
            return os.open(self.path, flags)
        except FileNotFoundError:
            make_folder(self.path.parent)
            fd = os.open(self.path, flags | os.O_CREAT, 0o666)
            sync_folder(self.path.parent)
            return fd

    def _mend(self, fd: int) -> Torn | None:
        # The lock is held, so an unfinished line has no writer any more.
        end, size = _whole(fd), os.fstat(fd).st_size
        if end == size:
            return None
        tail = os.pread(fd, size - end, end)
        with suppress(BrokenSeal):
            unseal(tail)
            _write(fd, size, b"\n")  # all of the row is there, only its end of line is not
            return None
        kept = self._free_name(_last(fd, end) + 1)
        write_file(kept, tail)
        sync_folder(kept.parent)
        os.ftruncate(fd, end)
        os.fsync(fd)
        return Torn(len(tail), kept.name)

    def _free_name(self, seq: int) -> Path:
        name = self.path.with_name(f"{self.path.name}.torn-{seq}")
        count = 1
        while name.exists():
            count += 1
            name = self.path.with_name(f"{self.path.name}.torn-{seq}-{count}")
        return name

    @contextmanager
    def _reading(self) -> Iterator[int | None]:
        with explained(self.path):
            try:
                fd = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                yield None  # nobody has written yet
                return
            try:
                yield fd
            finally:
                os.close(fd)


def _write(fd: int, end: int, data: bytes) -> None:
    try:
        write_all(fd, data)  # one os.write, unless the disk fills up within it
        os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(fd, end)
        raise


def parse(line: bytes, previous: int) -> Entry:
    """The row in a line; a damaged one gets the number behind ``previous``."""
    try:
        fields = unseal(line)
        return Entry(int(fields.pop("seq")), fields, line)
    except (BrokenSeal, KeyError, TypeError, ValueError):
        return Entry(previous + 1, None, line)


def _whole(fd: int) -> int:
    """Where the last complete line ends."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _last(fd: int, end: int) -> int:
    damaged = 0
    for _, line in _backwards(fd, end):
        entry = parse(line, 0)
        if entry.fields is not None:
            return entry.seq + damaged
        damaged += 1
    return damaged


def _start(fd: int, end: int, after: int) -> tuple[int, int]:
    """An offset behind a sound row numbered at most ``after``, at most a block too early.

    Rows are in order, so bisection finds it: what lies before costs nothing.
    """
    low, low_seq, high = 0, 0, end
    while high - low > _BLOCK:
        middle = (low + high) // 2
        found = _first_sound(fd, middle, high)
        if found is None or found[1] > after:
            high = middle
        else:
            low, low_seq = found
    return low, low_seq


def _first_sound(fd: int, start: int, end: int) -> tuple[int, int] | None:
    """Where the first sound row that begins behind ``start`` ends, and its number."""
    lines = _forwards(fd, start, end)
    position = start + len(next(lines, b"")) + 1  # the line that ``start`` lies in is another's
    for line in lines:
        position += len(line) + 1
        entry = parse(line, 0)
        if entry.fields is not None:
            return position, entry.seq
    return None


def _backwards(fd: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines before ``end`` (which is a line's end), newest first, each with its offset."""
    position, rest = end - 1, b""  # without the last newline
    while position > 0:
        start = max(0, position - _BLOCK)
        block = os.pread(fd, position - start, start) + rest
        cut = block.rfind(b"\n")
        while cut >= 0:
            yield start + cut + 1, block[cut + 1 :]
            block = block[:cut]
            cut = block.rfind(b"\n")
        position, rest = start, block
    if end > 0:
        yield 0, rest


def _forwards(fd: int, start: int, end: int) -> Iterator[bytes]:
    rest = b""
    while start < end:
        block = os.pread(fd, min(_BLOCK, end - start), start)
        if not block:
            return
        start += len(block)
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
