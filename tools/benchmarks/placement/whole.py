"""How even any placement of *whole* copies can be: two counting arguments; the LP, which divides copies, has neither.

Both look at the parts a placement falls into. Ranks and experts are joined where a rank holds an expert; a part with R
ranks holds at most (slots − 1) · R + 1 experts, or it would not hang together, and its loads fit in R ranks. Neither
knows what is where now: they hold for every placement, however it was come by. Ranks are taken to be equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner import Topology

BISECTIONS = 40


def whole_copies(load: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.float64]:
    """[layers] max ÷ mean that no placement of whole copies can beat.

    Raises:
        ValueError: ranks differ in slots or speed; the arguments are about equal ones.
    """
    kinds = {(spec.slots, spec.speed) for spec in topology.usable}
    if len(kinds) != 1:
        raise ValueError(f"ranks of {len(kinds)} kinds: the bound is for equal slots and speeds")
    ranks, ((slots, _),) = len(topology.usable), kinds
    scaled = np.sort(load, axis=1)[:, ::-1] / (load.sum(axis=1) / ranks)[:, None]
    counted = np.array([_counted(row, slots=slots, ranks=ranks) for row in scaled])
    bound: npt.NDArray[np.float64] = np.maximum(counted, _crowded(scaled, slots=slots, ranks=ranks))
    return bound


def _counted(scaled: npt.NDArray[np.float64], *, slots: int, ranks: int) -> float:
    """The lowest pressure at which the copies that the heavy experts need do not outnumber the slots."""
    spare = slots * ranks - len(scaled)
    low, high = 1.0, max(1.0, float(scaled[0]))
    if extra_copies(scaled, level=low, slots=slots) <= spare:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if extra_copies(scaled, level=middle, slots=slots) <= spare:
            high = middle
        else:
            low = middle
    return low


def extra_copies(scaled: npt.NDArray[np.float64], *, level: float, slots: int) -> int:
    """Copies beyond one of each expert without which no rank stays at ``level``; ``scaled`` is sorted, heaviest first.

    A part of R ranks with k heavy experts and nothing to spare holds (slots − 1) · R + 1 − k others, each at least as
    heavy as the lightest of all, and takes R − 1 extra copies; leaving a slot free costs as much as a copy. So R is at
    least Σ x − (k − 1) · y, rounded up, with x = heavy ÷ room and y = lightest ÷ room. Parts of one heavy expert give
    the sum below; joining heavy ones saves a copy only where the fractions of x stay below y, by y in all for each.
    """
    lightest = float(scaled[-1])
    room = level - (slots - 1) * lightest
    if room <= lightest:
        return 0
    need, light = scaled[scaled > level] / room, lightest / room
    whole = np.ceil(need - 1e-9)
    fraction = need - (whole - 1)
    saved = int(np.maximum(0, light - fraction).sum() / light + 1e-9) if light > 0 else 0
    return int((whole - 1).sum()) - saved


def _crowded(scaled: npt.NDArray[np.float64], *, slots: int, ranks: int) -> npt.NDArray[np.float64]:
    """[layers] the least level at which the m heaviest experts can be with those that must share their ranks.

    The parts with the m heaviest have R ranks in all and at most (slots − 1) · R + m experts; what is not in them fits
    elsewhere, so they hold at least slots · R − spare: at best the lightest ones there are.
    """
    experts = scaled.shape[1]
    spare = slots * ranks - experts
    none = np.zeros((len(scaled), 1))
    heavy = np.concatenate([none, scaled.cumsum(axis=1)], axis=1)
    light = np.concatenate([none, scaled[:, ::-1].cumsum(axis=1)], axis=1)
    bound = np.ones(len(scaled))
    for m in range(1, experts):
        taken = np.arange(1, min(ranks, spare + m) + 1)
        others = np.maximum(0, slots * taken - spare - m)
        fits = others <= experts - m
        if fits.any():
            level = (heavy[:, [m]] + light[:, others[fits]]) / taken[fits]
            bound = np.maximum(bound, level.min(axis=1))
    return bound
