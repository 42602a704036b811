"""The rule on operations: accept what was asked or refuse it, say how far it is, and end it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from controlplane.coordinator import changes, operating
from controlplane.coordinator.state import Question, Write
from schemas.operations import OperationState

if TYPE_CHECKING:
    from controlplane.coordinator.case import Case
    from controlplane.coordinator.state import State
    from schemas.operations import Operation
    from schemas.records import Status


def operations(case: Case) -> Write | State | None:
    """Accept what was asked, and say how far it is; the oldest first."""
    state = case.state
    pending = [operation for operation in state.operations.values() if not operation.state.final]
    for operation in sorted(pending, key=lambda o: (o.created_unix_ns, o.id)):
        found = _operation(state, operation)
        if isinstance(found, Write):
            return found
        state = found or state
    return state if state is not case.state else None


def _operation(state: State, operation: Operation) -> Write | State | None:
    if operation.state is OperationState.PENDING:
        return _pending(state, operation)
    waiting = operating.unfulfilled(state, operation)
    if not waiting:
        return _ended(state, operation, OperationState.DONE, "done")
    withdrawn = operating.withdraw(state, operation)
    if operation.cancel_requested:
        why = f"cancelled by {operation.cancel_requested}"
        return _ended(state, operation, OperationState.CANCELLED, why, status=withdrawn)
    if operating.overdue(state, operation):
        why = f"not done in time: still waiting for {waiting}"
        return _ended(state, operation, OperationState.FAILED, why, status=withdrawn)
    if waiting != operation.message:
        said = msgspec.structs.replace(operation, message=waiting, safe_to_terminate=operating.safe(state, operation))
        return Write(reason=f"operation {operation.id} waits for {waiting}", decided=state.now, operations=(said,))
    return None


def _pending(state: State, operation: Operation) -> Write | State | None:
    if operation.cancel_requested:
        return _ended(state, operation, OperationState.CANCELLED, f"cancelled by {operation.cancel_requested}")
    if state.question is not None and state.question.cause == operation.id and state.answer is None:
        return None
    answer = operating.accept(state, operation)
    if isinstance(answer, Question):
        found = state.answer
        if found is None or found.question.cause != operation.id:
            if operating.overdue(state, operation):
                return _ended(state, operation, OperationState.FAILED, "not done in time: still waiting for a plan")
            return replace(state, question=answer) if state.question is None else None
        if found.plan is None:
            return _ended(state, operation, OperationState.FAILED, f"no plan: {found.why}")
        answer = operating.planned(state, operation, found.plan)
    if isinstance(answer, operating.Refused):
        return _ended(state, operation, OperationState.REFUSED, answer.why)
    begun = operating.advanced(state, operation, OperationState.RUNNING, "accepted")
    return Write(
        reason=f"operation {operation.id} ({operation.kind}) by {operation.who}: {operation.reason}",
        decided=state.now,
        status=answer.status,
        operations=(begun,),
        placements=changes.fresh(state, *answer.placements),
    )


def _ended(
    state: State, operation: Operation, to: OperationState, message: str, *, status: Status | None = None
) -> Write:
    ended = operating.advanced(state, operation, to, message)
    changed = status if status is not None and status != state.status else None
    return Write(
        reason=f"operation {operation.id} {to}: {message}", decided=state.now, status=changed, operations=(ended,)
    )
