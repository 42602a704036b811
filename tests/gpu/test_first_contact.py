"""What everything else on a device rests on, one doubt to a test, the simplest first: run before anything is believed.

None needs more than seconds. A test's name says what does not hold if it fails; ``tools/gpu probe`` runs only these.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from itertools import pairwise

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(45)]


def raw_bytes(address, size):
    """Device memory of ours as a tensor of torch."""
    import torch

    class Raw:
        __cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}  # noqa: RUF012

    return torch.as_tensor(Raw(), device="cuda")


def over_within(stream, seconds):
    """Whether a stream's work ends in time; never blocks."""
    end = time.monotonic() + seconds
    while not stream.query():
        if time.monotonic() > end:
            return False
    return True


@contextmanager
def spinning(world):
    """A kernel that spins on every rank's stream until it is called off, or for the hard deadline of the rig."""
    for group, stream in zip(world.groups, world.streams, strict=True):
        group.native.launch_probe(stream.cuda_stream)
    try:
        yield
    finally:
        for group in world.groups:
            group.call_off(1 << 31)
        world.synchronize()


def test_torch_and_this_build_share_one_driver(device, record_property):
    import torch

    from native import _cuda

    assert _cuda.device_count() == torch.cuda.device_count()
    record_property("device", torch.cuda.get_device_name(0))
    record_property("capability", torch.cuda.get_device_capability(0))
    record_property("multiprocessors", torch.cuda.get_device_properties(0).multi_processor_count)
    record_property("torch", f"{torch.__version__} for CUDA {torch.version.cuda}")
    assert float(torch.ones(1000, device="cuda").sum()) == 1000


def test_memory_by_descriptor_is_the_same_memory_to_host_importer_and_torch(device):
    import torch

    from native import _cuda

    mine = _cuda.SharedMemory(device=0, bytes=1 << 20)
    theirs = _cuda.SharedMemory(device=0, descriptor=mine.descriptor(), bytes=1 << 20)
    assert mine.address != theirs.address
    mine.write(0, bytes(range(256)))
    back = bytearray(256)
    theirs.read(0, back)
    assert bytes(back) == bytes(range(256))
    raw_bytes(theirs.address, theirs.bytes).fill_(9)
    torch.cuda.synchronize()
    assert bool((raw_bytes(mine.address, mine.bytes) == 9).all())


def test_first_launches_of_our_kernels_do_not_wait_for_a_kernel_that_spins(device, record_property):
    # A kernel loaded at its first launch may wait for the whole device (CUDA's lazy loading): a rank that waits in
    # a kernel would hold up the very launch it waits for.
    import torch

    from tools.virtual_ranks import Rig, Sizes

    one = Sizes(ranks=1, experts=4, layers=1)
    with Rig(sizes=one, hard_timeout_s=4.0) as waiting, Rig(sizes=one, blocks=8) as working:
        batch, y = working.batch(), torch.zeros(working.groups[0].buffer_shape, dtype=torch.bfloat16, device="cuda")
        waiting.enter_epoch(1, [0])
        torch.cuda.synchronize()
        group, stream = working.groups[0], working.streams[0]
        with spinning(waiting):
            began = time.monotonic()
            working.enter_epoch(1, [0])
            group.enqueue_sync(stream=stream)
            group.dispatch(0, batch.x, batch.ids, batch.weights, stream=stream)
            group.combine(y, batch.out, weighted=False, stream=stream)
            in_time = over_within(stream, 2.0)
            record_property("seconds", time.monotonic() - began)
            gave_up = waiting.streams[0].query()
            assert not gave_up, "a launch came back only when the spinning kernel had given up"
            assert in_time, "launched and not run while another kernel spun: a load, or a hardware queue in common"
        assert group.status == 0


def test_the_clock_of_the_device_counts_nanoseconds(device, record_property):
    # Deadlines are judged by %globaltimer; its tick differs between devices.
    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=1, experts=4, layers=1)) as world:
        world.enter_epoch(1, [0])
        group, stream = world.groups[0], world.streams[0]
        group.call_off(2)  # a probe then ends as soon as it has reported
        began = time.monotonic_ns()
        for _ in range(100):
            group.native.launch_probe(stream.cuda_stream)
            world.synchronize()
        time.sleep(0.2)
        group.native.launch_probe(stream.cuda_stream)
        world.synchronize()
        passed = time.monotonic_ns() - began
        stamps = [fault.device_ns for fault in group.faults()]
    steps = [after - before for before, after in pairwise(stamps)]
    record_property("tick_ns", math.gcd(*steps))
    assert all(step >= 0 for step in steps)
    assert abs(stamps[-1] - stamps[0] - passed) < 0.05 * passed, (stamps[-1] - stamps[0], passed)
    assert math.gcd(*steps) < 2_000_000, "coarser than 2 ms: deadlines of 20 ms cannot be kept to 10 %"


@pytest.mark.parametrize("green", [False, True])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_virtual_ranks_run_side_by_side(device, ranks, green, record_property):
    # A sync, and then a round whose blocks all wait for all ranks: each rank's whole grid must run at once.
    import torch

    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=ranks, experts=16, layers=1), green=green, timeout_s=0.5, hard_timeout_s=2.0) as world:
        record_property("partition", f"{world.partition.kind}, {world.partition.blocks} blocks a rank")
        assert not green or world.partition.kind == "green contexts", "the driver gave no green contexts"
        world.enter_epoch(1, range(ranks))
        batches = [world.batch(seed=rank) for rank in range(ranks)]
        outputs = [torch.zeros(group.buffer_shape, dtype=torch.bfloat16, device="cuda") for group in world.groups]
        world.synchronize()
        for group, stream in zip(world.groups, world.streams, strict=True):
            group.enqueue_sync(stream=stream)
        world.synchronize()
        assert [group.status for group in world.groups] == [0] * ranks, "syncs of one block each did not meet"
        for group, stream, b in zip(world.groups, world.streams, batches, strict=True):
            group.dispatch(0, b.x, b.ids, b.weights, stream=stream)
        for group, stream, b, y in zip(world.groups, world.streams, batches, outputs, strict=True):
            group.combine(y, b.out, weighted=False, stream=stream)
        world.synchronize()
        lost = [group.counters()["rounds_lost"] for group in world.groups]
        assert lost == [0] * ranks, f"rounds over {world.partition.blocks} blocks a rank did not meet: {lost}"


