"""A real OTLP/HTTP receiver on port 0: keeps every span that any process exports to it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """One received span, with ids in hex and times in ns."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    service: str
    instance_id: str
    attributes: dict[str, object]
    links: tuple[tuple[str, str], ...]


def _attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _spans(request: ExportTraceServiceRequest):
    for resource in request.resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    service=about["service.name"],
                    instance_id=about["service.instance.id"],
                    attributes=_attributes(span.attributes),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


@dataclass
class OtlpSink:
    """What was received; ``url`` is for ``OTEL_EXPORTER_OTLP_ENDPOINT``."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, request: web.Request) -> web.Response:
        self.spans.extend(_spans(ExportTraceServiceRequest.FromString(await request.read())))
        self._arrived.set()
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def wait_for(self, condition, *, deadline_s: float):
        """The spans, once ``condition(spans)`` holds."""
        ends = time.monotonic() + deadline_s
        while not condition(self.spans):
            left = ends - time.monotonic()
            assert left > 0, f"after {deadline_s} s only {sorted(span.name for span in self.spans)}"
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                continue
        return self.spans


@asynccontextmanager
async def otlp_sink():
    sink = OtlpSink()
    app = web.Application()
    app.router.add_post("/v1/traces", sink.receive)
    async with TestServer(app) as server:
        sink.url = str(server.make_url("")).rstrip("/")
        yield sink
