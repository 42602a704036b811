"""Virtual ranks: several ranks of the CUDA backend in one process on one device, for measurements and for tests.

Each rank has its own inboxes, links (by descriptor, as between processes), tables, stream and graph; the kernels are
those of a rank that has a device to itself. What such a rig cannot show is the latency of a link between devices.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

# Streams on one hardware queue wait for each other; ranks that wait for each other must not. Read when CUDA starts.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import torch

from native import Table
from native.cuda import RECEIVE, SEND, CudaGroup, CudaShape, Layout, Partition, Wire, link_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OK: Final = 0
"""``native.Status.OK``."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One configuration of a rig."""

    ranks: int = 4
    tokens: int = 16
    hidden: int = 512
    topk: int = 4
    experts: int = 16
    layers: int = 2
    copies: int = 1
    """Replicas of each expert, on different ranks."""
    wire: Wire = Wire.BFLOAT16
    layout: Layout = Layout.EXPERT_MAJOR

    @property
    def slots(self) -> int:
        """Slots of one rank."""
        return -(-self.experts // self.ranks) * self.copies

    def shape(self) -> CudaShape:
        """Constants of the instance."""
        return CudaShape(
            max_ranks=self.ranks,
            max_tokens=self.tokens,
            hidden=self.hidden,
            max_topk=self.topk,
            max_slots=self.slots,
            n_experts=self.experts,
            n_layers=self.layers,
        )

    def replicas(self, expert: int) -> list[tuple[int, int, int]]:
        """(rank, slot, weight) of every copy: expert-by-division first, so the fixed build routes the same way."""
        per_rank = self.experts // self.ranks
        return [
            ((expert // per_rank + copy) % self.ranks, copy * per_rank + expert % per_rank, 1)
            for copy in range(self.copies)
        ]

    def expert_at(self, rank: int, slot: int) -> int:
        """The expert that a slot holds."""
        per_rank = self.experts // self.ranks
        return (rank - slot // per_rank) % self.ranks * per_rank + slot % per_rank

    def table(self, *, epoch: int, active: Iterable[int], incarnations: list[int]) -> Table:
        """The same placement in every layer."""
        flat = [replica for expert in range(self.experts) for replica in self.replicas(expert)]
        columns = np.asarray(flat * self.layers, dtype=np.uint16)
        one = np.arange(self.experts + 1, dtype=np.int32) * self.copies
        offsets = np.stack([one + layer * self.experts * self.copies for layer in range(self.layers)])
        ranks, slots, weights = (np.ascontiguousarray(columns[:, i]) for i in range(3))
        return Table(
            epoch=epoch,
            active=sorted(active),
            incarnations=incarnations,
            offsets=offsets,
            ranks=ranks,
            slots=slots,
            weights=weights,
        )


@dataclass(kw_only=True)
class Batch:
    """One rank's input of one round, and where its output goes."""

    x: Any
    ids: Any
    weights: Any
    out: Any


@dataclass(kw_only=True)
class Rig:
    """``sizes.ranks`` virtual ranks, linked with each other; a context manager."""

    sizes: Sizes
    green: bool = False
    fixed: bool = False
    blocks: int | None = None
    timeout_s: float = 5.0
    hard_timeout_s: float = 20.0
    groups: list[CudaGroup] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)
    incarnations: list[int] = field(default_factory=list)
    partition: Partition | None = None
    """Shared with another rig of the same ranks, for comparing two builds in one run."""

    def __enter__(self) -> Self:
        count = self.sizes.ranks
        self.partition = self.partition or Partition.of(device=0, parts=count, green=self.green)
        self.streams = [torch.cuda.ExternalStream(handle) for handle in self.partition.streams]
        self.incarnations = [1000 + rank for rank in range(count)]
        self.groups = [self.make_group(rank) for rank in range(count)]
        link_all(self.groups)
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()
        for group in self.groups:
            group.close()

    def make_group(self, rank: int) -> CudaGroup:
        """A group for a rank, not linked yet."""
        if self.partition is None:
            raise RuntimeError("the rig is not entered")
        room = self.partition.blocks
        return CudaGroup(
            rank=rank,
            incarnation=self.incarnations[rank],
            shape=self.sizes.shape(),
            timeout_s=self.timeout_s,
            hard_timeout_s=self.hard_timeout_s,
            fixed=self.fixed,
            wire=self.sizes.wire,
            layout=self.sizes.layout,
            blocks=min(self.blocks or room, room),
        )

    def enter_epoch(self, epoch: int, active: Iterable[int]) -> None:
        """Stage and activate a table on every active rank, between steps."""
        members = sorted(active)
        table = self.sizes.table(epoch=epoch, active=members, incarnations=self.incarnations)
        for rank in members:
            self.groups[rank].stage(table)
            self.groups[rank].activate(epoch)

    def batch(self, *, tokens: int | None = None, seed: int = 0) -> Batch:
        """Random rows, distinct experts for each token, weights that sum to about one."""
        s, count = self.sizes, self.sizes.tokens if tokens is None else tokens
        generator = torch.Generator(device="cuda").manual_seed(seed)
        ids = torch.rand((count, s.experts), generator=generator, device="cuda").argsort(dim=1)[:, : s.topk]
        weights = torch.rand((count, s.topk), generator=generator, device="cuda").softmax(dim=1).contiguous()
        x = torch.randn((count, s.hidden), generator=generator, device="cuda").to(torch.bfloat16)
        return Batch(x=x, ids=ids.to(torch.int32).contiguous(), weights=weights, out=torch.full_like(x, float("nan")))

    def factors(self, rank: int) -> Any:
        """What each slot's expert multiplies a row by: depends on the expert, so a row in a wrong slot shows."""
        experts = [self.sizes.expert_at(rank, slot) for slot in range(self.sizes.slots)]
        return torch.tensor([0.5 + expert / self.sizes.experts for expert in experts], device="cuda")

    def run_round(self, rank: int, layer: int, batch: Batch, factors: Any) -> Any:
        """Dispatch, experts and combine of one rank on its stream; returns ``missing``. Captured or not."""
        group, stream = self.groups[rank], self.streams[rank]
        with torch.cuda.stream(stream):
            got = group.dispatch(layer, batch.x, batch.ids, batch.weights, stream=stream)
            y = apply_experts(got, factors, hidden=self.sizes.hidden)
            return group.combine(y, batch.out, weighted=False, stream=stream).missing

    def run_rounds(self, layer: int, batches: list[Batch], factors: list[Any]) -> list[Any]:
        """A round on all ranks, phase by phase; returns every rank's ``missing``.

        No kernel ever waits for a launch that is still to come. Outside a graph, a first use of one of torch's kernels
        or a growing allocator may wait for the device, and then for a kernel that waits.
        """
        ranks = range(self.sizes.ranks)
        got, done = {}, {}
        for phase in (SEND, RECEIVE):
            for r in ranks:
                b = batches[r]
                got[r] = self.groups[r].dispatch(layer, b.x, b.ids, b.weights, stream=self.streams[r], phases=phase)
            self.synchronize()
        outputs = [apply_experts(got[r], factors[r], hidden=self.sizes.hidden) for r in ranks]
        self.synchronize()
        for phase in (SEND, RECEIVE):
            for r in ranks:
                done[r] = self.groups[r].combine(
                    outputs[r], batches[r].out, weighted=False, stream=self.streams[r], phases=phase
                )
            self.synchronize()
        return [done[r].missing for r in ranks]

    def reference(self, batch: Batch) -> Any:
        """What ``run_round`` must leave in ``out``, in float32."""
        scale = torch.tensor([0.5 + e / self.sizes.experts for e in range(self.sizes.experts)], device="cuda")
        total = (batch.weights * scale[batch.ids.long()]).sum(dim=1, keepdim=True)
        return batch.x.float() * total

    def synchronize(self) -> None:
        """Wait for every rank's stream."""
        torch.cuda.synchronize()

    def capture(self, rank: int, work: Callable[[], None]) -> Any:
        """Capture ``work`` of a rank in a graph on its stream."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.streams[rank], capture_error_mode="thread_local"):
            work()
        return graph

    def replay(self, graphs: dict[int, Any]) -> None:
        """Replay each rank's graph on its stream, all at once."""
        for rank, graph in graphs.items():
            with torch.cuda.stream(self.streams[rank]):
                graph.replay()


def apply_experts(got: Any, factors: Any, *, hidden: int) -> Any:
    """The rig's experts on what a dispatch left: bfloat16 rows in the same places."""
    rows = got.rows.to(torch.float32)
    if got.scales is not None:
        rows = (rows.unflatten(-1, (hidden // 128, 128)) * got.scales.unsqueeze(-1)).flatten(-2)
    if got.rows.dim() == 3:
        rows = rows * factors[:, None, None]
    else:  # slots of rows that did not arrive are whatever was there
        rows = rows * factors[got.slots.clamp(0, factors.numel() - 1).long()][:, None]
    return rows.to(torch.bfloat16)


def relative_error(out: Any, reference: Any) -> float:
    """‖out − reference‖ / ‖reference‖; NaN never passes a comparison."""
    reference = reference.float()
    if reference.numel() == 0:
        return 0.0
    return float((out.float() - reference).norm() / reference.norm())