def test_the_control_stream_works_while_every_rank_spins(device, record_property):
    # Deadlines and heartbeats go by streams of their own: one that shares a queue with a waiting kernel waits too.
    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=8, experts=16, layers=1), hard_timeout_s=6.0) as world:
        world.enter_epoch(1, range(8))
        with spinning(world):
            began = time.monotonic()
            for group in world.groups:
                group.set_timeouts(timeout_s=1.0, hard_timeout_s=6.0)
                group.counters()
            took = time.monotonic() - began
            record_property("seconds", took)
            assert not any(stream.query() for stream in world.streams), "a spinning kernel ended by itself"
        assert took < 2.0


def test_the_host_sees_a_fault_and_ends_a_wait_while_the_kernel_spins(device, record_property):
    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=1, experts=4, layers=1), hard_timeout_s=5.0) as world:
        world.enter_epoch(1, [0])
        group = world.groups[0]
        with spinning(world):
            end = time.monotonic() + 2.0
            while not group.faults() and time.monotonic() < end:
                pass  # what is shown is one look
            assert group.faults(), "no entry in host memory while the kernel ran"
            assert not world.streams[0].query(), "the kernel ended by itself"
        assert group.native.probe_ns < 5e9, "the abort word did not reach the kernel before its hard deadline"
        record_property("round_trip_us", group.native.probe_ns / 1e3)


@pytest.mark.parametrize("green", [False, True])
def test_a_captured_step_replays_and_is_timed_by_events(device, green, record_property):
    # Also: two ranks of one process have two addresses for one inbox, and a row written by the one is read by the other
    # while both kernels run. PTX calls for fence.proxy.alias between such addresses; we have none, because the tags'
    # acquire and release go to the level-2 cache, which knows physical memory. Stale rows here would show it.
    import torch

    from tools.virtual_ranks import Rig, Sizes, relative_error

    with Rig(sizes=Sizes(ranks=2, experts=8, layers=1), green=green) as world:
        batches = [world.batch(seed=rank) for rank in range(2)]
        factors = [world.factors(rank) for rank in range(2)]
        world.enter_epoch(1, range(2))
        graphs = {}
        for rank in range(2):

            def work(rank=rank):
                world.groups[rank].enqueue_sync(stream=world.streams[rank])
                world.run_round(rank, 0, batches[rank], factors[rank])

            graphs[rank] = world.capture(rank, work)
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(2)]
        for _ in range(3):
            for rank, (start, end) in enumerate(marks):
                with torch.cuda.stream(world.streams[rank]):
                    start.record(world.streams[rank])
                    graphs[rank].replay()
                    end.record(world.streams[rank])
            world.synchronize()
            for rank in range(2):
                assert world.groups[rank].status == 0, world.groups[rank].suspects
                assert relative_error(batches[rank].out, world.reference(batches[rank])) < 0.01
        record_property("step_us", [1e3 * start.elapsed_time(end) for start, end in marks])


def test_memory_is_replaced_under_one_address_while_a_graph_holds_it(device):
    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=2, experts=8, layers=1)) as world:
        world.enter_epoch(1, [0])
        graph = {0: world.capture(0, lambda: world.groups[0].enqueue_sync(stream=world.streams[0]))}
        world.replay(graph)
        world.synchronize()
        group, address = world.groups[0], world.groups[0].native.chunk_address(1)
        chunk = raw_bytes(address, group.native.chunk_bytes)
        chunk.fill_(5)
        world.synchronize()
        world.groups[1].connect(0, incarnation=world.incarnations[0], inbox_fd=group.renew_inbox(1))
        assert group.native.chunk_address(1) == address
        assert int(chunk.sum()) == 0, "the address still shows the old memory"
        raw_bytes(world.groups[1].link_address(0), group.native.chunk_bytes).fill_(3)
        world.synchronize()
        assert bool((chunk == 3).all()), "what the new holder writes does not arrive"
        world.replay(graph)
        world.synchronize()
        assert group.status == 0


def test_how_long_a_kernel_of_torch_takes_to_load_behind_one_that_spins(device, record_property):
    # No requirement of ours (everything is captured or warmed up before ranks wait), but an explanation if one stalls.
    import torch

    from tools.virtual_ranks import Rig, Sizes

    with Rig(sizes=Sizes(ranks=1, experts=4, layers=1), blocks=8, hard_timeout_s=4.0) as world:
        world.enter_epoch(1, [0])
        x, stream = torch.rand(1000, dtype=torch.float64, device="cuda"), torch.cuda.Stream()
        torch.cuda.synchronize()
        with spinning(world):
            began = time.monotonic()
            with torch.cuda.stream(stream):
                torch.hypot(x, x)
            record_property("launch_returned_after_s", time.monotonic() - began)
            over_within(stream, 5.0)
            record_property("over_after_s", time.monotonic() - began)
        assert over_within(stream, 1.0)
