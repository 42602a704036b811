"""Expert slots: the memory that holds experts, what each slot holds now, and which of them may not be touched.

All slots of a rank lie in one memory that peers on the host map and read without asking. In a memfd, layer l, slot s:

    w13: l × layer_bytes + s × w13_bytes                w2: l × layer_bytes + slots × w13_bytes + s × w2_bytes

Invariant 1 (ARCHITECTURE §3): a slot referenced by the live table is never written. ``write`` is the only way to a
writable view, and it refuses.
"""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from native import _native
from schemas.placement import EMPTY
from worker.engine.errors import LiveSlotError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from schemas.vocabulary import Expert, Layer, Slot
    from worker.engine.checkpoint import ExpertShape

_PAGE = 4096


@dataclass(frozen=True)
class SlotLayout:
    """Where each slot's two blocks lie in the memory of a rank."""

    layers: int
    slots: int
    expert: ExpertShape

    @property
    def layer_bytes(self) -> int:
        """Distance from one layer's slots to the next one's, in whole pages."""
        return -(-self.slots * self.expert.nbytes // _PAGE) * _PAGE

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.layers * self.layer_bytes

    def blocks(self, layer: Layer, slot: Slot) -> tuple[slice, slice]:
        """Byte ranges of w13 and w2."""
        first = layer * self.layer_bytes + slot * self.expert.w13_bytes
        second = layer * self.layer_bytes + self.slots * self.expert.w13_bytes + slot * self.expert.w2_bytes
        return slice(first, first + self.expert.w13_bytes), slice(second, second + self.expert.w2_bytes)


class SlotMemory(Protocol):
    """The slots of one rank, on whatever device: ours to write, a peer's to read."""

    @property
    def layout(self) -> SlotLayout: ...  # noqa: D102
    @property
    def fd(self) -> int:
        """What a peer maps."""
        ...

    def blocks(self, layer: Layer, slot: Slot) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Where to put w13 and w2 of a slot; one slot at a time."""
        ...

    def commit(self, layer: Layer, slot: Slot) -> None:
        """What ``blocks`` gave is filled: the slot holds it."""
        ...

    def read(self, layer: Layer, slot: Slot, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]) -> None:
        """Copy a slot's blocks to host memory."""
        ...

    def close(self) -> None:
        """Unmap and close."""
        ...


class HostSlots:
    """Slots in a memfd."""

    def __init__(self, layout: SlotLayout, fd: int, *, writable: bool) -> None:
        """Map ``fd`` and keep it."""
        self.layout = layout
        self.fd = fd
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.map = mmap.mmap(fd, layout.nbytes, mmap.MAP_SHARED, access)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self.map, dtype=np.uint8)

    @classmethod
    def create(cls, layout: SlotLayout, name: str) -> HostSlots:
        """Fresh zeroed memory; pages come when they are touched."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, layout.nbytes)
        return cls(layout, fd, writable=True)

    def blocks(self, layer: Layer, slot: Slot) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Views of w13 and w2."""
        first, second = self.layout.blocks(layer, slot)
        return self.bytes[first], self.bytes[second]

    def commit(self, layer: Layer, slot: Slot) -> None:
        """The views are the memory."""

    def read(self, layer: Layer, slot: Slot, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]) -> None:
        """Copy both blocks."""
        w13[:], w2[:] = self.blocks(layer, slot)

    def close(self) -> None:
        """Unmap (when the last view goes) and close."""
        os.close(self.fd)
        self.bytes = np.empty(0, dtype=np.uint8)


def expert_checksum(w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]) -> int:
    """64-bit checksum of one expert from its two blocks."""
    return (_native.checksum(w13) * 0x9E3779B97F4A7C15 + _native.checksum(w2)) & 0xFFFF_FFFF_FFFF_FFFF


class SlotStore:
    """Which expert each slot holds, verified, and which slots a table references.

    A slot's entry in ``held`` is the expert whose checksum its bytes had when they were written, or ``EMPTY``; it is
    ``EMPTY`` while it is being written. One thread writes; any may change what is protected.
    """

    def __init__(self, memory: SlotMemory) -> None:
        layout = memory.layout
        self.memory = memory
        self.held: npt.NDArray[np.uint16] = np.full((layout.layers, layout.slots), EMPTY, dtype=np.uint16)
        self._protected: dict[str, npt.NDArray[np.bool_]] = {}
        self._lock = threading.Lock()

    def protect(self, table: str, slots: npt.NDArray[np.bool_] | None) -> None:
        """Forbid writes to what ``table`` (``live`` or ``staged``) references: bool [layers, slots], or None."""
        with self._lock:
            if slots is None:
                self._protected.pop(table, None)
            else:
                self._protected[table] = slots.copy()

    def adopt(self, table: str, successor: str) -> None:
        """What protected slots as ``table`` now does so as ``successor``, in one step."""
        with self._lock:
            slots = self._protected.pop(table, None)
            self._protected.pop(successor, None)
            if slots is not None:
                self._protected[successor] = slots

    def is_protected(self, layer: Layer, slot: Slot) -> bool:
        """Whether a table references the slot."""
        return any(bool(slots[layer, slot]) for slots in self._protected.values())

    @contextmanager
    def write(
        self, layer: Layer, slot: Slot, expert: Expert
    ) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
        """The blocks w13 and w2 to fill with ``expert``; the slot holds it when the context ends without error.

        Raises:
            LiveSlotError: a table references the slot.
        """
        with self._lock:
            if self.is_protected(layer, slot):
                raise LiveSlotError(layer, slot, expert)
            self.held[layer, slot] = EMPTY
        yield self.memory.blocks(layer, slot)
        self.memory.commit(layer, slot)
        self.held[layer, slot] = expert
