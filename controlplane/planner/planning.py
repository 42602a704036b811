"""Plans and repairs: pure functions from what is to what shall be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner.balance import imbalance
from controlplane.planner.constraints import Constraints, require, unobtainable
from controlplane.planner.errors import InfeasibleError
from controlplane.planner.layers import checked_live, checked_load, empty, evolve
from controlplane.planner.plan import Plan, explain_target, presence
from schemas.placement import Placement
from schemas.policy import Survivability

if TYPE_CHECKING:
    import numpy.typing as npt

    from controlplane.planner.topology import Topology

WORTH_STARTING_OVER = 1.03
"""A plan that starts from the live placement moves far less; only a layer it leaves this much worse is planned anew."""

DEFAULT = Constraints()


def plan(
    topology: Topology,
    load: npt.ArrayLike,
    *,
    live: Placement | None = None,
    constraints: Constraints = DEFAULT,
) -> Plan:
    """The best placement for a load, from nothing or from what is live.

    Args:
        topology: ranks that may be used.
        load: [layers, experts] tokens, any unit.
        live: what slots hold now. Everything that can stay where it is stays.
        constraints: what the placement must keep to. A movement budget applies only where ``live`` is given.

    Returns:
        A placement that covers every expert with the survivability asked for.

    Raises:
        InfeasibleError: the slots cannot give that; the message names the nearest that is possible.
        InvalidInputError: an argument that no plan could answer.
    """
    demand = checked_load(load)
    layers, experts = demand.shape
    wanted = experts - unobtainable(constraints, layers=layers)
    require(topology, experts=wanted, survivability=constraints.survivability)
    if live is None:
        placement, _ = evolve(empty(demand, topology), demand, topology, constraints, scratch=True)
        reason = f"planned from nothing on {len(topology.usable)} ranks"
    else:
        checked_live(live, demand, topology)
        placement = target(topology, demand, live=live, constraints=constraints)
        reason = f"planned from the live placement on {len(topology.usable)} ranks"
    answer = Plan(
        placement=placement,
        before=live,
        topology=topology,
        load=demand,
        survivability=constraints.survivability,
        reason=reason + explain_target(constraints),
        unavailable=constraints.unavailable,
    )
    _confirm(answer, constraints)
    return answer


def repair(
    topology: Topology,
    load: npt.ArrayLike,
    *,
    live: Placement,
    constraints: Constraints = DEFAULT,
) -> Plan:
    """After a loss: one copy for each expert that has none, and the best split over the copies there are.

    Slots that are overwritten held redundant copies. Survivability is restored as far as slots and
    ``constraints.movement_budget`` allow (None counts as 0 here: an unplanned epoch loads only what validity needs),
    and what then remains of the budget goes to the balance of the worst layers. Without a budget that takes
    milliseconds; spending one is a search, over 58 layers of 256 experts seconds to minutes of every thread it may use.

    Args:
        topology: the ranks that remain or join.
        load: [layers, experts] tokens, any unit.
        live: what every slot is known to hold; ranks outside ``topology`` do not count.
        constraints: ``movement_budget`` counts slots beyond those that coverage needs.

    Raises:
        InfeasibleError: fewer slots than experts; the message says how many ranks it takes.
        InvalidInputError: an argument that no plan could answer.
    """
    demand = checked_load(load)
    checked_live(live, demand, topology)
    layers, experts = demand.shape
    require(topology, experts=experts - unobtainable(constraints, layers=layers), survivability=Survivability.NONE)
    budget = constraints.movement_budget or 0
    placement, uncovered = evolve(live, demand, topology, constraints, relocate=True, budget=budget)
    if uncovered:
        raise InfeasibleError(
            f"one copy of every expert ({uncovered} left over)",
            needed=demand.shape[1],
            present=topology.slots,
            nearest=None,
            remedy="pinned copies take the rest: unpin them",
        )
    return Plan(
        placement=placement,
        before=live,
        topology=topology,
        load=demand,
        survivability=constraints.survivability,
        reason=f"repaired on {len(topology.usable)} ranks" + explain_target(constraints),
        unavailable=constraints.unavailable,
    )


def target(
    topology: Topology, load: npt.NDArray[np.float64], *, live: Placement, constraints: Constraints
) -> Placement:
    """Where a live placement should go: coverage always, survivability as far as the slots allow.

    Raises:
        InfeasibleError: fewer slots than experts.
    """
    layers, experts = load.shape
    require(topology, experts=experts - unobtainable(constraints, layers=layers), survivability=Survivability.NONE)
    near, _ = evolve(live, load, topology, constraints, budget=constraints.movement_budget)
    if constraints.movement_budget is not None:
        return near
    fresh, _ = evolve(live, load, topology, constraints, scratch=True)
    anew = imbalance(near, load, topology) > WORTH_STARTING_OVER * imbalance(fresh, load, topology)
    domains = topology.domains(constraints.survivability)
    anew |= presence(near, domains).min(axis=1) < presence(fresh, domains).min(axis=1)
    chosen = anew[:, None, None]
    return Placement(
        slots=np.where(chosen, fresh.slots, near.slots),
        weights=np.where(chosen, fresh.weights, near.weights),
        n_experts=live.n_experts,
    )


def _confirm(answer: Plan, constraints: Constraints) -> None:
    """Refuse rather than return a placement that does not keep its promise (pins can make it impossible)."""
    held = presence(answer.placement, answer.topology.domains(constraints.survivability))
    for layer, expert in constraints.unavailable:
        held[layer, expert] = constraints.copies
    budgeted = answer.before is not None and constraints.movement_budget is not None
    wanted = 1 if budgeted else constraints.copies
    short = int((held < wanted).sum())
    if short:
        raise InfeasibleError(
            f"{constraints.survivability} survivability of {short} experts beside the pinned ones",
            needed=wanted * held.shape[1],
            present=answer.topology.slots,
            nearest=Survivability.NONE if wanted > 1 else None,
            remedy="unpin some of them, or ask for less",
        )
