"""Follows the epoch key and works out what each version asks of this rank."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import structs

from controlplane.etcd import Get, OutcomeUnknownError, Txn, UnavailableError, Watch
from schemas.codec import decode
from schemas.loads import loads_for
from schemas.messages import Peer
from schemas.placement import Placement
from schemas.records import Backup, EpochRecord, Registration
from worker.agent.events import EpochSeen, Plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from controlplane.etcd import Etcd, TxnResult
    from schemas.keys import Keys
    from schemas.messages import Load
    from schemas.records import EpochVersion
    from schemas.vocabulary import Rank

log = logging.getLogger(__name__)

_AGAIN_S = 0.1
_REMEMBERED = 8
"""Placements kept by digest: the live one, the next one, and some that may come back."""


class EpochFollower:
    """One ``EpochSeen`` for every epoch record, in order, with all that this rank needs to act on it."""

    def __init__(self, etcd: Etcd, keys: Keys, rank: Rank) -> None:
        self._etcd = etcd
        self._keys = keys
        self._rank = rank
        self._placements: dict[str, bytes] = {}
        self._ranks: dict[Rank, Registration] = {}
        self._backups: list[Backup] = []

    async def follow(self) -> AsyncIterator[EpochSeen]:
        """Yield for ever; etcd's absence is waited out."""
        async for change in Watch(self._etcd, self._keys.epochs):
            record: EpochRecord | None = None
            for event in change.events:
                if event.key == self._keys.epoch and event.item.value:
                    record = decode(event.item.value, EpochRecord, key=event.key)
                elif event.item.value:
                    self._placements[event.key.removeprefix(self._keys.placements)] = event.item.value
            if record is not None and (seen := await self._complete(record)) is not None:
                yield seen

    async def _complete(self, record: EpochRecord) -> EpochSeen | None:
        """Everything that the record names; None when a newer record has taken its place.

        A loss names ranks and placements that are known by now, and nothing has to be asked. Where slots are to be
        loaded the sources are looked up anew: one that is gone would only cost a time-out.
        """
        if all(name in self._placements for name in _named(record)) and self._knows_members(record):
            seen = self._seen(record)
            if not (seen.committed.loads or (seen.preparing and seen.preparing.loads)):
                return seen
        return self._seen(record) if await self._read(record) else None

    def _knows_members(self, record: EpochRecord) -> bool:
        versions = (record.committed, *((record.preparing,) if record.preparing else ()))
        return all(
            (there := self._ranks.get(member.rank)) is not None and there.incarnation == member.incarnation
            for version in versions
            for member in version.members
        )

    async def _read(self, record: EpochRecord) -> bool:
        """Learn in one round trip what the record needs; False when a placement is gone.

        A placement goes only when no record names it any more. Acting without one would be fatal: a rank that does not
        know what its slots hold would fill them all anew, those in use too (invariant 1).
        """
        unknown = sorted(_named(record) - self._placements.keys())
        reads = [Get(self._keys.ranks), Get(self._keys.backups), *(Get(self._keys.placement(name)) for name in unknown)]
        result = await self._answered(Txn(then=tuple(reads)))
        ranks, backups, *placements = result.replies
        for name, listing in zip(unknown, placements, strict=True):
            if listing.only is None:
                log.info("rank %d skips a record of epoch %d: a newer one stands", self._rank, record.committed.epoch)
                return False
            self._placements[name] = listing.only.value
        registrations = [decode(item.value, Registration, key=item.key) for item in ranks]
        self._ranks = {registration.rank: registration for registration in registrations}
        self._backups = [decode(item.value, Backup, key=item.key) for item in backups]
        return True

    def _seen(self, record: EpochRecord) -> EpochSeen:
        self._forget_all_but(_named(record))
        preparing = record.preparing
        return EpochSeen(
            now=asyncio.get_running_loop().time(),
            record=record,
            committed=self._plan(structs.replace(record, preparing=None), record.committed),
            preparing=self._plan(record, preparing) if preparing else None,
        )

    async def _answered(self, reads: Txn) -> TxnResult:
        """The answer, however long etcd is away: until then the epoch that runs goes on."""
        while True:
            try:
                return await self._etcd.txn(reads)
            except (UnavailableError, OutcomeUnknownError) as error:
                log.debug("rank %d waits for etcd: %s", self._rank, error)
                await asyncio.sleep(_AGAIN_S)

    def _forget_all_but(self, names: set[str]) -> None:
        """Keep those in use and the newest of the others."""
        others = [name for name in self._placements if name not in names]
        for name in others[: max(len(self._placements) - _REMEMBERED, 0)]:
            del self._placements[name]

    def _plan(self, record: EpochRecord, version: EpochVersion) -> Plan:
        wire = self._placements.get(version.placement)
        if wire is None:  # epoch 0 has none
            return Plan(placement=b"", digest=version.placement, peers=(), loads=())
        concerned = any(member.rank == self._rank for member in version.members)
        pending = record.loading or version == record.preparing
        return Plan(
            placement=wire,
            digest=version.placement,
            peers=_peers(version, self._ranks),
            loads=self._loads(record, wire) if concerned and pending else (),
        )

    def _loads(self, record: EpochRecord, target: bytes) -> tuple[Load, ...]:
        held = self._placements.get(record.held)
        return loads_for(
            self._rank,
            record=record,
            target=Placement.from_wire(target),
            held=Placement.from_wire(held) if held else None,
            registrations=self._ranks,
            backups=self._backups,
        )


def _named(record: EpochRecord) -> set[str]:
    """Digests of the placements that a record names."""
    return {record.committed.placement, record.held, record.preparing.placement if record.preparing else ""} - {""}


def _peers(version: EpochVersion, registrations: Mapping[Rank, Registration]) -> tuple[Peer, ...]:
    """How to reach the members that are (still) registered as the epoch knows them."""
    return tuple(
        Peer(rank=member.rank, incarnation=member.incarnation, host=there.host, link_address=there.link_address)
        for member in version.members
        if (there := registrations.get(member.rank)) is not None and there.incarnation == member.incarnation
    )
