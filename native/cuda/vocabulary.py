"""Shapes, tables and rows of the CUDA backend: plain data, importable anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from native._native import Status

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

    status: Status
    rows: list[Row]
    suspects: list[int]
