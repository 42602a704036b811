"""Which logical expert each slot holds, and what share of the expert's tokens the slot takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from schemas.vocabulary import Expert, Layer, Rank, Slot

EMPTY = 0xFFFF
"""A slot that holds nothing (also pads ranks that have fewer slots than the widest one)."""


class PlacementFormatError(ValueError):
    """Bytes that are not a placement of a version this build reads."""


class _Wire(msgspec.Struct, frozen=True):
    version: int
    shape: tuple[int, int, int]
    experts: int
    slots: bytes
    weights: bytes


@dataclass(frozen=True, eq=False)
class Placement:
    """Slots of every rank, for every MoE layer.

    Attributes:
        slots: uint16 [layers, max_ranks, slots]; the logical expert in each slot, or ``EMPTY``.
        weights: uint16 [layers, max_ranks, slots]; relative share of the expert's tokens that this replica takes,
            among the replicas of one expert in one layer. 0 means loaded but not routed to (a slot being prepared, or a
            spare copy).
        n_experts: logical experts per layer.
    """

    slots: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.uint16]
    n_experts: int

    def __post_init__(self) -> None:
        if self.slots.ndim != 3 or self.slots.shape != self.weights.shape:
            raise PlacementFormatError(
                f"placement: slots {self.slots.shape} and weights {self.weights.shape} must both be "
                "[layers, ranks, slots]"
            )
        held = self.slots[self.slots != EMPTY]
        if held.size and int(held.max()) >= self.n_experts:
            raise PlacementFormatError(f"placement: expert {int(held.max())} in a slot, but there are {self.n_experts}")
        self.slots.setflags(write=False)
        self.weights.setflags(write=False)

    @property
    def n_layers(self) -> int:
        """MoE layers."""
        return int(self.slots.shape[0])

    @property
    def max_ranks(self) -> int:
        """Rank slots of the instance, active or not."""
        return int(self.slots.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Slots of the widest rank, per layer."""
        return int(self.slots.shape[2])

    @cached_property
    def wire(self) -> bytes:
        """Canonical msgpack bytes: the same placement gives the same bytes on every machine."""
        return msgspec.msgpack.encode(
            _Wire(
                version=1,
                shape=(self.n_layers, self.max_ranks, self.slots_per_rank),
                experts=self.n_experts,
                slots=np.ascontiguousarray(self.slots, dtype="<u2").tobytes(),
                weights=np.ascontiguousarray(self.weights, dtype="<u2").tobytes(),
            )
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``wire`` in hex: the placement's name in etcd."""
        return hashlib.sha256(self.wire).hexdigest()

    @classmethod
    def from_wire(cls, data: bytes) -> Placement:
        """Read ``wire`` bytes back.

        Raises:
            PlacementFormatError: not a placement, or one of a newer version.
        """
        try:
            wire = msgspec.msgpack.decode(data, type=_Wire)
            if wire.version != 1:
                raise PlacementFormatError(f"placement: version {wire.version}, this build reads 1; upgrade it first")
            slots = np.frombuffer(wire.slots, dtype="<u2").reshape(wire.shape)
            weights = np.frombuffer(wire.weights, dtype="<u2").reshape(wire.shape)
        except (msgspec.MsgspecError, ValueError) as error:
            if isinstance(error, PlacementFormatError):
                raise
            raise PlacementFormatError(f"placement: {len(data)} bytes that do not decode: {error}") from error
        return cls(slots=slots, weights=weights, n_experts=wire.experts)

    @classmethod
    def round_robin(cls, *, layers: int, experts: int, ranks: Iterable[Rank], max_ranks: int, slots: int) -> Placement:
        """The simplest complete placement: expert e of the k-th pass goes to the next rank with a free slot.

        Raises:
            ValueError: the slots of ``ranks`` cannot hold every expert once.
        """
        members = sorted(ranks)
        if len(members) * slots < experts:
            raise ValueError(
                f"placement: {experts} experts need {experts} slots, but {len(members)} ranks × {slots} slots = "
                f"{len(members) * slots}; raise slots_per_rank or add ranks"
            )
        table = np.full((layers, max_ranks, slots), EMPTY, dtype=np.uint16)
        for index in range(len(members) * slots):
            rank, slot = members[index % len(members)], index // len(members)
            expert = index % experts
            if expert not in table[0, rank, :slot]:  # a second copy on the same rank would survive nothing
                table[:, rank, slot] = expert
        return cls(slots=table, weights=np.where(table == EMPTY, 0, 1).astype(np.uint16), n_experts=experts)

    def replicas(self, layer: Layer, expert: Expert) -> Iterator[tuple[Rank, Slot]]:
        """Every (rank, slot) that holds ``expert``, in rank order."""
        for rank, slot in np.argwhere(self.slots[layer] == expert):
            yield int(rank), int(slot)

    def missing(self, active: Iterable[Rank]) -> list[tuple[Layer, Expert]]:
        """Experts with no routed replica on an active rank: empty means coverage is intact."""
        live = sorted(active)
        routed = (self.weights[:, live] > 0) & (self.slots[:, live] != EMPTY)
        layers, ranks, slots = np.nonzero(routed)
        absent = np.ones((self.n_layers, self.n_experts), dtype=bool)
        absent[layers, self.slots[:, live][layers, ranks, slots]] = False
        return [(int(layer), int(expert)) for layer, expert in np.argwhere(absent)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
