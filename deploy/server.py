"""The inference server as a process: bind, serve, follow the registry, go in order.

`serve` is the blocking entry of ``driftd serve``. It needs neither torch nor onnx. On SIGTERM
readiness turns false first, then the socket closes, then requests in flight end, then it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import uvicorn

from deploy.access import exposures
from deploy.answering import Answering
from deploy.api import create_app
from deploy.config import ServerConfig
from deploy.engine import Engine
from deploy.listening import bind, turn_away
from deploy.metrics import Metrics
from deploy.tls import Renewed
from deploy.versions import Source, Versions
from deploy.watcher import Watcher

log = logging.getLogger("driftd.server")

# Long enough for a client that has just connected to send its request; uvicorn takes a connection
# without a request for an idle one, and closes it.
_SETTLE_SECONDS = 0.3

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_LARGE_BLOCK_BYTES = 128 * 1024


def serve(config: ServerConfig, source: Source) -> None:
    """Serve a registry's champion until SIGTERM or SIGINT, then drain and return.

    source: a registry, or where it is or will be; the server starts and waits without one.
    Raises `BindError` if the address cannot be bound, `AccessError` if the tokens or the files for
    TLS cannot be used.
    """
    InferenceServer(config, source).run()


class InferenceServer:
    """A server whose socket is bound on construction, so that its port is known at once."""

    def __init__(
        self,
        config: ServerConfig,
        source: Source,
        metrics: Metrics | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics(config.name)
        self.engine = Engine(config, self.metrics)
        self.watcher = Watcher(Versions(source), self.engine, config)
        app = create_app(Answering(self.engine, config, self.metrics), _release())
        http = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=config.keepalive_seconds,
            timeout_graceful_shutdown=int(config.drain_seconds) or 1,
            backlog=config.backlog,
        )
        http.load()
        if config.tls.certificate is not None:
            http.ssl = Renewed(config.tls).context
        self._http = _Http(http)
        self._socket = bind(config.host, config.port, config.backlog)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        scheme = "http" if self.config.tls.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def run(self) -> None:
        """Serve until told to stop: by a signal (on the main thread), or by `stop`."""
        # Its own threads would fight the workers for the cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _give_memory_back()
        asyncio.run(self._run())

    def stop(self) -> None:
        """End as SIGINT does, from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._end)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.engine.start()
        self.watcher.start()
        if threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGTERM, self._notice)
            self._loop.add_signal_handler(signal.SIGINT, self._end)
        log.info("listening on %s", self.url)
        config = self.config
        for sentence in exposures(config.host, config.access, config.tls, "server"):
            log.warning(sentence)
        try:
            await self._http.serve(sockets=[self._socket])
        finally:
            self.watcher.stop()
            self.engine.stop()
            self._socket.close()
        log.info("stopped")

    def _notice(self) -> None:
        """Not ready from now on; end after the notice, or at once if asked again."""
        if self.engine.closing:
            self._end()
            return
        log.info("stopping: not ready, serving on for %g seconds", self.config.notice_seconds)
        self.engine.close()
        asyncio.get_running_loop().call_later(self.config.notice_seconds, self._end)

    def _end(self) -> None:
        self.engine.close()
        # Asked twice, it no longer waits for requests in flight.
        self._http.force_exit = self._http.should_exit
        self._http.should_exit = True


class _Http(uvicorn.Server):
    """Uvicorn without signal handlers of its own, and with a gentler end.

    It would close before readiness is false, and reset whoever has just connected.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        with contextlib.suppress(OSError):
            for listener in sockets or []:
                turn_away(listener)
        if not self.force_exit:
            await asyncio.sleep(_SETTLE_SECONDS)
        await super().shutdown(sockets)


def _give_memory_back() -> None:
    """Have the C library return large freed blocks to the system at once.

    Otherwise it keeps the holes that unloaded versions leave, and after a hundred swaps the
    process is twice as large. Does nothing where the C library has no such setting.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _release() -> str:
    try:
        return version("driftd")
    except PackageNotFoundError:
        return "unknown"
