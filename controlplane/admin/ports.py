"""What the API needs from the rest of the control plane, as it needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from schemas.policy import Spec
from schemas.records import Status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from schemas.operations import Operation, PastEpoch, Prediction, Recovery
    from schemas.placement import Placement
    from schemas.records import Ack, EpochRecord, LeaderRecord, Record, Registration
    from schemas.vocabulary import Epoch, Fence, Rank


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One consistent reading of the instance, as this replica last saw it."""

    instance: str
    replica: str
    revision: int
    """etcd revision that everything here is at least as new as."""
    connected: bool
    """etcd answered lately; otherwise the rest is what was last known."""
    leading: bool
    leader: LeaderRecord | None = None
    fence: Fence = 0
    epoch: EpochRecord | None = None
    epoch_revision: int = 0
    """mod_revision of the epoch record, for preconditions."""
    status: Status = field(default_factory=Status)
    spec: Spec = field(default_factory=Spec)
    registrations: Mapping[Rank, Registration] = field(default_factory=dict)
    acks: Mapping[Rank, Ack] = field(default_factory=dict)
    """Acknowledgements of the epoch that is being prepared, else of the committed one."""
    placement: Placement | None = None
    """The committed one; None before the first epoch or while it is being fetched."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key's change. ``record`` is None when the key was deleted, e.g. with its lease."""

    revision: int
    topic: str
    """``epoch``, ``rank``, ``status``, ``operation``, ``recovery``, ``report``, ``ack`` or ``leader``."""
    key: str
    """The last part of the key: a rank, an epoch or an id."""
    record: Record | None
    last_of_revision: bool
    """Only after this one is the revision complete: a reader may resume here."""


class Reader(Protocol):
    """Answers from memory, so that it answers while etcd is away too."""

    def snapshot(self) -> Snapshot:
        """The newest reading."""
        ...


class Predictor(Protocol):
    """The leader's planner, for dry runs."""

    async def predict(self, operation: Operation) -> Prediction:
        """What ``operation`` would do now; writes nothing.

        Raises:
            controlplane.admin.errors.ProblemError: this replica cannot say (not the leader, no epoch yet).
        """
        ...


class Archive(Protocol):
    """What stands in etcd and is read on demand.

    Every method raises ``controlplane.admin.errors.EtcdUnavailableError`` when etcd does not answer in time.
    """

    async def operation(self, operation: str) -> tuple[Operation, int] | None:
        """An operation and its mod_revision, None if there is none of that id."""
        ...

    async def operations(self) -> list[Operation]:
        """All kept operations, newest first."""
        ...

    async def create(self, operation: Operation, *, epoch_revision: int = 0) -> bool:
        """Write ``operation`` if its id is free and, unless 0, the epoch record is still at ``epoch_revision``.

        Returns:
            False when one of the two did not hold; nothing was written then.
        """
        ...

    async def update(self, operation: Operation, *, mod_revision: int) -> bool:
        """Write ``operation`` again if nobody else did since ``mod_revision``."""
        ...

    async def epochs(self) -> list[PastEpoch]:
        """The kept history, newest first."""
        ...

    async def epoch(self, epoch: Epoch) -> PastEpoch | None:
        """One past epoch."""
        ...

    async def recoveries(self) -> list[Recovery]:
        """The kept recoveries, newest first."""
        ...

    async def recovery(self, recovery: str) -> Recovery | None:
        """One recovery."""
        ...

    def changes(self, *, after: int) -> AsyncGenerator[Change, None]:
        """Every change with a revision above ``after``, in order, for ever.

        Raises:
            controlplane.admin.errors.RevisionGoneError: etcd has compacted ``after``; read the state again.
        """
        ...
