"""What the plugin needs of the CUDA plane beside the protocol: faults and loads for the agent, links, idling, slots."""

from __future__ import annotations

import os
import select
import threading
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]


@pytest.fixture
def pair(device, tmp_path):
    """Two virtual ranks with control blocks, as two engines on one device have them, in epoch 1."""
    from native import ControlBlock
    from native.cuda import CudaGroup, Layout
    from tools.virtual_ranks import Rig, Sizes

    class Watched(Rig):
        def make_group(self, rank):
            path = str(tmp_path / f"control-{rank}")
            control = ControlBlock.create(path, rank=rank, incarnation=self.incarnations[rank])
            self.controls.append(control)
            return CudaGroup(
                rank=rank,
                incarnation=self.incarnations[rank],
                shape=self.sizes.shape(),
                control=control,
                timeout_s=self.timeout_s,
                hard_timeout_s=self.hard_timeout_s,
                layout=Layout.PAIRS,
                blocks=8,
            )

        controls: list = []  # noqa: RUF012

    Watched.controls = []
    with Watched(
        sizes=Sizes(ranks=2, experts=8, layers=1, layout=Layout.PAIRS), timeout_s=0.3, hard_timeout_s=3.0
    ) as rig:
        for group in rig.groups:
            for peer in rig.groups:
                if peer is not group:
                    group.connect(
                        peer.rank,
                        incarnation=peer.incarnation,
                        inbox_fd=peer.inbox_fd(group.rank),
                        doorbell_fd=peer.doorbell_fd(),
                        pid=0,
                    )
        rig.enter_epoch(1, [0, 1])
        yield rig


def both(world, work):
    """Run ``work(rank)`` on both ranks at once, each on its own thread and stream."""
    import torch

    results = [None, None]

    def one(rank):
        with torch.cuda.stream(world.streams[rank]):
            results[rank] = work(rank)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def row(tokens):
    from native import SyncRow

    return SyncRow(tokens=tokens)


def test_crossing_is_known_at_once(pair):
    assert [group.epoch for group in pair.groups] == [1, 1]
    assert [control.epoch for control in pair.controls] == [1, 1]
    with pytest.raises(ValueError, match="only grow"):
        pair.groups[0].activate(1)
    with pytest.raises(RuntimeError, match="not staged"):
        pair.groups[0].activate(5)


def test_loads_are_counted_and_room_without_a_row_is_nobodys(pair):
    import torch

    factors = [pair.factors(rank) for rank in (0, 1)]
    batches = [pair.batch(seed=rank) for rank in (0, 1)]
    pair.synchronize()
    both(pair, lambda rank: pair.groups[rank].sync(row(batches[rank].ids.shape[0])))
    pair.run_rounds(0, batches, factors)
    for rank, group in enumerate(pair.groups):
        expected = np.bincount(batches[rank].ids.cpu().numpy().ravel(), minlength=8)
        assert np.array_equal(group.tokens_per_expert()[0], expected)
        assert group.counters()["masked"] == 0
    got = pair.groups[0].dispatch(0, batches[0].x, batches[0].ids, batches[0].weights, phases=1)
    torch.cuda.synchronize()
    assert bool((got.slots == -1).all())


def test_a_live_peer_that_computes_for_long_is_slow_and_not_suspected_before_the_hard_deadline(pair):
    began = time.monotonic()

    def work(rank):
        time.sleep(1.2 * rank)  # four times the silence that is allowed, with the heartbeat beating
        return pair.groups[rank].sync(row(1))

    results = both(pair, work)
    assert [int(result.status) for result in results] == [0, 0], [result.suspects for result in results]
    assert time.monotonic() - began > 1.0
    word = pair.controls[0].fault()
    assert word.suspects == [1]
    assert [int(kind) for kind in word.evidence] == [3]  # SLOW


def test_the_agents_abort_ends_a_wait_and_the_fault_reaches_the_block(pair):
    result = []
    thread = threading.Thread(target=lambda: result.append(pair.groups[0].sync(row(1))))
    thread.start()
    time.sleep(0.1)
    pair.controls[0].abort(2)
    thread.join(5)
    assert int(result[0].status) == 2


def test_a_ring_wakes_an_idle_rank_once_a_step(pair):
    for _ in range(3):
        idle = pair.groups[1].doorbell_fd()
        assert not pair.groups[1].sync_arrived()

        def work(rank, idle=idle):
            if rank == 1:
                assert select.select([idle], [], [], 5)[0]
                assert pair.groups[1].sync_arrived()
            return pair.groups[rank].sync(row(1 - rank))

        assert [int(result.status) for result in both(pair, work)] == [0, 0]
        os.close(idle)
    assert not pair.groups[0].sync_arrived()  # rank 1 rang for steps that rank 0 had begun itself


def test_a_link_dropped_or_replaced_under_a_running_epoch_changes_nothing_there(pair):
    import torch

    factors, batches = [pair.factors(rank) for rank in (0, 1)], [pair.batch(seed=rank) for rank in (0, 1)]
    pair.synchronize()
    before = [group.counters()["rounds_ok"] for group in pair.groups]
    pair.groups[0].disconnect(1)
    assert pair.groups[0].linked() == {}
    both(pair, lambda rank: pair.groups[rank].sync(row(1)))
    pair.run_rounds(0, batches, factors)
    torch.cuda.synchronize()
    assert [group.counters()["rounds_ok"] for group in pair.groups] == [count + 1 for count in before]
    table = pair.sizes.table(epoch=2, active=[0, 1], incarnations=pair.incarnations)
    pair.groups[0].stage(table)
    with pytest.raises(RuntimeError, match="not connected"):
        pair.groups[0].activate(2)


def test_an_inbox_in_use_is_not_renewed(pair):
    with pytest.raises(RuntimeError, match="active in epoch 1 and not suspected"):
        pair.groups[0].renew_inbox(1)


def test_a_warm_up_before_any_epoch_waits_for_nobody(device):
    import torch

    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=2, experts=8, layers=1)) as world:
        batch, factors = world.batch(), world.factors(0)
        world.synchronize()
        began = time.monotonic()
        missing = world.run_round(0, 0, batch, factors)
        torch.cuda.synchronize()
        assert time.monotonic() - began < 5
        assert bool((missing == batch.ids.shape[1]).all())
        assert bool((batch.out == 0).all())


def test_slots_pass_between_processes_memory_and_host(device):
    from native import _cuda

    mine = _cuda.SharedMemory(device=0, bytes=1 << 20)
    theirs = _cuda.SharedMemory(device=0, descriptor=mine.descriptor(), bytes=1 << 20)
    pinned = np.frombuffer(_cuda.PinnedMemory(4096), dtype=np.uint8)
    pinned[:] = np.arange(4096, dtype=np.uint64).astype(np.uint8)
    mine.write(8192, pinned)
    back = np.zeros(4096, np.uint8)
    theirs.read(8192, back)
    assert np.array_equal(back, pinned)
    with pytest.raises(ValueError, match="do not fit"):
        mine.write(mine.bytes - 1, pinned)
