"""How much more can be lost, what is critical now, and the repair of every single loss worked out ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner import _kernels
from controlplane.planner.balance import Balance
from controlplane.planner.constraints import Constraints, require, unobtainable
from controlplane.planner.errors import InfeasibleError
from controlplane.planner.layers import absent, checked_live, checked_load, native_ranks, threads
from controlplane.planner.plan import Plan, presence
from controlplane.planner.planning import DEFAULT
from schemas.placement import Placement
from schemas.policy import Survivability

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from controlplane.planner.topology import Topology
    from schemas.vocabulary import Rank


@dataclass(frozen=True, eq=False)
class Contingency:
    """One loss and its repair.

    Attributes:
        name: ``rank 3`` or ``host host1``.
        lost: the ranks that go together.
        orphans: (layer, expert) pairs that would lose their last routed copy; 0 means a change of tables is enough.
        plan: the repair; None when the remaining slots cannot hold every expert.
        balance: max ÷ mean after the repair; None without one.
        refusal: why there is no repair; empty when there is one.
    """

    name: str
    lost: tuple[Rank, ...]
    orphans: int
    plan: Plan | None
    balance: Balance | None
    refusal: str


@dataclass(frozen=True)
class Headroom:
    """What the instance can still lose.

    Attributes:
        ranks: losses one after the other, whichever ranks they hit, after which every expert still fits.
        hosts: the same for whole hosts.
        free_ranks: simultaneous losses of ranks, whichever, that cost no expert its last copy: nothing to load.
        free_hosts: the same for whole hosts.
        critical_ranks: (rank, experts orphaned over all layers) of the ranks whose loss needs weights, worst first.
        critical_hosts: the same for hosts.
        after: (name of the loss, predicted max ÷ mean) for each single loss that can be repaired.
        impossible: (name of the loss, why) for each single loss that cannot.
    """

    ranks: int
    hosts: int
    free_ranks: int
    free_hosts: int
    critical_ranks: tuple[tuple[Rank, int], ...]
    critical_hosts: tuple[tuple[str, int], ...]
    after: tuple[tuple[str, Balance], ...]
    impossible: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        free = f"{self.free_ranks} ranks or {self.free_hosts} hosts without loading anything"
        return f"can lose {self.ranks} more ranks or {self.hosts} more hosts; {free}"


def losses(topology: Topology, *, hosts: bool = True) -> list[tuple[str, tuple[Rank, ...]]]:
    """Every single loss: each usable rank, and each host with more than one of them."""
    usable = {spec.rank for spec in topology.usable}
    singles: list[tuple[str, tuple[Rank, ...]]] = [(f"rank {rank}", (rank,)) for rank in sorted(usable)]
    if not hosts:
        return singles
    groups = [(f"host {host}", tuple(r for r in ranks if r in usable)) for host, ranks in topology.hosts.items()]
    return singles + [(name, ranks) for name, ranks in groups if len(ranks) > 1]


def contingencies(
    topology: Topology,
    load: npt.ArrayLike,
    *,
    live: Placement,
    constraints: Constraints = DEFAULT,
    hosts: bool = True,
) -> tuple[Contingency, ...]:
    """The repair of every single rank and host loss: what ``repair`` loads without a budget, split less finely.

    Raises:
        InvalidInputError: an argument that no plan could answer.
    """
    demand = checked_load(load)
    checked_live(live, demand, topology)
    cases = losses(topology, hosts=hosts)
    refusals = [_refusal(topology.without(lost), demand.shape, constraints) for _, lost in cases]
    feasible = [lost for (_, lost), refusal in zip(cases, refusals, strict=True) if not refusal]
    slots, weights, reports = _kernels.contingencies(
        native_ranks(topology, experts=demand.shape[1], constraints=constraints),
        live.slots,
        live.weights,
        demand,
        absent=absent(constraints, demand),
        lost=[list(lost) for lost in feasible],
        threads=threads(constraints),
    )
    answers = iter(zip(slots, weights, reports, strict=True))
    held = _copies_by_rank(live)
    made = []
    for (name, lost), refusal in zip(cases, refusals, strict=True):
        orphans = _orphans(held, lost)
        if refusal:
            made.append(Contingency(name, lost, orphans, plan=None, balance=None, refusal=refusal))
            continue
        new_slots, new_weights, (_, _, worst, ideal) = next(answers)
        plan = Plan(
            placement=Placement(slots=new_slots, weights=new_weights, n_experts=demand.shape[1]),
            before=live,
            topology=topology.without(lost),
            load=demand,
            survivability=constraints.survivability,
            reason=f"prepared for the loss of {name}",
            unavailable=constraints.unavailable,
        )
        balance = Balance.of(worst / np.where(ideal > 0, ideal, 1))
        made.append(Contingency(name, lost, orphans, plan=plan, balance=balance, refusal=""))
    return tuple(made)


def headroom(
    topology: Topology,
    load: npt.ArrayLike,
    *,
    live: Placement,
    constraints: Constraints = DEFAULT,
    prepared: Sequence[Contingency] | None = None,
) -> Headroom:
    """What the instance can still lose.

    Args:
        topology: live ranks.
        load: [layers, experts] tokens, any unit.
        live: the committed placement.
        constraints: as for ``repair``.
        prepared: contingencies of the same arguments, if they are at hand.

    Raises:
        InvalidInputError: an argument that no plan could answer.
    """
    demand = checked_load(load)
    cases = prepared or contingencies(topology, demand, live=live, constraints=constraints)
    experts = demand.shape[1]
    rank_slots = [min(spec.slots, experts) for spec in topology.usable]
    by_rank = {spec.rank: min(spec.slots, experts) for spec in topology.usable}
    host_slots = [sum(by_rank.get(r, 0) for r in ranks) for ranks in topology.hosts.values()]
    hosts = {case.lost: case.name.removeprefix("host ") for case in cases if case.name.startswith("host ")}
    ranks = [(case.lost[0], case.orphans) for case in cases if case.name.startswith("rank ") and case.orphans]
    critical_hosts = [(hosts[case.lost], case.orphans) for case in cases if case.lost in hosts and case.orphans]
    return Headroom(
        ranks=_absorbable(rank_slots, experts),
        hosts=_absorbable(host_slots, experts),
        free_ranks=int(presence(live, _usable_domains(topology, Survivability.RANK)).min()) - 1,
        free_hosts=int(presence(live, _usable_domains(topology, Survivability.HOST)).min()) - 1,
        critical_ranks=tuple(sorted(ranks, key=lambda item: (-item[1], item[0]))),
        critical_hosts=tuple(sorted(critical_hosts, key=lambda item: (-item[1], item[0]))),
        after=tuple((case.name, case.balance) for case in cases if case.balance is not None),
        impossible=tuple((case.name, case.refusal) for case in cases if case.refusal),
    )


def _usable_domains(topology: Topology, survivability: Survivability) -> npt.NDArray[np.int32]:
    return np.where(topology.capacity > 0, topology.domains(survivability), -1).astype(np.int32)


def _absorbable(sizes: list[int], experts: int) -> int:
    """Largest number of losses, largest domains first, that leaves a slot for every expert."""
    left, lost = sum(sizes), 0
    for size in sorted(sizes, reverse=True):
        left -= size
        if left < experts:
            break
        lost += 1
    return lost


def _refusal(remaining: Topology, shape: tuple[int, ...], constraints: Constraints) -> str:
    layers, experts = shape
    try:
        require(remaining, experts=experts - unobtainable(constraints, layers=layers), survivability=Survivability.NONE)
    except InfeasibleError as refusal:
        return str(refusal)
    return ""


def _copies_by_rank(live: Placement) -> npt.NDArray[np.uint8]:
    """[max_ranks, layers, experts]: whether the rank has a routed copy."""
    held = np.zeros((live.max_ranks, live.n_layers, live.n_experts), dtype=np.uint8)
    layer, rank, slot = np.nonzero((live.slots < live.n_experts) & (live.weights > 0))
    held[rank, layer, live.slots[layer, rank, slot]] = 1
    return held


def _orphans(held: npt.NDArray[np.uint8], lost: tuple[Rank, ...]) -> int:
    copies = held.sum(axis=0, dtype=np.int32)
    gone = held[list(lost)].sum(axis=0, dtype=np.int32)
    return int(((copies > 0) & (copies == gone)).sum())
