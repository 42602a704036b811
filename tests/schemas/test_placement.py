from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.placement import EMPTY, Placement, PlacementFormatError


@given(
    layers=st.integers(1, 4),
    experts=st.integers(1, 40),
    ranks=st.sets(st.integers(0, 7), min_size=1),
    spare=st.integers(0, 3),
)
def test_round_robin_covers_every_expert_and_survives_the_wire(layers, experts, ranks, spare):
    slots = -(-experts // len(ranks)) + spare
    placement = Placement.round_robin(layers=layers, experts=experts, ranks=ranks, max_ranks=8, slots=slots)
    assert placement.missing(ranks) == []
    again = Placement.from_wire(placement.wire)
    assert again == placement
    assert np.array_equal(again.slots, placement.slots)
    for rank in ranks:
        held = placement.slots[0, rank][placement.slots[0, rank] != EMPTY]
        assert len(set(held.tolist())) == len(held), "two copies on one rank survive nothing"


def test_a_lost_rank_takes_its_only_copies_along():
    placement = Placement.round_robin(layers=2, experts=8, ranks=range(4), max_ranks=4, slots=2)
    assert placement.missing([0, 1, 2]) == [(0, 3), (0, 7), (1, 3), (1, 7)]


def test_a_replica_without_weight_does_not_cover():
    placement = Placement.round_robin(layers=1, experts=2, ranks=[0], max_ranks=1, slots=2)
    weights = placement.weights.copy()
    weights[0, 0, 1] = 0
    assert Placement(slots=placement.slots, weights=weights, n_experts=2).missing([0]) == [(0, 1)]


def test_too_few_slots_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"8 experts need 8 slots, but 2 ranks × 3 slots = 6; raise slots_per_rank"):
        Placement.round_robin(layers=1, experts=8, ranks=[0, 1], max_ranks=2, slots=3)


@pytest.mark.parametrize("data", [b"", b"\x81\xa7version\x01", b"not msgpack"])
def test_bytes_that_are_no_placement_are_named(data):
    with pytest.raises(PlacementFormatError, match=f"{len(data)} bytes that do not decode"):
        Placement.from_wire(data)
