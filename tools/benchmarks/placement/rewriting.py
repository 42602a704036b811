"""The fewest slots that a layer has to write before all its ranks can be at a pressure t: a mixed-integer relaxation.

Any placement whose ranks all stay at t gives a point of this model, so what HiGHS finds that the model needs, every
repair needs. Ranks have any number of slots, but are alike:

* Experts with several live copies, or too heavy for one rank, are followed singly: which copies stay (k, 0 or 1) and
  with which load (x ≤ min(w, t) · k), and how many are written (a) and take how much (g ≤ min(w, t) · a).
* The others of a rank, one live copy each, stay there with their load F unless they are written elsewhere. So d of them
  leave, at most the heaviest, with load D; their slots become free.
* A rank writes n slots and takes v of load by it; where exactly what is written goes is left open: only the sums over
  all ranks agree. Experts without a live copy have to be written, with all their load.
* No rank holds more than its slots, or more load than t. A copy that stays has only the room that the others leave it,
  x ≤ k · (t − F) + D, and so has what is written, v ≤ n · (t − F) + D. This is what makes the model a tight one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

if TYPE_CHECKING:
    import numpy.typing as npt

SLACK = 1e-6
"""Of a pressure: less than that is not told apart."""
NEVER = 10**6
"""Writes, where no number of them is enough."""
NODES = 50
"""Branches after which HiGHS gives what it has proved by then, which is a bound as well."""
SECONDS = 60.0
"""The same for time."""
INFEASIBLE = 2
"""A status of scipy's milp."""
PIECES = 3
"""Of the curve of the heaviest experts of a rank: what d of them weigh."""


@dataclass(frozen=True)
class Held:
    """What the ranks that are left hold of one layer.

    Attributes:
        ranks: experts of each.
        load: [experts], 1 is the mean over ranks.
        slots: of each rank.
    """

    ranks: list[list[int]]
    load: npt.NDArray[np.float64]
    slots: int

    @property
    def copies(self) -> npt.NDArray[np.intp]:
        """[experts] live ones."""
        held = np.array([expert for row in self.ranks for expert in row], dtype=np.intp)
        return np.bincount(held, minlength=len(self.load))


class _Model:
    """Rows and columns, as they come.

    Attributes:
        kept: of each expert that is followed, the columns (k, x) of its copies.
        written: terms of what all ranks write, less what has to be written besides the orphans.
        taken: the same of the load.
    """

    def __init__(self) -> None:
        self.kept: dict[int, list[tuple[int, int]]] = {}
        self.written: list[tuple[int, float]] = []
        self.taken: list[tuple[int, float]] = []
        self.cost: list[float] = []
        self.high: list[float] = []
        self.whole: list[int] = []
        self.least: list[float] = []
        self.most: list[float] = []
        self.entries: list[tuple[int, int, float]] = []

    def column(self, *, high: float = np.inf, cost: float = 0.0, whole: int = 0) -> int:
        self.cost.append(cost)
        self.high.append(high)
        self.whole.append(whole)
        return len(self.cost) - 1

    def row(self, terms: list[tuple[int, float]], *, least: float = -np.inf, most: float = np.inf) -> None:
        self.entries += [(len(self.least), column, value) for column, value in terms]
        self.least.append(least)
        self.most.append(most)

    def fewest(self) -> int:
        """The least cost of whole numbers, or NEVER."""
        row, column, value = zip(*self.entries, strict=True)
        matrix = coo_matrix((value, (row, column)), shape=(len(self.least), len(self.cost))).tocsr()
        answer = milp(
            self.cost,
            constraints=LinearConstraint(matrix, self.least, self.most),
            bounds=Bounds(0, self.high),
            integrality=self.whole,
            options={"node_limit": NODES, "time_limit": SECONDS},
        )
        if answer.status == INFEASIBLE:
            return NEVER
        if answer.mip_dual_bound is None or not np.isfinite(answer.mip_dual_bound):
            return 0  # stopped before it had proved anything
        return int(np.ceil(answer.mip_dual_bound - 1e-4))


def writes_needed(held: Held, level: float) -> int:
    """Slots beyond one for each orphan that have to be written before every rank can be at ``level``; or NEVER."""
    level *= 1 + SLACK
    load, copies = held.load, held.copies
    orphans = np.flatnonzero(copies == 0)
    again = int(np.ceil(load[orphans] / level - SLACK).clip(1).sum()) - len(orphans)
    followed = (copies > 1) | ((copies == 1) & (load > level))
    model = _Model()
    model.kept = {int(expert): [] for expert in np.flatnonzero(followed)}
    for row in held.ranks:
        _rank(model, held, level, row)
    for expert, pairs in model.kept.items():
        most = min(float(load[expert]), level)
        more, given = model.column(cost=1, whole=1), model.column()
        model.row([*((x, 1.0) for _, x in pairs), (given, 1.0)], least=float(load[expert]), most=float(load[expert]))
        model.row([*((k, 1.0) for k, _ in pairs), (more, 1.0)], least=1)
        model.row([(given, 1.0), (more, -most)], most=0)
        model.written.append((more, -1.0))
        model.taken.append((given, -1.0))
    model.row(model.written, least=len(orphans) + again, most=len(orphans) + again)
    model.row(model.taken, least=float(load[orphans].sum()), most=float(load[orphans].sum()))
    needed = model.fewest()
    return needed if needed == NEVER else needed + again


def _rank(model: _Model, held: Held, level: float, row: list[int]) -> None:
    """The columns and rows of one rank; what it writes and gives away goes into the sums over all ranks."""
    single = np.sort(held.load[[expert for expert in row if expert not in model.kept]])[::-1]
    fixed, room = float(single.sum()), level - float(single.sum())
    slots, force = model.column(high=held.slots), model.column()
    leave, gone = model.column(high=len(single), cost=1, whole=1), model.column(high=fixed)
    model.written += [(slots, 1.0), (leave, -1.0)]
    model.taken += [(force, 1.0), (gone, -1.0)]
    for piece in range(min(PIECES, len(single))):
        slope = float(single[piece])
        model.row([(gone, 1.0), (leave, -slope)], most=float(single[:piece].sum()) - piece * slope)
    pairs = []
    for expert in row:
        if expert not in model.kept:
            continue
        k, x = model.column(high=1, whole=1), model.column()
        model.row([(x, 1.0), (k, -min(float(held.load[expert]), level))], most=0)
        model.row([(x, 1.0), (k, -room), (gone, -1.0)], most=0)
        pairs.append((k, x))
        model.kept[expert].append((k, x))
    model.row([*((k, 1.0) for k, _ in pairs), (slots, 1.0), (leave, -1.0)], most=held.slots - len(single))
    model.row([*((x, 1.0) for _, x in pairs), (force, 1.0), (gone, -1.0)], most=room)
    model.row([(force, 1.0), (slots, -level)], most=0)
    if room >= 0:
        model.row([(force, 1.0), (slots, -room), (gone, -1.0)], most=0)
