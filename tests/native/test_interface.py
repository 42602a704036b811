"""What the module accepts, what it refuses and in which words; kernels and checksum."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from native import _native
from tests.native import reference
from tests.native.instances import random_routing, shape_of


@pytest.fixture
def alone(tmp_path):
    """A rank that is its own whole instance, in this process."""

    def make(**options):
        shape = shape_of(**options)
        control = _native.ControlBlock.create(str(tmp_path / "control"), rank=0, incarnation=1)
        group = _native.Group(rank=0, incarnation=1, shape=shape, control=control)
        made.append(group)
        routing = random_routing(shape, 1)
        group.stage(routing.table(epoch=1, incarnations={0: 1}))
        group.activate(1)
        return group, routing

    made = []
    yield make
    for group in made:
        group.close()


def one_round(group, x, ids, weights, out):
    dispatched = group.dispatch(0, x, ids, weights)
    return group.combine(dispatched.rows, out, weighted=False)


@pytest.mark.parametrize("ids_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("hidden", [72, 7])
def test_torch_tensors_pass_without_copies(alone, ids_type, hidden):
    group, _ = alone(dtype=_native.DType.BFLOAT16, hidden=hidden)
    x = torch.randn(5, hidden + 3).bfloat16()[:, :hidden]  # rows that do not touch each other
    ids = torch.tensor([[0, 1], [2, 3], [4, -1], [-1, -1], [9, 0]], dtype=ids_type)
    weights = torch.ones(5, 2)
    dispatched = group.dispatch(0, x, ids, weights)
    rows = torch.from_dlpack(dispatched.rows)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, x[[0, 0, 1, 1, 2, 4, 4]])
    assert torch.from_dlpack(dispatched.slots).tolist() == [0, 1, 2, 3, 4, 9, 0]
    assert torch.from_dlpack(dispatched.weights).tolist() == [1.0] * 7
    rows += 0  # it is ours to write
    out = torch.full((5, hidden), 7.0, dtype=torch.bfloat16)
    combined = group.combine(rows, out, weighted=True)
    assert combined.status == _native.Status.OK
    assert combined.missing.tolist() == [0] * 5
    assert torch.equal(out.float(), x.float() * torch.tensor([2, 2, 1, 0, 2]).view(-1, 1))


def test_experts_without_a_copy_are_counted(alone):
    group, _ = alone()
    table = random_routing(shape_of(), 1)
    table.replicas[0][3].clear()
    native = table.table(epoch=2, incarnations={0: 1})
    assert native.missing == [(0, 3)]
    group.stage(native)
    assert group.staged_epoch == 2
    group.activate(2)
    assert (group.epoch, group.round) == (2, 0)
    x, out = np.ones((2, 72), np.float32), np.zeros((2, 72), np.float32)
    dispatched = group.dispatch(0, x, np.array([[3, 1], [0, 1]], np.int32), np.ones((2, 2), np.float32))
    assert (dispatched.masked, dispatched.pairs) == (1, 3)
    combined = group.combine(dispatched.rows, out, weighted=True)
    assert combined.missing.tolist() == [1, 0]
    assert out[:, 0].tolist() == [1.0, 2.0]
    assert group.round == 1
    assert group.tokens_per_expert()[0, [0, 1, 3]].tolist() == [1.0, 2.0, 1.0]


def test_misuse_is_told_in_words(alone, tmp_path):
    group, _ = alone()
    control = _native.ControlBlock.attach(str(tmp_path / "control"))
    ids, weights = np.zeros((2, 2), np.int32), np.ones((2, 2), np.float32)
    x = np.ones((2, 72), np.float32)
    for call, words in (
        (lambda: group.dispatch(9, x, ids, weights), "layer=9"),
        (
            lambda: group.dispatch(
                0, np.ones((17, 72), np.float32), np.zeros((17, 2), np.int32), np.ones((17, 2), np.float32)
            ),
            "max_tokens is 16",
        ),
        (lambda: group.dispatch(0, x, ids + 10, weights), "n_experts is 10"),
        (lambda: group.dispatch(0, x.astype(np.float64), ids, weights), "it must be float32"),
        (lambda: group.dispatch(0, x[:, ::2], ids, weights), "rows must be dense"),
        (lambda: group.dispatch(0, x[:, :8], ids, weights), "hidden is 72"),
        (lambda: group.dispatch(0, x, ids[:1], weights), "for the tokens of x"),
        (lambda: group.inbox_fd(0), "source=0"),
        (
            lambda: group.stage(random_routing(shape_of(layers=2), 1).table(epoch=2, incarnations={0: 1})),
            "table layers=2",
        ),
        (lambda: group.stage(random_routing(shape_of(), 1).table(epoch=2, incarnations={0: 5})), "incarnation 5"),
        (lambda: _native.Group(rank=0, incarnation=1, shape=shape_of(ranks=129), control=control), "max_ranks=129"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    for call, words in (
        (lambda: group.combine(x, x, weighted=True), "combine without a dispatch"),
        (lambda: group.activate(3), "epoch 3 is not staged"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()
    with pytest.raises(TypeError):
        _native.Group(rank=0, incarnation=1, shape=shape_of(), control=None)
    group.dispatch(0, x, ids, weights)
    with pytest.raises(RuntimeError, match="round in flight"):
        group.dispatch(0, x, ids, weights)
    with pytest.raises(ValueError, match="the dispatch had 4 pairs"):
        group.combine(x, x, weighted=True)


def test_an_epoch_needs_its_links_and_only_grows(alone):
    group, routing = alone()
    group.stage(routing.table(epoch=2, incarnations={0: 1, 1: 8}))
    with pytest.raises(RuntimeError, match="incarnation 8 of rank 1, which is not connected"):
        group.activate(2)
    assert group.epoch == 1
    group.stage(routing.table(epoch=1, incarnations={0: 1}))
    with pytest.raises(ValueError, match="epochs only grow"):
        group.activate(1)


def test_the_control_block_outlives_either_side(tmp_path):
    path = str(tmp_path / "control")
    agent = _native.ControlBlock.create(path, rank=3, incarnation=7)
    engine = _native.ControlBlock.attach(path)
    assert (engine.rank, engine.incarnation, engine.path) == (3, 7, path)
    engine.phase, engine.engine_pid, engine.step, engine.beacon = _native.Phase.WARMING, 123, 5, 9
    engine.beacon = 4  # it only grows
    assert (agent.phase, agent.engine_pid, agent.step, agent.beacon) == (_native.Phase.WARMING, 123, 5, 9)
    agent.abort(4)
    agent.abort(3)
    agent.fenced = True
    assert (engine.abort_epoch, engine.fenced) == (4, True)
    assert engine.wait_commit(after=0, timeout_s=0.01) == 0
    committer = threading.Timer(0.05, agent.commit, args=(6,))
    committer.start()
    began = time.monotonic()
    assert engine.wait_commit(after=5, timeout_s=20) == 6
    assert time.monotonic() - began < 10
    committer.join()
    assert agent.wait_fault(after=0, timeout_s=0.01) is None
    assert (agent.fault().serial, agent.fault().suspects) == (0, [])
    with pytest.raises(OSError, match="control block"):
        _native.ControlBlock.attach(str(tmp_path / "none"))
    (tmp_path / "other").write_bytes(b"\0" * 4096)
    with pytest.raises(RuntimeError, match="no control block of this version"):
        _native.ControlBlock.attach(str(tmp_path / "other"))


_SUMS = """
import sys, numpy as np
from native import _native
from tests.native import reference
from tests.native.instances import random_routing, shape_of
random = np.random.default_rng(5)
for dtype in (_native.DType.FLOAT32, _native.DType.BFLOAT16):
    for hidden in (1, 15, 16, 33, 64, 129, 2048):
        shape = shape_of(dtype=dtype, hidden=hidden)
        control = _native.ControlBlock.create(sys.argv[1], rank=0, incarnation=1)
        group = _native.Group(rank=0, incarnation=1, shape=shape, control=control)
        routing = random_routing(shape, 1)
        group.stage(routing.table(epoch=1, incarnations={0: 1}))
        group.activate(1)
        x = random.standard_normal((16, hidden)).astype(np.float32)
        x[0, 0], x[1, 0], x[2, 0] = np.inf, np.nan, 1e-42
        ids = np.argsort(random.random((16, 10)), axis=1)[:, :4].astype(np.int32)
        weights = random.random((16, 4)).astype(np.float32)
        out = reference.encode(np.zeros_like(x), dtype)
        rows = group.dispatch(0, reference.encode(x, dtype), ids, weights).rows
        group.combine(rows, out, weighted=False)
        sys.stdout.buffer.write(out.tobytes())
        group.close()
