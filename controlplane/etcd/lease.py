"""A lease and the three things its owner can know about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from controlplane.etcd.errors import EtcdError, LeaseNotFoundError
from controlplane.etcd.interface import LoopClock

if TYPE_CHECKING:
    from controlplane.etcd.interface import Clock, Etcd

_UNCERTAIN_AFTER = 2 / 3
_LOST_AFTER = 0.9
"""Of the TTL: the last tenth is the owner's time to stop before etcd may give its keys away."""


class LeaseState(Enum):
    """What the owner may conclude."""

    HELD = "held"
    UNCERTAIN = "uncertain"
    """No renewal was answered for two thirds of the TTL: take on nothing new."""
    LOST = "lost"
    """It can no longer be proved held: stop."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The last renewal that etcd answered; etcd counts the TTL from a moment after ``sent_s``, so we count from it."""

    sent_s: float
    ttl_s: float

    def state(self, now_s: float) -> LeaseState:
        """What this proof is worth at ``now_s``, on the clock that took ``sent_s``."""
        age = (now_s - self.sent_s) / self.ttl_s
        if age < _UNCERTAIN_AFTER:
            return LeaseState.HELD
        return LeaseState.UNCERTAIN if age < _LOST_AFTER else LeaseState.LOST

    def lost_in(self, now_s: float) -> float:
        """Seconds until LOST."""
        return max(0.0, self.sent_s + _LOST_AFTER * self.ttl_s - now_s)


class Lease(Protocol):
    """A lease that somebody keeps alive for its owner: ``KeptLease`` in production, ``LoopLease`` in simulations."""

    @property
    def lease(self) -> int:
        """The id that puts name."""
        ...

    @property
    def ttl_s(self) -> float:
        """The TTL that etcd granted."""
        ...

    @property
    def state(self) -> LeaseState:
        """Held, uncertain or lost, now."""
        ...

    def progress(self) -> None:
        """The owner's own loop went round: call it there."""
        ...

    async def wait_lost(self) -> str:
        """Wait until the lease is lost; return why."""
        ...

    async def release(self) -> None:
        """Revoke it: its keys are gone when this returns, or when the TTL has passed if etcd is away."""
        ...


class LoopLease:
    """A lease kept by a task of the owner's own loop: for simulations and tools; a stalled loop loses it."""

    def __init__(self, etcd: Etcd, lease: int, ttl_s: float, *, sent_s: float, clock: Clock) -> None:
        self._etcd = etcd
        self._clock = clock
        self._lease = lease
        self._proof = Proof(sent_s, ttl_s)
        self._reason = ""
        self._lost = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(), name=f"lease {lease:x}")

    @classmethod
    async def take(cls, etcd: Etcd, ttl_s: int, *, clock: Clock | None = None) -> LoopLease:
        """Ask for a lease and keep it."""
        clock = clock or LoopClock()
        sent = clock.now()
        grant = await etcd.grant(ttl_s)
        return cls(etcd, grant.lease, grant.ttl_s, sent_s=sent, clock=clock)

    @property
    def lease(self) -> int:
        """See ``Lease.lease``."""
        return self._lease

    @property
    def ttl_s(self) -> float:
        """See ``Lease.ttl_s``."""
        return self._proof.ttl_s

    @property
    def state(self) -> LeaseState:
        """See ``Lease.state``."""
        return LeaseState.LOST if self._reason else self._proof.state(self._clock.now())

    def progress(self) -> None:
        """The loop that keeps the lease is the owner's: it cannot be frozen and keep it."""

    async def wait_lost(self) -> str:
        """See ``Lease.wait_lost``."""
        await self._lost.wait()
        return self._reason

    async def release(self) -> None:
        """See ``Lease.release``."""
        await self.abandon()
        self._lose("released")
        try:
            await self._etcd.revoke(self._lease)
        except EtcdError:
            return  # the TTL ends it

    async def abandon(self) -> None:
        """Stop keeping it and let the TTL end it: what a crash of the owner looks like."""
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self) -> None:
        period = self._proof.ttl_s / 3
        while (left := self._proof.lost_in(self._clock.now())) > 0:
            sent = self._clock.now()
            try:
                ttl = await self._etcd.keep_alive(self._lease, within_s=min(period, left))
                self._proof = Proof(sent, ttl)
                await self._clock.sleep(period)
            except LeaseNotFoundError:
                self._lose("etcd says that it expired or was revoked")
                return
            except EtcdError:
                await self._clock.sleep(min(period / 4, left))
        self._lose(f"no renewal was answered for {_LOST_AFTER * self._proof.ttl_s:.1f} s")

    def _lose(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._lost.set()
