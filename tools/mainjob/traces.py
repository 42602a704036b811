"""Where the main job's collector sends traces: takes OTLP over HTTP, and shows each trace as a page.

For looking at one recovery on one machine; production has a tracing backend behind its collector.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from types import TracebackType

_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title><style>
:root {{ color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif }}
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem }}
.row {{ display: grid; grid-template-columns: 22rem 1fr 6rem; gap: .75rem; align-items: center; padding: .1rem 0 }}
.row:hover {{ background: color-mix(in srgb, currentColor 8%, transparent) }}
.name {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis }}
.lane {{ position: relative; height: 1rem }}
.bar {{ position: absolute; height: 100%; min-width: 2px; border-radius: 3px; background: #2f8f6b }}
.time {{ text-align: right; font-variant-numeric: tabular-nums }}
small {{ opacity: .65 }}
</style><h1>{title}</h1>{body}"""


@dataclass(frozen=True)
class Span:
    """One span as it was received; times in unix ns."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    instance_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str]


@dataclass
class TraceReceiver:
    """Receives while it is entered; ``url`` is both the OTLP endpoint and where pages are.

    Attributes:
        spans: everything received, in order of arrival.
    """

    spans: list[Span] = field(default_factory=list)
    url: str = ""
    _runner: web.AppRunner | None = None
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/traces", self._receive)
        app.router.add_get("/traces/{trace}", self._show)
        app.router.add_get("/", self._list)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def of(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have arrived, in the order in which they began."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start_ns)

    async def told(self, trace_id: str, *, within_s: float) -> list[Span]:
        """The spans of a trace once its root has ended and arrived; what there is when that takes too long."""
        async with self._arrived:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._arrived.wait_for(lambda: any(not span.parent_id for span in self.of(trace_id)))
        return self.of(trace_id)

    def page(self, trace_id: str) -> str:
        """Address of a trace's page."""
        return f"{self.url}/traces/{trace_id}"

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        message = ExportTraceServiceRequest()
        message.ParseFromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for resource in message.resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.name,
                            named.get("service.name", ""),
                            named.get("service.instance.id", ""),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            {one.key: _plain(one.value) for one in span.attributes},
                        )
                    )
        async with self._arrived:
            self._arrived.notify_all()
        return web.Response(content_type="application/x-protobuf", body=b"")

    async def _show(self, request: web.Request) -> web.Response:
        trace_id = request.match_info["trace"]
        spans = self.of(trace_id)
        if not spans:
            raise web.HTTPNotFound(text=f"no span of trace {trace_id} has arrived")
        page = _PAGE.format(title=f"trace {escape(trace_id)}", body="".join(_rows(spans)))
        return web.Response(text=page, content_type="text/html")

    async def _list(self, _: web.Request) -> web.Response:
        found = {span.trace_id: span for span in self.spans if not span.parent_id and span.name.startswith("eep.")}
        links = "".join(
            f'<p><a href="/traces/{trace}">{escape(span.name)} {trace}</a>' for trace, span in found.items()
        )
        return web.Response(text=_PAGE.format(title="traces", body=links or "<p>none yet"), content_type="text/html")


def _plain(value: object) -> str:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]  # protobuf's generated classes carry no types
    return str(getattr(value, kind)) if kind else ""


def _rows(spans: list[Span]) -> list[str]:
    begin, end = spans[0].start_ns, max(span.end_ns for span in spans)
    scale = 100 / max(end - begin, 1)
    rows = []
    for span in spans:
        told = ", ".join(f"{name} = {value}" for name, value in span.attributes.items())
        left, width = (span.start_ns - begin) * scale, (span.end_ns - span.start_ns) * scale
        rows.append(
            f'<div class="row" title="{escape(told)}"><span class="name">{escape(span.name)} '
            f"<small>{escape(span.service)} {escape(span.attributes.get('eep.rank', ''))}</small></span>"
            f'<span class="lane"><span class="bar" style="left:{left:.2f}%;width:{width:.2f}%"></span></span>'
            f'<span class="time">{(span.end_ns - span.start_ns) / 1e6:.1f} ms</span></div>'
        )
    return rows
