import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.planner import (
    Constraints,
    InfeasibleError,
    RankSpec,
    Topology,
    covers,
    imbalance,
    is_valid_step,
    plan,
    rebalance,
)
from schemas.policy import Survivability
from tests.planner.planner_cases import lognormal, zipf
from tests.planner.test_planner_plan import instances


def walk(live, transition):
    """Each step beside the table it starts from."""
    tables = [live, *(step.placement for step in transition.steps)]
    return zip(tables, transition.steps, strict=False)


def cordon(topology, ranks):
    specs = tuple(
        RankSpec(rank=s.rank, host=s.host, slots=s.slots, speed=s.speed, cordoned=s.rank in ranks)
        for s in topology.ranks
    )
    return Topology(specs, max_ranks=topology.max_ranks, width=topology.width)


def test_a_changed_load_is_balanced_again_in_steps_that_write_no_slot_in_use():
    topology, demand = Topology.uniform(ranks=32, slots=9), lognormal(layers=6, experts=256)
    live = plan(topology, demand).placement
    drifted = demand * np.random.default_rng(1).lognormal(0, 0.3, demand.shape)

    answer = rebalance(topology, drifted, live=live, constraints=Constraints(movement_budget=60))

    assert 0 < answer.writes <= 60
    assert answer.after.worst < answer.before.worst
    assert answer.after.mean < 1.02
    for before, step in walk(live, answer):
        assert is_valid_step(before, step.placement)
        assert covers(step.placement, topology, survivability=Survivability.NONE)


def test_no_step_gives_up_survivability():
    topology, demand = Topology.uniform(ranks=8, slots=12, ranks_per_host=2), zipf(layers=4, experts=32)
    wish = Constraints(survivability=Survivability.HOST, movement_budget=1000)
    live = plan(topology, demand, constraints=wish).placement
    other = zipf(layers=4, experts=32, seed=5)

    answer = rebalance(topology, other, live=live, constraints=wish)

    assert answer.steps
    for before, step in walk(live, answer):
        assert is_valid_step(before, step.placement)
        assert covers(step.placement, topology, survivability=Survivability.HOST)


def test_a_cordoned_rank_is_emptied_while_it_serves():
    topology, demand = Topology.uniform(ranks=8, slots=6), lognormal(layers=4, experts=32)
    live = plan(topology, demand).placement
    drained = cordon(topology, {3})

    answer = rebalance(drained, demand, live=live)

    for before, step in walk(live, answer):
        assert is_valid_step(before, step.placement)
        assert covers(step.placement, topology, survivability=Survivability.NONE)
    final = answer.steps[-1].placement
    assert not final.weights[:, 3].any()
    assert final.missing(r for r in range(8) if r != 3) == []


def test_a_joiner_with_empty_slots_takes_its_part_in_one_step():
    topology, demand = Topology.uniform(ranks=8, slots=6), lognormal(layers=4, experts=32)
    live = plan(topology.without([7]), demand).placement

    answer = rebalance(topology, demand, live=live, constraints=Constraints(fill=True))

    assert (answer.steps[0].fills[:, 1] == 7).any()
    assert answer.after.worst < 1.02


def test_new_weights_alone_are_a_step_that_loads_nothing():
    topology, demand = Topology.uniform(ranks=8, slots=12), lognormal(layers=4, experts=32)
    live = plan(topology, demand).placement
    drifted = demand * np.random.default_rng(1).lognormal(0, 0.2, demand.shape)

    answer = rebalance(topology, drifted, live=live, constraints=Constraints(movement_budget=0))

    assert answer.writes == 0
    assert answer.after.worst < answer.before.worst


def test_nothing_is_done_where_nothing_is_to_be_gained():
    topology, demand = Topology.uniform(ranks=8, slots=12), lognormal(layers=4, experts=32)
    live = plan(topology, demand).placement
    assert rebalance(topology, demand, live=live, constraints=Constraints(movement_budget=50)).steps == ()


@settings(max_examples=200, deadline=None)
@given(instances(), st.data())
def test_every_walk_is_valid_step_by_step(instance, data):
    topology, load = instance
    wish = Constraints(
        survivability=data.draw(st.sampled_from(list(Survivability))),
        movement_budget=data.draw(st.sampled_from([None, 0, 3, 1000])),
        threads=1,
    )
    try:
        live = plan(topology, load, constraints=wish).placement
    except InfeasibleError:
        return
    other = load[:, data.draw(st.permutations(range(load.shape[1])))]
    drained = cordon(topology, data.draw(st.sets(st.integers(0, topology.max_ranks - 1), max_size=2)))
    try:
        answer = rebalance(drained, other, live=live, constraints=wish)
    except InfeasibleError:
        return

    kept = Survivability.NONE if drained.usable != topology.usable else wish.survivability
    for before, step in walk(live, answer):
        assert is_valid_step(before, step.placement)
        assert covers(step.placement, topology, survivability=kept)
    if answer.steps:
        assert covers(answer.steps[-1].placement, drained, survivability=Survivability.NONE)
    if wish.movement_budget == 0 and drained.usable == topology.usable:
        assert answer.writes == 0


def test_the_walk_ends_better_than_it_began_unless_a_rank_leaves():
    topology, demand = Topology.uniform(ranks=16, slots=5), zipf(layers=5, experts=64)
    live = plan(topology, demand).placement
    other = zipf(layers=5, experts=64, seed=2)

    answer = rebalance(topology, other, live=live)

    final = answer.steps[-1].placement
    assert imbalance(final, other, topology).max() == pytest.approx(answer.after.worst)
    assert answer.after.mean < answer.before.mean
