"""What is read from etcd on demand, and the two writes of the API: a new operation and the wish to cancel one."""

from __future__ import annotations

import logging
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from controlplane.admin.errors import EtcdUnavailableError, RevisionGoneError
from controlplane.admin.ports import Change
from controlplane.etcd import CompactedError, EtcdError, EventKind, Put, Txn, Watch, absent, unchanged
from schemas.codec import RecordError, decode, encode
from schemas.operations import Operation, PastEpoch, Recovery
from schemas.records import Ack, EpochRecord, FaultReport, LeaderRecord, Record, Registration, Status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from controlplane.etcd import Etcd, Event, KeyValue
    from schemas.keys import Keys
    from schemas.vocabulary import Epoch

Kept = TypeVar("Kept", bound=Record)
LOG = logging.getLogger("eep.admin.archive")


@contextmanager
def _problems() -> Iterator[None]:
    """Turn etcd's errors into what a caller of the API should do about them."""
    try:
        yield
    except CompactedError as error:
        raise RevisionGoneError(
            f"Revision {error.asked} is compacted; the oldest kept is {error.oldest}.",
            field="header.Last-Event-ID",
            value=error.asked,
            remedy="Read /v1/cluster again and follow from its revision.",
        ) from error
    except EtcdError as error:
        raise EtcdUnavailableError(
            f"etcd did not answer: {error}",
            remedy="The instance serves on under its last epoch. Repeat with the same Idempotency-Key.",
        ) from error


def topics(keys: Keys) -> dict[str, tuple[str, type[Record]]]:
    """Key or prefix → topic of its changes and what stands there; placements and backups are too large to stream."""
    return {
        keys.epoch: ("epoch", EpochRecord),
        keys.status: ("status", Status),
        keys.election: ("leader", LeaderRecord),
        keys.ranks: ("rank", Registration),
        keys.reports: ("report", FaultReport),
        keys.all_acks: ("ack", Ack),
        keys.operations: ("operation", Operation),
        keys.recoveries: ("recovery", Recovery),
        keys.history: ("history", PastEpoch),
    }


class EtcdArchive:
    """``controlplane.admin.ports.Archive`` over one etcd client."""

    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self._etcd = etcd
        self._keys = keys
        self._topics = topics(keys)

    async def operation(self, operation: str) -> tuple[Operation, int] | None:
        """An operation and its mod_revision, None if there is none of that id."""
        with _problems():
            found = (await self._etcd.get(self._keys.operation(operation))).only
        return (decode(found.value, Operation, key=found.key), found.mod_revision) if found else None

    async def operations(self) -> list[Operation]:
        """All kept operations, newest first."""
        kept = await self._all(self._keys.operations, Operation)
        return sorted(kept, key=lambda operation: operation.created_unix_ns, reverse=True)

    async def create(self, operation: Operation, *, epoch_revision: int = 0) -> bool:
        """Write ``operation`` if its id is free and, unless 0, the epoch record is still at ``epoch_revision``."""
        key = self._keys.operation(operation.id)
        guards = (absent(key),) + ((unchanged(self._keys.epoch, epoch_revision),) if epoch_revision else ())
        with _problems():
            written = await self._etcd.txn(Txn(when=guards, then=(Put(key, encode(operation)),)))
        return written.succeeded

    async def update(self, operation: Operation, *, mod_revision: int) -> bool:
        """Write ``operation`` again if nobody else did since ``mod_revision``."""
        key = self._keys.operation(operation.id)
        put = Put(key, encode(operation))
        with _problems():
            return (await self._etcd.txn(Txn(when=(unchanged(key, mod_revision),), then=(put,)))).succeeded

    async def epochs(self) -> list[PastEpoch]:
        """The kept history, newest first."""
        return (await self._all(self._keys.history, PastEpoch))[::-1]

    async def epoch(self, epoch: Epoch) -> PastEpoch | None:
        """One past epoch."""
        return await self._one(self._keys.past(epoch), PastEpoch)

    async def recoveries(self) -> list[Recovery]:
        """The kept recoveries, newest first."""
        kept = await self._all(self._keys.recoveries, Recovery)
        return sorted(kept, key=lambda recovery: (_began(recovery), recovery.id), reverse=True)

    async def recovery(self, recovery: str) -> Recovery | None:
        """One recovery."""
        return await self._one(self._keys.recovery(recovery), Recovery)

    async def changes(self, *, after: int) -> AsyncGenerator[Change, None]:
        """Every change with a revision above ``after``, in order, for ever."""
        with _problems():
            async with aclosing(Watch(self._etcd, self._keys.prefix, after=after).changes()) as batches:
                async for batch in batches:
                    shown = [change for event in batch.events if (change := self._change(event))]
                    for position, change in enumerate(shown, start=1):
                        yield replace(change, last_of_revision=position == len(shown))

    def _change(self, event: Event) -> Change | None:
        for prefix, (topic, kind) in self._topics.items():
            if event.key.startswith(prefix):
                gone = event.kind is EventKind.DELETE
                record = None if gone else _readable(event.item, kind)
                if record is None and not gone:
                    return None
                return Change(
                    revision=event.item.mod_revision,
                    topic=topic,
                    key=event.key.removeprefix(prefix),
                    record=record,
                    last_of_revision=False,
                )
        return None

    async def _one(self, key: str, kind: type[Kept]) -> Kept | None:
        with _problems():
            found = (await self._etcd.get(key)).only
        return decode(found.value, kind, key=key) if found else None

    async def _all(self, prefix: str, kind: type[Kept]) -> list[Kept]:
        with _problems():
            listing = await self._etcd.get(prefix)
        return [record for item in listing if (record := _readable(item, kind)) is not None]


def _readable(item: KeyValue, kind: type[Kept]) -> Kept | None:
    """The record, or None for one that is damaged or newer than this build: the others are shown all the same."""
    try:
        return decode(item.value, kind, key=item.key)
    except RecordError as error:
        LOG.warning("%s", error)
        return None


def _began(recovery: Recovery) -> int:
    return min((phase.started_unix_ns for phase in recovery.phases), default=0)
