"""A TCP proxy that treats connections as a bad network does, one fault at a time.

A broker behind it must advertise the proxy's port, or clients go around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

HOST = "127.0.0.1"
CHUNK = 65_536
RST = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends a reset, not an end


class _Link:
    """A client's connection and its other half; what is swallowed once never comes."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.writers = [near]
        self.swallowed = False

    def reset(self) -> None:
        for writer in self.writers:
            found = writer.get_extra_info("socket")
            if found is not None:
                with contextlib.suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            writer.transport.abort()


class ChaosProxy:
    """Passes ``port`` of loopback on to ``target``; runs on a thread of its own."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self._delay = 0.0
        self._swallowing = False
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    # ------------------------------------------------------------------ faults

    def reset(self) -> None:
        """Every connection is reset, in the midst of whatever it carries."""

        async def do() -> None:
            for link in list(self._links):
                link.reset()

        self._do(do())

    @contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """Each piece of data takes ``seconds`` longer."""
        self._delay = seconds
        yield
        self._delay = 0.0

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Connections stay open and nothing passes; those that were hit stay dead afterwards."""
        self._swallowing = True
        for link in list(self._links):
            link.swallowed = True
        yield
        self._swallowing = False

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Nothing listens, and what was connected is reset: as a broker that was killed."""
        self._do(self._refuse())
        yield
        self._do(self._listen())

    # ------------------------------------------------------------------ passing on

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        link.swallowed = self._swallowing
        self._links.add(link)
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self.target)
            link.writers.append(far_writer)
            await asyncio.gather(
                self._pump(link, reader, far_writer), self._pump(link, far_reader, writer)
            )
        except OSError:
            link.reset()
        finally:
            self._links.discard(link)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if not link.swallowed:
                    writer.write(data)
                    await writer.drain()
        finally:
            if not link.swallowed:
                writer.close()
