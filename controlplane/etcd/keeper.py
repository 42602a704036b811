"""The keeper: a small process that keeps one lease for its owner.

The owner dies: the lease is revoked within milliseconds instead of lapsing after its TTL. The owner's interpreter
stalls: the lease is kept, because nothing here waits for it. The owner is wedged, its last progress longer ago
than the deadline: the lease is given up on purpose. The keeper ends with its lease, whatever ends that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from controlplane.etcd.client import EtcdClient
from controlplane.etcd.errors import EtcdError, LeaseNotFoundError
from controlplane.etcd.lease import Proof
from controlplane.etcd.ledger import RELEASE, Ledger, Report, Start, boot_s

if TYPE_CHECKING:
    from controlplane.etcd.interface import Etcd

_log = logging.getLogger("eep.keeper")
_MESSAGE_BYTES = 65536
_NICE = -10
_RENEWALS_PER_TTL = 3
_RETRY_PAUSE_S = 0.05


class End(Enum):
    """Why the keeper ends."""

    OWNER_DIED = "the owner died or dropped it"
    RELEASED = "the owner released it"
    WEDGED = "the owner made no progress"
    REVOKED = "etcd says that it expired or was revoked"
    UNANSWERED = "no renewal was answered in time"

    @property
    def revokes(self) -> bool:
        """Whether the lease is still there to be revoked, and nobody acts on it any more."""
        return self in {End.OWNER_DIED, End.RELEASED, End.WEDGED}


class Keeper:
    """One lease, its owner, and the first reason to end."""

    def __init__(self, etcd: Etcd, start: Start, ledger: Ledger, channel: socket.socket) -> None:
        self._etcd = etcd
        self._start = start
        self._ledger = ledger
        self._channel = channel
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._proof = Proof(0.0, start.ttl_s)
        self._lease = start.lease

    async def run(self, owner: int) -> End:
        """Keep the lease until there is a reason to end; ``owner`` is the owner's pidfd."""
        loop = asyncio.get_running_loop()
        loop.add_reader(owner, self._finish, End.OWNER_DIED)
        loop.add_reader(self._channel, self._hear)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._take()
            tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch_progress())]
            end = await self._end
        finally:
            loop.remove_reader(owner)
            loop.remove_reader(self._channel)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._give_up(end)
        return end

    def _hear(self) -> None:
        with suppress(OSError):
            if self._channel.recv(_MESSAGE_BYTES) == RELEASE:
                self._finish(End.RELEASED)
                return
        self._finish(End.OWNER_DIED)

    def _finish(self, end: End) -> None:
        if not self._end.done():
            self._end.set_result(end)

    async def _take(self) -> None:
        if self._lease:  # of a keeper that died: its last proof still counts
            self._proof = self._ledger.proof
        else:
            sent = boot_s()
            grant = await self._etcd.grant(self._start.ttl_s)
            self._lease = grant.lease
            self._prove(Proof(sent, grant.ttl_s))
        self._report(Report(lease=self._lease))

    async def _renew(self) -> None:
        pause = self._proof.ttl_s / _RENEWALS_PER_TTL
        if self._start.lease:
            pause = 0.0
        while (left := self._proof.lost_in(boot_s())) > 0:
            await asyncio.sleep(min(pause, left))
            sent = boot_s()
            period = self._proof.ttl_s / _RENEWALS_PER_TTL
            try:
                ttl = await self._etcd.keep_alive(self._lease, within_s=min(period, left))
                self._prove(Proof(sent, ttl))
                pause = period
            except LeaseNotFoundError:
                self._finish(End.REVOKED)
                return
            except EtcdError:
                pause = _RETRY_PAUSE_S  # another member may answer before the time is over
        self._finish(End.UNANSWERED)

    async def _watch_progress(self) -> None:
        deadline, began = self._start.progress_deadline_s, boot_s()
        while (left := max(self._ledger.progress_s, began) + deadline - boot_s()) > 0:
            await asyncio.sleep(left)
        self._finish(End.WEDGED)

    async def _give_up(self, end: End) -> None:
        """Lost for the owner first, then for everybody; tried until the lease is over anyway."""
        self._ledger.lose()
        over = boot_s() + self._proof.ttl_s + 1
        while end.revokes and boot_s() < over:
            try:
                await self._etcd.revoke(self._lease)
                break
            except EtcdError:
                await asyncio.sleep(_RETRY_PAUSE_S)
        self._report(Report(lease=self._lease, lost=end.value))

    def _prove(self, proof: Proof) -> None:
        self._proof = proof
        self._ledger.prove(proof)

    def _report(self, report: Report) -> None:
        with suppress(OSError):  # the owner may be gone
            self._channel.send(msgspec.msgpack.encode(report))


async def keep(channel: socket.socket, ledger: Ledger) -> int:
    """Read the first message, keep the lease to its end; the process's exit status."""
    start = msgspec.msgpack.decode(channel.recv(_MESSAGE_BYTES), type=Start)
    try:
        owner = os.pidfd_open(start.owner)
    except ProcessLookupError:  # it died while this process started
        return os.EX_NOINPUT
    if os.getppid() != start.owner:  # it died before the line above, and its pid may be another process's now
        return os.EX_NOINPUT
    channel.setblocking(False)
    async with EtcdClient(start.etcd) as etcd:
        keeper = Keeper(etcd, start, ledger, channel)
        try:
            end = await keeper.run(owner)
        except EtcdError as error:
            channel.send(msgspec.msgpack.encode(Report(lost=str(error))))
            return os.EX_UNAVAILABLE
    if end is not End.RELEASED:
        _log.warning("lease given up: %s", end.value)
    return os.EX_OK


def main(arguments: list[str]) -> int:
    """``python -m controlplane.etcd.keeper CHANNEL LEDGER``: two inherited descriptors."""
    logging.basicConfig(format="eep keeper: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they end the owner, and that ends the keeper
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # only root may; without it the keeper competes with the engine like anybody
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    channel, ledger = (int(argument) for argument in arguments)
    with socket.socket(fileno=channel) as connected:
        return asyncio.run(keep(connected, Ledger(ledger)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