for dtype in (_native.DType.FLOAT32, _native.DType.BFLOAT16):
    for hidden, intermediate in ((1, 3), (15, 16), (33, 7), (128, 64)):
        w13 = reference.encode(random.standard_normal((3, 2 * intermediate, hidden)).astype(np.float32), dtype)
        w2 = reference.encode(random.standard_normal((3, hidden, intermediate)).astype(np.float32), dtype)
        rows = reference.encode(random.standard_normal((5, hidden)).astype(np.float32), dtype)
        slots, weights = np.array([2, 0, 1, 1, 2], dtype=np.int32), random.random(5).astype(np.float32)
        out = np.zeros_like(rows)
        _native.swiglu(w13, w2, rows, slots, weights, out)
        sys.stdout.buffer.write(out.tobytes())
sys.stderr.write(_native.isa())
"""


def test_every_instruction_set_gives_the_same_bits(tmp_path):
    results = {}
    for isa in ("avx512", "avx2", "portable"):
        done = subprocess.run(
            [sys.executable, "-c", _SUMS, str(tmp_path / isa)],
            capture_output=True,
            check=False,
            timeout=120,
            env=os.environ | {"EEP_ISA": isa},
        )
        if b"does not have it" in done.stderr:
            continue
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.decode() == isa
        results[isa] = done.stdout
    assert "portable" in results
    assert len(results["portable"]) > 16 * 2048 * 6
    assert set(results.values()) == {results["portable"]}


def test_experts_refuse_what_does_not_fit():
    w13, w2, rows = torch.zeros(2, 8, 6), torch.zeros(2, 6, 4), torch.zeros(3, 6)
    slots, weights, out = torch.zeros(3, dtype=torch.int32), torch.zeros(3), torch.full((3, 6), 7.0)
    for wrong, words in (
        ({"w2": torch.zeros(2, 4, 6)}, "disagree"),
        ({"rows": torch.zeros(3, 5)}, r"rows must be \[pairs, hidden\]"),
        ({"rows": rows.bfloat16()}, "the dtype of w13"),
        ({"slots": slots.long()}, "slots must be int32"),
        ({"weights": torch.zeros(2)}, "one for each row"),
        ({"out": torch.zeros(3, 12)[:, ::2]}, "contiguous"),
    ):
        given = {"w13": w13, "w2": w2, "rows": rows, "slots": slots, "weights": weights, "out": out} | wrong
        with pytest.raises(ValueError, match=words):
            _native.swiglu(**given)
    with pytest.raises(IndexError, match=r"slots\[1\]=2 must lie in \[0, 2\)"):
        _native.swiglu(w13, w2, rows, torch.tensor([0, 2, 0], dtype=torch.int32), weights, out)
    assert torch.equal(out, torch.full((3, 6), 7.0))  # refused whole: nothing was written


def test_an_unknown_instruction_set_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", "from native import _native; _native.isa()"],
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | {"EEP_ISA": "mmx"},
    )
    assert b"EEP_ISA=mmx is none of avx512, avx2, portable" in done.stderr


def test_every_byte_counts_in_the_checksum():
    random = np.random.default_rng(3)
    for size in (0, 1, 7, 8, 63, 64, 65, 200):
        data = random.integers(0, 256, size, dtype=np.uint8)
        seen = {_native.checksum(data), _native.checksum(np.append(data, np.uint8(0)))}
        for at in range(size):
            changed = data.copy()
            changed[at] ^= 1 << int(random.integers(8))
            seen.add(_native.checksum(changed))
        assert len(seen) == size + 2
    rows = torch.randn(8, 16)
    assert _native.checksum(rows) == _native.checksum(rows.numpy().tobytes())
    with pytest.raises(ValueError, match="contiguous"):
        _native.checksum(rows[:, ::2])


def test_replicas_share_tokens_by_their_weights():
    routing = reference.Routing(2, [[[(0, 0, 1), (0, 1, 3)]]])
    taken = [routing.choose(0, 0, token, 0, 0)[1] for token in range(4000)]
    assert 0.72 < np.mean(taken) < 0.78
