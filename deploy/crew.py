"""Several server processes on one port, for machines with more cores than one event loop can feed.

The kernel spreads connections over them, and each follows the registry by itself. What they must
share is `/metrics`, as a scrape reaches any one of them: it collects those of all, and a label
tells them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

# A process that does not answer its siblings in this time is left out of a scrape.
_PATIENCE_SECONDS = 1.0


class Crew:
    """One of the processes, number ``index``, and by way of a folder its siblings."""

    def __init__(self, folder: Path, index: int) -> None:
        self._folder = folder
        self._index = index
        self._exposition: Callable[[], bytes] = bytes
        self._server: asyncio.Server | None = None

    async def open(self, exposition: Callable[[], bytes]) -> None:
        """Give this process's metrics to any sibling that asks."""
        self._exposition = exposition
        path = self._path(self._index)
        path.unlink(missing_ok=True)  # of a process that had this number before
        self._server = await asyncio.start_unix_server(self._tell, path)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._path(self._index).unlink(missing_ok=True)

    async def exposition(self) -> bytes:
        """The metrics of all processes that answer, as one page."""
        indices = sorted(int(path.stem) for path in self._folder.glob("*.sock"))
        pages = await asyncio.gather(*(self._ask(index) for index in indices))
        return merged(
            {str(index): page for index, page in zip(indices, pages, strict=True) if page}
        )

    async def _ask(self, index: int) -> bytes:
        if index == self._index:
            return self._exposition()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(index))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        return b""

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(self._exposition())
            await writer.drain()
        writer.close()

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.sock"


def merged(pages: Mapping[str, bytes]) -> bytes:
    """Pages of metrics as one, each sample with the label ``worker``, by the pages' names.

    >>> page = b"# HELP a Of it.\\n# TYPE a gauge\\na 1.0\\na{b=\\"c\\"} 2.0\\n"
    >>> print(merged({"0": page, "1": page}).decode(), end="")
    # HELP a Of it.
    # TYPE a gauge
    a{worker="0"} 1.0
    a{worker="0",b="c"} 2.0
    a{worker="1"} 1.0
    a{worker="1",b="c"} 2.0
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for name, page in pages.items():
        label = f'worker="{name}"'.encode()
        heads: list[bytes] = []
        samples: list[bytes] = []
        first = True
        for line in page.splitlines():
            if line.startswith(b"# HELP "):
                family = line.split(b" ", 3)[2]
                first = family not in families
                heads, samples = families.setdefault(family, ([], []))
            if line.startswith(b"#"):
                if first:
                    heads.append(line)
            elif line:
                samples.append(_labelled(line, label))
    lines = [line for family in families.values() for part in family for line in part]
    return b"\n".join([*lines, b""])


def _labelled(sample: bytes, label: bytes) -> bytes:
    brace, space = sample.find(b"{"), sample.find(b" ")
    if 0 <= brace < space:
        return b"%b{%b,%b" % (sample[:brace], label, sample[brace + 1 :])
    return b"%b{%b}%b" % (sample[:space], label, sample[space:])
