"""OpenTelemetry, set up from the standard ``OTEL_*`` variables and nothing else.

Without an endpoint nothing is installed: the API's own no-op tracer stands, which costs nothing and warns of nothing.
A traceparent (W3C) is the only thing that crosses a process boundary; it travels inside etcd records.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AttributeValue

_W3C = TraceContextTextMapPropagator()
_FIELD = "traceparent"
_SCOPE = "eep"


def endpoint_configured(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces to be exported by OTLP."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(environment.get(name) for name in names)


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    """The exporter that ``OTEL_EXPORTER_OTLP[_TRACES]_PROTOCOL`` names; http/protobuf by default."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    # Imported here: a process that exports nothing should not load gRPC or protobuf for it.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc  # noqa: PLC0415

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http  # noqa: PLC0415

    return Http()


@dataclass
class Tracing:
    """The process's tracing: made once at start, shut down once at the end.

    Attributes:
        provider: the installed provider, or None when no endpoint is configured.
    """

    provider: TracerProvider | None = None

    @classmethod
    def start(cls, *, service: str, instance_id: str, environment: Mapping[str, str] = os.environ) -> Tracing:
        """Install the global tracer provider if the environment names an endpoint.

        Args:
            service: ``service.name`` unless ``OTEL_SERVICE_NAME`` is set, e.g. ``eep-controlplane``.
            instance_id: which process of that service this is: the replica's name, or ``rank-3``.
            environment: where the ``OTEL_*`` variables are read.
        """
        if not endpoint_configured(environment):
            return cls()
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        own = {
            "service.name": environment.get("OTEL_SERVICE_NAME") or service,
            "service.instance.id": instance_id,
            "service.version": version("eep"),
        }
        # ``stop`` ends it within a deadline; the SDK's own exit handler has none.
        provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_exporter(environment)))
        trace.set_tracer_provider(provider)
        return cls(provider)

    def flush(self, *, deadline_s: float) -> bool:
        """Send what is buffered; blocks up to ``deadline_s``, so call it by ``asyncio.to_thread``.

        Returns:
            Whether the exporter was done with it in time.
        """
        return self.provider is None or _within(deadline_s, self.provider.force_flush)

    def stop(self, *, deadline_s: float) -> bool:
        """Flush and end the exporter's thread; blocks up to ``deadline_s``. Whether it was done in time."""
        return self.provider is None or _within(deadline_s, self.provider.shutdown)


def _within(deadline_s: float, work: Callable[[], object]) -> bool:
    """Whether ``work`` ended in time: the SDK's exporters go on retrying past the time-out that they are given."""
    worker = threading.Thread(target=work, name="traces' end", daemon=True)
    worker.start()
    worker.join(deadline_s)
    return not worker.is_alive()


def tracer() -> trace.Tracer:
    """The tracer of the product; a no-op one until ``Tracing.start`` installed a provider."""
    return trace.get_tracer(_SCOPE)


def current_traceparent() -> str:
    """The W3C traceparent of the current span, for a record; empty when nothing is traced."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(_FIELD, "")


def traceparent_of(of: trace.Span) -> str:
    """The W3C traceparent of ``of``; empty when it is a no-op span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(of))
    return carrier.get(_FIELD, "")


def parent_context(traceparent: str) -> Context:
    """The context that makes a span a child of the one a record names; an empty or damaged value gives a new trace."""
    return _W3C.extract({_FIELD: traceparent})


def trace_id_of(traceparent: str) -> str:
    """The trace id in hex, 32 digits, as a trace viewer searches for it; empty when there is none."""
    found = trace.get_current_span(parent_context(traceparent)).get_span_context()
    return f"{found.trace_id:032x}" if found.is_valid else ""


def link_to(traceparent: str) -> tuple[trace.Link, ...]:
    """A link for a span that continues someone else's work, e.g. a successor's election; empty when there is none."""
    found = trace.get_current_span(parent_context(traceparent)).get_span_context()
    return (trace.Link(found),) if found.is_valid else ()


@contextmanager
def span(
    name: str,
    *,
    parent: str = "",
    attributes: Mapping[str, AttributeValue] | None = None,
    links: Sequence[trace.Link] = (),
) -> Iterator[trace.Span]:
    """Run a block inside a span; below ``parent`` (a record's traceparent) when given, else below the current span."""
    context = parent_context(parent) if parent else None
    with tracer().start_as_current_span(name, context=context, attributes=attributes, links=links) as entered:
        yield entered


def past_span(
    name: str,
    *,
    parent: str,
    start_unix_ns: int,
    end_unix_ns: int = 0,
    attributes: Mapping[str, AttributeValue] | None = None,
    links: Sequence[trace.Link] = (),
) -> str:
    """Record a span whose times are known from records, e.g. the detection that another process stamped.

    Args:
        name: one of ``names``.
        parent: traceparent to stand below; empty starts a trace.
        start_unix_ns: wall clock, ns.
        end_unix_ns: wall clock, ns; now when 0. Clocks of two hosts may disagree: never before the start.
        attributes: ``names``' attributes.
        links: other spans that this one continues.

    Returns:
        Its traceparent, for children.
    """
    made = tracer().start_span(
        name,
        context=parent_context(parent),
        attributes=attributes,
        links=links,
        start_time=start_unix_ns,
    )
    made.end(max(end_unix_ns or time.time_ns(), start_unix_ns))
    return traceparent_of(made)
