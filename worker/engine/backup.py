"""The host-memory backup: chosen experts in one shared-memory file that every engine of the host can map.

    8 bytes length · msgpack index {dtype, layers, {(layer, expert): offset}} · padding to a page · experts, w13 then w2

The agent writes it (from the checkpoint, verified against the manifest) and names its path in ``backups/<r>``.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from schemas.vocabulary import SourceTier
from worker.engine.errors import SourceError
from worker.engine.slots import expert_checksum

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from schemas.vocabulary import Expert, Layer
    from worker.engine.checkpoint import Checkpoint
    from worker.engine.manifest import Manifest

_PAGE = 4096


class _Index(msgspec.Struct, frozen=True):
    dtype: str
    expert_bytes: int
    experts: dict[str, int]
    """ "layer.expert" → offset of its bytes."""


def write_backup(
    path: Path, checkpoint: Checkpoint, manifest: Manifest, experts: Iterable[tuple[Layer, Expert]]
) -> int:
    """Make the backup file (layers counted from 0 over MoE layers); its size in bytes.

    Raises:
        CheckpointError: an expert cannot be read.
        SourceError: what was read is not what the manifest says.
    """
    shape = checkpoint.shape(manifest.dtype)
    wanted = sorted(set(experts))
    placed = {f"{layer}.{expert}": index * shape.nbytes for index, (layer, expert) in enumerate(wanted)}
    header = msgspec.msgpack.encode(_Index(manifest.dtype, shape.nbytes, placed))
    base = _base(len(header))
    temporary = path.with_suffix(".new")
    with temporary.open("w+b") as stream:
        stream.truncate(base + len(wanted) * shape.nbytes or 1)
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.flush()
        with mmap.mmap(stream.fileno(), 0) as mapped:
            whole: npt.NDArray[np.uint8] = np.frombuffer(mapped, dtype=np.uint8)
            for index, (layer, expert) in enumerate(wanted):
                w13, w2 = np.split(whole[base + index * shape.nbytes :][: shape.nbytes], [shape.w13_bytes])
                checkpoint.read(checkpoint.layers[layer], expert, w13, w2, dtype=manifest.dtype)
                if expert_checksum(w13, w2) != manifest.checksum(layer, expert):
                    raise SourceError(SourceTier.CHECKPOINT, f"layer {layer} expert {expert}: checksum differs")
                del w13, w2
            del whole
    temporary.replace(path)
    return base + len(wanted) * shape.nbytes


def _base(header: int) -> int:
    return -(-(8 + header) // _PAGE) * _PAGE


class BackupFile:
    """A mapped backup."""

    def __init__(self, path: Path) -> None:
        """Map it.

        Raises:
            SourceError: no such file, or not a backup.
        """
        try:
            with path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            (length,) = struct.unpack("<Q", mapped[:8])
            self._index = msgspec.msgpack.decode(mapped[8 : 8 + length], type=_Index)
        except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
            raise SourceError(SourceTier.HOST_BACKUP, f"{path}: {error}") from error
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(mapped, dtype=np.uint8)[_base(length) :]

    def read(self, layer: Layer, expert: Expert, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]) -> None:
        """Copy one expert.

        Raises:
            SourceError: it is not in this backup, or another shape is.
        """
        offset = self._index.experts.get(f"{layer}.{expert}")
        if offset is None or self._index.expert_bytes != w13.nbytes + w2.nbytes:
            raise SourceError(SourceTier.HOST_BACKUP, f"the backup has no layer {layer} expert {expert} of this size")
        w13[:] = self._bytes[offset : offset + w13.nbytes]
        w2[:] = self._bytes[offset + w13.nbytes : offset + w13.nbytes + w2.nbytes]
