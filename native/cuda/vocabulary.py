"""Shapes, tables and rows of the CUDA backend: plain data, importable anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

SEND, RECEIVE = 1, 2
"""Phases of a dispatch or a combine; by default one launch does both."""


class Wire(IntEnum):
    """How rows travel."""

    BFLOAT16 = 0
    FP8 = 1
    """e4m3 with one float32 scale for each 128 values."""


class Layout(IntEnum):
    """How a dispatch lays out what arrived."""

    EXPERT_MAJOR = 0
    """[slots, capacity, hidden] and ``counts`` [slots]: what masked grouped GEMMs take."""
    PAIRS = 1
    """[pairs, hidden] with a slot and a weight for each."""


@dataclass(frozen=True, kw_only=True)
class CudaShape:
    """Constants of an instance, as in ``native.Shape``; ``hidden`` is a multiple of 8, for fp8 of 128."""

    max_ranks: int
    max_tokens: int
    hidden: int
    max_topk: int
    max_slots: int
    n_experts: int
    n_layers: int


class ShapeLike(Protocol):
    """``native.Shape`` or ``CudaShape``."""

    @property
    def max_ranks(self) -> int: ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    @property
    def hidden(self) -> int: ...  # noqa: D102
    @property
    def max_topk(self) -> int: ...  # noqa: D102
    @property
    def max_slots(self) -> int: ...  # noqa: D102
    @property
    def n_experts(self) -> int: ...  # noqa: D102
    @property
    def n_layers(self) -> int: ...  # noqa: D102


class ControlLike(Protocol):
    """What the watcher reads of ``native.ControlBlock``."""

    @property
    def abort_epoch(self) -> int: ...  # noqa: D102
    @property
    def fenced(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, eq=False)
class CudaTable:
    """One version of the routing table; the arguments of ``native.Table``."""

    epoch: int
    active: Sequence[int]
    incarnations: Sequence[int]
    """[max_ranks]."""
    offsets: npt.NDArray[np.int32]
    """[layers, experts + 1] into the flat lists."""
    ranks: npt.NDArray[np.uint16]
    slots: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint16]

    @classmethod
    def from_replicas(
        cls,
        *,
        epoch: int,
        active: Sequence[int],
        incarnations: Sequence[int],
        layers: Sequence[Sequence[Sequence[tuple[int, int, int]]]],
    ) -> Self:
        """From ``layers[layer][expert] = [(rank, slot, weight), …]``."""
        flat = [replica for layer in layers for expert in layer for replica in expert]
        counts = [[len(expert) for expert in layer] for layer in layers]
        ends = np.cumsum(np.asarray(counts, dtype=np.int32).reshape(-1), dtype=np.int32).reshape(len(layers), -1)
        starts = np.concatenate([[0], ends[:-1, -1]]).astype(np.int32)
        columns = np.asarray(flat, dtype=np.uint16).reshape(-1, 3)
        return cls(
            epoch=epoch,
            active=active,
            incarnations=incarnations,
            offsets=np.ascontiguousarray(np.concatenate([starts[:, None], ends], axis=1)),
            ranks=np.ascontiguousarray(columns[:, 0]),
            slots=np.ascontiguousarray(columns[:, 1]),
            weights=np.ascontiguousarray(columns[:, 2]),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rank's row of a step sync."""

    rank: int
    tokens: int
    flags: int
    prepared_epoch: int
    committed_epoch: int
    user: int


@dataclass(frozen=True, kw_only=True)
class CudaSyncResult:
    """How a step sync ended: ``rows`` of those that came, in rank order."""

    status: int
    rows: list[Row]
    suspects: list[int]
