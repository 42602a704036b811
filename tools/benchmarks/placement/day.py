"""A day of drifting load with random failures: the planner beside EPLB, every invariant checked at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner import (
    Constraints,
    Topology,
    covers,
    imbalance,
    is_valid_step,
    plan,
    rebalance,
    repair,
)
from schemas.policy import Survivability
from tools.benchmarks.placement.loads import drift, lognormal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from schemas.placement import Placement

    Replan = Callable[[npt.NDArray[np.float64], Sequence[int]], Placement]


@dataclass(frozen=True, kw_only=True)
class Day:
    """What happens. A tick is a quarter of an hour."""

    ranks: int
    slots: int
    layers: int
    experts: int
    ticks: int = 96
    failures: int = 20
    away: int = 4
    """Ticks until a lost rank is back, with empty slots."""
    sigma: float = 0.1
    """Of the log-normal drift of each expert's load in one tick."""
    budget_share: float = 0.01
    """Slots that a rebalance may write, as a share of all."""
    survivability: Survivability = Survivability.NONE
    seed: int = 0


@dataclass
class Ledger:
    """What it came to."""

    writes: int = 0
    repairs: int = 0
    steps: int = 0
    orphans: int = 0
    balance: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """For JSON."""
        return {
            "slots_written": self.writes,
            "repairs": self.repairs,
            "planned_steps": self.steps,
            "experts_without_copy": self.orphans,
            "balance_mean": round(float(np.mean(self.balance)), 4),
            "balance_worst": round(float(np.max(self.balance)), 4),
            "violations": self.violations,
        }


@dataclass(frozen=True)
class Events:
    """The same story for everyone: loads and the ranks that are away, by tick."""

    loads: list[npt.NDArray[np.float64]]
    away: list[frozenset[int]]
    lost: list[tuple[int, ...]]

    @classmethod
    def of(cls, day: Day) -> Events:
        """Failures at random ticks of random ranks that are there at the time."""
        generator = np.random.default_rng(day.seed)
        load = lognormal(seed=day.seed, layers=day.layers, experts=day.experts)
        base = load.copy()
        when = np.sort(generator.choice(np.arange(1, day.ticks), size=day.failures, replace=False))
        until: dict[int, int] = {}
        loads, away, lost = [], [], []
        for tick in range(day.ticks):
            # Pulled back a little towards where it began: loads wander, they do not explode.
            load = drift(load**0.98 * base**0.02, sigma=day.sigma, generator=generator)
            until = {rank: back for rank, back in until.items() if back > tick}
            fallen: tuple[int, ...] = ()
            if tick in when:
                rank = int(generator.choice([r for r in range(day.ranks) if r not in until]))
                until[rank] = tick + day.away
                fallen = (rank,)
            loads.append(load)
            away.append(frozenset(until))
            lost.append(fallen)
        return cls(loads, away, lost)


def ours(day: Day, events: Events) -> Ledger:
    """Repair at once, then rebalance within the budget; joiners are taken in by the same rebalance."""
    ledger = Ledger()
    everyone = Topology.uniform(ranks=day.ranks, slots=day.slots)
    wish = Constraints(survivability=day.survivability)
    budget = Constraints(
        survivability=day.survivability,
        movement_budget=int(day.budget_share * day.layers * day.ranks * day.slots),
        fill=True,
    )
    live = plan(everyone, events.loads[0], constraints=wish).placement
    for load, away, lost in zip(events.loads, events.away, events.lost, strict=True):
        topology = everyone.without(away)
        if lost:
            mended = repair(topology, load, live=live, constraints=Constraints(survivability=day.survivability))
            ledger.repairs += 1
            ledger.orphans += mended.explanation.needed
            ledger.writes += len(mended.fills)
            _check(ledger, mended.explanation.needed == len(mended.fills), "a repair wrote more than it had to")
            live = mended.placement
            _check(
                ledger, covers(live, topology, survivability=Survivability.NONE), "a repair left an expert uncovered"
            )
        walk = rebalance(topology, load, live=live, constraints=budget)
        for step in walk.steps:
            _check(ledger, is_valid_step(live, step.placement), "a step wrote a slot in use")
            kept = day.survivability if covers(live, topology, survivability=day.survivability) else Survivability.NONE
            _check(ledger, covers(step.placement, topology, survivability=kept), f"a step gave up {kept} survivability")
            ledger.writes += len(step.fills)
            ledger.steps += 1
            live = step.placement
        ledger.balance.append(float(imbalance(live, load, topology).mean()))
    return ledger


def theirs(
    day: Day, events: Events, replan: Replan, moved: Callable[[Placement, Placement], int], every: int
) -> Ledger:
    """Plan from scratch at every change of membership and every ``every`` ticks, as EPLB does."""
    ledger = Ledger()
    everyone = Topology.uniform(ranks=day.ranks, slots=day.slots)
    live = replan(events.loads[0], range(day.ranks))
    before: frozenset[int] = frozenset()
    for tick, (load, away, lost) in enumerate(zip(events.loads, events.away, events.lost, strict=True)):
        topology = everyone.without(away)
        if lost or away != before or tick % every == 0:
            fresh = replan(load, sorted(topology.by_rank))
            ledger.writes += moved(_without(live, away), fresh)
            ledger.repairs += bool(lost)
            ledger.steps += 1
            live = fresh
        before = away
        ledger.balance.append(float(imbalance(live, load, topology).mean()))
    return ledger


def _without(live: Placement, away: frozenset[int]) -> Placement:
    slots, weights = live.slots.copy(), live.weights.copy()
    slots[:, sorted(away)], weights[:, sorted(away)] = 0xFFFF, 0
    return type(live)(slots=slots, weights=weights, n_experts=live.n_experts)


def _check(ledger: Ledger, holds: bool, message: str) -> None:  # noqa: FBT001 (the condition is the point)
    if not holds:
        ledger.violations.append(message)
