"""Links to peers on this host: who may write into our inbox, and whose we may write into.

Every engine listens on a Unix socket. A peer says HELLO with its rank, incarnation and epoch; it gets the descriptors
of *its* inbox chunk at us, of our doorbell and of our slots. It is refused unless the epoch in force or the one being
prepared names exactly that incarnation: a process that was excluded gets nothing new, and what the chunk's former owner
still maps is orphaned before the chunk is given to a successor (DATA_PLANE, "Fencing and link repair").
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from worker.engine import frames, yielding
from worker.engine.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from native.plane import DataPlane
    from schemas.messages import Peer
    from schemas.vocabulary import Epoch, Incarnation, Rank
    from worker.engine.slots import SlotLayout, SlotMemory

_RETRY_S = 0.005
_ANSWER_S = 2.0


class LinkHello(msgspec.Struct, frozen=True, tag=True):
    """What a peer asks with."""

    rank: int
    incarnation: int
    epoch: int


class LinkGrant(msgspec.Struct, frozen=True, tag=True):
    """Answer; three descriptors follow: inbox chunk, doorbell, slots."""

    incarnation: int
    pid: int
    slots: int


class LinkRefusal(msgspec.Struct, frozen=True, tag=True):
    """Answer: not now, or never."""

    reason: str


@dataclass(frozen=True)
class _Linked:
    incarnation: Incarnation
    pid: int
    pidfd: int
    memory: SlotMemory


class Links:
    """Both directions of every link of one engine; safe to call from the preparing and the listening thread."""

    def __init__(
        self,
        *,
        group: DataPlane,
        memory: SlotMemory,
        peer_slots: Callable[[SlotLayout, int], SlotMemory],
        address: str,
        members: Callable[[], frozenset[tuple[Rank, Incarnation]]],
    ) -> None:
        """Listen on ``address``; ``peer_slots`` maps a peer's slots, ``members`` gives who may have a link now."""
        self._group = group
        self._memory = memory
        self._peer_slots = peer_slots
        self._members = members
        self._lock = threading.Lock()
        self._given: dict[Rank, Incarnation] = {}
        self._peers: dict[Rank, _Linked] = {}
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)  # noqa: PTH108 - a socket of our former incarnation
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address)
        self._listener.listen(128)
        threading.Thread(target=self._listen, name="eep-links", daemon=True).start()

    # --- giving -------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, LinkError, msgspec.MsgspecError):
                connection.settimeout(_ANSWER_S)
                payload, strays = frames.receive(connection)
                for fd in strays:
                    os.close(fd)
                self._answer(connection, msgspec.msgpack.decode(payload, type=LinkHello))

    def _answer(self, connection: socket.socket, hello: LinkHello) -> None:
        if (hello.rank, hello.incarnation) not in self._members():
            reason = f"rank {hello.rank} incarnation {hello.incarnation} is in no epoch known here"
            frames.send(connection, msgspec.msgpack.encode(LinkRefusal(reason)))
            return
        try:
            inbox = self._inbox_for(hello)
        except RuntimeError as error:  # the native group: the rank's former incarnation is still in force
            frames.send(connection, msgspec.msgpack.encode(LinkRefusal(str(error))))
            return
        doorbell = self._group.doorbell_fd()
        try:
            grant = LinkGrant(self._group.incarnation, os.getpid(), self._memory.layout.slots)
            frames.send(connection, msgspec.msgpack.encode(grant), (inbox, doorbell, self._memory.fd))
        finally:
            os.close(inbox)
            os.close(doorbell)

    def _inbox_for(self, hello: LinkHello) -> int:
        with self._lock:
            if self._given.get(hello.rank, hello.incarnation) == hello.incarnation:
                inbox = self._group.inbox_fd(hello.rank)
            else:
                inbox = self._group.renew_inbox(hello.rank)
            self._given[hello.rank] = hello.incarnation
            return inbox

    # --- taking -------------------------------------------------------------------------------------------------------

    def connect_all(self, peers: Iterable[Peer], *, epoch: Epoch, go_on: Callable[[], bool]) -> None:
        """Link every peer that is not linked in this incarnation; those that are not ready yet are asked again.

        Raises:
            LinkError: ``go_on`` said no while some were missing; the message names them and their last answer.
        """
        waiting = {peer.rank: peer for peer in peers if not self.linked(peer.rank, peer.incarnation)}
        last: dict[Rank, str] = {}
        while waiting:
            for rank, peer in list(waiting.items()):
                try:
                    self._connect(peer, epoch)
                    del waiting[rank]
                except (OSError, LinkError, msgspec.MsgspecError) as error:
                    last[rank] = str(error)
            if waiting:
                if not go_on():
                    raise LinkError("; ".join(f"rank {rank}: {last[rank]}" for rank in sorted(waiting)))
                time.sleep(_RETRY_S)

    def _connect(self, peer: Peer, epoch: Epoch) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(peer.link_address)
            hello = LinkHello(self._group.rank, self._group.incarnation, epoch)
            frames.send(connection, msgspec.msgpack.encode(hello))
            payload, fds = frames.receive(connection)
        answer = msgspec.msgpack.decode(payload, type=LinkGrant | LinkRefusal) if payload else LinkRefusal("hung up")
        if isinstance(answer, LinkRefusal) or len(fds) != 3 or answer.incarnation != peer.incarnation:
            for fd in fds:
                os.close(fd)
            raise LinkError(answer.reason if isinstance(answer, LinkRefusal) else f"answered as {answer}")
        inbox, doorbell, slots = fds
        memory = self._peer_slots(replace(self._memory.layout, slots=answer.slots), slots)
        linked = _Linked(peer.incarnation, answer.pid, os.pidfd_open(answer.pid), memory)
        with self._lock:
            self._forget(peer.rank)
            self._group.connect(
                peer.rank, incarnation=peer.incarnation, inbox_fd=inbox, doorbell_fd=doorbell, pid=answer.pid
            )
            self._peers[peer.rank] = linked

    def linked(self, rank: Rank, incarnation: Incarnation) -> bool:
        """Whether exactly this incarnation is linked."""
        found = self._peers.get(rank)
        return found is not None and found.incarnation == incarnation

    def memory(self, rank: Rank) -> SlotMemory | None:
        """Slots of a linked peer whose process lives."""
        found = self._peers.get(rank)
        if found is None or select.select([found.pidfd], [], [], 0)[0]:
            return None
        return found.memory

    def bury(self, rank: Rank) -> None:
        """A linked peer's process is dying: let the kernel tear its engine down behind everything else."""
        found = self._peers.get(rank)
        if found is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(found.pidfd, 0)  # not yet reaped, so its id is still its own
            group = os.getpgid(found.pid)
            if group != os.getpgrp():
                yielding.sink(group)
                yielding.idle(found.pid)

    def keep_only(self, members: frozenset[tuple[Rank, Incarnation]]) -> None:
        """Drop the links to everybody else."""
        with self._lock:
            for rank in [rank for rank, peer in self._peers.items() if (rank, peer.incarnation) not in members]:
                self._forget(rank)

    def _forget(self, rank: Rank) -> None:
        found = self._peers.pop(rank, None)
        if found is not None:
            self._group.disconnect(rank)
            os.close(found.pidfd)
            found.memory.close()

    def close(self) -> None:
        """Stop listening and drop every link."""
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept, which would take one more caller
        self._listener.close()
        self.keep_only(frozenset())
