"""What stands in etcd under this rank's keys: the newest of each, on the current lease, whenever etcd is there."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from controlplane.etcd import LeaseNotFoundError, OutcomeUnknownError, UnavailableError
from schemas.codec import encode

if TYPE_CHECKING:
    from controlplane.etcd import Etcd
    from schemas.records import Record

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


class Publisher:
    """Writes records in the order they were given; of two for one key that wait, only the newer.

    Each write says all there is to say about its key, so repeating one whose outcome is unknown is harmless.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._lease = 0
        self._standing: dict[str, bytes] = {}
        self._waiting: dict[str, bytes] = {}
        self._work = asyncio.Event()

    def use(self, lease: int) -> None:
        """Write on this lease from now on; everything that stood on an earlier one is written again."""
        self._lease = lease
        self._waiting = {**self._standing, **self._waiting}
        self._work.set()

    def put(self, key: str, record: Record) -> None:
        """Let ``record`` stand under ``key``."""
        self._waiting.pop(key, None)
        self._waiting[key] = encode(record)
        self._work.set()

    def forget(self, prefix: str) -> None:
        """Do not repeat what stands under ``prefix`` on a later lease."""
        self._standing = {key: value for key, value in self._standing.items() if not key.startswith(prefix)}

    @property
    def settled(self) -> bool:
        """Whether everything given so far stands."""
        return not self._waiting

    async def run(self) -> None:
        """Write for ever."""
        pause = _FIRST_PAUSE_S
        while True:
            await self._work.wait()
            if not self._waiting or not self._lease:
                self._work.clear()
                continue
            key, value = next(iter(self._waiting.items()))
            try:
                await self._etcd.put(key, value, lease=self._lease)
            except LeaseNotFoundError:
                self._lease = 0  # the lease's owner notices as well, and comes with a new one
            except (UnavailableError, OutcomeUnknownError) as error:
                log.debug("%s waits for etcd: %s", key, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                pause = _FIRST_PAUSE_S
                self._standing[key] = value
                if self._waiting.get(key) is value:
                    del self._waiting[key]
