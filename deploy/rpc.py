"""The gRPC face of an engine: the Open Inference Protocol and gRPC's own health check.

On the event loop of the HTTP server, with the same limits, tokens and metrics. A request that must
be refused is refused before its message is parsed. Needs the extra ``grpc``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from deploy.access import OPEN, Scopes, Tokens
from deploy.answering import ID, KEY, Answering, aside
from deploy.binary import pack, pack_texts, unpack
from deploy.config import ServerConfig
from deploy.errors import (
    BindError,
    ClientGoneError,
    DeployError,
    ForbiddenError,
    InputError,
    QueueFullError,
    UnauthorizedError,
    UnknownModelError,
)
from deploy.metrics import NO_VERSION
from deploy.openapi import ASKING, LOOKING, OPERATING, READING
from deploy.preprocess import TensorSpec
from deploy.protocol import (
    OUTPUTS,
    PLATFORM,
    InferRequest,
    check_tensor,
    gather,
    known_output,
    select,
    shaped,
)
from deploy.repository import Repository
from deploy.rpc_messages import HEALTH, INFERENCE, MESSAGES, NOT_SERVING, SERVING
from deploy.session import Prediction
from deploy.tls import Renewed

log = logging.getLogger("driftd.server")

_CODES = {
    "bad_input": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "unknown_version": grpc.StatusCode.NOT_FOUND,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "refused": grpc.StatusCode.FAILED_PRECONDITION,
    "queue_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "client_gone": grpc.StatusCode.CANCELLED,
    "load_failed": grpc.StatusCode.UNAVAILABLE,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Where a message of typed contents keeps the values of a datatype; FP16 comes only as raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

# Between two looks at readiness, for those who watch it.
_WATCH_SECONDS = 0.5

_LONGEST_ERROR = 1000

# Clients that are gone without a word are found out; idle ones may ask as often as proxies do.
_OPTIONS = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

if TYPE_CHECKING:
    from deploy.tracing import Traces

Work = Callable[[Any, aio.ServicerContext], Awaitable[Any]]


class RpcServer:
    """The protocol's methods, served on a port of their own.

    shared: other processes listen on the port too.
    Raises `AccessError` if tokens are configured that cannot be used.
    """

    def __init__(
        self,
        answering: Answering,
        repository: Repository,
        release: str,
        tls: Renewed | None = None,
        shared: bool = False,
    ) -> None:
        self._answering = answering
        self._repository = repository
        self._engine = answering.engine
        self._config: ServerConfig = answering.config
        self._release = release
        self._tls = tls
        self._shared = shared
        tokens = answering.config.access.tokens
        self._tokens = None if tokens is None else Tokens(tokens)
        self._server: aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises `BindError`."""
        config = self._config
        options = [
            *_OPTIONS,
            ("grpc.so_reuseport", int(self._shared)),
            ("grpc.max_receive_message_length", config.max_body_bytes),
        ]
        server = aio.server(options=options)
        server.add_generic_rpc_handlers(self._handlers())
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.grpc_port}"
        try:
            if self._tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, _credentials(self._tls, config))
        except RuntimeError as error:
            raise BindError(
                f"cannot listen on {address}: stop the process that uses the port, or set "
                "server.grpc_port to a free one"
            ) from error
        await server.start()
        self._server = server
        log.info("listening for gRPC on %s:%d", host, self.port)

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and wait for those under way, at most so long."""
        if self._server is not None:
            await self._server.stop(seconds)

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        def unary(name: str, needed: Scopes, work: Work) -> tuple[str, grpc.RpcMethodHandler]:
            handler = grpc.unary_unary_rpc_method_handler(
                self._call(f"{name}Request", needed, work)
            )
            return name, handler

        methods = dict(
            (
                unary("ServerLive", OPEN, self._live),
                unary("ServerReady", OPEN, self._ready),
                unary("ServerMetadata", LOOKING, self._metadata),
                unary("ModelReady", LOOKING, self._model_ready),
                unary("ModelMetadata", LOOKING, self._model_metadata),
                unary("RepositoryIndex", READING, self._index),
                unary("RepositoryModelLoad", OPERATING, self._load),
                unary("RepositoryModelUnload", OPERATING, self._unload),
            )
        )
        traces = self._engine.traces
        infer = self._infer if traces is None else partial(self._traced_infer, traces)
        methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(infer)
        health = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._call("HealthCheckRequest", OPEN, self._check)
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        return (
            grpc.method_handlers_generic_handler(INFERENCE, methods),
            grpc.method_handlers_generic_handler(HEALTH, health),
        )

    def _call(
        self, message: str, needed: Scopes, work: Work
    ) -> Callable[[bytes, aio.ServicerContext], Awaitable[bytes]]:
        """A method that is no inference."""

        async def behave(raw: bytes, context: aio.ServicerContext) -> bytes:
            try:
                self._allow(context, needed)
                answer = await work(_parse(message, raw), context)
                return bytes(answer.SerializeToString())
            except DeployError as error:
                failed: Exception = error
            except Exception as error:
                log.exception("a call failed in an unforeseen way")
                failed = error
            await _abort(context, failed)
            return b""

        return behave

    async def _live(self, request: Any, context: aio.ServicerContext) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, request: Any, context: aio.ServicerContext) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._engine.ready)

    async def _metadata(self, request: Any, context: aio.ServicerContext) -> Any:
        return MESSAGES["ServerMetadataResponse"](name="driftd", version=self._release)

    async def _model_ready(self, request: Any, context: aio.ServicerContext) -> Any:
        self._answering.pick(request.name, request.version or None)
        return MESSAGES["ModelReadyResponse"](ready=self._engine.ready)

    async def _model_metadata(self, request: Any, context: aio.ServicerContext) -> Any:
        model = self._answering.described(
            self._answering.pick(request.name, request.version or None)
        )
        return MESSAGES["ModelMetadataResponse"](
            name=model.name,
            versions=model.versions,
            platform=PLATFORM,
            inputs=_specs(model.inputs),
            outputs=_specs(model.outputs),
        )

    async def _index(self, request: Any, context: aio.ServicerContext) -> Any:
        entries = await self._repository.index(request.ready)
        return MESSAGES["RepositoryIndexResponse"](models=[entry._asdict() for entry in entries])

    async def _load(self, request: Any, context: aio.ServicerContext) -> Any:
        await self._repository.load(request.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, context: aio.ServicerContext) -> Any:
        self._repository.unload(request.model_name)

    async def _check(self, request: Any, context: aio.ServicerContext) -> Any:
        if request.service not in ("", INFERENCE):
            raise UnknownModelError(f"no service {request.service!r} here")
        return MESSAGES["HealthCheckResponse"](status=self._status())

    async def _watch(self, raw: bytes, context: aio.ServicerContext) -> AsyncIterator[bytes]:
        told = None
        while not self._engine.closing or told != NOT_SERVING:
            status = self._status()
            if status != told:
                told = status
                yield MESSAGES["HealthCheckResponse"](status=status).SerializeToString()
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self) -> int:
        return SERVING if self._engine.ready else NOT_SERVING

    async def _infer(self, raw: bytes, context: aio.ServicerContext) -> bytes:
        begun = time.perf_counter()
        version = NO_VERSION
        failed: Exception
        try:
            self._allow(context, ASKING)
            within = context.time_remaining()
            due = None if within is None else time.monotonic() + within
            self._answering.admit(due)
            message = await aside(len(raw), lambda: _parse("ModelInferRequest", raw))
            named = message.model_version or None
            version = self._answering.pick(message.model_name, named).version
            request = await aside(len(raw), lambda: _read(message))
            sent = _sent(context)
            id = request.id or sent.get(ID, "")
            chosen = self._answering.choose(sent.get(KEY, ""), id, named)
            loaded, version = chosen.loaded, chosen.loaded.version
            prediction = await self._answering.answer(
                loaded,
                chosen.asked(request.tensors),
                items=request.items,
                size=len(raw),
                due=due,
            )
            answer = _write(message, request, version, loaded.session.classes, prediction)
            if chosen.made:
                context.set_trailing_metadata(((ID, chosen.id),))
            self._answering.done("grpc", version, begun)
            return answer
        except asyncio.CancelledError:
            # The client has cancelled, or its deadline has passed.
            self._answering.done("grpc", version, begun, ClientGoneError("the client left"))
            raise
        except Exception as error:
            failed = error
        self._answering.done("grpc", version, begun, failed)
        await _abort(context, failed)
        return b""

    async def _traced_infer(
        self, traces: Traces, raw: bytes, context: aio.ServicerContext
    ) -> bytes:
        attributes = {"rpc.system": "grpc", "rpc.service": INFERENCE, "rpc.method": "ModelInfer"}
        with traces.request(f"{INFERENCE}/ModelInfer", _sent(context), attributes):
            return await self._infer(raw, context)

    def _allow(self, context: aio.ServicerContext, needed: Scopes) -> None:
        if self._tokens is None or not needed:
            return
        try:
            self._tokens.allow(_sent(context).get("authorization"), needed)
        except (UnauthorizedError, ForbiddenError) as error:
            if needed is not ASKING:  # an inference counts its own errors
                self._answering.refused(error.reason)
            raise


def _sent(context: aio.ServicerContext) -> dict[str, str]:
    """The metadata of a call; names that end in ``-bin`` hold bytes, and are left out."""
    metadata = context.invocation_metadata() or ()
    return {name: value for name, value in metadata if isinstance(value, str)}


def _parse(name: str, raw: bytes) -> Any:
    try:
        return MESSAGES[name].FromString(raw)
    except DecodeError as error:
        raise InputError(f"the request is not a valid {name} message") from error


def _read(message: Any) -> InferRequest:
    """What an infer request asks. Raises `InputError`."""
    if not message.inputs:
        raise InputError("the request has no inputs")
    raws = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise InputError(f"{len(raws)} raw_input_contents for {len(message.inputs)} inputs")

    def tensor(position: int) -> tuple[str, Any]:
        sent = message.inputs[position]
        name, datatype, shape = check_tensor(position, sent.name, sent.datatype, list(sent.shape))
        if raws:
            if sent.HasField("contents"):
                raise InputError(f"tensor {name!r} has contents beside raw_input_contents")
            return name, unpack(name, datatype, shape, raws[position])
        if datatype not in _CONTENTS:
            raise InputError(f"tensor {name!r}: send {datatype} as raw_input_contents")
        values: list[Any] = list(getattr(sent.contents, _CONTENTS[datatype]))
        if datatype == "BYTES":
            values = [_text(name, value) for value in values]
        return name, shaped(name, datatype, shape, values)

    tensors = gather(tensor(position) for position in range(len(message.inputs)))
    names = dict.fromkeys(known_output(output.name) for output in message.outputs)
    return InferRequest(message.id, tensors, tuple(names), frozenset(OUTPUTS if raws else ()))


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"tensor {name!r}: a BYTES item is not UTF-8") from error


def _write(
    message: Any,
    request: InferRequest,
    version: str,
    labels: Sequence[str],
    prediction: Prediction,
) -> bytes:
    """The response: outputs as raw bytes if the inputs came so, else as typed contents."""
    response = MESSAGES["ModelInferResponse"](
        model_name=message.model_name, model_version=version, id=message.id
    )
    for name, (datatype, shape, data) in select(request.outputs, labels, prediction).items():
        output = response.outputs.add(name=name, datatype=datatype, shape=shape)
        if name in request.binary:
            raw = pack_texts(data) if isinstance(data, list) else pack(data)
            response.raw_output_contents.append(raw)
        elif isinstance(data, list):
            output.contents.bytes_contents.extend(text.encode() for text in data)
        else:
            output.contents.fp32_contents.extend(data.ravel().tolist())
    return bytes(response.SerializeToString())


def _specs(specs: Sequence[TensorSpec]) -> list[Any]:
    return [
        MESSAGES["TensorMetadata"](name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in specs
    ]


async def _abort(context: aio.ServicerContext, error: Exception) -> None:
    """End the call with the error's code; what is none of ours is told to nobody."""
    if not isinstance(error, DeployError):
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        return
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, QueueFullError):
        seconds = error.retry_after
        # The second is what gRPC's own retries go by.
        trailing = ("retry-after", str(seconds)), ("grpc-retry-pushback-ms", str(seconds * 1000))
    elif isinstance(error, UnauthorizedError):
        trailing = (("www-authenticate", "Bearer"),)
    code = _CODES.get(error.reason, grpc.StatusCode.INTERNAL)
    await context.abort(code, str(error)[:_LONGEST_ERROR], trailing)


def _credentials(tls: Renewed, config: ServerConfig) -> grpc.ServerCredentials:
    """Credentials that ask for the newest certificate at each handshake."""
    mutual = config.tls.client_ca is not None

    def configuration() -> Any:
        pem = tls.pem()
        return grpc.ssl_server_certificate_configuration(
            [(pem.key, pem.certificate)], pem.client_ca
        )

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, mutual)
