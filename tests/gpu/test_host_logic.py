"""Layouts, tags and replica choice of the CUDA module, on the CPU, against plain Python: the CPU backend's vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import ControlBlock, Table

cuda = pytest.importorskip(
    "native._cuda", reason="the CUDA module is not built: no CUDA compiler", exc_type=ImportError
)

U64 = (1 << 64) - 1


def splitmix(source: int, token: int, k: int, expert: int) -> int:
    z = ((source << 48) ^ (expert << 32) ^ (token << 8) ^ k) & U64
    z = (z + 0x9E3779B97F4A7C15) & U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return (z ^ (z >> 31)) >> 32


@given(st.integers(0, 127), st.integers(0, 4095), st.integers(0, 15), st.integers(0, 4095))
def test_hash_is_the_one_of_the_protocol(source, token, k, expert):
    assert cuda.pair_hash(source, token, k, expert) == splitmix(source, token, k, expert)


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(0, 127), st.integers(0, 500), st.integers(0, 7)
)
def test_a_replica_is_chosen_by_its_share(weights, source, token, k):
    cumulative = [sum(weights[: i + 1]) for i in range(len(weights))]
    point = splitmix(source, token, k, 5) * cumulative[-1] >> 32
    wanted = next(i for i, end in enumerate(cumulative) if end > point)
    assert cuda.choose_replica(cumulative, source, token, k, 5) == wanted


def test_shares_come_out_as_weighted():
    counts = [0, 0]
    for token in range(20_000):
        counts[cuda.choose_replica([3, 4], 0, token, 0, 9)] += 1
    assert counts[0] / sum(counts) == pytest.approx(0.75, abs=0.01)


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_tags_name_one_exchange_and_zeroed_memory_none(epoch, number):
    tag = cuda.tag(epoch, number)
    assert tag != 0
    assert (tag >> 32, tag & 0xFFFFFFFF) == (epoch, number)


@settings(deadline=None)
@given(
    st.integers(1, 128),
    st.integers(1, 512),
    st.integers(1, 56).map(lambda n: 128 * n),
    st.integers(1, 16),
    st.booleans(),
)
def test_areas_of_a_chunk_are_aligned_apart_and_inside(max_ranks, max_tokens, hidden, max_topk, fp8):
    g = cuda.geometry(
        max_ranks=max_ranks,
        max_tokens=max_tokens,
        hidden=hidden,
        max_topk=max_topk,
        max_slots=8,
        n_experts=64,
        n_layers=2,
        fp8=fp8,
    )
    stride = g["slots_stride"]
    assert stride % 8 == 0
    assert stride >= max_topk
    assert g["dispatch_row_bytes"] >= (hidden + hidden // 128 * 4 if fp8 else 2 * hidden)
    assert g["combine_row_bytes"] == 2 * hidden
    for area in ("slots_at", "weights_at", "row_at", "partial_at"):
        assert all(offset % 16 == 0 for offset in g[area]), area
    # Parity 0 in order, then parity 1 in order, then both parities of the partial sums, then the end.
    first = [g[area][0] for area in ("slots_at", "weights_at", "row_at")]
    assert first == [4096, 4096 + 2 * stride * max_tokens, 4096 + 6 * stride * max_tokens]
    last_row_end = g["row_at"][1] + g["dispatch_row_bytes"]
    assert last_row_end <= g["partial_at"][0]
    assert g["partial_at"][1] + g["combine_row_bytes"] <= g["chunk_bytes"]


def test_nothing_is_addressed_by_the_number_of_ranks():
    shape = {
        "max_tokens": 128,
        "hidden": 7168,
        "max_topk": 8,
        "max_slots": 8,
        "n_experts": 256,
        "n_layers": 58,
        "fp8": False,
    }
    assert cuda.geometry(max_ranks=8, **shape) == cuda.geometry(max_ranks=64, **shape)


def test_a_table_is_packed_layer_by_layer_for_the_device():
    table = Table(
        epoch=7,
        active=[0, 2],
        incarnations=[11, 0, 13],
        offsets=np.array([[0, 2, 3], [3, 4, 6]], np.int32),
        ranks=np.array([0, 1, 2, 2, 0, 2], np.uint16),
        slots=np.array([3, 0, 1, 2, 0, 3], np.uint16),
        weights=np.array([5, 9, 2, 4, 1, 3], np.uint16),
    )
    packed = cuda.pack_table(table, own_rank=2, max_ranks=3, max_slots=4)
    assert (packed["epoch"], packed["member"], packed["active"]) == (7, True, [0, 2])
    assert packed["offsets"] == [0, 1, 2, 0, 1, 3]  # rank 1 is not active: its replica is left out
    none = (0, 0, 0)
    assert packed["replicas"][:12] == [(0, 3, 5), (2, 1, 2), *[none] * 10]
    assert packed["replicas"][12:] == [(2, 2, 4), (0, 0, 1), (2, 3, 4), *[none] * 9]
    assert not cuda.pack_table(table, own_rank=1, max_ranks=3, max_slots=4)["member"]
    with pytest.raises(ValueError, match="slot 3"):
        cuda.pack_table(table, own_rank=2, max_ranks=3, max_slots=3)
    with pytest.raises(ValueError, match="incarnations"):
        cuda.pack_table(table, own_rank=2, max_ranks=4, max_slots=4)


def test_the_control_block_of_the_other_module_is_taken(tmp_path):
    if cuda.device_count() > 0:
        pytest.skip("this machine has a device")
    control = ControlBlock.create(str(tmp_path / "control"), rank=0, incarnation=1)
    sizes = {
        "max_ranks": 2, "max_tokens": 8, "hidden": 128, "max_topk": 2, "max_slots": 2, "n_experts": 4, "n_layers": 1,
    }  # fmt: skip
    options = {"fp8": False, "blocks": 1, "threads": 32, "fixed": False, "fixed_ranks": 2, "doorbell": -1}
    with pytest.raises(cuda.CudaError, match="device"):  # and no TypeError: the arguments were right
        cuda.DeviceRank(device=0, rank=0, incarnation=1, control=control, **sizes, **options)


def test_without_a_device_it_says_so():
    from native import cuda as front

    if cuda.device_count() > 0:
        pytest.skip("this machine has a device")
    assert not front.available()
    shape = front.CudaShape(max_ranks=2, max_tokens=8, hidden=128, max_topk=2, max_slots=2, n_experts=4, n_layers=1)
    with pytest.raises(front.CudaUnavailableError, match="nvidia-smi"):
        front.CudaGroup(rank=0, incarnation=1, shape=shape)
