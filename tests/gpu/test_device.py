"""Virtual ranks on one device: the protocol's invariants under captured graphs (design: DATA_PLANE, failure table)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

SUSPECT, ABORTED, FENCED = 1, 2, 4
SILENT, DEAD, GOSSIP = 2, 1, 4
BF16 = 0.01  # relative error of sums of bf16 rows; fp8 rows carry 3 mantissa bits: 0.04
FP8 = 0.06


def rig(**options):
    from tools.virtual_ranks import Rig, Sizes

    names = set(Sizes.__dataclass_fields__)
    return Rig(
        sizes=Sizes(**{k: v for k, v in options.items() if k in names}),
        **{k: v for k, v in options.items() if k not in names},
    )


class Steps:
    """A captured step (sync, then every layer) for each rank of a rig, and what it must give."""

    def __init__(self, ranks, *, seed=0):
        self.ranks, self.captures = ranks, 0
        layers, count = ranks.sizes.layers, ranks.sizes.ranks
        self.batches = [[ranks.batch(seed=seed + 100 * r + layer) for layer in range(layers)] for r in range(count)]
        self.factors = [ranks.factors(r) for r in range(count)]
        self.missing = [[None] * layers for _ in range(count)]
        self.graphs = {}

    def capture(self, rank):
        def work():
            self.ranks.groups[rank].enqueue_sync(stream=self.ranks.streams[rank])
            for layer, batch in enumerate(self.batches[rank]):
                self.missing[rank][layer] = self.ranks.run_round(rank, layer, batch, self.factors[rank])

        self.graphs[rank] = self.ranks.capture(rank, work)
        self.captures += 1

    def capture_all(self):
        for rank in range(self.ranks.sizes.ranks):
            self.capture(rank)

    def replay(self, who):
        for rank in who:
            for batch in self.batches[rank]:
                batch.out.fill_(float("nan"))
        self.ranks.synchronize()
        self.ranks.replay({rank: self.graphs[rank] for rank in who})
        self.ranks.synchronize()

    def expect(self, who, tolerance=BF16):
        from tools.virtual_ranks import OK, relative_error

        for rank in who:
            group = self.ranks.groups[rank]
            assert group.status == OK, (rank, group.status, group.suspects)
            for batch in self.batches[rank]:
                assert relative_error(batch.out, self.ranks.reference(batch)) < tolerance


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("wire", [0, 1])
@pytest.mark.parametrize("case", [(4, 1, 512), (4, 33, 2048), (8, 128, 7168)])
def test_a_round_is_the_reference(device, layout, wire, case):
    from native.cuda import Layout, Wire
    from tools.virtual_ranks import relative_error

    ranks, tokens, hidden = case
    sizes = {"ranks": ranks, "tokens": tokens, "hidden": hidden, "layout": Layout(layout), "wire": Wire(wire)}
    with rig(**sizes, copies=2, layers=1) as world:
        world.enter_epoch(1, range(ranks))
        factors = [world.factors(r) for r in range(ranks)]
        for repeat in range(3):
            batches = [world.batch(seed=10 * repeat + r, tokens=0 if r == repeat else None) for r in range(ranks)]
            world.synchronize()
            for r in range(ranks):
                world.groups[r].enqueue_sync(stream=world.streams[r])
            missing = world.run_rounds(0, batches, factors)
            for r in range(ranks):
                assert world.groups[r].status == 0
                assert int(missing[r].sum()) == 0
                assert relative_error(batches[r].out, world.reference(batches[r])) < (FP8 if wire else BF16)


def test_retry_is_bit_identical(device):
    with rig() as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        steps.replay(range(4))
        first = [batch.out.clone() for batches in steps.batches for batch in batches]
        world.enter_epoch(2, range(4))
        steps.replay(range(4))
        again = [batch.out for batches in steps.batches for batch in batches]
        assert all((a.view(dtype=a.dtype) == b).all() for a, b in zip(first, again, strict=True))


def test_captured_once_through_swaps_masks_rejoin_and_deadlines(device):
    with rig(copies=2) as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        epoch = 1
        for gone in (3, 0, 2):
            steps.replay(range(4))
            steps.expect(range(4))
            rest = [r for r in range(4) if r != gone]
            healthy = {(a, b): world.groups[a].link_address(b) for a in rest for b in rest}
            epoch += 1
            world.enter_epoch(epoch, rest)
            for r in rest:
                world.groups[r].set_timeouts(timeout_s=3.0 + epoch, hard_timeout_s=15.0)
            steps.replay(rest)
            steps.expect(rest)
            assert healthy == {(a, b): world.groups[a].link_address(b) for a in rest for b in rest}
            # The same rank comes back as a new incarnation: fresh chunks under the old addresses of the survivors.
            world.incarnations[gone] += 1
            world.groups[gone].close()
            world.groups[gone] = world.make_group(gone)
            for peer in rest:
                chunk = world.groups[peer].renew_inbox(gone)
                world.groups[gone].connect(peer, incarnation=world.incarnations[peer], inbox_fd=chunk)
                world.groups[peer].connect(
                    gone, incarnation=world.incarnations[gone], inbox_fd=world.groups[gone].inbox_fd(peer)
                )
            assert healthy == {(a, b): world.groups[a].link_address(b) for a in rest for b in rest}
            epoch += 1
            world.enter_epoch(epoch, range(4))
            steps.capture(gone)  # a new process captures its own graph; nobody else captures again
        steps.replay(range(4))
        steps.expect(range(4))
        assert steps.captures == 4 + 3


def test_a_silent_rank_is_suspected_at_the_deadline_and_the_step_replays(device):
    with rig(copies=2, timeout_s=0.2, hard_timeout_s=5.0) as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        steps.replay(range(4))
        steps.expect(range(4))
        before = time.monotonic()
        steps.replay([0, 1, 2])
        waited = time.monotonic() - before
        assert 0.18 <= waited <= 0.3, waited  # ± 10 % of 0.2 s, and the rest of the drained graphs
        for rank in (0, 1, 2):
            group = world.groups[rank]
            assert group.status == SUSPECT
            assert group.suspects == [3]
            assert {fault.evidence for fault in group.faults()} <= {SILENT, GOSSIP}
            for layer, batch in enumerate(steps.batches[rank]):
                assert (steps.missing[rank][layer] == batch.ids.shape[1]).all()
        world.enter_epoch(2, [0, 1, 2])
        steps.replay([0, 1, 2])
        steps.expect([0, 1, 2])
        assert steps.captures == 4


def test_proof_of_death_ends_the_wait_at_once_and_gossip_takes_the_others_along(device):
    with rig(copies=2, timeout_s=10.0) as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        steps.replay(range(4))
        world.replay({r: steps.graphs[r] for r in (0, 1, 2)})
        time.sleep(0.05)
        began = time.monotonic()
        world.groups[0].mark_dead(3)
        world.synchronize()
        assert time.monotonic() - began < 0.1
        evidence = {r: {f.evidence for f in world.groups[r].faults()} for r in (0, 1, 2)}
        assert evidence == {0: {DEAD}, 1: {GOSSIP}, 2: {GOSSIP}}


def test_abort_and_fence_drain_a_captured_graph(device):
    with rig(copies=2, timeout_s=20.0) as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        world.replay({r: steps.graphs[r] for r in (0, 1)})
        time.sleep(0.05)
        began = time.monotonic()
        world.groups[0].call_off(2)
        world.groups[1].fence()
        world.synchronize()
        assert time.monotonic() - began < 0.1
        assert world.groups[0].status == ABORTED
        assert world.groups[1].status == FENCED


def test_host_sees_a_fault_while_the_kernel_spins(device):
    with rig(ranks=2, experts=4) as world:
        world.enter_epoch(1, [0, 1])
        group = world.groups[0]
        for r in (0, 1):
            world.groups[r].enqueue_sync(stream=world.streams[r])
        world.synchronize()
        group.native.launch_probe(world.streams[0].cuda_stream)
        seen = 0
        end = time.monotonic() + 5
        while not seen and time.monotonic() < end:
            seen = len(group.faults())
        assert seen == 1, "no fault entry while the kernel ran"
        assert not world.streams[0].query(), "the kernel ended by itself"
        group.call_off(2)
        world.synchronize()
        assert group.native.probe_ns < 2**63, "the abort word did not reach the kernel"


def test_a_zombie_writing_everything_it_mapped_changes_nothing(device):
    import torch

    with rig(copies=2) as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        steps.replay(range(4))
        zombie = world.groups[3]
        mapped = [_bytes_at(zombie.link_address(peer), zombie.native.chunk_bytes) for peer in (0, 1, 2)]
        world.enter_epoch(2, [0, 1, 2])
        scribbler = torch.cuda.Stream()

        def scribble(chunks=mapped):
            with torch.cuda.stream(scribbler):
                for chunk in chunks:
                    chunk.random_(0, 255)

        for _ in range(5):
            scribble()
            steps.replay([0, 1, 2])
            steps.expect([0, 1, 2])
        # The place is taken by a new incarnation; the zombie keeps its old mappings, which are orphans now.
        world.incarnations[3] += 1
        world.groups[3] = world.make_group(3)
        for peer in (0, 1, 2):
            fd = world.groups[peer].renew_inbox(3)
            world.groups[3].connect(peer, incarnation=world.incarnations[peer], inbox_fd=fd)
            world.groups[peer].connect(3, incarnation=world.incarnations[3], inbox_fd=world.groups[3].inbox_fd(peer))
        world.enter_epoch(3, range(4))
        steps.capture(3)
        for _ in range(5):
            scribble()
            steps.replay(range(4))
            steps.expect(range(4))
        torch.cuda.synchronize()
        zombie.close()


def test_a_place_is_reused_without_leaks(device):
    import torch

    with rig(ranks=2, experts=4, copies=2) as world:
        world.enter_epoch(1, [0, 1])
        torch.cuda.synchronize()

        def rejoin():
            world.groups[1].close()
            world.incarnations[1] += 1
            world.groups[1] = world.make_group(1)
            fd = world.groups[0].renew_inbox(1)
            world.groups[1].connect(0, incarnation=1, inbox_fd=fd)
            world.groups[0].connect(1, incarnation=world.incarnations[1], inbox_fd=world.groups[1].inbox_fd(0))

        world.enter_epoch(2, [0])
        world.groups[0].enqueue_sync(stream=world.streams[0])
        torch.cuda.synchronize()
        for _ in range(10):
            rejoin()
        torch.cuda.empty_cache()
        free, fds = torch.cuda.mem_get_info()[0], len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(90):
            rejoin()
        torch.cuda.empty_cache()
        assert len(list(Path("/proc/self/fd").iterdir())) == fds
        assert free - torch.cuda.mem_get_info()[0] < 8 << 20


def test_planned_flip_inside_a_captured_step(device):
    with rig(copies=2) as world:
        steps = Steps(world)
        world.enter_epoch(1, range(4))
        steps.capture_all()
        for group in world.groups:
            group.native.set_flip(True)
        steps.replay(range(4))
        table = world.sizes.table(epoch=2, active=range(4), incarnations=world.incarnations)
        for rank, group in enumerate(world.groups):
            group.stage(table)
            group.set_row(tokens=1, prepared_epoch=2 if rank else 1, committed_epoch=2)
        steps.replay(range(4))
        assert {group.epoch for group in world.groups} == {1}  # one has not prepared: nobody crosses
        world.groups[0].set_row(tokens=1, prepared_epoch=2)
        steps.replay(range(4))
        steps.expect(range(4))
        assert {group.epoch for group in world.groups} == {2}


def test_one_round_in_flight(device):
    with rig(ranks=2, experts=4) as world:
        batch = world.batch()
        group = world.groups[0]
        group.dispatch(0, batch.x, batch.ids, batch.weights, phases=1)
        with pytest.raises(RuntimeError, match="no combine yet"):
            group.dispatch(0, batch.x, batch.ids, batch.weights, phases=1)


def test_wrong_tensors_are_named(device):
    with rig(ranks=2, experts=4) as world:
        batch = world.batch()
        with pytest.raises(ValueError, match="topk_weights"):
            world.groups[0].dispatch(0, batch.x, batch.ids, batch.weights.double())


def _bytes_at(address, size):
    import torch

    class Raw:
        __cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}  # noqa: RUF012

    return torch.as_tensor(Raw(), device="cuda")
