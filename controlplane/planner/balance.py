"""How even a placement is, and how even any placement could be.

Pressure is a rank's load divided by its speed; an instance steps at the pace of its most pressed rank, so the figure
that counts is max ÷ mean per layer (1.0 is perfect).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner.topology import Topology
    from schemas.placement import Placement


@dataclass(frozen=True)
class Balance:
    """Max ÷ mean pressure over layers."""

    mean: float
    worst: float

    @classmethod
    def of(cls, ratios: npt.NDArray[np.float64]) -> Balance:
        """Of one ratio per layer."""
        return cls(mean=float(ratios.mean()), worst=float(ratios.max()))

    def __str__(self) -> str:
        return f"{self.mean:.3f} (worst layer {self.worst:.3f})"


def pressures(
    placement: Placement, load: npt.NDArray[np.float64], speed: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """[layers, max_ranks] pressure, when each expert's load is split by the placement's routing weights.

    Args:
        placement: slots and weights.
        load: [layers, experts].
        speed: [max_ranks].
    """
    layers, experts = placement.n_layers, placement.n_experts
    held = placement.slots != EMPTY
    key = np.where(held, placement.slots, 0).astype(np.int64) + (np.arange(layers) * experts)[:, None, None]
    weight = np.where(held, placement.weights, 0).astype(np.float64)
    total = np.bincount(key.ravel(), weights=weight.ravel(), minlength=layers * experts)
    unit = np.divide(load.ravel(), total, out=np.zeros(layers * experts), where=total > 0)
    pressure: npt.NDArray[np.float64] = (weight * unit[key]).sum(axis=2) / speed
    return pressure


def imbalance(placement: Placement, load: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.float64]:
    """[layers] max ÷ mean pressure over the usable ranks."""
    mean = load.sum(axis=1) / topology.speed[topology.capacity > 0].sum()
    worst = pressures(placement, load, topology.speed).max(axis=1)
    ratio: npt.NDArray[np.float64] = worst / np.where(mean > 0, mean, 1)
    return np.where(mean > 0, ratio, 1.0)


def slot_bound(load: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.float64]:
    """[layers] max ÷ mean that no placement on these slots can beat.

    The linear relaxation of placing: at pressure t an expert of load w needs max(1, w / (t · fastest)) slots, and
    there are only so many; and t is never below the mean. Found by bisection; the same figure as the LP's.
    """
    live = topology.capacity > 0
    mean = load.sum(axis=1) / topology.speed[live].sum()
    fastest, slots = topology.speed[live].max(), topology.slots
    low, high = mean.copy(), np.maximum(mean, load.max(axis=1) / fastest)

    def fits(level: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        need = np.maximum(1, load / np.maximum(level, 1e-300)[:, None] / fastest).sum(axis=1)
        enough: npt.NDArray[np.bool_] = need <= slots * (1 + 1e-12)
        return enough

    even = fits(low)
    for _ in range(50):
        middle = (low + high) / 2
        good = fits(middle)
        high, low = np.where(good, middle, high), np.where(good, low, middle)
    bound: npt.NDArray[np.float64] = np.where(even, mean, high) / np.where(mean > 0, mean, 1)
    return np.where(mean > 0, bound, 1.0)
