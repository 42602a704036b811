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
