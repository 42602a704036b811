"""What an agent tells about itself: a log line per change of mind, spans in the recovery's trace, and metrics."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlplane.telemetry import names
from controlplane.telemetry.tracing import past_span
from schemas.messages import Activated, EngineStatus, Fault, Prepared
from worker.agent.events import EngineEnded, Heard

if TYPE_CHECKING:
    from controlplane.telemetry import WorkerMetrics
    from worker.agent.core import State
    from worker.agent.events import Decision, Event

log = logging.getLogger(__name__)


@dataclass
class Story:
    """Told of every event and decision.

    Attributes:
        metrics: where figures go.
        asked_unix_ns: when the engine was asked to prepare the newest epoch.
    """

    metrics: WorkerMetrics
    asked_unix_ns: int = 0
    _last: str = ""

    def tell(self, before: State, event: Event, after: State, decision: Decision) -> None:
        """One event was decided."""
        if decision.reason and decision.reason != self._last:
            log.info("rank %d: %s", after.rank, decision.reason)
            self._last = decision.reason
        if after.asked > before.asked:
            self.asked_unix_ns = time.time_ns()
        if isinstance(event, Heard):
            self._heard(after, event)
        elif isinstance(event, EngineEnded):
            self.metrics.engine_up.set(0)
        self.metrics.epoch.set(after.activated)
        self.metrics.prepared.set(after.prepared)

    def _heard(self, state: State, event: Heard) -> None:
        match event.message:
            case Prepared() as prepared:
                self._prepared(state, prepared)
            case Activated() as activated:
                self.metrics.step.set(activated.step)
                self._span(state, names.COMMIT, time.time_ns() - int(activated.waited_ms * 1e6), activated.epoch)
            case Fault() as fault:
                for suspicion in fault.suspicions:
                    self.metrics.faults.labels(suspicion.evidence).inc()
            case EngineStatus() as status:
                self.metrics.running.set(status.running)
                self.metrics.waiting.set(status.waiting)
                self.metrics.masked.set(status.masked)
            case _:
                self.metrics.engine_up.set(1)

    def _prepared(self, state: State, prepared: Prepared) -> None:
        now = time.time_ns()
        self.metrics.prepare.observe((now - self.asked_unix_ns) / 1e9)
        self._span(state, names.PREPARE, self.asked_unix_ns, prepared.epoch)
        for phase in prepared.loads:
            self.metrics.loaded_bytes.labels(phase.tier).inc(phase.bytes)
            self._span(
                state,
                names.LOAD,
                now - int(phase.seconds * 1e9),
                prepared.epoch,
                {names.TIER: str(phase.tier), names.BYTES: phase.bytes, names.SLOTS: phase.slots},
            )

    def _span(
        self, state: State, name: str, start_unix_ns: int, epoch: int, attributes: dict[str, str | int] | None = None
    ) -> None:
        traceparent = state.record.traceparent if state.record else ""
        if traceparent:
            where: dict[str, str | int] = {names.RANK: state.rank, names.EPOCH_TO: epoch}
            past_span(name, parent=traceparent, start_unix_ns=start_unix_ns, attributes=where | (attributes or {}))
