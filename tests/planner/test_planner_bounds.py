"""The bounds that the benchmark divides by, against exhaustive search on instances small enough for it."""

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import linprog

from controlplane.planner import Topology, imbalance, plan
from tests.planner.planner_cases import lognormal, zipf
from tools.benchmarks.placement import baseline
from tools.benchmarks.placement.whole import whole_copies


def least_pressure(load, ranks, slots):
    """Max ÷ mean of the best of all placements: every choice of experts for every rank, split by the linear program."""
    experts = len(load)
    best = np.inf
    for placed in choices(list(combinations(range(experts), slots)), ranks):
        if len(set().union(*placed)) == experts:
            best = min(best, split(load, placed))
    return best / (load.sum() / ranks)


def choices(sets, ranks):
    """Multisets: equal ranks are interchangeable."""
    if ranks == 0:
        yield ()
        return
    for index, held in enumerate(sets):
        for others in choices(sets[index:], ranks - 1):
            yield (held, *others)


def split(load, placed):
    copies = [(expert, rank) for rank, held in enumerate(placed) for expert in held]
    n = len(copies)
    equal, less = np.zeros((len(load), n + 1)), np.zeros((len(placed), n + 1))
    less[:, n] = -1
    for column, (expert, rank) in enumerate(copies):
        equal[expert, column] = less[rank, column] = 1
    cost = np.append(np.zeros(n), 1.0)
    answer = linprog(cost, A_ub=less, b_ub=np.zeros(len(placed)), A_eq=equal, b_eq=load, method="highs")
    assert answer.status == 0
    return answer.fun


@pytest.mark.parametrize(("ranks", "slots", "experts"), [(3, 2, 4), (3, 2, 5), (3, 2, 6), (2, 3, 4), (2, 3, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_no_placement_beats_the_bound_of_whole_copies(ranks, slots, experts, seed):
    for load in (
        zipf(layers=1, experts=experts, seed=seed),
        lognormal(layers=1, experts=experts, seed=seed, sigma=1.5),
    ):
        bound = whole_copies(load, Topology.uniform(ranks=ranks, slots=slots))[0]
        assert bound <= least_pressure(load[0], ranks, slots) * (1 + 1e-9)


def test_where_slots_are_short_the_planner_comes_close_to_the_bound_of_whole_copies():
    topology, demand = Topology.uniform(ranks=144, slots=2), zipf(layers=3, experts=256)
    bound = whole_copies(demand, topology)
    assert (bound > 1.2 * np.ones(3)).all()
    assert (imbalance(plan(topology, demand).placement, demand, topology) <= 1.03 * bound).all()


def test_ranks_of_several_kinds_are_refused():
    topology = Topology.uniform(ranks=4, slots=2)
    mixed = Topology((*topology.ranks[:3], topology.ranks[3].__class__(rank=3, host="h", slots=1)), 4, 2)
    with pytest.raises(ValueError, match="2 kinds"):
        whole_copies(zipf(layers=1, experts=4), mixed)


@pytest.mark.parametrize(("ranks", "slots"), [(144, 2), (32, 9), (24, 3)])
@pytest.mark.parametrize("policy", [baseline.DEFAULT, baseline.GLOBAL], ids=lambda policy: policy.name)
def test_no_layer_is_less_even_than_eplb_would_make_it(ranks, slots, policy):
    topology, experts = Topology.uniform(ranks=ranks, slots=slots), 64 if slots == 3 else 256
    for load in (
        zipf(layers=2, experts=experts, seed=3) ** 1.3,
        lognormal(layers=6, experts=experts, seed=4, sigma=0.5),
        lognormal(layers=6, experts=experts, seed=5, sigma=1.5),
        np.ones((1, experts)),
    ):
        other = baseline.place(load, range(ranks), max_ranks=ranks, slots=slots, policy=policy)
        ours = imbalance(plan(topology, load).placement, load, topology)
        # The routing weights resolve 0.03 %.
        assert (ours <= imbalance(other, load, topology) * 1.0005).all()
