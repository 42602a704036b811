"""The checksum of every expert as a slot holds it, made once from the checkpoint.

A slot filled from anywhere (a peer, a backup, the checkpoint again) is right if and only if its bytes have the checksum
that the manifest gives; the manifest's digest tells ranks of one instance that they serve the same weights.
"""

from __future__ import annotations

import fcntl
import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from worker.engine.slots import expert_checksum

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.checkpoint import Checkpoint


class Manifest(msgspec.Struct, frozen=True, dict=True):
    """Checksums by MoE layer (counted from 0, dense layers left out) and expert."""

    identity: str
    dtype: str
    checksums: tuple[tuple[int, ...], ...]

    @cached_property
    def digest(self) -> str:
        """Digest of the weights: the same on every host with the same checkpoint and dtype."""
        return hashlib.sha256(msgspec.msgpack.encode((self.dtype, self.checksums))).hexdigest()

    def checksum(self, layer: int, expert: int) -> int:
        """64-bit checksum of one expert."""
        return self.checksums[layer][expert]


def _make(checkpoint: Checkpoint, dtype: str) -> Manifest:
    shape = checkpoint.shape(dtype)
    w13, w2 = np.empty(shape.w13_bytes, dtype=np.uint8), np.empty(shape.w2_bytes, dtype=np.uint8)

    def one(layer: int, expert: int) -> int:
        checkpoint.read(layer, expert, w13, w2, dtype=dtype)
        return expert_checksum(w13, w2)

    checksums = tuple(
        tuple(one(layer, expert) for expert in range(checkpoint.n_experts)) for layer in checkpoint.layers
    )
    return Manifest(checkpoint.identity, dtype, checksums)


def obtain(checkpoint: Checkpoint, dtype: str, folder: Path) -> Manifest:
    """The stored manifest of this checkpoint, made first if there is none; ranks that start together wait for one.

    Raises:
        CheckpointError: an expert cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{checkpoint.identity[:32]}.{dtype}.manifest"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            stored = msgspec.msgpack.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            stored = None
        if stored is not None and stored.identity == checkpoint.identity:
            return stored
        made = _make(checkpoint, dtype)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.msgpack.encode(made))
        temporary.replace(path)
        return made
