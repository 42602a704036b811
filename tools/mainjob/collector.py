"""An OTLP collector between the instance's processes and whoever reads their traces, as in production.

rotel is the small one that pip installs; ``deploy/otel`` configures OpenTelemetry's own for real hosts.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path

from tools.etcd.local import free_ports

_BATCH = "100ms"


def name() -> str:
    """Which collector it is, and of which version."""
    return f"rotel {version('rotel')}"


class Collector:
    """A program to start: takes OTLP at ``url``, hands it on."""

    def __init__(self, *, forward_to: str) -> None:
        """``forward_to`` is the base address of an OTLP/HTTP receiver."""
        http, grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.url = f"http://{http}"
        self.command = [str(_binary()), "start", "--otlp-http-endpoint", http, "--otlp-grpc-endpoint", grpc]
        self.command += ["--batch-timeout", _BATCH, "--exporter", "otlp", "--otlp-exporter-endpoint", forward_to]
        self.command += ["--otlp-exporter-protocol", "http"]


def _binary() -> Path:
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("rotel is not installed. Remedy: tools/run sets everything up; start it once")
    return Path(spec.origin).with_name("rotel-agent")
