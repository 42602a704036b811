"""What is measured: placement from nothing, repair after losses, time, sources, determinism, a day."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.planner import (
    Constraints,
    Links,
    Topology,
    contingencies,
    imbalance,
    plan,
    repair,
    slot_bound,
    sources,
)
from controlplane.planner.sourcing import ways
from schemas.policy import Survivability
from tools.benchmarks.placement import baseline, bounds
from tools.benchmarks.placement.day import Day, Events, Ledger, ours, theirs
from tools.benchmarks.placement.loads import EXPERTS, LAYERS, SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from schemas.placement import Placement

EXPERT_BYTES = 44_040_192
"""One expert of DeepSeek-V3 in FP8 (3 × 7168 × 2048)."""

SIZES = ((32, 9), (32, 11), (32, 16), (64, 5), (64, 8), (144, 2), (320, 2))
QUICK = ((32, 9), (64, 8))
LOSSES = (("1 rank", 1), ("4 ranks", 4), ("a host of 8", 8), ("16 ranks", 16))
BUDGET_SHARE = 0.01
SAMPLED = 3
"""Layers of each case whose bounds HiGHS solves; the closed form gives the others and must agree on these."""


@dataclass(frozen=True)
class Case:
    """One instance and the load it serves."""

    ranks: int
    slots: int
    load_name: str
    load: npt.NDArray[np.float64]

    @property
    def topology(self) -> Topology:
        """Hosts of eight ranks."""
        return Topology.uniform(ranks=self.ranks, slots=self.slots)

    def eplb(self, ranks: list[int], policy: baseline.Policy) -> Placement:
        """The baseline's placement on these ranks."""
        return baseline.place(self.load, ranks, max_ranks=self.ranks, slots=self.slots, policy=policy)


def measure(*, seed: int, quick: bool) -> dict[str, Any]:
    """Everything, for JSON. About five minutes on two cores, of which EPLB takes four."""
    names = ("lognormal", "recorded") if quick else tuple(SHAPES)
    loads = {name: SHAPES[name](seed=seed) for name in names}
    placed, repaired = [], []
    for ranks, slots in QUICK if quick else SIZES:
        for name, load in loads.items():
            case = Case(ranks, slots, name, load)
            row, live, other = place(case)
            placed.append(row)
            feasible = [(what, lost) for what, lost in LOSSES if (ranks - lost) * slots >= EXPERTS]
            repaired += [mend(case, live, other, what, lost) for what, lost in feasible]
    return {
        "placement": placed,
        "repair": repaired,
        "time": times(loads, quick=quick),
        "sources": transfers(loads),
        "deterministic": deterministic(loads),
        "day": days(seed=seed, quick=quick),
    }


def milliseconds(work: Callable[[], Any], *, runs: int = 5) -> tuple[float, Any]:
    """Fastest of ``runs`` calls (what else runs on the machine only ever adds), and what the last one gave."""
    taken, answer = [], None
    for _ in range(runs):
        start = time.perf_counter()
        answer = work()
        taken.append((time.perf_counter() - start) * 1e3)
    return round(min(taken), 2), answer


