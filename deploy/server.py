"""The inference server as a process: bind, serve, follow the registry, go in order.

`serve` is the blocking entry of ``driftd serve``. It needs neither torch nor onnx. On SIGTERM
readiness turns false first, then the socket closes, then requests in flight end, then it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from deploy.access import exposures
from deploy.answering import Answering
from deploy.api import create_app, refusing
from deploy.config import ServerConfig
from deploy.connection import connection
from deploy.crew import Crew
from deploy.engine import Engine
from deploy.errors import BindError, DeployError
from deploy.garbage import collect_seldom, give_large_blocks_back
from deploy.listening import bind, turn_away
from deploy.metrics import Metrics
from deploy.prediction_log import PredictionLog
from deploy.repository import Repository
from deploy.tls import Renewed
from deploy.versions import Source, Versions
from deploy.watcher import Watcher

if TYPE_CHECKING:
    from deploy.rpc import RpcServer
    from deploy.tracing import Traces

log = logging.getLogger("driftd.server")

# Long enough for a client that has just connected to send its request; uvicorn takes a connection
# without a request for an idle one, and closes it.
_SETTLE_SECONDS = 0.3

_NEW_OBJECTS = 50_000  # more than there were, before garbage is looked for


def serve(config: ServerConfig, source: Source, crew: Crew | None = None) -> None:
    """Serve a registry's champion until SIGTERM or SIGINT, then drain and return.

    source: a registry, or where it is or will be; the server starts and waits without one.
    crew: of which this process is one, where several share the port.
    Raises `BindError` if the address cannot be bound, `AccessError` if the tokens or the files for
    TLS cannot be used.
    """
    server = InferenceServer(config, source, crew=crew)
    _collect_seldom()
    server.run()


class InferenceServer:
    """A server whose socket is bound on construction, so that its port is known at once."""

    def __init__(
        self,
        config: ServerConfig,
        source: Source,
        metrics: Metrics | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.config = config = config if crew is None else config.share()
        self._crew = crew
        self.metrics = metrics or Metrics(config.name)
        logged = config.prediction_log
        self._log = None if logged is None else PredictionLog(logged, self.metrics)
        self._traces = _traces() if config.traces else None
        self.engine = Engine(config, self.metrics, self._log, self._traces)
        versions = Versions(source)
        self.watcher = Watcher(versions, self.engine, config)
        tls = None if config.tls.certificate is None else Renewed(config.tls)
        answering = Answering(self.engine, config, self.metrics)
        repository = Repository(versions, answering)
        app = create_app(answering, repository, _release(), crew)
        self._answering = answering
        self._rpc = None
        if config.grpc_port is not None:
            self._rpc = _rpc_server(answering, repository, tls, shared=crew is not None)
        http = uvicorn.Config(
            app,
            http=connection(config.body_seconds, refusing(answering)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks where a request came from
            timeout_keep_alive=config.keepalive_seconds,
            timeout_graceful_shutdown=int(config.drain_seconds) or 1,
            backlog=config.backlog,
        )
        http.load()
        if tls is not None:
            http.ssl = tls.context
        self._http = _Http(http)
        self._socket = bind(config.host, config.port, config.backlog, shared=crew is not None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Future[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        scheme = "http" if self.config.tls.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def grpc_port(self) -> int | None:
        """The port of gRPC, once it listens; None without gRPC."""
        return None if self._rpc is None else self._rpc.port

    def run(self) -> None:
        """Serve until told to stop: by a signal (on the main thread), or by `stop`."""
        # Its own threads would fight the workers for the cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        give_large_blocks_back()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())

    def stop(self) -> None:
        """End as SIGINT does, from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._end)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._rpc is not None:
            try:
                await self._rpc.start()
            except DeployError:
                self._socket.close()
                raise
        if self._crew is not None:
            await self._crew.open(self._answering.exposition)
        if self._log is not None:
            self._log.start()
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
            if self._draining is not None:
                await self._draining
        finally:
            if self._crew is not None:
                self._crew.close()
            self.watcher.stop()
            self.engine.stop()
            self._socket.close()
            if self._log is not None:
                self._log.close()
            if self._traces is not None:
                self._traces.close()
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
        if self._rpc is not None:
            seconds = 0 if self._http.force_exit else self.config.drain_seconds
            self._draining = asyncio.ensure_future(self._rpc.stop(seconds))


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


def _collect_seldom() -> None:
    """Look for garbage in cycles once in some thousand requests.

    Requests make next to none, and Python would look every few of them, through all that wait:
    under overload two fifths of the event loop's time. What is there now stays, and is passed over.
    """
    collect_seldom(_NEW_OBJECTS)


def _rpc_server(
    answering: Answering, repository: Repository, tls: Renewed | None, shared: bool
) -> RpcServer:
    try:
        from deploy.rpc import RpcServer
    except ModuleNotFoundError as error:
        raise BindError(
            f'server.grpc_port needs the package {error.name}: pip install "driftd[grpc]"'
        ) from error
    return RpcServer(answering, repository, _release(), tls, shared)


def _traces() -> Traces:
    try:
        from deploy.tracing import Traces
    except ModuleNotFoundError as error:
        raise BindError(
            f'server.traces needs the package {error.name}: pip install "driftd[otel]"'
        ) from error
    return Traces(_release())


def _release() -> str:
    try:
        return version("driftd")
    except PackageNotFoundError:
        return "unknown"
