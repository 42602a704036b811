"""The native data plane: inboxes, tables, dispatch and combine, step sync, evidence, links, control block.

Arrays pass by DLPack or the buffer protocol (torch CPU tensors, numpy); nothing is copied at the boundary. Everything that can
wait releases the GIL and returns within its deadline + ε whatever peers do.
"""

from enum import IntEnum
from typing import Any, final

class DType(IntEnum):
    FLOAT32 = 0
    BFLOAT16 = 1

class Status(IntEnum):
    """How an operation of the step protocol ended."""

    OK = 0
    SUSPECT = 1
    """Some peer's contribution is missing: the step must not be sampled from. ``suspects`` and the fault word say who."""
    ABORTED = 2
    """The control block asked for it (an epoch with an abort cut was committed, or the agent calls the step off)."""
    EPOCH_SKEW = 3
    """A peer is in a newer epoch than this rank: wait for the agent to deliver it."""
    FENCED = 4
    """This rank is excluded from the epoch, or its agent lost the lease: it may not write to anyone any more."""

class Evidence(IntEnum):
    NONE = 0
    DEAD = 1
    SILENT = 2
    SLOW = 3
    GOSSIP = 4

class Phase(IntEnum):
    """What a rank does, for itself and for those who wait for it (ARCHITECTURE §4: warm-up is never mistaken for silence)."""

    STARTING = 0
    LOADING = 1
    WARMING = 2
    SERVING = 3
    DRAINING = 4
    STOPPING = 5

@final
class Shape:
    """Constants of an instance: fixed at creation, so nothing is addressed by a number that changes with membership."""

    max_ranks: int
    max_tokens: int
    """Rows one rank dispatches in one round."""
    hidden: int
    max_topk: int
    max_slots: int
    n_experts: int
    n_layers: int
    dtype: DType
    def __init__(
        self,
        *,
        max_ranks: int,
        max_tokens: int,
        hidden: int,
        max_topk: int,
        max_slots: int,
        n_experts: int,
        n_layers: int,
        dtype: DType,
    ) -> None: ...
    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inbox chunk (one source rank at one receiver)."""

@final
class ControlBlock:
    """A page shared by an engine and its agent, by path; each side may die and come back."""

    @staticmethod
    def create(path: str, *, rank: int, incarnation: int) -> ControlBlock: ...
    @staticmethod
    def attach(path: str) -> ControlBlock: ...
    path: str
    rank: int
    incarnation: int
    # written by the engine
    phase: Phase
    engine_pid: int
    epoch: int
    """Epoch the engine runs under."""
    step: int
    """Steps begun; grows while the engine makes progress."""
    beacon: int
    """Grows while the engine's threads run, also when no step is under way."""
    def fault(self) -> FaultWord:
        """The latest fault, consistent (seqlock)."""
    def wait_fault(self, *, after: int, timeout_s: float) -> FaultWord | None:
        """Wait (GIL released) until ``FaultWord.serial > after``."""
    def receive_wait_us(self) -> list[int]:
        """Decayed mean wait for each source rank, µs [max_ranks]."""
    # written by the agent
    committed_epoch: int
    """Highest epoch known to be committed (contagious: peers' sync rows carry it)."""
    abort_epoch: int
    """Steps under epochs < abort_epoch are called off."""
    fenced: bool
    """The lease is gone or the rank was excluded: the engine stops writing to anyone at its next poll."""
    def abort(self, epoch: int) -> None:
        """Set ``abort_epoch`` and wake whoever waits inside the engine."""
    def commit(self, epoch: int) -> None:
        """Raise ``committed_epoch`` and wake whoever waits inside the engine."""
    def wait_commit(self, *, after: int, timeout_s: float) -> int:
        """Wait (GIL released) until ``committed_epoch > after``; the new value, or ``after`` on time-out."""

@final
class FaultWord:
    serial: int
    epoch: int
    step: int
    layer: int
    """Layer whose dispatch or combine noticed; -1 for the step sync."""
    suspects: list[int]
    evidence: list[Evidence]
    """One per suspect."""
    unix_ns: int

@final
class Table:
    """One version of the routing table of all layers; immutable once staged."""

    def __init__(
        self,
        *,
        epoch: int,
        active: list[int],
        incarnations: list[int],
        offsets: Any,
        ranks: Any,
        slots: Any,
        weights: Any,
    ) -> None:
        """``incarnations``: [max_ranks]. ``offsets``: int32 [layers, experts + 1] into the flat replica lists ``ranks``
        (uint16), ``slots`` (uint16), ``weights`` (uint16, relative shares, > 0). An expert without replicas is *missing*.
        """
    epoch: int
    active: list[int]
    missing: list[tuple[int, int]]

