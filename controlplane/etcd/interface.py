"""What everything above speaks to: real etcd and the in-memory model both are an ``Etcd``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from controlplane.etcd.values import Batch, Grant, Listing, Txn, TxnResult


class Clock(Protocol):
    """Time as an object: tests and the simulator pass their own."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class LoopClock:
    """The running loop's time: monotonic in production, virtual under a virtual-time loop."""

    def now(self) -> float:
        """Monotonic seconds of the running loop."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait on the running loop."""
        await asyncio.sleep(seconds)


class Etcd(Protocol):
    """One client. A key that ends in ``/`` stands for everything below it, in reads, deletes and watches.

    Every call ends within the client's deadline and raises an ``EtcdError``. Reads are linearizable. Reads and
    repeatable transactions are retried on other members inside; anything else that may have been applied raises
    ``OutcomeUnknownError`` at once.
    """

    async def get(self, key: str, *, revision: int = 0) -> Listing:
        """Read a key or prefix, now or as it was at ``revision``.

        Raises:
            UnavailableError: nobody answered.
            CompactedError: ``revision`` is gone.
        """
        ...

    async def txn(self, txn: Txn) -> TxnResult:
        """Run a transaction.

        Raises:
            UnavailableError: nobody answered, nothing was written.
            OutcomeUnknownError: it may have been applied.
            TooLargeError: over 128 operations or 1.5 MiB.
            LeaseNotFoundError: a put names a lease that is gone.
        """
        ...

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write one key unconditionally; return its mod_revision. Raises as ``txn``."""
        ...

    async def delete(self, key: str) -> int:
        """Delete a key or prefix; return the revision after it. Raises as ``txn``."""
        ...

    async def grant(self, ttl_s: int) -> Grant:
        """Ask for a lease. Retried inside: a lease that nobody keeps just expires."""
        ...

    async def keep_alive(self, lease: int, *, within_s: float) -> int:
        """Renew a lease once; return the TTL in seconds, counted by etcd from the receipt of the request.

        Raises:
            LeaseNotFoundError: it expired or was revoked.
            UnavailableError: no answer within ``within_s``.
        """
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; one that is gone already is fine."""
        ...

    def stream(self, key: str, *, start: int) -> AsyncGenerator[Batch, None]:
        """One watch on one member, from revision ``start`` on; ``Watch`` resumes it. Close it with ``aclosing``.

        Raises:
            UnavailableError: the member is hung, gone, behind or without a leader: resume elsewhere.
            CompactedError: ``start`` is gone.
        """
        ...

    async def compact(self, revision: int) -> None:
        """Forget what was before ``revision``."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
