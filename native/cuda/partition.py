"""One device shared by virtual ranks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from native.cuda.module import module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from native.cuda.group import CudaGroup


@dataclass(frozen=True, eq=False)
class Partition:
    """One device shared by virtual ranks.

    Each has a stream in a green context of its own, or a plain stream where the driver has none; ``blocks`` of each
    rank fit
    the device together.
    """

    streams: list[int]
    blocks: int
    kind: str
    _owner: Any

    @classmethod
    def of(cls, *, device: int, parts: int, green: bool = True) -> Self:
        """Split ``device`` into ``parts``."""
        import torch  # noqa: PLC0415  # only where there is a device

        if green:
            with suppress(module().CudaError):
                owner = _green(device, parts)
                return cls(list(owner.streams), int(owner.multiprocessors), "green contexts", owner)
        streams = [torch.cuda.Stream(device) for _ in range(parts)]
        blocks = torch.cuda.get_device_properties(device).multi_processor_count // parts
        return cls([stream.cuda_stream for stream in streams], blocks, "plain streams", streams)


@cache
def _green(device: int, parts: int) -> Any:
    """Kept for the life of the process: captured graphs name these contexts, and may outlive their ranks."""
    return module().Partition(device=device, parts=parts)


def link_all(groups: Sequence[CudaGroup]) -> None:
    """Connect virtual ranks of one process with each other."""
    for group in groups:
        for peer in groups:
            if peer is group:
                continue
            group.connect(peer.rank, incarnation=peer.incarnation, inbox_fd=peer.inbox_fd(group.rank))
