import numpy as np
import pytest
from scipy.optimize import linprog

from controlplane.planner import Constraints, Links, RankSpec, Topology, plan, repair, sources
from controlplane.planner.sourcing import ways
from schemas.placement import EMPTY, Placement
from schemas.vocabulary import SourceTier
from tests.planner.planner_cases import lognormal

MIB = 1 << 20
LINKS = Links(expert_bytes=44 * MIB)


def table(*ranks):
    slots = np.array([ranks], dtype=np.uint16)
    return Placement(slots=slots, weights=(slots != EMPTY).astype(np.uint16), n_experts=8)


def two_hosts():
    specs = tuple(RankSpec(rank=r, host=f"h{r // 2}", slots=2) for r in range(4))
    return Topology(specs, max_ranks=4, width=2)


def lower_bound(options):
    """Least finish time when transfers may be split at will over their ways, by HiGHS."""
    names = sorted({link for choice in options for way in choice for link, _ in way.links})
    row = {name: index for index, name in enumerate(names)}
    n = sum(len(choice) for choice in options)
    equal, less = np.zeros((len(options), n + 1)), np.zeros((len(names), n + 1))
    less[:, n] = -1
    column = 0
    for fill, choice in enumerate(options):
        for way in choice:
            equal[fill, column] = 1
            for link, seconds in way.links:
                less[row[link], column] += seconds
            column += 1
    answer = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=less,
        b_ub=np.zeros(len(names)),
        A_eq=equal,
        b_eq=np.ones(len(options)),
        method="highs",
    )
    assert answer.status == 0
    return answer.fun


def test_the_nearest_copy_is_taken_and_another_one_is_ready():
    held = table([0, 1], [1, 0], [0, EMPTY], [EMPTY, EMPTY])
    answer = sources(np.array([[0, 2, 1, 1], [0, 3, 0, 0]]), held=held, topology=two_hosts(), links=LINKS)
    far, near = answer.fetches
    assert (far.origin.tier, far.spare.tier) == (SourceTier.REMOTE_PEER, SourceTier.REMOTE_PEER)
    assert far.origin.rank != far.spare.rank
    assert (near.origin.tier, near.origin.rank) == (SourceTier.HOST_PEER, 2)
    assert near.spare.rank in (0, 1)


def test_a_copy_that_is_about_to_be_overwritten_is_no_source():
    held = table([0, 1], [1, 2], [EMPTY, EMPTY], [EMPTY, EMPTY])
    after = table([3, 1], [1, 2], [0, EMPTY], [EMPTY, EMPTY])
    answer = sources(np.array([[0, 2, 0, 0]]), held=held, topology=two_hosts(), links=LINKS, overwritten=after)
    assert answer.fetches[0].origin.tier is SourceTier.CHECKPOINT


def test_a_memory_backup_comes_before_the_disk():
    held = table([0, 1], [EMPTY, EMPTY], [EMPTY, EMPTY], [EMPTY, EMPTY])
    answer = sources(
        np.array([[0, 2, 0, 7]]), held=held, topology=two_hosts(), links=LINKS, backups={(0, 7): ("h0", "h1")}
    )
    fetch = answer.fetches[0]
    assert (fetch.origin.tier, fetch.origin.host) == (SourceTier.HOST_BACKUP, "h1")
    assert fetch.spare.tier is SourceTier.HOST_BACKUP


def test_an_expert_nobody_has_is_named():
    held = table([0, 1], [EMPTY, EMPTY], [EMPTY, EMPTY], [EMPTY, EMPTY])
    links = Links(expert_bytes=44 * MIB, disk=0)
    answer = sources(np.array([[0, 2, 0, 7], [0, 2, 1, 1]]), held=held, topology=two_hosts(), links=links)
    assert answer.unobtainable == ((0, 7),)
    assert answer.fetches[0].origin is None
    assert answer.fetches[1].origin.rank == 0


def test_a_measured_slow_link_is_avoided():
    held = table([0, EMPTY], [0, EMPTY], [EMPTY, EMPTY], [EMPTY, EMPTY])
    links = Links(expert_bytes=44 * MIB, measured={("peer_out", "0"): 1e9})
    answer = sources(np.array([[0, 2, 0, 0]]), held=held, topology=two_hosts(), links=links)
    assert answer.fetches[0].origin.rank == 1
    assert answer.seconds == pytest.approx(44 * MIB / 50e9)


def test_a_rank_loads_only_from_tiers_that_it_can_reach():
    specs = tuple(RankSpec(rank=r, host="h", slots=1, tiers=frozenset({SourceTier.HOST_PEER})) for r in range(2))
    held = Placement(
        slots=np.array([[[0], [EMPTY]]], dtype=np.uint16), weights=np.array([[[1], [0]]], np.uint16), n_experts=2
    )
    answer = sources(np.array([[0, 1, 0, 1]]), held=held, topology=Topology(specs, max_ranks=2, width=1), links=LINKS)
    assert answer.unobtainable == ((0, 1),)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(("ranks", "slots", "lost"), [(32, 9, 1), (32, 11, 8), (64, 8, 8)])
def test_the_last_transfer_ends_within_ten_percent_of_the_linear_programs_bound(ranks, slots, lost, backed):
    topology, demand = Topology.uniform(ranks=ranks, slots=slots), lognormal(layers=12, experts=256)
    live = plan(topology, demand).placement
    left = topology.without(range(lost))
    answer = repair(left, demand, live=live, constraints=Constraints(movement_budget=200))
    hosts = sorted(left.hosts)
    backups = {
        (layer, expert): {hosts[expert % len(hosts)], hosts[(expert + 1) % len(hosts)]}
        for layer in range(12)
        for expert in range(256)
        if backed
    }
    links = Links(expert_bytes=44 * MIB, disk=6e9)

    made = sources(answer.fills, held=live, topology=left, links=links, overwritten=answer.placement, backups=backups)

    options = ways(answer.fills, held=live, topology=left, links=links, overwritten=answer.placement, backups=backups)
    bound = lower_bound(options)
    assert made.seconds <= 1.10 * bound
