"""Election and fencing: who leads, and the proof that goes into every write of a leader.

The leader is the candidate whose key has the lowest create_revision, and that revision is its fence: it grows with
every election, and a re-elected process gets a new one. A value compare (PD, Patroni) would let the same process,
deposed and elected again, finish a write it began before.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from controlplane.etcd.errors import (
    DeposedError,
    LeaseLostError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)
from controlplane.etcd.interface import LoopClock
from controlplane.etcd.values import Compare, Delete, Get, KeyValue, Put, Txn, TxnResult, absent, created_at
from controlplane.etcd.watch import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping

    from controlplane.etcd.interface import Clock, Etcd
    from controlplane.etcd.lease import Lease

T = TypeVar("T")
_STAND_AGAIN_S = 0.1


def leader_of(candidates: Iterable[KeyValue]) -> KeyValue | None:
    """The candidate that leads: the oldest key."""
    return min(candidates, key=lambda candidate: candidate.create_revision, default=None)


@dataclass(frozen=True, slots=True)
class Leadership:
    """Proof of one election won; ``fence`` goes into every message and ``guard`` into every write."""

    key: str
    fence: int

    @property
    def guard(self) -> Compare:
        """Holds as long as this leadership does."""
        return created_at(self.key, self.fence)


async def fenced(etcd: Etcd, leadership: Leadership, txn: Txn) -> TxnResult:
    """Run ``txn`` only if the leadership still stands.

    Returns:
        The result of ``txn`` alone: ``succeeded`` False means that its own compares failed.

    Raises:
        DeposedError: the leadership is over, nothing was written.
        OutcomeUnknownError: it may have been written; read before deciding.
        UnavailableError: etcd is away, nothing was written.
    """
    guarded = replace(txn, when=(*txn.when, leadership.guard), otherwise=(*txn.otherwise, Get(leadership.key)))
    result = await etcd.txn(guarded)
    if result.succeeded:
        return result
    holder = result.replies[-1].only
    found = holder.create_revision if holder else 0
    if found != leadership.fence:
        raise DeposedError(leadership.fence, found)
    return replace(result, replies=result.replies[:-1])


class Election:
    """One candidate.

    Args:
        etcd: the client.
        prefix: of all candidates' keys.
        lease: what the candidate stands on.
        record: the value of its key: who it is and how to reach it.
        standing: the candidates by key, at once and whenever they change, from a watch that the owner has anyway; a
            watch of the election's own when None.
        clock: time for pauses.
    """

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        lease: Lease,
        record: bytes,
        *,
        standing: Callable[[], AsyncGenerator[Mapping[str, KeyValue], None]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._etcd = etcd
        self._standing = standing or self._watched
        self._prefix = prefix
        self._lease = lease
        self._record = record
        self._clock = clock or LoopClock()
        self.key = f"{prefix}{lease.lease:016x}"

    async def campaign(self) -> Leadership:
        """Stand and wait until elected.

        Raises:
            LeaseLostError: the candidate's lease is lost; take a new one and stand again.
        """
        return await self._while_held(self._elected())

    async def resign(self, leadership: Leadership) -> None:
        """Give the leadership up at once; the next candidate sees it within a watch delivery.

        Raises:
            UnavailableError: etcd is away; releasing the lease or its end does the same.
        """
        await self._etcd.txn(Txn(when=(leadership.guard,), then=(Delete(leadership.key),)))

    async def wait_deposed(self, leadership: Leadership) -> str:
        """Wait until the leadership is over; return why. ``standing`` must have told of the leadership before."""
        try:
            return await self._while_held(self._key_gone(leadership))
        except LeaseLostError as error:
            return str(error)

    async def _while_held(self, work: Coroutine[None, None, T]) -> T:
        lost = asyncio.create_task(self._lease.wait_lost())
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({lost, working}, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise LeaseLostError(self._lease.lease, lost.result())
            return working.result()
        finally:
            lost.cancel()
            working.cancel()
            await asyncio.gather(lost, working, return_exceptions=True)

    async def _elected(self) -> Leadership:
        if leadership := self._leading(await self._stand()):
            return leadership
        async with aclosing(self._standing()) as standing:
            async for candidates in standing:
                if self.key not in candidates:  # not told of yet, or an operator deleted it: to the end of the queue
                    await self._stand()
                elif leadership := self._leading(candidates.values()):
                    return leadership
        raise AssertionError("a watch without an end ended")

    def _leading(self, candidates: Iterable[KeyValue]) -> Leadership | None:
        leader = leader_of(candidates)
        return Leadership(self.key, leader.create_revision) if leader is not None and leader.key == self.key else None

    async def _watched(self) -> AsyncGenerator[Mapping[str, KeyValue], None]:
        watch = Watch(self._etcd, self._prefix, clock=self._clock)
        async with aclosing(watch.changes()) as changes:
            async for _ in changes:
                yield watch.items

    async def _stand(self) -> tuple[KeyValue, ...]:
        """Put the key if it is not there; return all candidates as of then, so that a lone one is elected at once."""
        everyone = Get(self._prefix)
        put = Put(self.key, self._record, self._lease.lease)
        stand = Txn(when=(absent(self.key),), then=(put, everyone), otherwise=(everyone,))
        while True:
            try:
                return (await self._etcd.txn(stand)).replies[-1].items
            except (UnavailableError, OutcomeUnknownError):
                await self._clock.sleep(_STAND_AGAIN_S)
            except LeaseNotFoundError as error:
                raise LeaseLostError(self._lease.lease, str(error)) from error

    async def _key_gone(self, leadership: Leadership) -> str:
        async with aclosing(self._standing()) as standing:
            async for candidates in standing:
                item = candidates.get(leadership.key)
                if item is None or item.create_revision != leadership.fence:
                    return f"{leadership.key} of fence {leadership.fence} was deleted"
        raise AssertionError("a watch without an end ended")


async def observe(etcd: Etcd, prefix: str, *, clock: Clock | None = None) -> AsyncGenerator[KeyValue | None, None]:
    """Yield the leading candidate's key at once and whenever it changes; None while nobody stands."""
    watch = Watch(etcd, prefix, clock=clock)
    known: KeyValue | None = None
    first = True
    async with aclosing(watch.changes()) as changes:
        async for _ in changes:
            leader = leader_of(watch.items.values())
            if first or leader != known:
                first, known = False, leader
                yield leader
