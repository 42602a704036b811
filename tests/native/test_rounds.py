import pytest

from native import _native
from tests.native import rounds
from tests.native.instances import random_routing, shape_of, start
from tools.benchmarks.fleet import Fleet

OK = _native.Status.OK


@pytest.mark.parametrize("dtype", [_native.DType.FLOAT32, _native.DType.BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sums_equal_the_reference_bit_for_bit(dtype, ranks):
    shape = shape_of(dtype=dtype)
    routing = random_routing(shape, ranks)
    with Fleet(shape) as fleet:
        members = start(fleet, routing, ranks)
        for seed, tokens in enumerate([[16, 3, 0, 7], [1, 0, 0, 0], [0, 0, 0, 0], [5, 16, 16, 16]]):
            answers = fleet.call_all(rounds.step, routing, 10 * seed, tokens, 4, shape.n_layers)
            assert answers == dict.fromkeys(members, (OK, 0))


def test_a_table_without_a_rank_is_the_one_that_the_others_replicas_make():
    shape = shape_of()
    routing = random_routing(shape, 4, redundancy=3)
    with Fleet(shape) as fleet:
        start(fleet, routing, 4)
        incarnations, rest = {rank: fleet.ranks[rank].incarnation for rank in range(4)}, [0, 1, 3]
        fleet.call_all(rounds.stage_without, routing, 9, incarnations, 2, ranks=rest)
        fleet.call_all(rounds.activate, 9, ranks=rest)
        answers = fleet.call_all(rounds.step, routing.live(rest), 5, [16, 3, 0, 7], 4, shape.n_layers, ranks=rest)
        assert answers == dict.fromkeys(rest, (OK, 0))


def test_what_only_the_rank_without_which_a_table_is_made_held_is_missing():
    routing = random_routing(shape_of(), 3, redundancy=1)
    table = routing.table(epoch=1, incarnations={0: 1, 1: 1, 2: 1})
    rest = table.without(1, epoch=7)
    assert (rest.epoch, rest.active, table.active) == (7, [0, 2], [0, 1, 2])
    assert rest.missing == routing.live([0, 2]).table(epoch=7, incarnations={0: 1, 2: 1}).missing
    for rank, epoch, words in ((3, 7, "rank=3 is not active"), (1, 0, "epoch=0"), (1, 2**32, "epoch=4294967296")):
        with pytest.raises(ValueError, match=words):
            table.without(rank, epoch=epoch)
