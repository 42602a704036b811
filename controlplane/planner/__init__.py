"""Placement planner: survivable, movement-minimal, load-aware; pure functions, the same answer for the same arguments.

``plan`` makes a placement, ``repair`` restores coverage after a loss with the fewest loads there can be, ``rebalance``
walks to a better placement while the instance serves, ``sources`` says where each slot is loaded from, ``headroom``
what can still be lost, and ``contingencies`` has every single loss repaired ahead.
"""

from controlplane.planner.balance import Balance, imbalance, pressures, slot_bound
from controlplane.planner.constraints import Constraints, Pin
from controlplane.planner.errors import InfeasibleError, InvalidInputError, PlanningError
from controlplane.planner.headroom import Contingency, Headroom, contingencies, headroom
from controlplane.planner.links import Links
from controlplane.planner.plan import Explanation, Plan
from controlplane.planner.planning import plan, repair
from controlplane.planner.rebalancing import Step, Transition, covers, is_valid_step, rebalance
from controlplane.planner.sourcing import Fetch, Origin, Transfers, sources
from controlplane.planner.topology import RankSpec, Topology

__all__ = [
    "Balance",
    "Constraints",
    "Contingency",
    "Explanation",
    "Fetch",
    "Headroom",
    "InfeasibleError",
    "InvalidInputError",
    "Links",
    "Origin",
    "Pin",
    "Plan",
    "PlanningError",
    "RankSpec",
    "Step",
    "Topology",
    "Transfers",
    "Transition",
    "contingencies",
    "covers",
    "headroom",
    "imbalance",
    "is_valid_step",
    "plan",
    "pressures",
    "rebalance",
    "repair",
    "slot_bound",
    "sources",
]
