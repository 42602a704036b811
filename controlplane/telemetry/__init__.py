"""Traces, metrics, logs and systemd notifications: what every process of the system says about itself.

Imports nothing of the product, so that any process may use it.
"""

from controlplane.telemetry.logs import LogFormat, bind, configure_logging
from controlplane.telemetry.metrics import ControlPlaneMetrics, GatewayMetrics, WorkerMetrics, metrics_handler
from controlplane.telemetry.systemd import Notifier
from controlplane.telemetry.tracing import Tracing, current_traceparent, link_to, parent_context, span, trace_id_of

__all__ = [
    "ControlPlaneMetrics",
    "GatewayMetrics",
    "LogFormat",
    "Notifier",
    "Tracing",
    "WorkerMetrics",
    "bind",
    "configure_logging",
    "current_traceparent",
    "link_to",
    "metrics_handler",
    "parent_context",
    "span",
    "trace_id_of",
]
