"""The CUDA backend's native half: memory, links, tables and launches of one rank. ``native.cuda`` is the API above it.

Built only where a CUDA compiler is found. Imported without a driver it can do arithmetic and says so for the rest.
Addresses and stream handles are integers; whoever passes one keeps what is behind it alive.
"""

from typing import TypedDict, final, overload

import numpy as np
import numpy.typing as npt

from native._native import ControlBlock, Table

class CudaError(RuntimeError):
    """A CUDA call failed; the message names what it was for."""

class Geometry(TypedDict):
    """Byte offsets within a chunk; pairs are (parity 0, first token) and (parity 1, last token)."""

    chunk_bytes: int
    dispatch_row_bytes: int
    combine_row_bytes: int
    slots_stride: int
    slots_at: tuple[int, int]
    weights_at: tuple[int, int]
    row_at: tuple[int, int]
    partial_at: tuple[int, int]

def device_count() -> int:
    """CUDA devices of this machine; 0 without a driver."""

def geometry(
    *,
    max_ranks: int,
    max_tokens: int,
    hidden: int,
    max_topk: int,
    max_slots: int,
    n_experts: int,
    n_layers: int,
    fp8: bool,
) -> Geometry: ...
def tag(epoch: int, number: int) -> int: ...
def pair_hash(source: int, token: int, k: int, expert: int) -> int: ...
def choose_replica(cumulative: list[int], source: int, token: int, k: int, expert: int) -> int:
    """Index of the replica, among those with these cumulative weights, that takes a pair."""

class Packed(TypedDict):
    """A table as the device gets it."""

    epoch: int
    member: bool
    active: list[int]
    offsets: list[int]
    """[layers × (experts + 1)], from the start of each layer's own lists."""
    replicas: list[tuple[int, int, int]]
    """Rank, slot, cumulative weight: [layers × max_ranks × max_slots]."""

def pack_table(table: Table, *, own_rank: int, max_ranks: int, max_slots: int) -> Packed:
    """Do what staging does before it copies; a ``ValueError`` names what does not fit."""

@final
class PinnedMemory:
    """Host memory that the device copies from and to at full speed; zeroed by nobody."""

    def __init__(self, bytes: int) -> None: ...  # noqa: A002  # the name of the C++ argument
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class SharedMemory:
    """Device memory that processes of one host share by descriptor."""

    @overload
    def __init__(self, *, device: int, bytes: int) -> None:
        """Make fresh, zeroed memory."""
    @overload
    def __init__(self, *, device: int, descriptor: int, bytes: int) -> None:
        """Map what another process exported; takes the descriptor over."""
    address: int
    bytes: int
    def descriptor(self) -> int:
        """Export it; the caller closes the descriptor."""
    def write(self, offset: int, source: npt.NDArray[np.uint8]) -> None:
        """Copy from host memory, beside whatever streams do."""
    def read(self, offset: int, to: npt.NDArray[np.uint8]) -> None: ...

@final
class Partition:
    """The device split into equal groups of multiprocessors (green contexts), with a stream in each."""

    def __init__(self, *, device: int, parts: int) -> None: ...
    multiprocessors: int
    streams: list[int]

@final
class Fault:
    serial: int
    epoch: int
    round: int
    layer: int
    suspect: int
    evidence: int
    step: int
    device_ns: int

@final
class DeviceRank:
    def __init__(
        self,
        *,
        device: int,
        rank: int,
        incarnation: int,
        max_ranks: int,
        max_tokens: int,
        hidden: int,
        max_topk: int,
        max_slots: int,
        n_experts: int,
        n_layers: int,
        fp8: bool,
        blocks: int,
        threads: int,
        fixed: bool,
        fixed_ranks: int,
        control: ControlBlock | None,
        doorbell: int,
    ) -> None: ...
    chunk_bytes: int
    slot_capacity: int
    staged_epoch: int
    running_epoch: int
    status: int
    suspects: list[int]
    syncs_done: int
    next_sync: int
    probe_ns: int
    def inbox_descriptor(self, source: int) -> int: ...
    def renew_inbox(self, source: int) -> int: ...
    def connect(self, peer: int, *, incarnation: int, descriptor: int, pid: int) -> None: ...
    def disconnect(self, peer: int) -> None: ...
    def linked(self) -> dict[int, int]: ...
    def chunk_address(self, source: int) -> int: ...
    def peer_address(self, peer: int) -> int: ...
    def stage(self, table: Table) -> None: ...
    def activate(self, epoch: int) -> None: ...
    def activate_at(self, epoch: int, *, at_step: int) -> None: ...
    def set_limits(self, *, silence_ns: int, hard_ns: int, min_polls: int) -> None: ...
    def set_row(self, *, tokens: int, flags: int, prepared: int, committed: int, user: int) -> None: ...
    def set_flip(self, flip: bool) -> None: ...
    def call_off(self, epoch: int) -> None: ...
    def fence(self) -> None: ...
    def mark_dead(self, rank: int) -> None: ...
    def faults(self, *, after: int) -> list[Fault]: ...
    def publish_faults(self) -> None: ...
    def loads(self) -> npt.NDArray[np.float32]: ...
    def wait_sync(self, *, after: int, timeout_s: float) -> tuple[bool, int, list[int], list[int]]: ...
    def row(self, rank: int) -> tuple[int, int, int, int, int]: ...
    def counters(self) -> dict[str, int]: ...
    def set_grid(self, blocks: int, threads: int) -> None: ...
    def launch_sync(self, stream: int) -> None: ...
    def launch_probe(self, stream: int) -> None: ...
    def launch_dispatch(
        self,
        *,
        stream: int,
        phases: int,
        x: int,
        ids: int,
        ids_are_64: bool,
        weights: int,
        tokens: int,
        topk: int,
        layer: int,
        rows: int,
        scales: int,
        counts: int,
        pair_slots: int,
        pair_weights: int,
        origins: int,
        pair_list: bool,
    ) -> None: ...
    def launch_combine(
        self,
        *,
        stream: int,
        phases: int,
        y: int,
        out: int,
        missing: int,
        ids: int,
        ids_are_64: bool,
        weighted: bool,
        tokens: int,
        topk: int,
        layer: int,
        counts: int,
        pair_slots: int,
    ) -> None: ...
