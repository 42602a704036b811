"""Operations: made once per idempotency key, refused before they can hurt, cancelled, undone.

The record in etcd is the operation. Its id is made from who asks and the key, and it is written only where no record of
that id stands; so a request repeated at another leader, after the first one died at any point, finds its own record.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from controlplane.admin.errors import ConflictError, NotFoundError, PreconditionFailedError
from controlplane.admin.reading import rank_numbers
from controlplane.admin.views import missing_rows
from controlplane.telemetry import current_traceparent, names, span
from schemas.operations import Operation, OperationKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.admin.ports import Archive, Predictor, Reader, Snapshot
    from controlplane.admin.requests import Parameters
    from schemas.operations import Prediction
    from schemas.vocabulary import Epoch, Rank

POLICY_ONLY = frozenset(
    {OperationKind.CORDON, OperationKind.UNCORDON, OperationKind.PAUSE, OperationKind.RESUME, OperationKind.NOTICE}
)
"""Kinds that move no rank by themselves, or (a notice) must be heard whatever it costs: never refused for coverage."""
CANCEL_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, decoded: what to do, on whose behalf, under which conditions."""

    kind: OperationKind
    who: str
    reason: str = ""
    ranks: tuple[Rank, ...] = ()
    host: str = ""
    parameters: Parameters = field(default_factory=dict)
    deadline_s: float = 0.0
    key: str = ""
    """Idempotency key; empty for a request that shall be new each time."""
    expected_epoch: Epoch | None = None
    traceparent: str = ""
    """The caller's, if it traces."""

    @property
    def digest(self) -> str:
        """SHA-256 over everything that makes it this request and not another."""
        said = (self.kind, self.reason, self.ranks, self.host, self.parameters, self.deadline_s)
        return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()

    @property
    def id(self) -> str:
        """The operation's id: the same for the same caller and key."""
        if not self.key:
            return uuid.uuid4().hex
        return hashlib.sha256(f"{self.who}\0{self.key}".encode()).hexdigest()[:32]


