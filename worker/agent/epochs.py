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

    from controlplane.etcd import Etcd, Listing, TxnResult
    from schemas.keys import Keys
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
        self._placements: dict[str, Placement] = {}

    async def follow(self) -> AsyncIterator[EpochSeen]:
        """Yield for ever; etcd's absence is waited out."""
        async for change in Watch(self._etcd, self._keys.epoch):
            for event in change.events:
                if event.item.value:
                    seen = await self._read(decode(event.item.value, EpochRecord, key=event.key))
                    if seen is not None:
                        yield seen

    async def _read(self, record: EpochRecord) -> EpochSeen | None:
        """Everything that the record names, in one round trip; None when a newer record has taken its place.

        A placement goes only when no record names it any more. Acting without one would be fatal: a rank that does not
        know what its slots hold would fill them all anew, those in use too (invariant 1).
        """
        names = {record.committed.placement, record.held, record.preparing.placement if record.preparing else ""} - {""}
        unknown = sorted(names - self._placements.keys())
        reads = [Get(self._keys.ranks), Get(self._keys.backups), *(Get(self._keys.placement(name)) for name in unknown)]
        result = await self._answered(Txn(then=tuple(reads)))
        ranks, backups, *placements = result.replies
        for name, listing in zip(unknown, placements, strict=True):
            if listing.only is None:
                log.info("rank %d skips a record of epoch %d: a newer one stands", self._rank, record.committed.epoch)
                return None
            self._placements[name] = Placement.from_wire(listing.only.value)
        self._forget_all_but(names)
        registrations = _by_rank(ranks)
        kept = [decode(item.value, Backup, key=item.key) for item in backups]
        preparing = record.preparing
        return EpochSeen(
            now=asyncio.get_running_loop().time(),
            record=record,
            committed=self._plan(structs.replace(record, preparing=None), record.committed, registrations, kept),
            preparing=self._plan(record, preparing, registrations, kept) if preparing else None,
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

    def _plan(
        self,
        record: EpochRecord,
        version: EpochVersion,
        registrations: Mapping[Rank, Registration],
        backups: list[Backup],
    ) -> Plan:
        target = self._placements.get(version.placement)
        if target is None:  # epoch 0 has none
            return Plan(placement=b"", digest=version.placement, peers=(), loads=())
        concerned = any(member.rank == self._rank for member in version.members)
        pending = record.loading or version == record.preparing
        loads = loads_for(
            self._rank,
            record=record,
            target=target,
            held=self._placements.get(record.held),
            registrations=registrations,
            backups=backups,
        )
        return Plan(
            placement=target.wire,
            digest=version.placement,
            peers=_peers(version, registrations),
            loads=loads if concerned and pending else (),
        )


def _by_rank(listing: Listing) -> dict[Rank, Registration]:
    found = [decode(item.value, Registration, key=item.key) for item in listing]
    return {registration.rank: registration for registration in found}


def _peers(version: EpochVersion, registrations: Mapping[Rank, Registration]) -> tuple[Peer, ...]:
    """How to reach the members that are (still) registered as the epoch knows them."""
    return tuple(
        Peer(rank=member.rank, incarnation=member.incarnation, host=there.host, link_address=there.link_address)
        for member in version.members
        if (there := registrations.get(member.rank)) is not None and there.incarnation == member.incarnation
    )
