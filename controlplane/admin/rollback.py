"""What undoes an operation that has ended: another operation, with its own id, reason and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.admin.errors import ConflictError
from controlplane.admin.submission import Asked
from schemas.operations import OperationKind, OperationState

if TYPE_CHECKING:
    from controlplane.admin.ports import Archive, Snapshot
    from controlplane.admin.requests import Parameters
    from schemas.operations import Operation
    from schemas.vocabulary import Rank

_OPPOSITES = {
    OperationKind.DRAIN: OperationKind.REJOIN,
    OperationKind.NOTICE: OperationKind.REJOIN,
    OperationKind.CORDON: OperationKind.UNCORDON,
    OperationKind.UNCORDON: OperationKind.CORDON,
    OperationKind.LEND: OperationKind.RECLAIM,
    OperationKind.PAUSE: OperationKind.RESUME,
    OperationKind.REPLACE: OperationKind.REPLACE,
    OperationKind.SCALE: OperationKind.SCALE,
}


async def opposite(
    operation: Operation, *, archive: Archive, snapshot: Snapshot, who: str, reason: str, key: str
) -> Asked:
    """The request that takes ``operation`` back.

    Raises:
        ConflictError: it still runs, did nothing, or cannot be undone.
    """
    kind = _OPPOSITES.get(operation.kind)
    if not operation.state.final:
        raise _cannot(operation, "it still runs", remedy=f"Cancel it with DELETE /v1/operations/{operation.id}.")
    if operation.state is not OperationState.DONE:
        raise _cannot(operation, f"it ended {operation.state} and changed nothing", remedy="There is nothing to undo.")
    if kind is None:
        raise _cannot(operation, f"a {operation.kind} has no opposite", remedy="Ask for what you want instead.")
    ranks, parameters = await _target(operation, archive=archive, snapshot=snapshot)
    return Asked(
        kind=kind,
        who=who,
        reason=reason or f"rollback of {operation.kind} {operation.id}",
        ranks=ranks,
        parameters=parameters,
        key=key,
    )


async def _target(operation: Operation, *, archive: Archive, snapshot: Snapshot) -> tuple[tuple[Rank, ...], Parameters]:
    if operation.kind is OperationKind.REPLACE:
        by = operation.parameters["by"]
        return (by if isinstance(by, tuple) else ()), {"by": operation.ranks}
    if operation.kind is OperationKind.SCALE:
        return (), {"target": await _size_before(operation, archive)}
    if operation.host:
        on_host = {rank for rank, one in snapshot.registrations.items() if one.host == operation.host}
        return tuple(sorted(on_host | set(operation.safe_to_terminate))), {}
    return operation.ranks, {}


async def _size_before(operation: Operation, archive: Archive) -> int:
    for recovery in await archive.recoveries():
        if recovery.cause == operation.id and (before := await archive.epoch(recovery.epoch_before)):
            return len(before.decided.members)
    raise _cannot(operation, "the epoch before it is no longer kept", remedy="Ask for the size you want.")


def _cannot(operation: Operation, why: str, *, remedy: str) -> ConflictError:
    return ConflictError(
        f"Operation {operation.id} cannot be undone: {why}.", field="path.id", value=operation.id, remedy=remedy
    )
