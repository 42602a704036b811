"""One instance and one load: a placement from nothing, then every loss repaired, each beside EPLB and the bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.planner import Constraints, Topology, imbalance, plan, repair, slot_bound
from tools.benchmarks.placement import baseline, bounds, budgeted, priced
from tools.benchmarks.placement.loads import EXPERTS, LAYERS, SHAPES
from tools.benchmarks.placement.whole import whole_copies

if TYPE_CHECKING:
    import numpy.typing as npt

    from schemas.placement import Placement

EXPERT_BYTES = 44_040_192
"""One expert of DeepSeek-V3 in FP8 (3 × 7168 × 2048)."""

SIZES = ((32, 9), (32, 11), (32, 16), (64, 5), (64, 8), (144, 2), (320, 2))
QUICK = ((32, 9), (64, 8))
LOSSES = (("1 rank", 1), ("4 ranks", 4), ("a host of 8", 8), ("16 ranks", 16))
BUDGET_SHARE = 0.01
NEAR = 1.05
"""Times the bound: beyond that, a bound is sought that knows how many slots may be written."""
SAMPLED = 3
"""Layers of each case whose bounds HiGHS solves; the closed form gives the others and must agree on these."""


@dataclass(frozen=True)
class Case:
    """One instance and the load it serves."""

    ranks: int
    slots: int
    load_name: str
    seed: int

    @property
    def load(self) -> npt.NDArray[np.float64]:
        """[layers, experts]; made anew in whichever process asks."""
        return SHAPES[self.load_name](seed=self.seed)

    @property
    def topology(self) -> Topology:
        """Hosts of eight ranks."""
        return Topology.uniform(ranks=self.ranks, slots=self.slots)

    def about(self) -> dict[str, Any]:
        """What a row begins with."""
        return {"ranks": self.ranks, "slots": self.slots, "load": self.load_name}


def study(case: Case) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of the placement, and one row for each loss after which every expert still fits."""
    load = case.load
    row, live, other = place(case, load)
    feasible = [(what, lost) for what, lost in LOSSES if (case.ranks - lost) * case.slots >= EXPERTS]
    return row, [mend(case, load, (live, other), what, lost) for what, lost in feasible]


def eplb(
    case: Case, load: npt.NDArray[np.float64], ranks: list[int], policy: baseline.Policy = baseline.GLOBAL
) -> Placement:
    """The baseline's placement on these ranks."""
    return baseline.place(load, ranks, max_ranks=case.ranks, slots=case.slots, policy=policy)


def figures(ratio: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean and worst layer."""
    return {"mean": round(float(ratio.mean()), 4), "worst": round(float(ratio.max()), 4)}


def place(case: Case, load: npt.NDArray[np.float64]) -> tuple[dict[str, Any], Placement, Placement]:
    """From nothing: the figures, our placement and that of EPLB's global policy."""
    topology = case.topology
    answer = plan(topology, load).placement
    ratio = imbalance(answer, load, topology)
    row = {**case.about(), "ours": figures(ratio)}
    for policy in (baseline.DEFAULT, baseline.GLOBAL):
        other = eplb(case, load, list(range(case.ranks)), policy)
        row[f"eplb_{policy.name}"] = figures(imbalance(other, load, topology))
    row["lp_bound"] = lp_bound(load, topology)
    row["whole_bound"] = figures(whole_copies(load, topology))
    split = [ratio[layer] / bounds.split_lp(answer, load, topology, layer) for layer in sampled()]
    row["split_over_lp"] = round(float(max(split)), 5)
    return row, answer, other


def sampled() -> list[int]:
    """Layers that HiGHS solves."""
    return [int(layer) for layer in np.linspace(0, LAYERS - 1, SAMPLED)]


def lp_bound(load: npt.NDArray[np.float64], topology: Topology) -> dict[str, float]:
    """The slot-count LP: closed form for all layers, HiGHS on the sampled ones."""
    closed = slot_bound(load, topology)
    solved = bounds.slots_lp(load[sampled()], topology)
    return {
        **figures(closed),
        "largest_difference_to_highs": round(float(np.abs(closed[sampled()] / solved - 1).max()), 6),
    }


def mend(
    case: Case, load: npt.NDArray[np.float64], before: tuple[Placement, Placement], what: str, lost: int
) -> dict[str, Any]:
    """After a loss of ``before`` (ours, EPLB's): repaired with the fewest writes, and with 1 % of the slots more."""
    live, other = before
    left = case.topology.without(range(lost))
    survivors = sorted(left.by_rank)
    budget = Constraints(movement_budget=int(BUDGET_SHARE * LAYERS * case.ranks * case.slots))
    minimum = true_minimum(live, survivors)
    least = repair(left, load, live=live)
    spent = repair(left, load, live=live, constraints=budget)
    anew = eplb(case, load, survivors)
    lowest = np.maximum(slot_bound(load, left), whole_copies(load, left))
    row = {
        **case.about(),
        "lost": what,
        "true_minimum_slots": minimum,
        "minimum_bytes": minimum * EXPERT_BYTES,
        "repair": {"slots": len(least.fills), **figures(imbalance(least.placement, load, left))},
        "with_budget": {
            "slots": len(spent.fills),
            "budget": budget.movement_budget,
            **figures(imbalance(spent.placement, load, left)),
        },
        "eplb_global": {
            "slots": baseline.moved(_alive(other, survivors), anew),
            **figures(imbalance(anew, load, left)),
        },
        "lp_bound": lp_bound(load, left),
        "whole_bound": figures(whole_copies(load, left)),
        "planned_from_nothing": figures(imbalance(plan(left, load).placement, load, left)),
    }
    ratio = imbalance(spent.placement, load, left)
    if ratio.mean() > NEAR * lowest.mean() or ratio.max() > NEAR * lowest.max():
        row["bound_with_budget"] = _with_budget(
            live, load, left, budget=int(budget.movement_budget or 0), lowest=lowest, reached=ratio
        )
    return row


def _with_budget(
    live: Placement,
    load: npt.NDArray[np.float64],
    left: Topology,
    *,
    budget: int,
    lowest: npt.NDArray[np.float64],
    reached: npt.NDArray[np.float64],
) -> dict[str, float]:
    """By counting where that can be done, which takes an instant; by HiGHS otherwise, which takes minutes."""
    if left.width == budgeted.SLOTS:
        highest = float((reached / lowest).max())
        return budgeted.with_budget(live, load, left, budget=budget, lowest=lowest, highest=highest)
    return priced.least_with_budget(live, load, left, budget=budget, lowest=lowest, reached=reached, near=NEAR)


def true_minimum(live: Placement, survivors: list[int]) -> int:
    """(layer, expert) pairs in no slot of a survivor."""
    held = np.zeros((live.n_layers, live.n_experts), dtype=np.bool_)
    layer, rank, slot = np.nonzero(live.slots[:, survivors] < live.n_experts)
    held[layer, live.slots[layer, np.array(survivors)[rank], slot]] = True
    return int((~held).sum())


def _alive(placement: Placement, survivors: list[int]) -> Placement:
    slots, weights = placement.slots.copy(), placement.weights.copy()
    gone = [rank for rank in range(placement.max_ranks) if rank not in survivors]
    slots[:, gone], weights[:, gone] = 0xFFFF, 0
    return type(placement)(slots=slots, weights=weights, n_experts=placement.n_experts)
