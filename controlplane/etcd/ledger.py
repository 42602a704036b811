"""The page of memory that a lease's owner and its keeper share, and the messages between them.

Both read the same clock (CLOCK_BOOTTIME: monotonic, the same in every process, and it goes on while the machine is
suspended), so the owner knows what its lease is worth without asking anybody, even right after a stall.
"""

from __future__ import annotations

import mmap
import os
import time

import msgspec

from controlplane.etcd.lease import Proof
from schemas.config import EtcdConfig  # noqa: TC001  msgspec reads the annotation at run time

_PROGRESS_NS, _SENT_NS, _TTL_MS, _LOST = range(4)
_WORDS = 4
_WORD_BYTES = 8


def boot_s() -> float:
    """Now, in seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ledger:
    """Four 64-bit words, each written by one side only and each with a single aligned store."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._words = memoryview(self._map).cast("Q")[:_WORDS]

    @classmethod
    def create(cls) -> Ledger:
        """A new one, without a name that could be left behind."""
        descriptor = os.memfd_create("eep-lease", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        return cls(descriptor)

    def close(self) -> None:
        """Give the page back."""
        self._words.release()
        self._map.close()
        os.close(self.descriptor)

    def tick(self) -> None:
        """The owner's loop went round."""
        self._words[_PROGRESS_NS] = round(boot_s() * 1e9)

    @property
    def progress_s(self) -> float:
        """When the owner's loop last went round; 0 before the first time."""
        return self._words[_PROGRESS_NS] / 1e9

    def prove(self, proof: Proof) -> None:
        """The keeper's latest renewal that etcd answered."""
        self._words[_TTL_MS] = round(proof.ttl_s * 1000)
        self._words[_SENT_NS] = round(proof.sent_s * 1e9)

    @property
    def proof(self) -> Proof:
        """The latest renewal that etcd answered."""
        return Proof(self._words[_SENT_NS] / 1e9, self._words[_TTL_MS] / 1000)

    def lose(self) -> None:
        """The lease is given up: whatever the proof says, it is lost."""
        self._words[_LOST] = 1

    @property
    def lost(self) -> bool:
        """Whether it was given up."""
        return self._words[_LOST] != 0


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Owner → keeper, the first message."""

    etcd: EtcdConfig
    owner: int
    ttl_s: int
    lease: int
    """One to go on keeping, 0 to ask for a new one."""
    progress_deadline_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Keeper → owner: the lease it keeps, or why it is lost."""

    lease: int = 0
    lost: str = ""


RELEASE = b"release"
"""Owner → keeper: revoke the lease and end. The end of the channel means the same."""
