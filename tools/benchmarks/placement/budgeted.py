"""How even a repair can be that may write only so many slots: a counting argument about what holds an orphan.

For ranks of two slots. Experts and ranks are joined where a rank that is left holds an expert; a part with R ranks and
n experts has 2 · R − n slots to spare. Every slot that a repair writes lies in some part. A part none of whose experts
is written anywhere keeps a copy of each, and their loads stay within it: at pressure t it takes at most A(t) writes,
or what is left of it does not fit. A part with u experts that keep no copy takes at most u more than it has to spare,
but those u have to be written too. So, with M orphans, X writes beyond one for each and parts P touched in that way:
M ≤ Σ A(t) + Σ over P of (spare − A(t)), and P has at most X parts. That gives the least X for every t. The same is
counted for the heaviest orphans alone, each as heavy as the lightest of them: fewer, but they ask for more room. Those
written twice take a write each, and so does each of them that a part takes beyond what it could.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner import Topology
    from schemas.placement import Placement

STEP = 0.01
"""Between the pressures looked at, as a share of the lowest."""
SLOTS = 2
TINY = 1e-6
NOWHERE = -1
"""Instead of a number of slots: the part does not fit even as it is."""
NEVER = 10**6
PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 80)])
"""Of one write, in mean loads: the bound on the mean is the best that one of them gives."""


@dataclass
class Part:
    """Experts that hang together by the ranks they share.

    Attributes:
        experts: in it.
        ranks: those with two experts of it, as pairs.
        halves: experts that are alone on a rank, once for each.
    """

    experts: list[int] = field(default_factory=list)
    ranks: list[tuple[int, int]] = field(default_factory=list)
    halves: list[int] = field(default_factory=list)

    @property
    def spare(self) -> int:
        """Slots it could give up, were it only for having one copy of each expert."""
        return SLOTS * (len(self.ranks) + len(self.halves)) - len(self.experts)

    @property
    def is_tree(self) -> bool:
        """Whether every rank joins two that nothing else joins."""
        return len(self.experts) == len(self.ranks) + 1


def parts_of(held: npt.NDArray[np.intp]) -> tuple[list[Part], int]:
    """The parts of [ranks, 2] experts (−1: nothing), and the ranks that hold nothing."""
    joined: dict[int, int] = {}

    def root(expert: int) -> int:
        while joined[expert] != expert:
            joined[expert] = joined[joined[expert]]
            expert = joined[expert]
        return expert

    pairs = [[expert for expert in row if expert >= 0] for row in held.tolist()]
    for row in pairs:
        for expert in row:
            joined.setdefault(expert, expert)
        if len(row) == SLOTS:
            joined[root(row[0])] = root(row[1])
    parts: dict[int, Part] = {}
    for expert in joined:
        parts.setdefault(root(expert), Part()).experts.append(expert)
    for row in pairs:
        if len(row) == SLOTS:
            parts[root(row[0])].ranks.append((row[0], row[1]))
        elif row:
            parts[root(row[0])].halves.append(row[0])
    return list(parts.values()), sum(not row for row in pairs)


def room_in(part: Part, load: npt.NDArray[np.float64], level: float, size: float) -> int:
    """The most slots of the part that orphans of load ``size`` may take while its experts stay within it; or NOWHERE.

    Writing over one end of a rank cuts the tree there, and each piece must fit in the ranks that remain to it. Of all
    ways to write j slots below an expert only the one that leaves its own piece the least load in excess matters.
    A part with a ring in it is given all it has to spare, which only lowers the bound.
    """
    if not part.is_tree or part.spare == 0:
        count = len(part.ranks) + len(part.halves)
        return part.spare if load[part.experts].sum() <= level * count * (1 + 1e-9) else NOWHERE
    joined: dict[int, list[int]] = {expert: [] for expert in part.experts}
    for one, other in part.ranks:
        joined[one].append(other)
        joined[other].append(one)
    alone = {expert: part.halves.count(expert) for expert in set(part.halves)}
    order, above = [part.experts[0]], {part.experts[0]: -1}
    for expert in order:
        for other in joined[expert]:
            if other != above[expert]:
                above[other] = expert
                order.append(other)
    excess: dict[int, npt.NDArray[np.float64]] = {}
    for expert in reversed(order):
        # An expert of no load still needs a slot: so little is enough to ask for one.
        best = np.array([max(float(load[expert]), 1e-9)])
        for _ in range(alone.get(expert, 0)):
            # The slot that is free is written, or both; where it stays free, one more may come for nothing.
            first = np.where(size <= level, best - level + size, np.inf)
            both = np.where(SLOTS * size <= level, best, np.inf)
            best = _either(best - level, _either(_shift(first, 1), _shift(both, SLOTS)))
        for other in joined[expert]:
            if other != above[expert]:
                best = _joined(best, excess.pop(other), level, size)
        excess[expert] = best
    fits = np.flatnonzero(excess[order[0]] <= 1e-9 * level)
    return int(fits.max(initial=NOWHERE))


def _joined(
    here: npt.NDArray[np.float64], below: npt.NDArray[np.float64], level: float, size: float
) -> npt.NDArray[np.float64]:
    """Excess by slots taken, after a rank between an expert and one below it: kept, cut at either end, or at both."""
    left = level - size
    kept = _combined(here, below - level)
    cut_below = _shift(_combined(here - left, _closed(below)), 1)
    cut_here = _shift(_combined(here, _closed(below - left)), 1)
    best = _either(kept, _either(cut_below, cut_here))
    if SLOTS * size <= level:
        best = _either(best, _shift(_combined(here, _closed(below)), SLOTS))
    return best


def _closed(excess: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A piece that gets no more ranks fits or does not."""
    closed: npt.NDArray[np.float64] = np.where(excess <= 0, 0.0, np.inf)
    return closed


