import pytest

from controlplane.planner import Constraints, Topology, contingencies, headroom, plan
from schemas.policy import Survivability
from tests.planner.planner_cases import assert_sound, lognormal, orphans, written


def test_every_single_loss_has_its_repair_ready():
    topology, demand = Topology.uniform(ranks=32, slots=11), lognormal(layers=3, experts=256)
    live = plan(topology, demand).placement

    cases = contingencies(topology, demand, live=live)

    assert [case.name for case in cases] == [f"rank {r}" for r in range(32)] + [f"host host{h}" for h in range(4)]
    for case in cases:
        left = topology.without(case.lost)
        missing = orphans(live, set(case.lost))
        assert case.orphans == len(missing)
        assert_sound(case.plan.placement, left)
        assert written(live, case.plan.placement) == len(missing)
        assert case.plan.explanation.balance.worst == pytest.approx(case.balance.worst, rel=2e-3)


def test_a_loss_that_cannot_be_repaired_says_why():
    topology, demand = Topology.uniform(ranks=32, slots=9), lognormal(layers=2, experts=256)
    live = plan(topology, demand).placement

    room = headroom(topology, demand, live=live)

    assert room.ranks == 3  # 32 × 9 = 288; 29 × 9 = 261, 28 × 9 = 252 < 256
    assert room.hosts == 0
    assert [name for name, _ in room.impossible] == [f"host host{h}" for h in range(4)]
    assert "needs 256 slots per layer, 216 present" in room.impossible[0][1]
    assert room.free_ranks == 0
    assert room.critical_ranks[0][1] == max(len(orphans(live, {r})) for r in range(32))


def test_survivable_placements_have_nothing_critical():
    topology, demand = Topology.uniform(ranks=32, slots=16), lognormal(layers=2, experts=256)
    live = plan(topology, demand, constraints=Constraints(survivability=Survivability.HOST)).placement

    room = headroom(topology, demand, live=live)

    assert room.critical_ranks == ()
    assert room.critical_hosts == ()
    assert room.free_ranks == 1
    assert room.free_hosts == 1
    assert str(room) == ("can lose 16 more ranks or 2 more hosts; 1 ranks or 1 hosts without loading anything")
    assert len(room.after) == 36


def test_cordoned_ranks_neither_count_nor_are_they_critical():
    specs = Topology.uniform(ranks=4, slots=4, ranks_per_host=1)
    live = plan(specs.without([3]), lognormal(layers=1, experts=8)).placement
    room = headroom(specs.without([3]), lognormal(layers=1, experts=8), live=live)
    assert room.ranks == 1
    assert {rank for rank, _ in room.critical_ranks} <= {0, 1, 2}
