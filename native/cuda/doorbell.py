"""How a peer wakes a rank that sleeps: a pipe that says which step began.

Step lines lie in device memory, which the host cannot look at cheaply, and a bare wake-up cannot tell a step that has
begun from one that is over: two peers that ring for the same step would make a rank take part twice. So a ring carries
the epoch and the number of the sync, and a rank compares.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import Final

_RING: Final = struct.Struct("<IIQ")
"""Source rank, epoch, sync number: native/src/cuda/links.hpp has the same."""
_AT_ONCE: Final = 4096


class Doorbell:
    """One rank's doorbell. ``fd`` is readable once somebody has rung, and what peers write into."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        try:
            # One descriptor that reads and writes, so that what a poller waits on is what a peer gets.
            self.fd = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(reader)
            os.close(writer)
        self._begun: dict[int, tuple[int, int]] = {}

    def arrived(self, *, epoch: int, sync: int, members: frozenset[int]) -> bool:
        """Whether a member has begun sync ``sync`` of ``epoch`` or is in a later epoch. Makes ``fd`` unreadable."""
        with suppress(BlockingIOError):
            while data := os.read(self.fd, _AT_ONCE * _RING.size):
                for source, rung_epoch, rung_sync in _RING.iter_unpack(data):
                    self._begun[source] = max(self._begun.get(source, (0, 0)), (rung_epoch, rung_sync))
        return any(begun >= (epoch, sync) for source, begun in self._begun.items() if source in members)

    def forget(self, source: int) -> None:
        """The rank has a new process, or none."""
        self._begun.pop(source, None)

    def close(self) -> None:
        """Close our end."""
        os.close(self.fd)


def ring(fd: int, *, source: int, epoch: int, sync: int) -> None:
    """Say that ``source`` begins a sync; a bell that is full wakes its owner all the same."""
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(fd, _RING.pack(source, epoch, sync))
