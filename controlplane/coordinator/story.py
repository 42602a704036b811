"""One OpenTelemetry trace per recovery, told from the records: any leader can go on where another stopped.

The root's context stands in the recovery and in the epoch record. A leader that finds a recovery it did not begin tells
on in the same trace, with a link to its own election.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator.changes import recovery_id
from controlplane.telemetry import names
from controlplane.telemetry.tracing import link_to, parent_context, past_span, traceparent_of, tracer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from controlplane.coordinator.state import State, Write
    from schemas.operations import Operation, Recovery
    from schemas.records import Ack
    from schemas.vocabulary import Epoch


class Story:
    """What one replica has to say about the recoveries it leads."""

    def __init__(self, *, instance: str, replica: str) -> None:
        self._instance = instance
        self._replica = replica
        self._open: dict[str, Span] = {}
        self._told: set[tuple[int, int, bool]] = set()
        self._ended: set[str] = set()
        self._committed: dict[Epoch, int] = {}
        self._election = ""
        self._since = 0

    def elected(self, *, fence: int, since: int, now: int) -> None:
        """This replica became leader."""
        attributes: dict[str, AttributeValue] = {
            names.INSTANCE: self._instance,
            names.REPLICA: self._replica,
            names.FENCE: fence,
        }
        self._since = since
        self._election = past_span(
            names.ELECTION, parent="", start_unix_ns=since, end_unix_ns=now, attributes=attributes
        )

    def deposed(self) -> None:
        """What is open is ended by the successor; here it just stops."""
        for span in self._open.values():
            span.set_attribute(names.OUTCOME, "this replica lost the leadership")
            span.end()
        self._open.clear()

    def decided(
        self, write: Write, *, operations: Mapping[str, Operation], received: int, planned_ns: int, now: int
    ) -> Write:
        """Open the trace of what ``write`` begins; return it with the trace's context in its records.

        Args:
            write: the core's decision.
            operations: by id; what an operation causes is told in the operation's trace.
            received: when the event that led to it arrived, Unix ns.
            planned_ns: the planner's share of the time since.
            now: Unix ns.
        """
        if not write.recoveries:
            return write
        recovery = write.recoveries[0]
        parent = self._root(recovery, received, operations.get(recovery.cause))
        if not parent:
            return write
        if not recovery.traceparent and not recovery.outcome:
            for phase in recovery.phases:
                if phase.name == "detect":
                    self._phase(names.DETECT, parent, phase.started_unix_ns, received)
            attributes: dict[str, AttributeValue] = {names.REASON: recovery.reason}
            self._phase(names.DECIDE, parent, received, now - planned_ns, attributes)
            self._phase(names.PLAN, parent, now - planned_ns, now)
        record = write.record and msgspec.structs.replace(write.record, traceparent=parent)
        recoveries = (msgspec.structs.replace(recovery, traceparent=parent), *write.recoveries[1:])
        return replace(write, record=record, recoveries=recoveries)

    def _root(self, recovery: Recovery, received: int, asked: Operation | None) -> str:
        if recovery.id in self._open:
            return traceparent_of(self._open[recovery.id])
        begun = bool(recovery.traceparent)  # by a predecessor, who may have died before it exported anything
        if recovery.id in self._ended or (recovery.outcome and not begun):
            return recovery.traceparent
        began = min([phase.started_unix_ns for phase in recovery.phases] + [received])
        attributes: dict[str, AttributeValue] = {
            names.INSTANCE: self._instance,
            names.REPLICA: self._replica,
            names.RECOVERY_ID: recovery.id,
            names.REASON: recovery.reason,
            names.EPOCH_FROM: recovery.epoch_before,
            names.EPOCH_TO: recovery.epoch,
            names.CUT: "abort" if recovery.unplanned else "planned",
            names.BLAME: ",".join(str(blame.rank) for blame in recovery.blamed),
            names.EVIDENCE: recovery.blamed[0].evidence if recovery.blamed else "",
            names.REPORTERS: ",".join(str(r) for blame in recovery.blamed for r in blame.reporters),
            names.OPERATION_ID: recovery.cause,
        }
        span = tracer().start_span(
            names.RECOVERY,
            context=parent_context(recovery.traceparent or (asked.traceparent if asked else "")),
            start_time=self._since if begun else began,
            attributes={key: value for key, value in attributes.items() if value != ""},
            links=link_to(self._election) if begun else (),
        )
        self._open[recovery.id] = span
        return traceparent_of(span)

    def written(self, write: Write, *, started: int, now: int) -> None:
        """``write`` stands in etcd."""
        for operation in write.operations:
            if operation.state.final:
                self._operation(operation)
        if not write.recoveries:
            return
        recovery = write.recoveries[0]
        if write.record is not None:
            self._phase(names.PUBLISH, recovery.traceparent, started, now)
            if write.record.committed.epoch == recovery.epoch:
                self._committed = {recovery.epoch: now}
                self._phase(names.COMMIT, recovery.traceparent, write.decided, now)
        for ended in write.recoveries:
            span = self._open.pop(ended.id, None) if ended.outcome else None
            if span is not None:
                span.set_attribute(names.OUTCOME, ended.outcome)
                span.end(now)
                self._ended.add(ended.id)

    def acknowledged(self, state: State, ack: Ack, *, now: int) -> None:
        """A rank has prepared, or crossed into, an epoch."""
        recovery = state.recoveries.get(recovery_id(ack.epoch))
        told = (ack.epoch, ack.rank, ack.activated)
        if recovery is None or recovery.outcome or not recovery.traceparent or told in self._told:
            return
        if len(self._told) > 10_000:  # epochs long past
            self._told.clear()
            self._ended.clear()
        self._told.add(told)
        began = state.record.decided_unix_ns if state.record else now
        attributes: dict[str, AttributeValue] = {names.RANK: ack.rank, names.INCARNATION: ack.incarnation}
        if ack.activated:
            began = self._committed.get(ack.epoch, began)
            self._phase(names.FIRST_TOKEN, recovery.traceparent, began, ack.finished_unix_ns or now, attributes)
            return
        outcome: dict[str, AttributeValue] = {names.OUTCOME: ack.error or "prepared"}
        start, end = ack.started_unix_ns or began, ack.finished_unix_ns or now
        parent = self._phase(names.PREPARE, recovery.traceparent, start, end, {**attributes, **outcome})
        for load in ack.loads:
            work: dict[str, AttributeValue] = {
                names.TIER: str(load.tier),
                names.BYTES: load.bytes,
                names.SLOTS: load.slots,
            }
            self._phase(names.LOAD, parent, start, start + int(load.seconds * 1e9), {**attributes, **work})

    def _operation(self, operation: Operation) -> None:
        attributes: dict[str, AttributeValue] = {
            names.OPERATION_ID: operation.id,
            names.KIND: str(operation.kind),
            names.REASON: operation.reason,
            names.OUTCOME: f"{operation.state}: {operation.message}",
        }
        self._phase(
            names.OPERATION,
            operation.traceparent,
            operation.created_unix_ns,
            operation.finished_unix_ns,
            attributes,
        )

    def _phase(
        self, name: str, parent: str, start: int, end: int, attributes: dict[str, AttributeValue] | None = None
    ) -> str:
        return past_span(name, parent=parent, start_unix_ns=start, end_unix_ns=end, attributes=attributes or {})
