"""``KeptLease``: the owner's side of a lease that a keeper process keeps."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controlplane.etcd.errors import UnavailableError
from controlplane.etcd.lease import LeaseState
from controlplane.etcd.ledger import RELEASE, Ledger, Report, Start, boot_s

if TYPE_CHECKING:
    from schemas.config import EtcdConfig

_ROOT = Path(__file__).resolve().parents[2]
_MESSAGE_BYTES = 65536
_START_S = 10.0
"""For the keeper's interpreter to come up on a busy machine."""
_STOP_S = 2.0
_RESPAWN_PAUSE_S = 0.1


class KeptLease:
    """A ``Lease``: ``take`` it, call ``progress`` from the owner's own loop, ``release`` it at the end, lost or not.

    Invariant: ``state`` is LOST before etcd can give the lease's keys away, and before the keeper revokes it. A keeper
    that dies is replaced by another one, which goes on with the same lease.
    """

    def __init__(self, config: EtcdConfig, *, ttl_s: int, progress_deadline_s: float) -> None:
        self._config = config
        self._asked_s = ttl_s
        self._progress_deadline_s = progress_deadline_s
        self._ledger = Ledger.create()
        self._lease = 0
        self._ttl_s = float(ttl_s)
        self._reason = ""
        self._lost = asyncio.Event()
        self._keeper: _Keeper | None = None
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def take(cls, config: EtcdConfig, *, ttl_s: int, progress_deadline_s: float) -> KeptLease:
        """Start a keeper and let it take a lease.

        Raises:
            UnavailableError: the keeper or etcd did not answer.
        """
        lease = cls(config, ttl_s=ttl_s, progress_deadline_s=progress_deadline_s)
        try:
            async with asyncio.timeout(config.deadline_s + _START_S):
                await lease._appoint()
        except BaseException as error:
            await lease._dismiss()
            lease._ledger.close()
            if isinstance(error, TimeoutError):
                raise UnavailableError("the lease keeper did not start; see its messages on standard error") from error
            raise
        lease._watching = asyncio.create_task(lease._watch(), name=f"kept lease {lease.lease:x}")
        return lease

    @property
    def lease(self) -> int:
        """See ``Lease.lease``."""
        return self._lease

    @property
    def ttl_s(self) -> float:
        """See ``Lease.ttl_s``."""
        return self._ttl_s

    @property
    def keeper_pid(self) -> int:
        """The keeper's process id, 0 while there is none."""
        return self._keeper.process.pid if self._keeper else 0

    @property
    def state(self) -> LeaseState:
        """See ``Lease.state``; right even when this loop has just woken from a stall."""
        if self._reason or self._ledger.lost:
            return LeaseState.LOST
        return self._ledger.proof.state(boot_s())

    def progress(self) -> None:
        """See ``Lease.progress``."""
        if not self._reason:
            self._ledger.tick()

    async def wait_lost(self) -> str:
        """See ``Lease.wait_lost``."""
        await self._lost.wait()
        return self._reason

    async def release(self) -> None:
        """See ``Lease.release``."""
        if self._watching is None:
            return
        if self._keeper is not None and not self._reason:
            self._keeper.send(RELEASE)
            await asyncio.wait({self._watching}, timeout=self._ttl_s + _STOP_S)
        self._lose("released")
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self._watching = None
        await self._dismiss()
        self._ledger.close()

    async def _appoint(self) -> None:
        """Start a keeper, for a new lease or for the one there is."""
        start = Start(
            etcd=self._config,
            owner=os.getpid(),
            ttl_s=self._asked_s,
            lease=self._lease,
            progress_deadline_s=self._progress_deadline_s,
        )
        self._keeper = _Keeper(self._ledger)
        self._keeper.send(msgspec.msgpack.encode(start))
        report = await self._keeper.report()
        if report is None or report.lost:
            raise UnavailableError(f"no lease: {report.lost if report else 'the keeper ended; see standard error'}")
        self._lease = report.lease
        self._ttl_s = self._ledger.proof.ttl_s

    async def _dismiss(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.end()

    async def _watch(self) -> None:
        hearing = asyncio.create_task(self._hear())
        try:
            while self.state is not LeaseState.LOST and not hearing.done():
                await asyncio.wait({hearing}, timeout=self._ledger.proof.lost_in(boot_s()))
            await asyncio.wait({hearing}, timeout=_RESPAWN_PAUSE_S)  # the keeper knows the reason
            self._lose(hearing.result() if hearing.done() else "no renewal was answered in time")
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _hear(self) -> str:
        """Listen to the keeper, replacing it if it dies; return why the lease is lost."""
        while True:
            report = await self._keeper.report() if self._keeper else None
            if report is not None and report.lost:
                return report.lost
            if report is None:
                await self._dismiss()
                await asyncio.sleep(_RESPAWN_PAUSE_S)
                try:
                    await self._appoint()
                except UnavailableError:
                    continue

    def _lose(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._lost.set()


class _Keeper:
    """The keeper process and the channel to it."""

    def __init__(self, ledger: Ledger) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        with theirs:
            descriptors = (theirs.fileno(), ledger.descriptor)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "controlplane.etcd.keeper", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the owner's terminal must not reach it before the owner
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])},
            )

    def send(self, message: bytes) -> None:
        """Send one message; a keeper that is gone is noticed by ``report``."""
        try:
            self._channel.send(message)
        except OSError:
            return

    async def report(self) -> Report | None:
        """The next report; None when the keeper has ended."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._channel, _MESSAGE_BYTES)
        except OSError:
            return None
        return msgspec.msgpack.decode(data, type=Report) if data else None

    async def end(self) -> None:
        """Close the channel, which makes the keeper revoke and end, and reap it; kill it if it does not end."""
        self._channel.close()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        descriptor = os.pidfd_open(self.process.pid)
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(_STOP_S):
                await ended.wait()
        except TimeoutError:
            self.process.kill()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self.process.wait()
