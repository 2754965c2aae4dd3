"""Traces of inference by OpenTelemetry: a request, its wait in the queue, its batch, the run.

Where they go, and how many, is said by OpenTelemetry's own environment variables (``OTEL_*``). A
trace that a client began goes on here (W3C ``traceparent``). A run serves many requests: it is a
child of the first one's batch, with links to the others'. Needs the extra ``otel``; without
`ServerConfig.traces` nothing of this is imported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.batcher import Ran

_NAMES = {"plain": "POST /predict", "v2": "POST /v2/models/NAME/infer", None: None}

# OpenTelemetry would try a collector that is away for half a minute.
_CLOSE_SECONDS = 3.0


class Traces:
    """What makes the spans of one server.

    provider: where they go; by default to the collector that the environment names, by OTLP.
    """

    def __init__(self, release: str, provider: TracerProvider | None = None) -> None:
        self._provider = _exporting(release) if provider is None else provider
        self._tracer = self._provider.get_tracer("driftd", release)

    @contextmanager
    def request(
        self, name: str, sent: Mapping[str, str], attributes: Mapping[str, str]
    ) -> Iterator[Span]:
        """A request, from here to the end of the block; sent: what came beside it."""
        with self._tracer.start_as_current_span(
            name,
            propagate.extract(sent),
            SpanKind.SERVER,
            attributes,
            record_exception=False,  # a message may quote an input
            set_status_on_exception=False,
        ) as span:
            yield span

    def current(self) -> Span | None:
        """The request's span, if anybody will see it."""
        span = trace.get_current_span()
        return span if span.is_recording() else None

    def done(self, version: str, status: int, reason: str | None) -> None:
        """What became of the request: its version, HTTP status, and error, if it had one."""
        span = self.current()
        if span is None:
            return
        span.set_attribute("driftd.version", version)
        if reason is not None:
            span.set_attribute("error.type", reason)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, reason))

    def ran(self, version: str, ran: Ran) -> None:
        """Spans of a run, and of the waits and batches of the requests it was for; any thread."""
        traced = [job for job in ran.jobs if job.span is not None]
        if not traced:
            return
        # Nanoseconds since 1970 of the times by `time.monotonic`.
        zero = time.time_ns() - round(1e9 * time.monotonic())
        begun, end = (zero + round(1e9 * t) for t in (ran.begun, ran.begun + ran.seconds))
        batches: list[Span] = []
        for job in traced:
            context, arrived = trace.set_span_in_context(job.span), zero + round(1e9 * job.arrived)
            self._tracer.start_span("queue", context, start_time=arrived).end(begun)
            told = {"driftd.items": ran.items, "driftd.requests": len(ran.jobs)}
            batches.append(
                self._tracer.start_span("batch", context, attributes=told, start_time=begun)
            )
        run = self._tracer.start_span(
            "run",
            trace.set_span_in_context(batches[0]),
            attributes={"driftd.version": version, "driftd.items": ran.items},
            links=[Link(batch.get_span_context()) for batch in batches[1:]],
            start_time=begun,
        )
        for span in (run, *batches):
            span.end(end)

    def around(self, app: ASGIApp, protocol: Callable[[Scope], str | None]) -> ASGIApp:
        """The application with a span for each inference; protocol: None for other requests."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            name = _NAMES.get(protocol(scope))
            if name is None:
                await app(scope, receive, send)
                return
            sent = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
            with self.request(name, sent, attributes) as span:

                async def told(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                    await send(message)

                await app(scope, receive, told)

        return traced

    def close(self) -> None:
        """Send what is left, if the collector takes it soon."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_CLOSE_SECONDS)


def _exporting(release: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    ours = {"service.name": "driftd", "service.version": release}
    # What the environment says of the service wins.
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
