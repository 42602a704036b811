"""Lower bounds by HiGHS: what the planner's results are divided by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from schemas.placement import EMPTY

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner import Topology
    from controlplane.planner.sourcing import Way
    from schemas.placement import Placement


def slots_lp(load: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.float64]:
    """[layers] least max ÷ mean of any placement on these slots, copies taken as divisible.

    With u = 1 / pressure:  max u  s.t.  y_e ≥ 1,  y_e ≥ u · w_e / fastest,  Σ y_e ≤ slots,  u ≤ Σ speed / Σ w.
    """
    speed = topology.speed[topology.capacity > 0]
    return np.array([_slots_lp(row, topology.slots, speed) for row in load])


def _slots_lp(load: npt.NDArray[np.float64], slots: int, speed: npt.NDArray[np.float64]) -> float:
    n = len(load)
    mean = load.sum() / speed.sum()
    # Scaled so that u = 1 is a perfectly even load.
    scaled = load / (mean * speed.max())
    rows = np.concatenate([np.arange(n), np.arange(n), np.full(n, n)])
    columns = np.concatenate([np.arange(n), np.full(n, n), np.arange(n)])
    values = np.concatenate([-np.ones(n), scaled, np.ones(n)])
    answer = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=coo_matrix((values, (rows, columns)), shape=(n + 1, n + 1)).tocsr(),
        b_ub=np.append(np.zeros(n), slots),
        bounds=[(1, None)] * n + [(0, 1)],
        method="highs",
    )
    if answer.status:
        raise RuntimeError(f"HiGHS: {answer.message}")
    return float(1 / answer.x[-1])


def split_lp(placement: Placement, load: npt.NDArray[np.float64], topology: Topology, layer: int) -> float:
    """Least max ÷ mean that any split over the copies of this placement gives.

    min t  s.t.  Σ_r x_er = w_e,  Σ_e x_er ≤ t · speed_r,  x ≥ 0.
    """
    ranks = [spec.rank for spec in topology.usable]
    table = placement.slots[layer, ranks]
    row, slot = np.nonzero((table != EMPTY) & (placement.weights[layer, ranks] > 0))
    expert, n = table[row, slot].astype(np.intp), len(row)
    speed = topology.speed[ranks]
    demand = load[layer] / (load[layer].sum() / speed.sum())
    equal = coo_matrix((np.ones(n), (expert, np.arange(n))), shape=(len(demand), n + 1)).tocsr()
    values = np.concatenate([np.ones(n), -speed])
    where = (np.concatenate([row, np.arange(len(ranks))]), np.concatenate([np.arange(n), np.full(len(ranks), n)]))
    answer = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=coo_matrix((values, where), shape=(len(ranks), n + 1)).tocsr(),
        b_ub=np.zeros(len(ranks)),
        A_eq=equal,
        b_eq=demand,
        method="highs",
    )
    if answer.status:
        raise RuntimeError(f"HiGHS: {answer.message}")
    return float(answer.fun)


def makespan_lp(ways: list[list[Way]]) -> float:
    """Least finish time when every transfer may be divided over its ways at will."""
    names = {
        link: index for index, link in enumerate(sorted({link for o in ways for way in o for link, _ in way.links}))
    }
    rows, columns, values, equal_rows = [], [], [], []
    column = 0
    for fill, options in enumerate(ways):
        for way in options:
            equal_rows.append(fill)
            for link, seconds in way.links:
                rows.append(names[link])
                columns.append(column)
                values.append(seconds)
            column += 1
    scale = max(values)
    rows += list(range(len(names)))
    columns += [column] * len(names)
    less = coo_matrix((np.append(np.array(values) / scale, -np.ones(len(names))), (rows, columns))).tocsr()
    equal = coo_matrix((np.ones(column), (equal_rows, np.arange(column))), shape=(len(ways), column + 1)).tocsr()
    answer = linprog(
        np.append(np.zeros(column), 1.0),
        A_ub=less,
        b_ub=np.zeros(len(names)),
        A_eq=equal,
        b_eq=np.ones(len(ways)),
        method="highs",
    )
    if answer.status:
        raise RuntimeError(f"HiGHS: {answer.message}")
    return float(answer.fun) * scale
