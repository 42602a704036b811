import numpy as np
import pytest

from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.planning import Instance, Seat
from controlplane.planner import Topology, imbalance
from schemas.placement import EMPTY, Placement
from schemas.policy import Survivability
from tests.planner.planner_cases import lognormal, orphans, written

PLANNER = LoadAwarePlanner(threads=1)


def instance(ranks, *, experts=32, slots=6, survivability=Survivability.RANK, load=None, **more):
    seats = {rank: Seat(host=f"h{rank // 2}", rack="", slots=slots) for rank in ranks}
    return Instance(
        layers=3,
        experts=experts,
        max_ranks=8,
        slots=slots,
        expert_bytes=100,
        seats=seats,
        survivability=survivability,
        load=load,
        **more,
    )


def test_the_first_placement_is_even_and_covers_everything():
    load = lognormal(layers=3, experts=32)
    made = PLANNER.plan(instance(range(8), load=load)).placement
    assert made.missing(range(8)) == []
    assert (imbalance(made, load, Topology.uniform(ranks=8, slots=6)) < 1.03).all()


def test_survivability_that_does_not_fit_is_given_as_far_as_it_does():
    made = PLANNER.plan(instance(range(8), survivability=Survivability.HOST, experts=24)).placement
    for host in range(4):
        assert made.missing(r for r in range(8) if r // 2 != host) == []
    assert PLANNER.plan(instance(range(6), survivability=Survivability.HOST)).placement.missing(range(6)) == []


def test_an_urgent_repair_loads_what_is_orphaned_and_nothing_else():
    live = PLANNER.plan(instance(range(8))).placement
    mended = PLANNER.repair(instance(range(1, 8)), held=live, urgent=True).placement
    assert mended.missing(range(1, 8)) == []
    assert written(live, mended) == len(orphans(live, {0}))


def test_too_few_slots_cover_as_many_experts_as_fit():
    live = PLANNER.plan(instance(range(8))).placement
    mended = PLANNER.repair(instance(range(4)), held=live, urgent=True).placement
    assert len(mended.missing(range(4))) == 3 * (32 - 4 * 6)
    assert len(PLANNER.plan(instance(range(4))).placement.missing(range(4))) == 3 * (32 - 4 * 6)


def test_a_joiner_is_filled_without_touching_a_slot_in_use():
    live = PLANNER.plan(instance(range(7))).placement
    joined = PLANNER.repair(instance(range(8)), held=live, urgent=False).placement
    assert (joined.slots[:, 7] != EMPTY).all()
    in_use = live.weights > 0
    assert (joined.slots[in_use] == live.slots[in_use]).all()


def test_a_rebalance_stays_within_its_bytes():
    load = lognormal(layers=3, experts=32)
    live = PLANNER.plan(instance(range(8))).placement
    made = PLANNER.plan(instance(range(8), load=load), live=live, max_bytes=500).placement
    assert 0 < written(live, made) <= 5


def test_experts_without_a_source_get_no_slot():
    missing = frozenset({(0, 3), (2, 5)})
    made = PLANNER.plan(instance(range(8), unavailable=missing)).placement
    assert set(made.missing(range(8))) == missing


@pytest.mark.parametrize("urgent", [True, False])
def test_orphans_stay_away_from_ranks_that_cannot_read_a_checkpoint(urgent):
    empty = np.full((3, 8, 6), EMPTY, dtype=np.uint16)
    held = Placement(slots=empty, weights=np.zeros_like(empty), n_experts=8)
    made = PLANNER.repair(instance(range(8), experts=8, no_disk=frozenset({0})), held=held, urgent=urgent).placement
    assert made.missing(range(1, 8)) == []