@final
class SyncRow:
    """What one rank tells the others before a step."""

    def __init__(
        self, *, tokens: int, flags: int = 0, prepared_epoch: int = 0, committed_epoch: int = 0, user: int = 0
    ) -> None: ...
    rank: int
    tokens: int
    flags: int
    prepared_epoch: int
    committed_epoch: int
    user: int

@final
class SyncResult:
    status: Status
    rows: list[SyncRow]
    """Of every active rank, in rank order (own row included); incomplete unless OK."""
    suspects: list[int]

@final
class Dispatched:
    """Rows that arrived for this rank's slots in one round, one per (source token, local slot) pair."""

    status: Status
    suspects: list[int]
    pairs: int
    rows: Any
    """[pairs, hidden] of the group's dtype; DLPack. Valid until the combine of the same round."""
    slots: Any
    """int32 [pairs]."""
    weights: Any
    """float32 [pairs]: the router's weight of that (token, expert)."""
    masked: int
    """(token, k) pairs of *this* rank that had no live replica (expert missing from the table)."""

@final
class Combined:
    status: Status
    suspects: list[int]
    missing: Any
    """uint8 [tokens]: how many of the token's k contributions are missing."""

@final
class Group:
    """One rank's end of the elastic dispatch. One step in flight; not re-entrant (``RuntimeError`` otherwise)."""

    def __init__(
        self,
        *,
        rank: int,
        incarnation: int,
        shape: Shape,
        control: ControlBlock,
        timeout_s: float = 1.0,
        hard_timeout_s: float = 30.0,
        fixed: bool = False,
    ) -> None:
        """``timeout_s``: silence after which a peer whose beacon is frozen is suspected. ``hard_timeout_s``: no wait is longer.
        ``fixed``: the fixed-membership build of the same code, for measuring what elasticity costs.
        """
    rank: int
    incarnation: int
    shape: Shape
    epoch: int
    round: int
    """Dispatch rounds since the epoch's start."""
    # --- links (control thread; may run while another thread waits in a step) ---
    def inbox_fd(self, source: int) -> int:
        """A duplicate of the descriptor of the chunk that ``source`` writes into; the caller closes it."""
    def renew_inbox(self, source: int) -> int:
        """Fence ``source``: put fresh memory under its chunk's address and return the new descriptor. Whatever the old process
        still writes lands in orphaned memory. Refused while ``source`` is active in the running epoch and not suspected.
        """
    def doorbell_fd(self) -> int:
        """A duplicate of this rank's eventfd: readable when a peer begins a step or the agent wakes the engine."""
    def connect(self, peer: int, *, incarnation: int, inbox_fd: int, doorbell_fd: int, pid: int) -> None:
        """Map the chunk that ``peer`` gave us and watch ``pid`` (pidfd; robust-futex word inside the chunk). Takes the
        descriptors over.
        """
    def disconnect(self, peer: int) -> None: ...
    def linked(self) -> dict[int, int]:
        """Rank → incarnation of every connected peer."""
    # --- tables ---
    def stage(self, table: Table) -> None:
        """Copy into the idle one of the two tables. Replaces what was staged before."""
    @property
    def staged_epoch(self) -> int: ...
    def activate(self, epoch: int) -> None:
        """Make the staged table current; rounds start again at 0. Only between steps, on the thread that steps."""
    # --- steps (one thread) ---
    def sync_arrived(self) -> bool:
        """A peer has begun the next step (or committed a newer epoch): an idle rank must take part. Clears the doorbell."""
    def ring(self) -> None:
        """Wake every active peer that sleeps."""
    def sync(self, row: SyncRow) -> SyncResult:
        """Exchange rows with every active rank: the start of a step, and a full barrier."""
    def dispatch(self, layer: int, x: Any, topk_ids: Any, topk_weights: Any) -> Dispatched:
        """``x`` [tokens, hidden], ``topk_ids`` int32/int64 [tokens, k] (−1: none), ``topk_weights`` float32 [tokens, k]; 0 tokens is
        fine and still takes part. A row crosses to a destination rank once, however many of its experts live there.
        """
    def combine(self, y: Any, out: Any, *, weighted: bool) -> Combined:
        """``y`` [pairs, hidden]: expert outputs in ``Dispatched`` order. ``weighted``: already multiplied by the router's weight.
        ``out`` [tokens, hidden] receives the sums, added in fixed rank order. Ends the round.
        """
    def close(self) -> None: ...
    # --- introspection ---
    def tokens_per_expert(self) -> Any:
        """float32 [layers, experts]: (token, k) pairs this rank has routed, decayed."""
    def counters(self) -> dict[str, int]:
        """Rounds, bytes sent and received, suspicions by evidence, renewed inboxes, missed deadlines."""

def isa() -> str:
    """The instruction set chosen at run time: avx512, avx2 or portable (``EEP_ISA`` forces one)."""

def checksum(buffer: Any) -> int:
    """64-bit checksum of a contiguous buffer at memory speed (slot manifest)."""
