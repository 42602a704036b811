"""Every metric of every process, by name. Alerts and dashboards under ``deploy/`` may use only what stands here.

Conventions: prefix ``eep_``; seconds and bytes as base units; counters end in ``_total``. A label's values are bounded:
rank numbers, enum values and route templates, never ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RECOVERY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0, 60.0)
"""Dense around the second in which a loss should be over, wide enough to tell 10 s from a minute."""
COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ControlPlaneMetrics:
    """What one control-plane replica exports; a follower exports the same, as it read it from etcd."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.leader = gauge("eep_leader", "1 on the replica that leads, else 0")
        self.epoch = gauge("eep_epoch", "The committed epoch")
        self.fence = gauge("eep_fence", "create_revision of the leader's key")
        self.preparing = gauge("eep_epoch_preparing", "1 while a planned change is being prepared")
        self.ranks = gauge("eep_ranks", "Rank slots by state", "state")
        self.headroom_ranks = gauge(
            "eep_headroom_ranks", "How many more ranks may be lost, the worst ones first, before an expert has no copy"
        )
        self.missing_experts = gauge(
            "eep_missing_experts", "(layer, expert) pairs without a routed copy on an active rank; 0 = coverage intact"
        )
        self.paused = gauge("eep_recovery_paused", "1 while automatic recovery is paused by an operator")
        self.imbalance = gauge("eep_placement_imbalance", "Predicted busiest rank ÷ mean, averaged over layers")
        self.etcd_connected = gauge("eep_etcd_connected", "1 while etcd answers with a quorum")
        self.recoveries = counter("eep_recoveries_total", "Unplanned losses handled", "evidence", "outcome")
        self.operations = counter("eep_operations_total", "Admin operations that ended", "kind", "state")
        self.elections = counter("eep_elections_total", "Times this replica became leader")
        self.fenced_writes = counter(
            "eep_fenced_writes_total", "Writes that etcd refused because fence or epoch had moved on"
        )
        self.admin_requests = counter("eep_admin_requests_total", "Admin API requests", "route", "method", "status")
        self.recovery_phase = Histogram(
            "eep_recovery_phase_seconds",
            "Time of each phase of a recovery, and of the whole under phase=total",
            ("phase",),
            registry=registry,
            buckets=RECOVERY_BUCKETS_S,
        )
        self.commit = Histogram(
            "eep_epoch_commit_seconds",
            "From the event to the revision that commits its epoch",
            registry=registry,
            buckets=COMMIT_BUCKETS_S,
        )


class WorkerMetrics:
    """What one rank's agent exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.epoch = gauge("eep_worker_epoch", "The epoch that this rank's engine runs under")
        self.prepared = gauge("eep_worker_prepared_epoch", "The newest epoch that this rank is prepared for")
        self.step = gauge("eep_worker_step", "Steps since the engine started")
        self.engine_up = gauge("eep_worker_engine_up", "1 while the engine process lives")
        self.lease_held = gauge("eep_worker_lease_held", "1 while the rank's lease is certainly held")
        self.running = gauge("eep_worker_running_requests", "Requests decoding on this rank")
        self.waiting = gauge("eep_worker_waiting_requests", "Requests queued on this rank")
        self.masked = gauge(
            "eep_worker_masked_pairs", "(token, expert) pairs this rank left out since its engine started: best effort"
        )
        self.receive_wait = gauge("eep_worker_receive_wait_seconds", "Decayed mean wait for a peer's rows", "peer")
        self.faults = Counter("eep_worker_faults_total", "Fault reports by this rank", ("evidence",), registry=registry)
        self.loaded_bytes = Counter(
            "eep_worker_loaded_bytes_total", "Expert weights loaded, by source tier", ("tier",), registry=registry
        )
        self.prepare = Histogram(
            "eep_worker_prepare_seconds",
            "Link, load and stage one epoch",
            registry=registry,
            buckets=RECOVERY_BUCKETS_S,
        )


class GatewayMetrics:
    """What one gateway exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.requests = counter("eep_gateway_requests_total", "Requests that ended", "route", "outcome")
        self.resumes = counter("eep_gateway_resumes_total", "Streams taken over by another rank after a loss")
        self.retries = counter("eep_gateway_retries_total", "Requests sent again before their first token")
        self.inexact = counter(
            "eep_gateway_inexact_resumes_total",
            "Answers taken over whose sampling another rank could not continue exactly",
        )
        self.best_effort = counter(
            "eep_gateway_best_effort_total", "Answers with tokens that were made while experts were missing"
        )
        self.refused = counter("eep_gateway_errors_total", "Errors given to clients", "code")
        self.inflight = Gauge("eep_gateway_inflight_requests", "Requests under way", ("rank",), registry=registry)
        self.queued = Gauge("eep_gateway_queued_requests", "Requests waiting to be admitted", registry=registry)
        self.routable = Gauge("eep_gateway_routable_ranks", "Ranks that take new requests", registry=registry)
        self.first_token = Histogram(
            "eep_gateway_first_token_seconds",
            "From acceptance to the first token sent to the client",
            registry=registry,
            buckets=TOKEN_BUCKETS_S,
        )
        self.stall = Histogram(
            "eep_gateway_stall_seconds",
            "Longest gap between two tokens of a stream that was resumed",
            registry=registry,
            buckets=RECOVERY_BUCKETS_S,
        )


def metrics_handler(registry: CollectorRegistry) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The aiohttp handler of ``GET /metrics``: ``registry`` in Prometheus's text format."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics
