import pytest

from controlplane.planner import Constraints, Topology, plan, repair
from schemas.policy import Survivability
from tools.benchmarks.placement import baseline
from tools.benchmarks.placement.day import Day, Events, ours, theirs
from tools.benchmarks.placement.loads import real, recorded


@pytest.mark.parametrize(("slots", "survivability"), [(9, Survivability.NONE), (12, Survivability.RANK)])
def test_a_day_of_drift_and_twenty_failures_keeps_every_invariant(slots, survivability):
    day = Day(ranks=16, slots=slots, layers=4, experts=80, survivability=survivability, seed=4)

    ledger = ours(day, Events.of(day))

    assert ledger.violations == []
    assert ledger.repairs == 20


def test_a_day_moves_far_fewer_experts_than_planning_anew():
    day = Day(ranks=16, slots=9, layers=2, experts=80, ticks=24, failures=5, seed=1)
    events = Events.of(day)

    def replan(load, ranks):
        return baseline.place(load, list(ranks), max_ranks=16, slots=9, policy=baseline.GLOBAL)

    mine, other = ours(day, events), theirs(day, events, replan, baseline.moved, every=4)

    assert mine.writes * 5 < other.writes


def test_recorded_routing_is_planned_and_repaired_as_any_other():
    assert recorded().shape == (116, 4, 32)
    topology, demand = Topology.uniform(ranks=32, slots=11), real(seed=0, layers=6)
    live = plan(topology, demand).placement
    mended = repair(topology.without([3]), demand, live=live, constraints=Constraints(movement_budget=20))
    assert mended.explanation.balance.worst <= 1.05 * mended.explanation.bound.worst
