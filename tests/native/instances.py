"""Small instances of the data plane for tests."""

from __future__ import annotations

import numpy as np

from native import _native
from tests.native import reference, rounds


def shape_of(*, dtype=_native.DType.FLOAT32, hidden=72, ranks=4, experts=10, layers=3, tokens=16, topk=4):
    return _native.Shape(
        max_ranks=ranks,
        max_tokens=tokens,
        hidden=hidden,
        max_topk=topk,
        max_slots=experts,
        n_experts=experts,
        n_layers=layers,
        dtype=dtype,
    )


def random_routing(shape, ranks, *, seed=0, redundancy=2):
    """Every expert on up to ``redundancy`` ranks, in slots of its own number, with uneven shares."""
    random = np.random.default_rng(seed)
    return reference.Routing(
        shape.max_ranks,
        [
            [
                [
                    (int(rank), expert, int(random.integers(1, 9)))
                    for rank in random.permutation(ranks)[: random.integers(1, redundancy + 1)]
                ]
                for expert in range(shape.n_experts)
            ]
            for _ in range(shape.n_layers)
        ],
    )


def enter(fleet, routing, epoch, ranks):
    """Cross into an epoch with these ranks."""
    incarnations = {rank: fleet.ranks[rank].incarnation for rank in ranks}
    fleet.call_all(rounds.stage, routing.live(ranks), epoch, incarnations, ranks=ranks)
    fleet.call_all(rounds.activate, epoch, ranks=ranks)


def start(fleet, routing, ranks):
    """Start and link ranks 0 … ranks-1 and cross into epoch 1."""
    members = list(range(ranks))
    for rank in members:
        fleet.start(rank)
    fleet.link_all(members)
    enter(fleet, routing, 1, members)
    return members
