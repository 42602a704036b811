"""How soon the chosen sources finish, beside the LP's bound: repairs from backups and disks, joiners from peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.planner import Constraints, Links, Topology, plan, repair, sources
from controlplane.planner.sourcing import ways
from tools.benchmarks.placement.bounds import makespan_lp
from tools.benchmarks.placement.cases import EXPERT_BYTES
from tools.benchmarks.placement.loads import EXPERTS, LAYERS, lognormal

if TYPE_CHECKING:
    from controlplane.planner import Plan

LINKS = Links(expert_bytes=EXPERT_BYTES, disk=6e9)
NO_LIMIT = 100_000
SHAPES = ((32, 9, 1), (32, 11, 8), (64, 8, 4), (64, 8, 8))
"""Ranks, slots, lost."""


def transfers(ranks: int, slots: int, lost: int, *, seed: int) -> list[dict[str, Any]]:
    """A row for each way to get back what was lost, and one for the return of the lost ranks."""
    load, topology = lognormal(seed=seed), Topology.uniform(ranks=ranks, slots=slots)
    live = plan(topology, load).placement
    left = topology.without(range(lost))
    mended = repair(left, load, live=live)
    back = plan(topology, load, live=mended.placement, constraints=Constraints(fill=True, movement_budget=NO_LIMIT))
    rows = []
    for what, made, backups in (
        ("repair from memory backups", mended, _backups(sorted(left.hosts))),
        ("repair from disks", mended, {}),
        ("the lost ranks return", back, {}),
    ):
        row = {"ranks": ranks, "slots": slots, "lost": lost, "what": what, "transfers": len(made.fills)}
        rows.append(row | _schedule(made, backups))
    return rows


def _backups(hosts: list[str]) -> dict[tuple[int, int], tuple[str, ...]]:
    """Every expert in the memory of two hosts."""
    return {
        (layer, expert): (hosts[expert % len(hosts)], hosts[(expert + 1) % len(hosts)])
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
    }


def _schedule(made: Plan, backups: dict[tuple[int, int], tuple[str, ...]]) -> dict[str, Any]:
    before = made.before
    if before is None:
        raise ValueError("a plan from nothing has no peers to load from")
    where, after = made.topology, made.placement
    chosen = sources(made.fills, held=before, topology=where, links=LINKS, overwritten=after, backups=backups)
    bound = makespan_lp(ways(made.fills, held=before, topology=where, links=LINKS, overwritten=after, backups=backups))
    return {
        "seconds": round(chosen.seconds, 4),
        "lp_bound_seconds": round(bound, 4),
        "ratio": round(chosen.seconds / bound, 4),
        "busiest": chosen.busiest,
    }
