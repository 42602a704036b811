from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.planner import Constraints, InfeasibleError, Topology, imbalance, plan, repair
from schemas.policy import Survivability
from tests.planner.planner_cases import assert_sound, best_split, lognormal, orphans, routed, written, zipf
from tests.planner.test_planner_plan import instances


@pytest.mark.parametrize("load", [zipf, lognormal])
@pytest.mark.parametrize(("ranks", "slots", "lost"), [(32, 9, 1), (32, 11, 8), (32, 16, 16), (64, 5, 4), (64, 8, 8)])
def test_a_repair_loads_only_experts_that_have_no_copy_left(load, ranks, slots, lost):
    topology, demand = Topology.uniform(ranks=ranks, slots=slots), load(layers=4, experts=256)
    live = plan(topology, demand).placement
    gone = range(lost)

    answer = repair(topology.without(gone), demand, live=live)

    assert_sound(answer.placement, topology.without(gone))
    missing = orphans(live, set(gone))
    assert written(live, answer.placement) == len(missing) == answer.explanation.needed
    assert {(layer, expert) for layer, _, _, expert in answer.fills.tolist()} == set(missing)


def test_after_a_repair_the_load_is_split_as_well_as_the_copies_allow():
    topology, demand = Topology.uniform(ranks=32, slots=11), zipf(layers=4, experts=256)
    live = plan(topology, demand).placement
    left = topology.without([5])

    answer = repair(left, demand, live=live)

    best = best_split(answer.placement, demand, left)
    assert imbalance(answer.placement, demand, left) == pytest.approx(best, rel=1e-3)


def test_one_percent_of_the_slots_brings_the_balance_back():
    topology, demand = Topology.uniform(ranks=64, slots=8), lognormal(layers=8, experts=256)
    live = plan(topology, demand).placement
    left = topology.without([0, 1, 2, 3])
    budget = live.slots.size // 100

    answer = repair(left, demand, live=live, constraints=Constraints(movement_budget=budget))

    assert written(live, answer.placement) <= len(orphans(live, {0, 1, 2, 3})) + budget
    assert answer.explanation.balance.worst <= 1.05 * answer.explanation.bound.worst