class Operations:
    """Makes, predicts, cancels and undoes operations."""

    def __init__(
        self, *, reader: Reader, archive: Archive, predictor: Predictor, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._reader = reader
        self._archive = archive
        self._predictor = predictor
        self._now_ns = now_ns

    async def predict(self, asked: Asked) -> Prediction:
        """What ``asked`` would do now; nothing is written.

        Raises:
            NotFoundError, PreconditionFailedError: as ``submit``.
        """
        self._check(asked)
        return await self._predictor.predict(self._operation(asked, asked.id, traceparent=""))

    async def submit(self, asked: Asked) -> tuple[Operation, bool]:
        """The operation that ``asked`` stands for, and whether it was made now (False: an earlier request made it).

        Raises:
            NotFoundError: a rank or host that nothing is known of.
            PreconditionFailedError: the epoch is another one than the caller expects.
            ConflictError: the key was used for another request, or the change would break coverage.
            EtcdUnavailableError: nothing is known to have been written; repeat with the same key.
        """
        identity = asked.id
        if asked.key and (earlier := await self._earlier(asked, identity)):
            return earlier, False
        epoch_revision = self._check(asked)
        attributes = {names.KIND: asked.kind, names.OPERATION_ID: identity, names.REASON: asked.reason}
        with span(names.ACCEPT, parent=asked.traceparent, attributes=attributes):
            operation = self._operation(asked, identity, traceparent=current_traceparent())
            if asked.kind not in POLICY_ONLY:
                _refuse_harm(await self._predictor.predict(operation))
            if await self._archive.create(operation, epoch_revision=epoch_revision):
                return operation, True
        if earlier := await self._earlier(asked, identity):  # the same request, twice at the same time
            return earlier, False
        raise _epoch_moved(asked.expected_epoch, self._reader.snapshot())

    async def cancel(self, identity: str, *, who: str) -> Operation:
        """Ask the leader to stop an operation and take back what it began.

        Raises:
            NotFoundError: there is no such operation.
            ConflictError: it has ended; ``rollback`` undoes it.
        """
        for _ in range(CANCEL_ATTEMPTS):
            operation, revision = await self.find(identity)
            if operation.state.final:
                raise ConflictError(
                    f"Operation {identity} has ended: {operation.state}.",
                    field="path.id",
                    value=identity,
                    remedy=f"Undo it with POST /v1/operations/{identity}:rollback.",
                )
            if operation.cancel_requested:
                return operation
            wanted = msgspec.structs.replace(operation, cancel_requested=who)
            if await self._archive.update(wanted, mod_revision=revision):
                return wanted
        raise ConflictError(
            f"Operation {identity} changes too fast to be cancelled.", field="path.id", value=identity, remedy="Repeat."
        )

    async def find(self, identity: str) -> tuple[Operation, int]:
        """An operation and its mod_revision.

        Raises:
            NotFoundError: there is none.
        """
        found = await self._archive.operation(identity)
        if found is None:
            raise NotFoundError(
                f"There is no operation {identity}.",
                field="path.id",
                value=identity,
                remedy="GET /v1/operations lists those that are kept.",
            )
        return found

    async def _earlier(self, asked: Asked, identity: str) -> Operation | None:
        found = await self._archive.operation(identity)
        if found is None:
            return None
        operation, _ = found
        if operation.body_digest != asked.digest:
            raise ConflictError(
                "This key was used for another request.",
                field="header.Idempotency-Key",
                value=asked.key,
                remedy="Use a new key for a new request.",
                operation=identity,
                kind=operation.kind,
                ranks=operation.ranks,
            )
        return operation

    def _check(self, asked: Asked) -> int:
        """The epoch record's mod_revision if the caller insists on an epoch, else 0."""
        snapshot = self._reader.snapshot()
        known = rank_numbers(snapshot)
        for rank in asked.ranks:
            if rank not in known:
                raise NotFoundError(
                    f"Nothing is known of rank {rank}.", field="rank", value=rank, remedy=f"Known ranks: {known}."
                )
        hosts = sorted({registration.host for registration in snapshot.registrations.values()})
        if asked.host and asked.host not in hosts:
            raise NotFoundError(
                f"No rank is registered on host {asked.host}.",
                field="host",
                value=asked.host,
                remedy=f"Known hosts: {', '.join(hosts) or 'none'}.",
            )
        if asked.expected_epoch is None:
            return 0
        if snapshot.epoch is None or snapshot.epoch.committed.epoch != asked.expected_epoch:
            raise _epoch_moved(asked.expected_epoch, snapshot)
        return snapshot.epoch_revision

    def _operation(self, asked: Asked, identity: str, *, traceparent: str) -> Operation:
        return Operation(
            id=identity,
            kind=asked.kind,
            who=asked.who,
            reason=asked.reason,
            ranks=asked.ranks,
            host=asked.host,
            parameters=asked.parameters,
            deadline_s=asked.deadline_s,
            created_unix_ns=self._now_ns(),
            idempotency_key=asked.key,
            body_digest=asked.digest,
            traceparent=traceparent,
        )


def _refuse_harm(prediction: Prediction) -> None:
    if prediction.allowed:
        return
    raise ConflictError(
        prediction.refusal,
        remedy="Add or rejoin ranks first; ?dry_run=1 shows what a change would do.",
        headroom_before=prediction.headroom_before,
        headroom_after=prediction.headroom_after,
        missing_experts=missing_rows(prediction.missing),
    )


def _epoch_moved(expected: Epoch | None, snapshot: Snapshot) -> PreconditionFailedError:
    now = snapshot.epoch.committed.epoch if snapshot.epoch else 0
    return PreconditionFailedError(
        f"The committed epoch is {now}.",
        field="header.If-Match",
        value=f'"{expected}"',
        remedy="Read /v1/cluster again and decide on what it says now.",
        epoch=now,
    )
