"""Native placement kernels (``native/src/planner``). Arrays are copied in; the GIL is released while they work.

Tables are uint16 [layers, ranks, slots], loads float64 [layers, experts]. A report is (uncovered (layer, expert) pairs,
int32 [layers] slots written, float64 [layers] worst pressure, float64 [layers] mean pressure).
"""

from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

_Table: TypeAlias = npt.NDArray[np.uint16]
_Report: TypeAlias = tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]

@final
class Ranks:
    """The topology, by rank.

    ``capacity`` int32 [ranks] (0: takes part in nothing), ``domain`` and ``host`` int32 [ranks], ``speed`` float64
    [ranks] (> 0); ``copies``: failure domains that each expert must be in (1 or 2).
    """

    def __init__(
        self, *, capacity: Any, domain: Any, host: Any, speed: Any, width: int, experts: int, copies: int
    ) -> None: ...

def evolve(
    ranks: Ranks,
    slots: _Table,
    weights: _Table,
    demand: npt.NDArray[np.float64],
    *,
    pinned: npt.NDArray[np.uint8] | None,
    absent: npt.NDArray[np.uint8] | None,
    scratch: bool,
    improve: bool,
    relocate: bool,
    fill: bool,
    budget: int,
    tolerance: float,
    threads: int,
) -> tuple[_Table, _Table, _Report]:
    """Coverage, survivability, balance: each by the fewest writes. ``budget`` < 0: no limit beyond coverage."""

def split(
    ranks: Ranks, slots: _Table, weights: _Table, demand: npt.NDArray[np.float64], *, threads: int
) -> tuple[_Table, _Report]:
    """The weights that minimise the worst pressure; copies of weight 0 stay at 0."""

def contingencies(
    ranks: Ranks,
    slots: _Table,
    weights: _Table,
    demand: npt.NDArray[np.float64],
    *,
    absent: npt.NDArray[np.uint8] | None,
    lost: list[list[int]],
    threads: int,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], list[_Report]]:
    """The repair after each loss; tables are [scenarios, layers, ranks, slots]."""
