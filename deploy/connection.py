"""One HTTP connection: uvicorn's, with an end for clients that are slow, silent or endless.

Without it a connection that never finishes the head of a request stays open, and costs memory,
for as long as its client likes. Bodies have a limit of their own, in `deploy.api`. And an answer
leaves in one piece: uvicorn's two cost a system call more, and its client often a wait. Whoever
works for a client can have itself called when that leaves: by ``left`` in the request's scope.
``whole`` is in it once all of the body is here, so that nobody need wait for it. Under overload
most requests end here, before there is a scope, a task or a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Has something called when the client of a request leaves before its answer; None: nothing more.
Left: TypeAlias = Callable[[Callable[[], object] | None], None]

#: The whole answer, if a request of this method and URL is refused for want of room.
Refuse: TypeAlias = Callable[[bytes, bytes], bytes | None]

# Tokens and traces fit many times over.
_LONGEST_HEAD = 64 * 1024


def connection(head_seconds: float, refuse: Refuse | None = None) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn.

    head_seconds: longest that the head of a request may take. refuse: asked when one is there.
    """

    class Connection(HttpToolsProtocol):
        def __init__(self, config: Config, *more: Any, **named: Any) -> None:
            super().__init__(config, *more, **named)
            self._in_head = False
            self._head_bytes = 0
            self._too_slow: asyncio.TimerHandle | None = None
            self._leaving: Callable[[], object] | None = None
            self._refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
            self._rest()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > _LONGEST_HEAD:
                    self.send_400_response("The head of the request is too long.")
                elif self._too_slow is None:
                    self._too_slow = self.loop.call_later(head_seconds, self._give_up)
            elif self.timeout_keep_alive_task is None and (
                self.cycle is None or self.cycle.response_complete
            ):
                self._rest()  # a body that nobody waits for any more

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["left"] = self._left  # type: ignore[typeddict-unknown-key]
            self._in_head = True
            self._head_bytes = 0
            self._refused = False

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._forget()
            if refuse is not None and (self.cycle is None or self.cycle.response_complete):
                answer = refuse(self.parser.get_method(), self.url)
                if answer is not None:
                    self._refused = True  # its body is passed over
                    self.transport.write(answer)
                    if not self.parser.should_keep_alive():
                        self.transport.close()
                    return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._refused:
                super().on_message_complete()
                self.scope["whole"] = True  # type: ignore[typeddict-unknown-key]

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unset_keepalive_if_required()
            self._forget()
            if self._leaving is not None:
                self._leaving()

        def _left(self, leaving: Callable[[], object] | None) -> None:
            # One place is enough: the next request of a connection begins after this one's answer.
            self._leaving = leaving
            if leaving is not None:
                self.flow.resume_reading()  # a long body paused it, and the end is read behind it
                if self.transport.is_closing():
                    self.loop.call_soon(leaving)

        def _rest(self) -> None:
            """Close if nothing comes for as long as a connection may be idle."""
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                self.send_400_response("The head of the request came too slowly.")

        def _forget(self) -> None:
            if self._too_slow is not None:
                self._too_slow.cancel()
                self._too_slow = None

    return Connection


class _Joined:
    """A transport that sends at once what was written in one turn of the event loop."""

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
