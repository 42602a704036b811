"""The bounds that the benchmark divides by, against exhaustive search on instances small enough for it."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.optimize import linprog

from controlplane.planner import Topology, imbalance, plan
from schemas.placement import EMPTY
from tests.planner.planner_cases import lognormal, zipf
from tools.benchmarks.placement import baseline, budgeted
from tools.benchmarks.placement.priced import least_with_budget
from tools.benchmarks.placement.rewriting import NEVER, Held, writes_needed
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


def least_by_writes(held, load, slots=2):
    """By slots written beyond one for each orphan: max ÷ mean of the best of all placements that write no more."""
    orphans = set(range(len(load))) - {expert for row in held for expert in row}
    best = {}
    for placed in product(list(combinations(range(len(load)), slots)), repeat=len(held)):
        if len(set().union(*placed)) == len(load):
            writes = sum(len(set(row) - set(kept)) for row, kept in zip(placed, held, strict=True)) - len(orphans)
            best[writes] = min(best.get(writes, np.inf), split(load, placed))
    mean = load.sum() / len(held)
    return {limit: min(best[writes] for writes in best if writes <= limit) / mean for limit in sorted(best)}


@pytest.mark.parametrize(
    ("held", "experts"),
    [
        ([(0, 1), (0, 2), (1, 2)], 4),
        ([(0, 1), (0, 2), (0, 3)], 5),
        ([(0, 1), (0, 2), (3, 3)], 5),
        ([(0, 1), (2, 3), (1, 2)], 5),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_no_repair_beats_the_bound_that_knows_its_budget(held, experts, seed):
    topology = Topology.uniform(ranks=len(held), slots=2)
    live = plan(topology, np.ones((1, experts))).placement
    slots = np.array([[[row[0], row[1] if row[1] != row[0] else EMPTY] for row in held]], dtype=np.uint16)
    live = type(live)(slots=slots, weights=(slots != EMPTY).astype(np.uint16), n_experts=experts)
    load = np.random.default_rng(seed).lognormal(0, 1.2, (1, experts))
    least = least_by_writes([tuple({*row}) for row in held], load[0])
    lowest = np.array([min(least.values())])
    for budget, pressure in least.items():
        bound = budgeted.with_budget(live, load, topology, budget=budget, lowest=lowest, highest=3.0)
        assert bound["mean"] <= pressure + 1e-9
        assert bound["worst"] <= pressure + 1e-9


def test_the_bound_that_knows_its_budget_sees_that_an_orphan_takes_what_a_heavy_expert_needs():
    # Both copies of the heavy one are needed and only they can make room: without a write more, one rank has it alone.
    held = np.array([[[0, 1], [0, 2], [3, 4]]], dtype=np.uint16)
    topology, load = Topology.uniform(ranks=3, slots=2), np.array([[1.6, 0.4, 0.4, 0.5, 0.5, 0.05]])
    live = plan(topology, load).placement
    live = type(live)(slots=held, weights=np.ones_like(held), n_experts=6)
    lowest = whole_copies(load, topology)
    none, one = (
        budgeted.with_budget(live, load, topology, budget=budget, lowest=lowest, highest=2.0)["worst"]
        for budget in (0, 1)
    )
    assert none > 1.04 * one


@pytest.mark.parametrize(("ranks", "slots", "experts"), [(2, 3, 4), (2, 3, 5), (2, 4, 6), (3, 2, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_no_repair_beats_the_model_of_any_number_of_slots(ranks, slots, experts, seed):
    generator = np.random.default_rng([seed, slots, experts])
    load = generator.lognormal(0, 1.2, experts)
    rows = [sorted(generator.choice(experts, slots, replace=False).tolist()) for _ in range(ranks)]
    least = least_by_writes(rows, load, slots)
    held = Held(rows, load / (load.sum() / ranks), slots)
    for writes, pressure in least.items():
        assert writes_needed(held, pressure) <= writes
    topology = Topology.uniform(ranks=ranks, slots=slots)
    live = plan(topology, np.ones((1, experts))).placement
    table = np.array([rows], dtype=np.uint16)
    live = type(live)(slots=table, weights=np.ones_like(table), n_experts=experts)
    lowest, reached = np.array([min(least.values())]), np.array([max(least.values())])
    for budget, pressure in least.items():
        bound = least_with_budget(live, load[None], topology, budget=budget, lowest=lowest, reached=reached, near=1.0)
        assert bound["mean"] <= pressure + 1e-9
        assert bound["worst"] <= pressure + 1e-9


def test_the_model_counts_a_whole_write_for_each_rank_that_has_too_much():
    # The two lone ranks are a little too full: each has to lose an expert, however little is too much.
    held = Held([[0, 1, 2], [3, 4, 5], [6, 7, 8]], np.array([0.4, 0.4, 0.3, 0.4, 0.4, 0.3, 0.3, 0.3, 0.2]), 3)
    assert writes_needed(held, 1.11) == 0
    assert writes_needed(held, 1.05) >= 2
    assert writes_needed(held, 0.99) == NEVER


def test_a_budget_is_shared_by_all_layers():
    held = np.array([[[0, 1, 2], [3, 4, 5], [6, 0, 3]]] * 2, dtype=np.uint16)
    topology, load = Topology.uniform(ranks=3, slots=3), np.array([[0.1, 0.5, 0.6, 0.1, 0.5, 0.6, 0.6]] * 2)
    live = plan(topology, load).placement
    live = type(live)(slots=held, weights=np.ones_like(held), n_experts=7)
    bounds = [
        least_with_budget(live, load, topology, budget=budget, lowest=np.ones(2), reached=np.full(2, 1.2), near=1.0)
        for budget in (0, 8)
    ]
    assert bounds[0]["worst"] > bounds[1]["worst"]
    assert bounds[0]["mean"] > bounds[1]["mean"]