def figures(ratio: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean and worst layer."""
    return {"mean": round(float(ratio.mean()), 4), "worst": round(float(ratio.max()), 4)}


def place(case: Case) -> tuple[dict[str, Any], Placement, Placement]:
    """From nothing: the figures, our placement and that of EPLB's global policy."""
    taken, answer = milliseconds(partial(plan, case.topology, case.load))
    row: dict[str, Any] = {"ranks": case.ranks, "slots": case.slots, "load": case.load_name}
    row["ours"] = {"ms": taken, **figures(imbalance(answer.placement, case.load, case.topology))}
    for policy in (baseline.DEFAULT, baseline.GLOBAL):
        spent, other = milliseconds(partial(case.eplb, list(range(case.ranks)), policy), runs=1)
        row[f"eplb_{policy.name}"] = {"ms": spent, **figures(imbalance(other, case.load, case.topology))}
    row["lp_bound"] = lp_bound(case.load, case.topology)
    row["integer_bound"] = figures(bounds.slots_integer(case.load, case.topology))
    ratio = imbalance(answer.placement, case.load, case.topology)
    split = [ratio[layer] / bounds.split_lp(answer.placement, case.load, case.topology, layer) for layer in sampled()]
    row["split_over_lp"] = round(float(max(split)), 5)
    return row, answer.placement, other


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


def mend(case: Case, live: Placement, eplb: Placement, what: str, lost: int) -> dict[str, Any]:
    """After a loss: with no more writes than coverage needs, and with 1 % of the slots to spend."""
    left = case.topology.without(range(lost))
    survivors = sorted(left.by_rank)
    budget = Constraints(movement_budget=int(BUDGET_SHARE * LAYERS * case.ranks * case.slots))
    minimum = true_minimum(live, survivors)
    quick_ms, least = milliseconds(lambda: repair(left, case.load, live=live), runs=3)
    spend_ms, spent = milliseconds(lambda: repair(left, case.load, live=live, constraints=budget), runs=1)
    eplb_ms, eplb_after = milliseconds(lambda: case.eplb(survivors, baseline.GLOBAL), runs=1)
    fresh = plan(left, case.load).placement
    return {
        "ranks": case.ranks,
        "slots": case.slots,
        "load": case.load_name,
        "lost": what,
        "true_minimum_slots": minimum,
        "repair": {"ms": quick_ms, "slots": len(least.fills), **figures(imbalance(least.placement, case.load, left))},
        "with_budget": {
            "ms": spend_ms,
            "slots": len(spent.fills),
            "budget": budget.movement_budget,
            **figures(imbalance(spent.placement, case.load, left)),
        },
        "eplb_global": {
            "ms": eplb_ms,
            "slots": baseline.moved(_alive(eplb, survivors), eplb_after),
            **figures(imbalance(eplb_after, case.load, left)),
        },
        "lp_bound": lp_bound(case.load, left),
        "integer_bound": figures(bounds.slots_integer(case.load, left)),
        "planned_from_nothing": figures(imbalance(fresh, case.load, left)),
        "minimum_bytes": minimum * EXPERT_BYTES,
    }


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


def times(loads: dict[str, npt.NDArray[np.float64]], *, quick: bool) -> list[dict[str, Any]]:
    """The four contracts on time, each for every load."""
    rows = []
    for name, load in loads.items():
        for ranks, slots in ((64, 5), (64, 8)):
            topology = Topology.uniform(ranks=ranks, slots=slots)
            live = plan(topology, load).placement
            left = topology.without([0])
            row = {"ranks": ranks, "slots": slots, "load": name}
            row["plan_ms"], _ = milliseconds(partial(plan, topology, load), runs=9)
            row["repair_ms"], _ = milliseconds(partial(repair, left, load, live=live), runs=15)
            row["contingencies_ms"], made = milliseconds(
                partial(contingencies, topology, load, live=live, hosts=False), runs=3
            )
            row["contingencies"] = len(made)
            rows.append(row)
        if quick:
            continue
        topology = Topology.uniform(ranks=320, slots=2)
        live = plan(topology, load).placement
        left = topology.without([0])
        row = {"ranks": 320, "slots": 2, "load": name}
        row["plan_ms"], _ = milliseconds(partial(plan, topology, load))
        row["repair_ms"], _ = milliseconds(partial(repair, left, load, live=live))
        rows.append(row)
    return rows


def transfers(loads: dict[str, npt.NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Finish time of the chosen sources over the LP's bound: repairs from backups and disks, joiners from peers."""
    rows = []
    load = loads["lognormal"]
    links = Links(expert_bytes=EXPERT_BYTES, disk=6e9)
    for ranks, slots, lost in ((32, 9, 1), (32, 11, 8), (64, 8, 4), (64, 8, 8)):
        topology = Topology.uniform(ranks=ranks, slots=slots)
        live = plan(topology, load).placement
        left = topology.without(range(lost))
        hosts = sorted(left.hosts)
        backups = {
            (layer, expert): (hosts[expert % len(hosts)], hosts[(expert + 1) % len(hosts)])
            for layer in range(LAYERS)
            for expert in range(EXPERTS)
        }
        mended = repair(left, load, live=live)
        back = plan(topology, load, live=mended.placement, constraints=Constraints(fill=True, movement_budget=100_000))
        for what, made, where, kept in (
            ("repair from memory backups", mended, left, backups),
            ("repair from disks", mended, left, {}),
            ("the lost ranks return", back, topology, {}),
        ):
            before = live if made is mended else mended.placement
            choose = partial(
                sources, made.fills, held=before, topology=where, links=links, overwritten=made.placement, backups=kept
            )
            taken, chosen = milliseconds(choose, runs=1)
            options = ways(
                made.fills, held=before, topology=where, links=links, overwritten=made.placement, backups=kept
            )
            bound = bounds.makespan_lp(options)
            rows.append(
                {
                    "ranks": ranks,
                    "slots": slots,
                    "lost": lost,
                    "what": what,
                    "transfers": len(made.fills),
                    "ms": taken,
                    "seconds": round(chosen.seconds, 4),
                    "lp_bound_seconds": round(bound, 4),
                    "ratio": round(chosen.seconds / bound, 4),
                    "busiest": chosen.busiest,
                }
            )
    return rows


def deterministic(loads: dict[str, npt.NDArray[np.float64]]) -> bool:
    """Equal bytes from repeated calls with one and with several threads."""
    topology, load = Topology.uniform(ranks=64, slots=5), loads["lognormal"]
    digests = set()
    for threads in (1, 2, 4):
        live = plan(topology, load, constraints=Constraints(threads=threads)).placement
        wish = Constraints(threads=threads, movement_budget=100)
        mended = repair(topology.without([1, 9]), load, live=live, constraints=wish).placement
        digests.add((live.digest, mended.digest))
    return len(digests) == 1


def days(*, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Twenty failures in a day, with and without declared survivability."""
    rows = []
    shapes = [(32, 16, Survivability.NONE)] if quick else [(32, 16, Survivability.NONE), (32, 18, Survivability.RANK)]
    for ranks, slots, survivability in shapes:
        day = Day(
            ranks=ranks,
            slots=slots,
            layers=8 if quick else LAYERS,
            experts=EXPERTS,
            survivability=survivability,
            seed=seed,
        )
        events = Events.of(day)
        start = time.perf_counter()
        mine = ours(day, events)
        rows.append(
            {
                "ranks": ranks,
                "slots": slots,
                "survivability": str(survivability),
                "ticks": day.ticks,
                "failures": day.failures,
                "seconds": round(time.perf_counter() - start, 1),
                "ours": _with_bytes(mine),
                "balance_by_tick": [round(value, 4) for value in mine.balance],
            }
        )
        if survivability is Survivability.NONE:
            other = theirs(day, events, _eplb(day), baseline.moved, every=4)
            rows[-1]["eplb_global"] = _with_bytes(other)
            rows[-1]["eplb_balance_by_tick"] = [round(value, 4) for value in other.balance]
    return rows


def _eplb(day: Day) -> Callable[[npt.NDArray[np.float64], Any], Placement]:
    def replan(load: npt.NDArray[np.float64], ranks: Any) -> Placement:
        return baseline.place(load, list(ranks), max_ranks=day.ranks, slots=day.slots, policy=baseline.GLOBAL)

    return replan


def _with_bytes(ledger: Ledger) -> dict[str, Any]:
    return {**ledger.summary(), "gigabytes": round(ledger.writes * EXPERT_BYTES / 1e9, 1)}
