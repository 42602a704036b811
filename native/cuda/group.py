"""One rank's end of the elastic dispatch on a CUDA device."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from native._native import Status
from native.cuda.doorbell import Doorbell, ring
from native.cuda.module import OperationError, module
from native.cuda.vocabulary import RECEIVE, SEND, CudaSyncResult, Layout, Row, Wire

if TYPE_CHECKING:
    import numpy.typing as npt

    from native import ControlBlock, SyncRow, Table, _cuda
    from native.cuda.vocabulary import ShapeLike

_COMPUTE_S: Final = 60.0
"""More than any forward step takes, kernels compiled on first use included."""
_LOOK_S: Final = 2e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class CudaDispatched:
    """What a dispatch leaves for the experts; valid until the combine of the same round."""

    group: CudaGroup
    rows: Any
    """Expert-major [slots, capacity, hidden] or pairs [capacity, hidden]; bfloat16 or float8_e4m3fn."""
    scales: Any
    """float32, fp8 only: [slots, capacity, hidden/128], column-major within a slot; pairs: [capacity, hidden/128]."""
    counts: Any
    """int32 [slots]: rows of each slot."""
    slots: Any
    """int32 [capacity], pairs only; -1 for room that no row took."""
    weights: Any
    """float32 [capacity], pairs only."""
    origins: Any
    """int32: (source · max_tokens + token) · max_topk + k of each row."""

    @property
    def pairs(self) -> int:
        """Rows that arrived; waits for the stream."""
        return int(self.counts.sum())

    @property
    def status(self) -> Status:
        """Status of the step so far; read it after the stream is done."""
        return self.group.status

    @property
    def suspects(self) -> list[int]:
        """Ranks suspected in this epoch."""
        return self.group.suspects


@dataclass(frozen=True, kw_only=True, eq=False)
class CudaCombined:
    """How a combine ends, once the stream is done."""

    group: CudaGroup
    missing: Any
    """uint8 [tokens]: contributions that are not in the sum."""

    @property
    def status(self) -> Status:
        """Status of the step so far."""
        return self.group.status

    @property
    def suspects(self) -> list[int]:
        """Ranks suspected in this epoch."""
        return self.group.suspects


class CudaGroup:
    """One rank's end of the elastic dispatch on a CUDA device, with the methods of ``native.Group``.

    One step in flight: a dispatch before the combine of the round before it is a ``RuntimeError``.
    """

    def __init__(
        self,
        *,
        rank: int,
        incarnation: int,
        shape: ShapeLike,
        control: ControlBlock | None = None,
        timeout_s: float = 1.0,
        hard_timeout_s: float = 30.0,
        fixed: bool = False,
        fixed_ranks: int | None = None,
        device: int = 0,
        wire: Wire = Wire.BFLOAT16,
        layout: Layout = Layout.EXPERT_MAJOR,
        blocks: int = 16,
        threads: int = 512,
    ) -> None:
        """Allocate the inbox and start the heartbeat.

        Args:
            rank: below ``shape.max_ranks``.
            incarnation: of this process, > 0; never used before by this rank.
            shape: the same on every rank of an instance.
            control: the block shared with the agent; without one nobody watches over this rank, and its beacon moves
                only while its kernels wait (virtual ranks).
            timeout_s: silence after which a peer whose beacon is frozen is suspected.
            hard_timeout_s: no wait is longer.
            fixed: the fixed-membership build of the same kernels, for measuring what elasticity costs.
            fixed_ranks: of how many ranks.
            device: CUDA's number of it.
            wire: how rows travel.
            layout: how a dispatch lays out what arrived.
            blocks: multiprocessors that one operation spreads over; ranks that share a device must fit it together.
            threads: of a block.

        Raises:
            CudaUnavailableError: no device, no driver, or no native module.
            ValueError: a number of ``shape`` that the kernels cannot serve; the message names it.
        """
        self.rank, self.incarnation, self.shape = rank, incarnation, shape
        self.device, self.wire, self.layout = device, wire, layout
        self.hard_timeout_s = hard_timeout_s
        self._doorbell = Doorbell()
        self._native: _cuda.DeviceRank = module().DeviceRank(
            device=device,
            rank=rank,
            incarnation=incarnation,
            max_ranks=shape.max_ranks,
            max_tokens=shape.max_tokens,
            hidden=shape.hidden,
            max_topk=shape.max_topk,
            max_slots=shape.max_slots,
            n_experts=shape.n_experts,
            n_layers=shape.n_layers,
            fp8=wire is Wire.FP8,
            blocks=blocks,
            threads=threads,
            fixed=fixed,
            fixed_ranks=fixed_ranks or shape.max_ranks,
            control=control,
            doorbell=self._doorbell.fd,
        )
        self.set_timeouts(timeout_s=timeout_s, hard_timeout_s=hard_timeout_s)
        self._doorbells: dict[int, int] = {}
        self._batch: tuple[Any, int] | None = None
        self._allocate()

    def _allocate(self) -> None:
        import torch  # noqa: PLC0415  # only where there is a device

        shape, native = self.shape, self._native
        where = torch.device("cuda", self.device)
        kind = torch.float8_e4m3fn if self.wire is Wire.FP8 else torch.bfloat16
        groups = shape.hidden // 128
        if self.layout is Layout.EXPERT_MAJOR:
            lead: tuple[int, ...] = (shape.max_slots, native.slot_capacity)
            scales = torch.empty((shape.max_slots, groups, native.slot_capacity), device=where).transpose(1, 2)
        else:
            lead = (shape.max_ranks * shape.max_tokens * min(shape.max_topk, shape.max_slots),)
            scales = torch.empty((*lead, groups), device=where)
        self._rows = torch.empty((*lead, shape.hidden), dtype=kind, device=where)
        self._scales = scales if self.wire is Wire.FP8 else None
        self._counts = torch.zeros(shape.max_slots + 1, dtype=torch.int32, device=where)
        pairs = int(np.prod(lead))
        self._origins = torch.empty(pairs, dtype=torch.int32, device=where)
        self._pair_slots = torch.full((pairs,), -1, dtype=torch.int32, device=where)
        self._pair_weights = torch.empty(pairs, dtype=torch.float32, device=where)
        self._missing = torch.zeros(shape.max_tokens, dtype=torch.uint8, device=where)

    # --- links ---
    def inbox_fd(self, source: int) -> int:
        """A descriptor of the chunk that ``source`` writes into; the caller closes it or sends it on (SCM_RIGHTS)."""
        return self._native.inbox_descriptor(source)

    def renew_inbox(self, source: int) -> int:
        """Fence ``source``: fresh memory under its chunk's address; the new descriptor.

        Raises:
            RuntimeError: ``source`` is active in the running epoch, and neither suspected nor known to be dead.
        """
        return self._native.renew_inbox(source)

    def doorbell_fd(self) -> int:
        """A duplicate of this rank's doorbell: readable when a peer begins a step or the agent has written."""
        return os.dup(self._doorbell.fd)

    def connect(self, peer: int, *, incarnation: int, inbox_fd: int, doorbell_fd: int = -1, pid: int = 0) -> None:
        """Map the chunk that ``peer`` gave us and watch its process (``pid`` 0: a virtual rank of this process).

        Takes the descriptors over, also when it fails. A running epoch keeps the link it began with.
        """
        self._drop_doorbell(peer)
        if doorbell_fd >= 0:
            self._doorbells[peer] = doorbell_fd
        self._native.connect(peer, incarnation=incarnation, descriptor=inbox_fd, pid=pid)

    def disconnect(self, peer: int) -> None:
        """Forget a peer; a running epoch that counts on it keeps its link until the next one."""
        self._drop_doorbell(peer)
        self._native.disconnect(peer)

    def _drop_doorbell(self, peer: int) -> None:
        self._doorbell.forget(peer)
        if (fd := self._doorbells.pop(peer, None)) is not None:
            os.close(fd)

    def linked(self) -> dict[int, int]:
        """Rank → incarnation of every connected peer."""
        return self._native.linked()

    def link_address(self, peer: int) -> int:
        """Where the peer's chunk is mapped here: unchanged by whatever happens to other links."""
        return self._native.peer_address(peer)

    def mark_dead(self, peer: int) -> None:
        """Proof from elsewhere that the peer's process is gone; a waiting kernel leaves within some microseconds."""
        self._native.mark_dead(peer)

    # --- tables ---
    _members: frozenset[int] = frozenset()
    _staged: Table | None = None

    def stage(self, table: Table) -> None:
        """Copy into the idle one of the two device tables. Replaces what was staged before."""
        self._native.stage(table)
        self._staged = table

    @property
    def staged_epoch(self) -> int:
        """0: none."""
        return self._native.staged_epoch

    @property
    def epoch(self) -> int:
        """0 before the first."""
        return self._native.running_epoch

    @property
    def round(self) -> int:
        """Rounds since the epoch's start; waits for the device."""
        return self.counters()["round"]

    def activate(self, epoch: int) -> None:
        """Make the staged table current; syncs and rounds start again at 0. Only between steps.

        Raises:
            RuntimeError: it is not staged, or a member is not connected in the incarnation that the table names.
            ValueError: it is not newer than the running epoch.
        """
        self._native.activate(epoch)
        self._adopt()

    def activate_at(self, epoch: int, *, step: int = 0) -> None:
        """The same at this rank's sync ``step`` (over all epochs; 0: the next): a plain store, also under a graph."""
        self._native.activate_at(epoch, at_step=step)
        self._adopt()

    def _adopt(self) -> None:
        if self._staged is not None:
            self._members = frozenset(self._staged.active) - {self.rank}

    # --- words that running graphs read ---
    def set_timeouts(self, *, timeout_s: float, hard_timeout_s: float, min_polls: int = 1000) -> None:
        """Change the deadlines, also under a captured graph."""
        self.hard_timeout_s = hard_timeout_s
        self._native.set_limits(silence_ns=int(timeout_s * 1e9), hard_ns=int(hard_timeout_s * 1e9), min_polls=min_polls)

    def call_off(self, epoch: int) -> None:
        """Steps under epochs below ``epoch`` drain."""
        self._native.call_off(epoch)

    def fence(self) -> None:
        """Write to nobody any more."""
        self._native.fence()

    @property
    def status(self) -> Status:
        """Of the latest step, as far as it has run."""
        return Status(self._native.status)

    @property
    def suspects(self) -> list[int]:
        """Ranks suspected in the running epoch."""
        return self._native.suspects

    def faults(self, *, after: int = 0) -> list[_cuda.Fault]:
        """Fault entries with serials above ``after``; needs no driver call.

        So it sees them while a kernel still spins.
        """
        return self._native.faults(after=after)

    # --- steps ---
    def sync_arrived(self) -> bool:
        """Say whether a peer has begun the next step, or left this epoch: an idle rank must take part.

        Clears the doorbell; after False a peer that begins will ring it, so the caller may sleep on it.
        """
        return self._doorbell.arrived(epoch=self.epoch, sync=self._native.next_sync, members=self._members)

    def look_again(self) -> bool:
        """Say that nothing more is known: a device's fault word is written by a step, and the next one looks anew."""
        return False

    def ring(self) -> None:
        """Tell every active peer that this rank begins its next step."""
        self._ring(self.epoch, self._native.next_sync)

    def _ring(self, epoch: int, sync: int) -> None:
        for peer, fd in list(self._doorbells.items()):
            if peer in self._members:
                ring(fd, source=self.rank, epoch=epoch, sync=sync)

    def set_row(
        self, *, tokens: int, flags: int = 0, prepared_epoch: int = 0, committed_epoch: int = 0, user: int = 0
    ) -> None:
        """This rank's row of the next sync; a captured sync reads it at each replay."""
        self._native.set_row(tokens=tokens, flags=flags, prepared=prepared_epoch, committed=committed_epoch, user=user)

    def enqueue_sync(self, *, stream: Any = None, flip: bool = False) -> None:
        """Launch a step sync, or capture one.

        ``flip``: when all rows have prepared the next epoch and one knows its commit, the kernel itself crosses into
        it and
        syncs again; read at each run, so the latest call's choice counts for a captured sync too.
        """
        self._native.set_flip(flip)
        self._native.launch_sync(self._stream(stream))

    def sync(self, row: SyncRow, *, stream: Any = None) -> CudaSyncResult:
        """Exchange rows with every active rank and wait for the outcome. ``row`` has the fields of ``native.SyncRow``.

        Raises:
            OperationError: the kernel has not ended a second after its hard deadline.
        """
        self.set_row(
            tokens=row.tokens,
            flags=row.flags,
            prepared_epoch=row.prepared_epoch,
            committed_epoch=row.committed_epoch,
            user=row.user,
        )
        before, epoch, number = self._native.syncs_done, self.epoch, self._native.next_sync
        self.enqueue_sync(stream=stream)
        self._ring(epoch, number)
        return self.wait_sync(after=before)

    @property
    def syncs_done(self) -> int:
        """Syncs that have ended, over all epochs."""
        return self._native.syncs_done

    def wait_sync(self, *, after: int) -> CudaSyncResult:
        """Wait until more than ``after`` syncs have ended."""
        done, status, present, suspects = self._native.wait_sync(after=after, timeout_s=self.hard_timeout_s + 1.0)
        if not done:
            raise OperationError(
                f"step sync of rank {self.rank}: no end {self.hard_timeout_s + 1.0:.1f} s after it began; "
                "the device is stuck, restart the rank"
            )
        rows = [
            Row(rank=rank, tokens=tokens, flags=flags, prepared_epoch=prepared, committed_epoch=committed, user=user)
            for rank in present
            for tokens, flags, prepared, committed, user in [self._native.row(rank)]
        ]
        if status != Status.OK:
            self._native.publish_faults()
        return CudaSyncResult(status=Status(status), rows=rows, suspects=suspects)

    def dispatch(
        self, layer: int, x: Any, topk_ids: Any, topk_weights: Any, *, stream: Any = None, phases: int = SEND | RECEIVE
    ) -> CudaDispatched:
        """Send rows to their experts' ranks and lay out what arrives; does not wait.

        ``x`` bfloat16 [tokens, hidden], ``topk_ids`` int32 or int64 [tokens, k] (−1: none), ``topk_weights`` float32
        [tokens, k]: contiguous, on the group's device, anything with DLPack; unchanged until the round's combine is
        done.

        Raises:
            ValueError: a tensor of another type, shape or place.
            RuntimeError: the round before has no combine yet.
        """
        import torch  # noqa: PLC0415  # only where there is a device

        x, ids, weights = (_tensor(value) for value in (x, topk_ids, topk_weights))
        tokens, topk = ids.shape
        self._expect("x", x, torch.bfloat16, (tokens, self.shape.hidden))
        self._expect("topk_weights", weights, torch.float32, (tokens, topk))
        self._expect("topk_ids", ids, torch.int64 if ids.dtype is torch.int64 else torch.int32, (tokens, topk))
        self._native.launch_dispatch(
            stream=self._stream(stream),
            phases=phases,
            x=x.data_ptr(),
            ids=ids.data_ptr(),
            ids_are_64=ids.dtype is torch.int64,
            weights=weights.data_ptr(),
            tokens=tokens,
            topk=topk,
            layer=layer,
            rows=self._rows.data_ptr(),
            scales=0 if self._scales is None else self._scales.data_ptr(),
            counts=self._counts.data_ptr(),
            pair_slots=self._pair_slots.data_ptr(),
            pair_weights=self._pair_weights.data_ptr(),
            origins=self._origins.data_ptr(),
            pair_list=self.layout is Layout.PAIRS,
        )
        self._batch = (ids, layer)
        return CudaDispatched(
            group=self,
            rows=self._rows,
            scales=self._scales,
            counts=self._counts[: self.shape.max_slots],
            slots=self._pair_slots,
            weights=self._pair_weights,
            origins=self._origins,
        )

    def combine(
        self, y: Any, out: Any, *, weighted: bool, stream: Any = None, phases: int = SEND | RECEIVE
    ) -> CudaCombined:
        """Sum what the experts made of each token into ``out``, in fixed rank order; ends the round and does not wait.

        ``y`` bfloat16, rows where ``dispatch`` put them; ``out`` bfloat16 [tokens, hidden]. ``weighted``: ``y`` is
        already
        multiplied by the router's weights.

        Raises:
            ValueError: a tensor of another type, shape or place.
            RuntimeError: there is no dispatch before it.
        """
        import torch  # noqa: PLC0415  # only where there is a device

        if self._batch is None:
            raise RuntimeError("combine: there is no dispatch before it")
        y, out = _tensor(y), _tensor(out)
        ids, layer = self._batch
        tokens, topk = ids.shape
        room = y.shape[:1] if self.layout is Layout.PAIRS else self._rows.shape[:2]
        self._expect("y", y, torch.bfloat16, (*room, self.shape.hidden))
        self._expect("out", out, torch.bfloat16, (tokens, self.shape.hidden))
        self._native.launch_combine(
            stream=self._stream(stream),
            phases=phases,
            y=y.data_ptr(),
            out=out.data_ptr(),
            missing=self._missing.data_ptr(),
            ids=ids.data_ptr(),
            ids_are_64=ids.dtype is torch.int64,
            weighted=weighted,
            tokens=tokens,
            topk=topk,
            layer=layer,
            counts=self._counts.data_ptr(),
            pair_slots=self._pair_slots.data_ptr() if self.layout is Layout.PAIRS else 0,
        )
        return CudaCombined(group=self, missing=self._missing[:tokens])

    def settle(self, *, stream: Any = None) -> Status:
        """Wait until everything of the step under way has run, and say how it ended.

        Raises:
            OperationError: it has not within the time that its waits may take; the device is stuck.
        """
        import torch  # noqa: PLC0415  # only where there is a device

        done = torch.cuda.Event()
        done.record(stream or torch.cuda.current_stream(self.device))
        # A step that broke drains within one hard deadline; a whole one computes besides.
        deadline = time.monotonic() + 2.0 * self.hard_timeout_s + _COMPUTE_S
        while not done.query():
            if time.monotonic() > deadline:
                raise OperationError(
                    f"step of rank {self.rank}: not over in time; the device is stuck, restart the rank"
                )
            time.sleep(_LOOK_S)
        status = self.status
        if status != Status.OK:
            self._native.publish_faults()
        return status

    def close(self) -> None:
        """Wait for the device and let go of every link."""
        self._synchronize()
        for peer in list(self._doorbells):
            self._drop_doorbell(peer)
        del self._native  # its heartbeat writes into the doorbell
        self._doorbell.close()

    # --- introspection ---
    @property
    def buffer_shape(self) -> tuple[int, ...]:
        """Shape of ``Dispatched.rows``, and of the ``y`` that ``combine`` takes."""
        return tuple(self._rows.shape)

    def tokens_per_expert(self) -> npt.NDArray[np.float32]:
        """float32 [layers, experts]: (token, k) pairs this rank has routed, halved every 1024 rounds of a layer."""
        return self._native.loads()

    def counters(self) -> dict[str, int]:
        """What the device counted: epoch, round, syncs, rounds that ended well or not, fault entries, masked pairs."""
        return self._native.counters()

    @property
    def native(self) -> _cuda.DeviceRank:
        """The native half, for measurements that need a launch or a number of its own."""
        return self._native

    def _stream(self, stream: Any) -> int:
        import torch  # noqa: PLC0415  # only where there is a device

        if isinstance(stream, int):
            return stream
        return int((stream or torch.cuda.current_stream(self.device)).cuda_stream)

    def _synchronize(self) -> None:
        import torch  # noqa: PLC0415  # only where there is a device

        torch.cuda.synchronize(self.device)

    def _expect(self, name: str, tensor: Any, dtype: Any, shape: tuple[int, ...]) -> None:
        right = tensor.dtype is dtype and tuple(tensor.shape) == shape
        if not (right and tensor.is_contiguous() and tensor.is_cuda):
            raise ValueError(
                f"{name}: {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; "
                f"needs contiguous {dtype} {shape} on cuda:{self.device}"
            )


def _tensor(value: Any) -> Any:
    import torch  # noqa: PLC0415  # only where there is a device

    return value if isinstance(value, torch.Tensor) else torch.from_dlpack(value)