def _combined(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    table = np.full(len(one) + len(other) - 1, np.inf)
    for j, value in enumerate(other.tolist()):
        if value < np.inf:
            table[j : j + len(one)] = np.minimum(table[j : j + len(one)], one + value)
    return table


def _shift(values: npt.NDArray[np.float64], by: int) -> npt.NDArray[np.float64]:
    return np.concatenate([np.full(by, np.inf), values])


def _either(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = max(len(one), len(other))
    both = np.full((2, length), np.inf)
    both[0, : len(one)], both[1, : len(other)] = one, other
    least: npt.NDArray[np.float64] = both.min(axis=0)
    return least


def writes_needed(
    parts: list[Part], free: int, sizes: npt.NDArray[np.float64], load: npt.NDArray[np.float64], level: float
) -> int:
    """Slots that must be written beyond one for each orphan, if no rank is to have more than ``level``.

    Args:
        parts: of the layer.
        free: ranks that hold nothing.
        sizes: loads of the orphans, heaviest first.
        load: of all experts.
        level: pressure.
    """
    worst = _all_orphans(parts, free, sizes, load, level)
    for count in range(1, len(sizes)):
        size = float(sizes[count - 1])
        if size < TINY:
            break
        room = np.array([room_in(part, load, level, size) for part in parts]).clip(0)
        each = SLOTS if SLOTS * size <= level else int(size <= level)
        short = count - each * free - int(room.sum())
        if short > 0:
            ranks = np.array([len(part.ranks) + len(part.halves) for part in parts])
            spare = np.array([part.spare for part in parts])
            gains = np.append(np.minimum(spare + 1, each * ranks) - room, np.ones(short, dtype=np.intp)).clip(1)
            worst = max(worst, _fewest(gains, short))
    return worst


def _all_orphans(
    parts: list[Part], free: int, sizes: npt.NDArray[np.float64], load: npt.NDArray[np.float64], level: float
) -> int:
    """As above, with every orphan taken to be of no load.

    Here each write has to be held as well. Experts with fewer copies than their load asks for are written as often as
    that, which gives their parts nothing more to spare; a part that does not fit as it is must be written to.
    """
    room = np.array([room_in(part, load, level, 0.0) for part in parts])
    lacking = np.array([_lacking(part, load, level) for part in parts])
    again = int((_copies(sizes, level) - 1).sum())
    gains = np.array([part.spare for part in parts]) - room.clip(0)
    forced = room == NOWHERE
    short = len(sizes) + again + int(lacking.sum()) - SLOTS * free - int(room.clip(0).sum() + gains[forced].sum())
    return again + int(np.maximum(lacking[forced], 1).sum()) + _fewest(gains[~forced], short)


def _copies(load: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.intp]:
    copies: npt.NDArray[np.intp] = np.maximum(1, np.ceil(load / level - 1e-9)).astype(np.intp)
    return copies


def _lacking(part: Part, load: npt.NDArray[np.float64], level: float) -> int:
    """Copies that its experts have too few, each by itself."""
    wanted = _copies(load[part.experts], level)
    if wanted.max() == 1:
        return 0
    held = [sum(expert in pair for pair in part.ranks) + part.halves.count(expert) for expert in part.experts]
    return int(np.maximum(0, wanted - np.array(held)).sum())


def _fewest(gains: npt.NDArray[np.intp], short: int) -> int:
    """How many of the gains make up for what is short."""
    if short <= 0:
        return 0
    reached = np.flatnonzero(np.sort(gains)[::-1].cumsum() >= short)
    return int(reached[0]) + 1 if len(reached) else NEVER


def with_budget(
    live: Placement,
    load: npt.NDArray[np.float64],
    left: Topology,
    *,
    budget: int,
    lowest: npt.NDArray[np.float64],
    highest: float,
) -> dict[str, float]:
    """Max ÷ mean that no repair within the budget can beat: its mean over layers, and its worst layer.

    Args:
        live: what ranks held before the loss.
        load: [layers, experts].
        left: the ranks that remain, all alike and of two slots.
        budget: slots over all layers that may be written beyond one for each orphan.
        lowest: [layers] max ÷ mean that no placement can beat, however it was come by.
        highest: where to stop looking, as a multiple of ``lowest``.
    """
    ranks = sorted(left.by_rank)
    table = live.slots[:, ranks].astype(np.intp)
    table[live.slots[:, ranks] == EMPTY] = -1
    scaled = load / (load.sum(axis=1) / len(ranks))[:, None]
    steps = np.arange(0.0, highest - 1 + STEP, STEP)
    needed = np.array(
        [_by_level(row, demand, low * (1 + steps)) for row, demand, low in zip(table, scaled, lowest, strict=True)]
    )
    # What is needed at one step is needed at all pressures down to the step before; beyond the last, nothing.
    reach = lowest[:, None] * (1 + np.append(np.maximum(steps - STEP, 0), steps[-1]))
    needed = np.append(needed, np.zeros((len(load), 1), dtype=np.intp), axis=1)
    mean = max(float((reach + price * needed).min(axis=1).sum() - price * budget) for price in PRICES) / len(load)
    return {"mean": _floored(mean), "worst": _floored(_worst(reach, needed, budget))}


def _floored(bound: float) -> float:
    """Four digits that are still a bound."""
    return float(np.floor(bound * 1e4) / 1e4)


def _by_level(held: npt.NDArray[np.intp], load: npt.NDArray[np.float64], levels: npt.NDArray[np.float64]) -> list[int]:
    parts, free = parts_of(held)
    there = np.concatenate([np.array(part.experts, dtype=np.intp) for part in parts])
    sizes = np.sort(np.delete(load, there))[::-1]
    needed = NEVER
    out = []
    for level in levels:
        needed = needed and min(needed, writes_needed(parts, free, sizes, load, level))
        out.append(needed)
    return out


def _worst(reach: npt.NDArray[np.float64], needed: npt.NDArray[np.intp], budget: int) -> float:
    """The highest pressure below which the layers together need more writes than there are."""
    best = float(reach[:, 0].max())
    for level in np.unique(reach):
        least = np.where(reach <= level, needed, NEVER).min(axis=1)
        if least.sum() > budget:
            best = max(best, float(level))
    return best
