"""JSON lines from a file or standard input: for replays, tests and pipes.

The offset of an event is its line number from 0, so that lineage ranges read like Kafka's and
`sed -n` finds the line. A file can be followed as it grows and resumed after a restart; it may
only grow, and a file that was truncated or replaced is an error rather than a silent mix-up.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterable

from daemon.decode import NO_TIME, Decoder, Records
from daemon.sources.source import Partition, Poll, Positions, SourceError
from daemon.stream_config import FileSourceConfig, StdinSourceConfig

CHUNK = 1024 * 1024
HEAD = 64 * 1024  # bytes of an oversized line that are kept, for the dead letters
FOLLOW_SECONDS = 0.05  # pause between two looks at the end of a followed file
BOM = b"\xef\xbb\xbf"


class LinesSource:
    """Reads a file or standard input, one event a line; blank lines are skipped.

    Standard input cannot be read twice: after a restart, what is piped in counts as new and is
    numbered on from the checkpoint.
    """

    def __init__(
        self, config: FileSourceConfig | StdinSourceConfig, decoder: Decoder, *, max_bytes: int
    ) -> None:
        self._decoder = decoder
        self._path = config.path if isinstance(config, FileSourceConfig) else None
        self._follow = isinstance(config, FileSourceConfig) and config.follow
        self._max_bytes = max_bytes
        self._partition: Partition = (str(self._path) if self._path else "stdin", 0)
        self._fd = -1
        self._lines: deque[tuple[bytes, int | None]] = deque()  # complete; size if cut
        self._next = 0  # line number of the first of them
        self._part = b""  # the beginning of the line that is not complete yet
        self._part_size = 0  # its bytes so far; more than len(_part) once it is oversized
        self._at_end = False

    @property
    def connected(self) -> bool:
        """Whether the file is open."""
        return self._fd >= 0

    @property
    def ended(self) -> bool:
        """Whether the last line was returned; never for a followed file."""
        return self._at_end and not self._follow and not self._lines

    @property
    def caught_up(self) -> bool:
        """Whether the end of the file was seen."""
        return self._at_end and not self._lines

    def start(self, positions: Positions) -> None:
        """Open the file and go to the line after the last one that was learned from."""
        self._next = positions.get(self._partition, 0)
        if self._path is None:
            self._fd = os.dup(sys.stdin.fileno())
            return
        try:
            self._fd = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise SourceError(f"cannot read source.path {self._path}: {error.strerror}") from None
        self._skip(self._next)

    def poll(self, max_events: int, timeout: float) -> Poll:
        """The next lines; see `Source.poll`."""
        deadline = time.monotonic() + timeout
        while not self._lines and not self._read(max(0.0, deadline - time.monotonic())):
            if not self._follow or time.monotonic() >= deadline:
                break
            time.sleep(min(FOLLOW_SECONDS, max(0.0, deadline - time.monotonic())))
        records = Records()
        before = self._next
        while self._lines and self._next - before < max_events:
            line, size = self._lines.popleft()
            if self._next == 0:
                line = line.removeprefix(BOM)
            if size is not None:
                records.oversized[len(records)] = size
            if size is not None or line.strip():
                records.values.append(line)
                records.offsets.append(self._next)
            self._next += 1
        count = len(records)
        records.topics = [self._partition[0]] * count
        records.partitions = [self._partition[1]] * count
        records.timestamps = [NO_TIME] * count
        batch, rejected = self._decoder.decode(records)
        return Poll(batch, rejected, {self._partition: self._next} if self._next > before else {})

    def hold(self) -> None:
        """Nothing needs to be kept alive."""

    def positions(self) -> dict[Partition, int]:
        """The line number to read next."""
        return {self._partition: self._next}

    def checkpointed(self, positions: Positions) -> None:
        """A file keeps no offsets of its own: nothing to do."""

    def lag(self) -> int | None:
        """Known only at the end, where it is what was read but not yet returned."""
        return len(self._lines) if self._at_end else None

    def lags(self) -> dict[Partition, int]:
        """The same, for the only partition."""
        return {self._partition: len(self._lines)} if self._at_end else {}

    def know(self, labels: Iterable[str]) -> None:
        """Tell the decoder which classes the model has."""
        self._decoder.know(labels)

    def moves(self) -> tuple[set[Partition], set[Partition]]:
        """Nothing of it is shared."""
        return set(), set()

    def begin(self, place: Partition, position: int | None) -> None:
        """Nothing of it is shared."""

    def leave(self, place: Partition) -> None:
        """Nothing of it is shared."""

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, timeout: float) -> bool:
        """Read a chunk and split it; false if there was nothing."""
        if self._fd < 0 or (self._at_end and not self._follow):
            return False
        if self._path is None and not select.select([self._fd], [], [], timeout)[0]:
            return False
        try:
            chunk = os.read(self._fd, CHUNK)
        except OSError as error:
            raise SourceError(f"cannot read {self._partition[0]}: {error.strerror}") from None
        self._at_end = not chunk
        if chunk:
            self._split(chunk)
            return True
        if self._path is not None:
            self._check_same_file()
        if self._part_size and not self._follow:
            self._finish_line(b"")
            return True
        return False

    def _split(self, chunk: bytes) -> None:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            self._finish_line(line)
        self._grow_line(rest)

    def _grow_line(self, more: bytes) -> None:
        self._part_size += len(more)
        room = HEAD if self._part_size > self._max_bytes else self._part_size
        self._part = (self._part + more[: max(0, room - len(self._part))])[:room]

    def _finish_line(self, rest: bytes) -> None:
        if not self._part_size and len(rest) <= self._max_bytes:
            self._lines.append((rest, None))
            return
        self._grow_line(rest)
        oversized = self._part_size > self._max_bytes
        self._lines.append((self._part, self._part_size if oversized else None))
        self._part, self._part_size = b"", 0

    def _skip(self, lines: int) -> None:
        """Read past ``lines`` lines; what follows them in the same chunk is kept."""
        left = lines
        while left > 0:
            chunk = os.read(self._fd, CHUNK)
            if not chunk:
                if left == 1 and self._part_size:  # the last line had no line break
                    self._part, self._part_size = b"", 0
                    return
                raise SourceError(
                    f"{self._path} has {lines - left} lines, but the checkpoint has read {lines}:"
                    " it was truncated or replaced. Restore it, or name the new file in"
                    " source.path, or start over with an empty checkpoint.path"
                )
            found = chunk.count(b"\n")
            if found < left:
                left -= found
                self._part_size = int(not chunk.endswith(b"\n"))  # only whether there is a rest
                continue
            self._part_size = 0
            at = 0
            for _ in range(left):
                at = chunk.index(b"\n", at) + 1
            left = 0
            self._split(chunk[at:])

    def _check_same_file(self) -> None:
        """At the end of the file: is it still the file that was opened, and all of it?"""
        here = os.fstat(self._fd)
        try:
            there = os.stat(self._path) if self._path else here
        except OSError:
            there = None
        if here.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            what = "was truncated"
        elif there is None or (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev):
            what = "was moved or replaced"
        else:
            return
        raise SourceError(
            f"{self._path} {what} while driftd was reading it. A file source may only grow: write"
            " each file under a name of its own, or send the events through Kafka"
        )
