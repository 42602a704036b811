"""What may be deleted: bounded rings of history, and placements that nothing names any more."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from controlplane.coordinator.state import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.coordinator.state import Name, State

ACKED_EPOCHS = 16
"""Epochs whose acknowledgements are kept: failed loads are remembered from them."""
SPARE_PLACEMENTS = 8
"""Unnamed placements that are kept, newest first: a slow agent may still be reading the last record."""
AT_ONCE = 64
"""Keys deleted by one transaction (etcd allows 128 operations)."""


def stale(state: State) -> tuple[tuple[Kind, Name], ...]:
    """Up to ``AT_ONCE`` keys that are too old to keep."""
    return tuple(islice(_stale(state), AT_ONCE))


def _stale(state: State) -> Iterator[tuple[Kind, Name]]:
    if state.record is None:
        return
    oldest = state.next_epoch - ACKED_EPOCHS
    for epoch in sorted({epoch for epoch, _ in state.acks if epoch < oldest}):
        yield Kind.ACK, str(epoch)
    past_ring = len(state.recoveries) - state.spec.history
    for recovery in sorted(state.recoveries)[: max(past_ring, 0)]:
        yield Kind.RECOVERY, recovery
        yield Kind.PAST, recovery
    ended = sorted((o for o in state.operations.values() if o.state.final), key=lambda o: (o.finished_unix_ns, o.id))
    for operation in ended[: max(len(ended) - state.spec.history, 0)]:
        yield Kind.OPERATION, operation.id
    yield from _placements(state)


def _placements(state: State) -> Iterator[tuple[Kind, Name]]:
    record = state.record
    named = {state.status.goal}
    if record is not None:
        named |= {record.held, record.committed.placement}
        named |= {record.preparing.placement} if record.preparing else set()
    unnamed = sorted(state.placements.keys() - named, key=lambda digest: state.revisions[Kind.PLACEMENT, digest])
    for digest in unnamed[: max(len(unnamed) - SPARE_PLACEMENTS, 0)]:
        yield Kind.PLACEMENT, digest
