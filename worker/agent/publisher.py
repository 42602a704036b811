"""What stands in etcd under this rank's keys: the newest of each, on the current lease, whenever etcd is there."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from controlplane.etcd import LeaseNotFoundError, OutcomeUnknownError, Put, Txn, UnavailableError
from schemas.codec import encode

if TYPE_CHECKING:
    from controlplane.etcd import Etcd
    from schemas.records import Record

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


class Publisher:
    """Writes records in the order they were given, those that wait together; of two for one key only the newer.

    Each write says all there is to say about its keys, so repeating one whose outcome is unknown is harmless. The
    newest record of each kind stands again on every later lease.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._lease = 0
        self._standing: dict[type[Record], tuple[str, bytes]] = {}
        self._waiting: dict[str, bytes] = {}
        self._work = asyncio.Event()
        self._held: asyncio.TimerHandle | None = None
        self.settled = asyncio.Event()
        """Set while everything given so far stands."""

    def use(self, lease: int) -> None:
        """Write on this lease from now on; everything that stood on an earlier one is written again."""
        self._lease = lease
        self._waiting = {**dict(self._standing.values()), **self._waiting}
        self._work.set()
        self.settled.clear()

    def put(self, key: str, record: Record, *, hold_s: float = 0.0) -> None:
        """Let ``record`` stand under ``key``; it may wait ``hold_s``, unless another one goes before."""
        self._waiting.pop(key, None)
        self._waiting[key] = encode(record)
        self._standing[type(record)] = (key, self._waiting[key])
        self.settled.clear()
        if hold_s:
            self._wake_in(hold_s)
        else:
            self._work.set()

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._held is not None:
            if loop.time() < self._held.when() <= due:
                return
            self._held.cancel()
        self._held = loop.call_at(due, self._work.set)

    async def run(self) -> None:
        """Write for ever."""
        pause = _FIRST_PAUSE_S
        while True:
            await self._work.wait()
            if not self._waiting:
                self.settled.set()
            if not self._waiting or not self._lease:
                self._work.clear()
                continue
            batch, lease = dict(self._waiting), self._lease
            try:
                await self._etcd.txn(Txn(then=tuple(Put(key, value, lease) for key, value in batch.items())))
            except LeaseNotFoundError:
                if self._lease == lease:
                    self._lease = 0  # the lease's owner notices as well, and comes with a new one
            except (UnavailableError, OutcomeUnknownError) as error:
                log.debug("%s wait for etcd: %s", ", ".join(batch), error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                pause = _FIRST_PAUSE_S
                # Under a lease that was replaced meanwhile it would go when that one ends: it is written again.
                for key, value in batch.items():
                    if self._lease == lease and self._waiting.get(key) is value:
                        del self._waiting[key]
