"""How even a repair can be that may write only so many slots of all layers together, whatever its ranks hold.

``rewriting`` tells how many writes a layer needs to be at a pressure. The budget is shared by all layers. A price for
each write takes its place: mean pressure + price · writes is at least the sum of what each layer makes of it alone,
whatever the price. The worst layer cannot be below a pressure at which the layers together need more writes than there
are. What is needed falls as the pressure rises, so pressures that lie between two known ones need not be looked at.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY
from tools.benchmarks.placement.budgeted import PRICES, STEP
from tools.benchmarks.placement.rewriting import NEVER, Held, writes_needed

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner import Topology
    from schemas.placement import Placement

SECONDS = 75.0
"""Of the processor, for the mean and for the worst layer each. Then nothing more is looked at: what follows from what
is known by then is a bound as well."""
DECIDING = 2e-4
"""Above the figure that decides whether a repair could have come near enough: four digits of a bound are kept."""
ROUNDS = 4
"""In which every layer is looked at once more, where it matters to the mean."""
BISECTIONS = 4
"""In which the bound of the worst layer is sought: at the figure that decides, then by halves."""


class _Layer:
    """What is known of the writes that one layer needs, by pressure: the lower the pressure, the more."""

    def __init__(self, held: Held, lowest: float) -> None:
        self.held = held
        self.deadline = 0.0
        self.lowest = lowest
        self.known: dict[float, int] = {}

    def look(self, level: float) -> int:
        """Find out for one pressure, while there is time."""
        if level not in self.known and time.process_time() > self.deadline:
            return self.at_least(level)
        if level not in self.known:
            self.known[level] = NEVER if level < self.lowest else writes_needed(self.held, level)
        return self.known[level]

    def at_least(self, level: float) -> int:
        """What follows for this pressure from what is known."""
        return max((needed for other, needed in self.known.items() if other >= level), default=0)

    def choices(self) -> list[tuple[float, int]]:
        """Pressures that cannot be beaten by fewer writes than stand beside the next one."""
        levels = sorted(self.known)
        reach = [self.lowest, *(max(self.lowest, level) for level in levels)]
        return list(zip(reach, [*(self.at_least(level) for level in levels), 0], strict=True))

    def refine(self, price: float) -> None:
        """Look in the middle of the gap that the cheapest choice lies in."""
        choices = self.choices()
        best = min(range(len(choices)), key=lambda i: choices[i][0] + price * choices[i][1])
        if best + 1 < len(choices) and choices[best + 1][0] - choices[best][0] > STEP * self.lowest:
            self.look((choices[best][0] + choices[best + 1][0]) / 2)


def least_with_budget(
    live: Placement,
    load: npt.NDArray[np.float64],
    left: Topology,
    *,
    budget: int,
    lowest: npt.NDArray[np.float64],
    reached: npt.NDArray[np.float64],
    near: float,
) -> dict[str, float]:
    """Max ÷ mean that no repair within the budget can beat: its mean over layers, and its worst layer.

    Args:
        live: what ranks held before the loss.
        load: [layers, experts].
        left: the ranks that remain.
        budget: slots over all layers that may be written beyond one for each orphan.
        lowest: [layers] max ÷ mean that no placement can beat, however it was come by.
        reached: [layers] max ÷ mean of a repair: nothing above is of interest.
        near: times the lowest; a figure that a repair has brought so near keeps the lowest as its bound.

    Raises:
        ValueError: ranks differ in slots or speed; the model is of equal ones.
    """
    kinds = {(spec.slots, spec.speed) for spec in left.usable}
    if len(kinds) != 1:
        raise ValueError(f"ranks of {len(kinds)} kinds: the bound is for equal slots and speeds")
    ((slots, _),) = kinds
    ranks = [spec.rank for spec in left.usable]
    scaled = load / (load.sum(axis=1) / len(ranks))[:, None]
    layers = [
        _Layer(Held([sorted(set(row[row != EMPTY].tolist())) for row in table], demand, slots), float(low))
        for table, demand, low in zip(live.slots[:, ranks], scaled, lowest, strict=True)
    ]
    mean, worst = float(lowest.mean()), float(lowest.max())
    if reached.mean() > near * mean:
        _allow(layers, SECONDS)
        for layer, level in zip(layers, reached, strict=True):
            layer.look(float(level))
        mean = max(mean, _least_mean(layers, budget))
    if reached.max() > near * worst:
        _allow(layers, SECONDS)
        worst = _least_worst(layers, budget, near * worst + DECIDING, float(reached.max()))
    return {"mean": _floored(mean), "worst": _floored(worst)}


def _allow(layers: list[_Layer], seconds: float) -> None:
    deadline = time.process_time() + seconds
    for layer in layers:
        layer.deadline = deadline


def _least_mean(layers: list[_Layer], budget: int) -> float:
    for _ in range(ROUNDS):
        _, price = _mean(layers, budget)
        for layer in layers:
            layer.refine(price)
    return _mean(layers, budget)[0]


def _mean(layers: list[_Layer], budget: int) -> tuple[float, float]:
    """The bound on the mean by what is known, and the price that gives it."""
    choices = [np.array(layer.choices()) for layer in layers]
    total = [
        sum(float((each[:, 0] + price * each[:, 1]).min()) for each in choices) - price * budget for price in PRICES
    ]
    best = int(np.argmax(total))
    return total[best] / len(layers), float(PRICES[best])


def _least_worst(layers: list[_Layer], budget: int, deciding: float, reached: float) -> float:
    """The highest pressure found at which the layers together need more writes than there are, ``deciding`` first."""
    low, high = max(layer.lowest for layer in layers), reached
    level = min(deciding, high)
    for _ in range(BISECTIONS):
        if _needs_more(layers, level, budget):
            low = level
        else:
            high = level
        level = (low + high) / 2
    return low


def _needs_more(layers: list[_Layer], level: float, budget: int) -> bool:
    needed = [layer.at_least(level) for layer in layers]
    for index, layer in enumerate(layers):
        if sum(needed) > budget:
            return True
        needed[index] = max(needed[index], layer.look(level))
    return sum(needed) > budget


def _floored(bound: float) -> float:
    """Four digits that are still a bound."""
    return float(np.floor(bound * 1e4) / 1e4)