def test_a_host_whose_loss_leaves_three_percent_of_redundant_slots_costs_little_balance():
    # Experts that nobody else holds stay where they are: it takes a plan that has left room beside some of them.
    topology, demand = Topology.uniform(ranks=32, slots=11), zipf(layers=4, experts=256)
    live = plan(topology, demand).placement
    left = topology.without(range(8))

    least = repair(left, demand, live=live)
    spent = repair(left, demand, live=live, constraints=Constraints(movement_budget=live.slots.size // 100))

    assert imbalance(least.placement, demand, left).mean() <= 1.2
    assert imbalance(spent.placement, demand, left).mean() <= 1.06


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_no_layer_is_left_behind_when_all_share_one_percent_of_the_slots(seed):
    topology, demand = Topology.uniform(ranks=32, slots=5), lognormal(layers=6, experts=128, seed=seed)
    live = plan(topology, demand).placement
    left = topology.without(range(4))

    answer = repair(left, demand, live=live, constraints=Constraints(movement_budget=live.slots.size // 100))

    assert imbalance(answer.placement, demand, left).max() <= 1.05


def test_fewer_slots_than_experts_cannot_be_repaired():
    topology, demand = Topology.uniform(ranks=32, slots=9), lognormal(layers=2, experts=256)
    live = plan(topology, demand).placement
    with pytest.raises(InfeasibleError, match="needs 256 slots per layer, 252 present"):
        repair(topology.without(range(4)), demand, live=live)


def test_experts_without_any_source_are_left_out_and_the_rest_is_covered():
    topology, demand = Topology.uniform(ranks=8, slots=6), lognormal(layers=2, experts=32)
    live = plan(topology, demand).placement
    lost = orphans(live, {0})[0]

    answer = repair(
        topology.without([0]), demand, live=live, constraints=Constraints(unavailable=frozenset({lost}))
    ).placement

    assert answer.missing(range(1, 8)) == [lost]


def test_a_spare_copy_is_used_instead_of_loading():
    topology, demand = Topology.uniform(ranks=4, slots=4), np.ones((1, 6))
    live = plan(topology, demand).placement
    expert = orphans(live, {0, 1, 2})[0][1]  # rank 3 has no copy of it
    holders = sorted(routed(live, 0, expert))
    weights = live.weights.copy()
    weights[0][live.slots[0] == expert] = 0
    rank = holders[0]
    weights[0, rank, list(live.slots[0, rank]).index(expert)] = 7
    spare = type(live)(slots=live.slots.copy(), weights=weights, n_experts=6)
    if len(holders) == 1:
        pytest.skip("every copy is routed")

    answer = repair(topology.without([rank]), demand, live=spare)

    assert all(filled != expert for _, _, _, filled in answer.fills.tolist())
    assert answer.placement.missing(r for r in range(4) if r != rank) == []


def test_a_rank_that_rejoins_empty_is_filled_within_the_budget():
    topology, demand = Topology.uniform(ranks=8, slots=6), lognormal(layers=2, experts=32)
    small = topology.without([7])
    live = plan(small, demand).placement

    answer = plan(topology, demand, live=live, constraints=Constraints(fill=True)).placement

    assert_sound(answer, topology)
    assert (answer.slots[:, 7] != 0xFFFF).all()
    assert (imbalance(answer, demand, topology) < 1.02).all()


@pytest.mark.parametrize("survivability", [Survivability.RANK, Survivability.HOST])
def test_no_single_loss_orphans_an_expert_and_none_needs_a_load(survivability):
    topology, demand = Topology.uniform(ranks=16, slots=10), zipf(layers=3, experts=64)
    live = plan(topology, demand, constraints=Constraints(survivability=survivability)).placement
    losses = [(r,) for r in range(16)]
    if survivability is Survivability.HOST:
        losses += list(topology.hosts.values())

    for lost in losses:
        assert live.missing(r for r in range(16) if r not in lost) == []
        assert len(repair(topology.without(lost), demand, live=live).fills) == 0


def test_any_two_losses_in_turn_are_survived_when_survivability_is_restored_between():
    topology, demand = Topology.uniform(ranks=8, slots=12, ranks_per_host=2), lognormal(layers=2, experts=32)
    wish = Constraints(survivability=Survivability.RANK, movement_budget=10_000)
    live = plan(topology, demand, constraints=wish).placement

    for first, second in combinations(range(8), 2):
        after = repair(topology.without([first]), demand, live=live, constraints=wish)
        assert after.explanation.exposed == 0
        last = repair(topology.without([first, second]), demand, live=after.placement)
        assert len(last.fills) == 0
        assert_sound(last.placement, topology.without([first, second]))


@settings(max_examples=300, deadline=None)
@given(instances(), st.data())
def test_every_repair_is_minimal_and_complete_or_refused_for_want_of_slots(instance, data):
    topology, load = instance
    constraints = Constraints(threads=1)
    try:
        live = plan(topology, load, constraints=constraints).placement
    except InfeasibleError:
        return
    lost = data.draw(st.sets(st.integers(0, topology.max_ranks - 1), max_size=topology.max_ranks - 1))
    left = topology.without(lost)
    if left.slots < load.shape[1]:
        with pytest.raises(InfeasibleError):
            repair(left, load, live=live, constraints=constraints)
        return
    try:
        answer = repair(left, load, live=live, constraints=constraints)
    except InfeasibleError:
        counted = sum(min(spec.slots, load.shape[1]) for spec in left.usable)
        assert counted < load.shape[1]
        return
    assert_sound(answer.placement, left)
    assert written(live, answer.placement) == len(orphans(live, lost))
