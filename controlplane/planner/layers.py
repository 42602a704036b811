"""The bridge to the native kernels: plans of all layers from plain values."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner import _kernels
from controlplane.planner.constraints import Constraints, pins
from controlplane.planner.errors import InvalidInputError
from schemas.placement import EMPTY, Placement
from schemas.policy import Survivability

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner.topology import Topology


def checked_load(load: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[layers, experts] as float64; a layer nobody has routed in counts as evenly loaded.

    Raises:
        InvalidInputError: not two-dimensional, negative or not finite.
    """
    table = np.array(load, dtype=np.float64, ndmin=1)
    if table.ndim != 2 or not table.size:
        raise InvalidInputError(f"load: shape {table.shape} must be [layers, experts]")
    if table.shape[1] >= EMPTY:
        raise InvalidInputError(f"load: {table.shape[1]} experts, a placement holds fewer than {EMPTY}")
    if not np.isfinite(table).all() or (table < 0).any():
        raise InvalidInputError(
            "load: token counts must be finite and 0 or more; drop the sample and wait for the next"
        )
    table[table.sum(axis=1) <= 0] = 1.0
    return table


def checked_live(live: Placement, load: npt.NDArray[np.float64], topology: Topology) -> None:
    """Refuse a placement of another shape.

    Raises:
        InvalidInputError: it names the field.
    """
    wanted = (load.shape[0], topology.max_ranks, topology.width)
    if live.slots.shape != wanted or live.n_experts != load.shape[1]:
        raise InvalidInputError(
            f"live: slots {live.slots.shape} of {live.n_experts} experts, but load and topology say "
            f"{wanted} of {load.shape[1]}"
        )


def empty(load: npt.NDArray[np.float64], topology: Topology) -> Placement:
    """Nothing in any slot."""
    shape = (load.shape[0], topology.max_ranks, topology.width)
    return Placement(
        slots=np.full(shape, EMPTY, dtype=np.uint16), weights=np.zeros(shape, dtype=np.uint16), n_experts=load.shape[1]
    )


def threads(constraints: Constraints) -> int:
    """Native threads to use."""
    return constraints.threads or min(4, os.cpu_count() or 1)


def native_ranks(topology: Topology, *, experts: int, constraints: Constraints) -> _kernels.Ranks:
    """The topology as the kernels see it."""
    return _kernels.Ranks(
        capacity=topology.capacity,
        domain=topology.domains(constraints.survivability),
        host=topology.domains(Survivability.HOST),
        speed=topology.speed,
        width=topology.width,
        experts=experts,
        copies=constraints.copies,
    )


def absent(constraints: Constraints, load: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8] | None:
    """Uint8 [layers, experts] with 1 where no slot may be given; None when every expert has a source."""
    if not constraints.unavailable:
        return None
    table = np.zeros(load.shape, dtype=np.uint8)
    for layer, expert in constraints.unavailable:
        table[layer, expert] = 1
    return table


def evolve(
    live: Placement,
    load: npt.NDArray[np.float64],
    topology: Topology,
    constraints: Constraints,
    *,
    scratch: bool = False,
    improve: bool = True,
    relocate: bool = False,
    budget: int | None = None,
) -> tuple[Placement, int]:
    """Next placement, and the (layer, expert) pairs that no slot was left for.

    Args:
        live: what slots hold now.
        load: [layers, experts].
        topology: ranks that may be used.
        constraints: what to keep to.
        scratch: place everything anew.
        improve: also lower the worst pressure.
        relocate: last copies may be written elsewhere, from storage; only while nothing serves.
        budget: slots that may be written beyond what coverage needs; None for no limit.
    """
    experts = load.shape[1]
    slots, weights, (uncovered, _, _, _) = _kernels.evolve(
        native_ranks(topology, experts=experts, constraints=constraints),
        live.slots,
        live.weights,
        load,
        pinned=pins(constraints, layers=load.shape[0], topology=topology, experts=experts),
        absent=absent(constraints, load),
        scratch=scratch,
        improve=improve,
        relocate=relocate,
        fill=constraints.fill,
        budget=-1 if budget is None else budget,
        tolerance=constraints.tolerance,
        threads=threads(constraints),
    )
    return Placement(slots=slots, weights=weights, n_experts=experts), uncovered


def split(
    slots: npt.NDArray[np.uint16],
    routed: npt.NDArray[np.bool_],
    load: npt.NDArray[np.float64],
    topology: Topology,
    constraints: Constraints,
) -> Placement:
    """A placement of these slots with the best weights: routed where ``routed``, 0 elsewhere."""
    weights, _ = _kernels.split(
        native_ranks(topology, experts=load.shape[1], constraints=constraints),
        slots,
        routed.astype(np.uint16),
        load,
        threads=threads(constraints),
    )
    return Placement(slots=slots, weights=weights, n_experts=load.shape[1])
