"""The coordinator's side of ``ControlPlaneMetrics``: what stands in a view, and what just happened."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING

from controlplane.coordinator.cluster import headroom
from controlplane.coordinator.predicting import balance
from controlplane.coordinator.ranks import counted

if TYPE_CHECKING:
    from controlplane.coordinator.cluster import ClusterView
    from controlplane.coordinator.state import State, Write
    from controlplane.telemetry import ControlPlaneMetrics


class Metering:
    """Sets gauges from views and counts events of one replica."""

    def __init__(self, metrics: ControlPlaneMetrics) -> None:
        self._metrics = metrics
        self._placement = ""
        self._shown: tuple[object, ...] = ()

    def show(self, view: ClusterView) -> None:
        """Gauges as of ``view``."""
        metrics, state = self._metrics, view.state
        shown = (state.record, state.status, view.leading, view.connected, view.leader_fence)
        if all(map(is_, shown, self._shown)) and self._shown:
            return  # most events change none of it, and there may be hundreds of ranks
        self._shown = shown
        metrics.leader.set(float(view.leading))
        metrics.etcd_connected.set(float(view.connected))
        metrics.fence.set(view.leader_fence)
        metrics.paused.set(float(bool(state.status.paused)))
        for rank_state, count in counted(state.status).items():
            metrics.ranks.labels(state=rank_state.value).set(count)
        if state.record is None:
            return
        committed = state.record.committed
        metrics.epoch.set(committed.epoch)
        metrics.preparing.set(float(state.record.preparing is not None))
        metrics.missing_experts.set(committed.missing)
        if state.live is not None and committed.placement != self._placement:
            self._placement = committed.placement
            metrics.headroom_ranks.set(headroom(state.live, state.members))
            metrics.imbalance.set(balance(state, state.live, state.members))

    def elected(self) -> None:
        """This replica became leader."""
        self._metrics.elections.inc()

    def fenced_out(self) -> None:
        """A write was refused."""
        self._metrics.fenced_writes.inc()

    def written(self, write: Write, before: State, *, seconds: float) -> None:
        """A write was applied ``seconds`` after it was decided."""
        if write.record is not None and (before.record is None or write.record.committed != before.record.committed):
            self._metrics.commit.observe(seconds)
        for operation in write.operations:
            if operation.state.final:
                self._metrics.operations.labels(kind=operation.kind.value, state=operation.state.value).inc()
        for recovery in write.recoveries:
            if not recovery.outcome:
                continue
            for phase in recovery.phases:
                self._metrics.recovery_phase.labels(phase=phase.name).observe(phase.seconds)
            ends = [phase.finished_unix_ns for phase in recovery.phases]
            total = max(ends, default=0) - min((phase.started_unix_ns for phase in recovery.phases), default=0)
            self._metrics.recovery_phase.labels(phase="total").observe(max(total, 0) / 1e9)
            if recovery.unplanned:
                evidence = recovery.blamed[0].evidence.value if recovery.blamed else "none"
                outcome = recovery.outcome.partition(":")[0].partition(" by ")[0]
                self._metrics.recoveries.labels(evidence=evidence, outcome=outcome).inc()
