"""Expert slots in device memory that peers of the host map by descriptor.

Everybody else sees a slot as two blocks of host bytes, w13 and w2, each its matrices and then (fp8) their scales. On
the device each of SGLang's parameters must be one array over all slots: a layer is up to four arrays, on 256 bytes:

    w13 [slots] · w13 scales [slots] · w2 [slots] · w2 scales [slots]

Filling goes through one pinned slot of host memory; what was filled is checked there and copied at once. Nothing of
this touches a slot that a table references, so no kernel reads what is being written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from native.cuda.module import module

if TYPE_CHECKING:
    import numpy.typing as npt

    from native import _cuda
    from schemas.vocabulary import Layer, Slot
    from worker.engine.slots import SlotLayout

_ALIGNMENT = 256


@dataclass(frozen=True)
class Arrays:
    """Where each layer's arrays lie. ``sizes``: bytes of one slot in each: w13, its scales, w2, its scales."""

    layers: int
    slots: int
    sizes: tuple[int, int, int, int]

    @classmethod
    def of(cls, layout: SlotLayout) -> Arrays:
        """Of a rank's slots."""
        expert = layout.expert
        w13, w2 = expert.w13_scale_bytes, expert.w2_scale_bytes
        return cls(layout.layers, layout.slots, (expert.w13_bytes - w13, w13, expert.w2_bytes - w2, w2))

    @property
    def starts(self) -> tuple[int, int, int, int]:
        """Of the arrays within a layer."""
        first, second, third, _ = (self._padded(size) for size in self.sizes)
        return 0, first, first + second, first + second + third

    @property
    def layer_bytes(self) -> int:
        """From one layer to the next."""
        return sum(self._padded(size) for size in self.sizes)

    @property
    def nbytes(self) -> int:
        """Of all layers."""
        return self.layers * self.layer_bytes

    def array(self, layer: Layer, index: int) -> slice:
        """Bytes of one array of one layer."""
        start = layer * self.layer_bytes + self.starts[index]
        return slice(start, start + self.slots * self.sizes[index])

    def parts(self, layer: Layer, slot: Slot) -> tuple[tuple[int, slice], ...]:
        """(offset on the device, bytes of the slot's blocks laid end to end) of each array that is not empty."""
        result, begin = [], 0
        for index, size in enumerate(self.sizes):
            if size:
                result.append((self.array(layer, index).start + slot * size, slice(begin, begin + size)))
            begin += size
        return tuple(result)

    def _padded(self, size: int) -> int:
        return -(-self.slots * size // _ALIGNMENT) * _ALIGNMENT


class CudaSlots:
    """The mapped slots of one rank: ours to write, a peer's to read."""

    def __init__(self, layout: SlotLayout, memory: _cuda.SharedMemory, *, fd: int) -> None:
        """``fd``: what a peer gets; kept."""
        self.layout = layout
        self.memory = memory
        self.fd = fd
        self.arrays = Arrays.of(layout)
        self._staging: npt.NDArray[np.uint8] | None = None

    @classmethod
    def create(cls, layout: SlotLayout, *, device: int) -> CudaSlots:
        """Fresh zeroed memory."""
        memory = module().SharedMemory(device=device, bytes=Arrays.of(layout).nbytes)
        return cls(layout, memory, fd=memory.descriptor())

    @classmethod
    def map(cls, layout: SlotLayout, fd: int, *, device: int) -> CudaSlots:
        """A peer's; takes the descriptor over."""
        memory = module().SharedMemory(device=device, descriptor=fd, bytes=Arrays.of(layout).nbytes)
        return cls(layout, memory, fd=-1)

    def blocks(self, layer: Layer, slot: Slot) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The pinned slot: what it holds now is nobody's."""
        del layer, slot
        whole, middle = self._host(), self.layout.expert.w13_bytes
        return whole[:middle], whole[middle:]

    def commit(self, layer: Layer, slot: Slot) -> None:
        """Copy the pinned slot to the device."""
        whole = self._host()
        for offset, part in self.arrays.parts(layer, slot):
            self.memory.write(offset, whole[part])

    def read(self, layer: Layer, slot: Slot, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]) -> None:
        """Copy a slot to host memory, array by array."""
        middle = self.layout.expert.w13_bytes
        for offset, part in self.arrays.parts(layer, slot):
            block, start = (w13, 0) if part.start < middle else (w2, middle)
            self.memory.read(offset, block[part.start - start : part.stop - start])

    def close(self) -> None:
        """Unmap."""
        if self.fd >= 0:
            os.close(self.fd)
        del self.memory

    def _host(self) -> npt.NDArray[np.uint8]:
        if self._staging is None:
            self._staging = np.frombuffer(module().PinnedMemory(self.layout.expert.nbytes), dtype=np.uint8)
        return self._staging


def tensor_at(address: int, nbytes: int) -> Any:
    """Device memory as a uint8 tensor; whoever holds the memory keeps it alive."""
    import torch  # noqa: PLC0415  # only where there is a device

    class Raw:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }

    return torch.as_tensor(Raw(), device="cuda")
