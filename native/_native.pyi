"""The native data plane: inboxes, tables, dispatch and combine, step sync, evidence, links, control block.

Arrays pass by DLPack or the buffer protocol (torch CPU tensors, numpy); nothing is copied at the boundary, and bfloat16
is also taken as its 16 bits (uint16). Everything that can wait releases the GIL and returns within its deadline + ε
whatever peers do. A bad argument is a ``ValueError`` that names it, a call out of order a ``RuntimeError``, and what
the kernel refuses an ``OSError``.
"""

from enum import IntEnum
from typing import Any, final

class DType(IntEnum):
    FLOAT32 = 0
    BFLOAT16 = 1

class Status(IntEnum):
    """How an operation of the step protocol ended. Anything but OK holds until a newer epoch is activated."""

    OK = 0
    SUSPECT = 1
    """Some peer's contribution is missing: do not sample. ``suspects`` and the fault word say who."""
    ABORTED = 2
    """The control block asked for it: an epoch with an abort cut was committed, or the agent calls the step off."""
    EPOCH_SKEW = 3
    """A peer is in a newer epoch, or in another place of the step: wait for the agent to deliver an epoch."""
    FENCED = 4
    """This rank is excluded from the peers' epoch, or its agent lost the lease: it writes to nobody any more."""

class Evidence(IntEnum):
    NONE = 0
    DEAD = 1
    """The link's robust futex or the pidfd says that the process is gone, or its group was closed."""
    SILENT = 2
    """The time-out passed and the peer's beacon stood still all the while."""
    SLOW = 3
    """The time-out passed but the beacon moves: told in the fault word, suspected at the hard deadline."""
    GOSSIP = 4
    """A peer suspects it."""

class Phase(IntEnum):
    """What a rank does, for itself and for those who wait for it.

    Before SERVING a rank may be silent until the hard deadline (ARCHITECTURE §4: warm-up is never taken for silence).
    Peers see a change within 20 ms.
    """

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
    """At most 128."""
    max_tokens: int
    """Rows one rank dispatches in one round."""
    hidden: int
    max_topk: int
    """At most 32."""
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
    def create(path: str, *, rank: int, incarnation: int) -> ControlBlock:
        """Put a fresh page at ``path``, whole from its first instant; who maps a former one keeps that."""
    @staticmethod
    def attach(path: str) -> ControlBlock: ...
    @property
    def path(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    # written by the engine
    phase: Phase
    engine_pid: int
    epoch: int
    """Epoch the engine runs under; ``Group.activate`` sets it."""
    step: int
    """Steps begun; grows while the engine makes progress."""
    beacon: int
    """Grows by itself while the engine's process runs, step or no step; setting it can only raise it."""
    def fault(self) -> FaultWord:
        """Give the latest fault, always whole; ``serial`` 0: none yet."""
    def wait_fault(self, *, after: int, timeout_s: float) -> FaultWord | None:
        """Wait (GIL released) until ``FaultWord.serial > after``."""
    def receive_wait_us(self) -> list[int]:
        """Decayed mean wait for each source rank, µs [128]."""
    # written by the agent; every write wakes whoever waits and rings the engine's doorbell
    committed_epoch: int
    """Highest epoch known to be committed (contagious: peers' sync rows carry it)."""
    abort_epoch: int
    """Steps under epochs < abort_epoch are called off."""
    fenced: bool
    """The lease is gone or the rank was excluded: the engine stops writing to anyone at its next poll."""
    def abort(self, epoch: int) -> None:
        """Raise ``abort_epoch`` (in what the tables are numbered in: EEP's workers give stamps), and wake who waits."""
    def commit(self, epoch: int) -> None:
        """Raise ``committed_epoch`` and wake whoever waits inside the engine."""
    def wait_commit(self, *, after: int, timeout_s: float) -> int:
        """Wait (GIL released) until ``committed_epoch > after``; the new value, or ``after`` on time-out."""

@final
class FaultWord:
    """What the data plane noticed last; it reports, it never excludes."""

    @property
    def serial(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def layer(self) -> int:
        """Layer whose dispatch or combine noticed; -1 for the step sync."""
    @property
    def suspects(self) -> list[int]:
        """With GOSSIP a rank may find itself here: a peer accuses it, which is for the leader to judge."""
    @property
    def evidence(self) -> list[Evidence]:
        """One per suspect."""
    @property
    def unix_ns(self) -> int: ...

@final
class Table:
    """One version of the routing table of all layers; immutable."""

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
        """Take replica lists; those on ranks that are not active are left out.

        Args:
            epoch: in [1, 2**32).
            active: member ranks.
            incarnations: [max_ranks]; 0 where there is no member.
            offsets: int32 [layers, experts + 1], positions in the flat lists that follow.
            ranks: uint16, rank of each replica.
            slots: uint16, its slot there.
            weights: uint16, its relative share of the expert's tokens, > 0.
        """
    @property
    def epoch(self) -> int: ...
    @property
    def active(self) -> list[int]: ...
    @property
    def missing(self) -> list[tuple[int, int]]:
        """(layer, expert) pairs without a replica on an active rank."""
    def without(self, rank: int, *, epoch: int) -> Table:
        """Leave out one active rank, as version ``epoch``; an expert's other replicas keep their proportions.

        The result equals the table that would be built from the same replica lists without that rank.
        """

@final
class SyncRow:
    """What one rank tells the others before a step."""

    def __init__(
        self, *, tokens: int, flags: int = 0, prepared_epoch: int = 0, committed_epoch: int = 0, user: int = 0
    ) -> None: ...
    @property
    def rank(self) -> int:
        """Filled in by ``Group.sync``."""
    @property
    def tokens(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def prepared_epoch(self) -> int: ...
    @property
    def committed_epoch(self) -> int: ...
    @property
    def user(self) -> int: ...

@final
class SyncResult:
    """How a sync ended."""

    @property
    def status(self) -> Status: ...
    @property
    def rows(self) -> list[SyncRow]:
        """Of every active rank, in rank order (own row included); incomplete unless OK."""
    @property
    def suspects(self) -> list[int]: ...

@final
class LentArray:
    """Memory of a group's that torch and numpy may look at; keeps the group's memory alive, not its contents."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Dispatched:
    """Rows that arrived for this rank's slots in one round, one per (source token, local slot) pair.

    Own tokens come first, then those of the other ranks in rank order. The arrays are valid until the next dispatch.
    """

    @property
    def status(self) -> Status: ...
    @property
    def suspects(self) -> list[int]: ...
    @property
    def pairs(self) -> int:
        """0 unless OK."""
    @property
    def rows(self) -> LentArray:
        """[pairs, hidden] of the group's dtype; the caller may overwrite them with the experts' outputs."""
    @property
    def slots(self) -> LentArray:
        """int32 [pairs]."""
    @property
    def weights(self) -> LentArray:
        """float32 [pairs]: the router's weight of that (token, expert)."""
    @property
    def masked(self) -> int:
        """(token, k) pairs of *this* rank that had no live replica (expert missing from the table)."""

@final
class Combined:
    """How a round ended."""

    @property
    def status(self) -> Status: ...
    @property
    def suspects(self) -> list[int]: ...
    @property
    def missing(self) -> Any:
        """uint8 [tokens]: how many of the token's k contributions are not in its sum."""

@final
class Group:
    """One rank's end of the elastic dispatch.

    Two threads may use it at once: one that steps, and one that controls links and stages tables. One step is in flight
    at a time (``RuntimeError`` otherwise). Do not fork a process that has one.
    """

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
        """Allocate the inbox and start the heartbeat, a thread that sleeps (< 0.1 % of a core).

        Args:
            rank: below ``shape.max_ranks``.
            incarnation: of this process, > 0; never used before by this rank.
            shape: the same on every rank of an instance.
            control: the block shared with the agent.
            timeout_s: silence after which a peer whose beacon is frozen is suspected.
            hard_timeout_s: no wait is longer.
            fixed: the fixed-membership build of the same code (experts by division, no evidence but the hard deadline),
                for measuring what elasticity costs.
        """
    @property
    def rank(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def epoch(self) -> int:
        """0 before the first."""
    @property
    def round(self) -> int:
        """Rounds completed since the epoch's start."""
    # --- links (control thread; may run while another thread waits in a step) ---
    def inbox_fd(self, source: int) -> int:
        """Give a duplicate of the descriptor of the chunk that ``source`` writes into; the caller closes it."""
    def renew_inbox(self, source: int) -> int:
        """Fence ``source``: put fresh memory under its chunk's address and return the new descriptor.

        Whatever the old process still writes lands in orphaned memory.

        Raises:
            RuntimeError: ``source`` is active in the running epoch and not suspected.
        """
    def doorbell_fd(self) -> int:
        """Give a duplicate of this rank's eventfd: readable when a peer begins a step or the agent has written."""
    def connect(self, peer: int, *, incarnation: int, inbox_fd: int, doorbell_fd: int, pid: int) -> None:
        """Map the chunk that ``peer`` gave us and watch ``pid`` (pidfd; robust-futex word inside the chunk).

        Takes the descriptors over, also when it fails. A running epoch keeps the link it began with.
        """
    def disconnect(self, peer: int) -> None:
        """Forget a peer; a running epoch that counts on it keeps its link until the next one."""
    def linked(self) -> dict[int, int]:
        """Rank → incarnation of every connected peer."""
    # --- tables ---
    def stage(self, table: Table) -> None:
        """Copy into the idle one of the two tables. Replaces what was staged before."""
    @property
    def staged_epoch(self) -> int:
        """0: none."""
    def activate(self, epoch: int) -> None:
        """Make the staged table current; syncs and rounds start again at 0. Only between steps, on the stepping thread.

        Raises:
            RuntimeError: it is not staged, or a member is not connected in the incarnation that the table names.
            ValueError: it is not newer than the running epoch.
        """
    # --- steps (one thread) ---
    def sync_arrived(self) -> bool:
        """Say whether a peer has begun the next step, or left this epoch: an idle rank must take part.

        Clears the doorbell; after False a peer that begins will ring it, so the caller may sleep on it.
        """
    def look_again(self) -> bool:
        """After a step that a death broke: whether more of the epoch's ranks have died since.

        The fault word then names them all.
        """
    def ring(self) -> None:
        """Ring every active peer's doorbell."""
    def sync(self, row: SyncRow) -> SyncResult:
        """Exchange rows with every active rank: the start of a step, and a full barrier."""
    def dispatch(self, layer: int, x: Any, topk_ids: Any, topk_weights: Any) -> Dispatched:
        """Send rows to the ranks of their experts, and receive those for this rank's slots.

        A row crosses to a destination rank once, however many of its experts live there.

        Args:
            layer: must be the same on every rank (EPOCH_SKEW otherwise).
            x: [tokens, hidden] of the group's dtype; 0 tokens is fine and still takes part.
            topk_ids: int32 or int64 [tokens, k]; −1: none.
            topk_weights: float32 [tokens, k].
        """
    def combine(self, y: Any, out: Any, *, weighted: bool) -> Combined:
        """Send outputs back and add up one's own. Ends the round.

        Each rank's weighted sum is made in float32, rounded to the group's dtype for the way, and added in float32 in
        rank order: the result depends on the table and the batch alone.

        Args:
            y: [pairs, hidden] expert outputs in ``Dispatched`` order.
            out: [tokens, hidden], receives the sums.
            weighted: ``y`` is already multiplied by the router's weight.
        """
    def close(self) -> None:
        """Leave: peers that count on this rank see it as dead. Arrays lent before stay readable."""
    # --- introspection ---
    def tokens_per_expert(self) -> Any:
        """float32 [layers, experts]: (token, k) pairs this rank has routed, halved every 1024 rounds of a layer."""
    def counters(self) -> dict[str, int]:
        """Syncs, rounds, bytes sent and received, suspicions by evidence, renewed inboxes, missed deadlines, sleeps."""

def isa() -> str:
    """Name the instruction set chosen at run time: avx512, avx2 or portable (``EEP_ISA`` forces one)."""

def swiglu(w13: Any, w2: Any, rows: Any, slots: Any, weights: Any, out: Any) -> None:
    """Experts over rows that each go to one slot: out = weight × w2 (silu(gate) × up), float32 in between.

    Args:
        w13: float32 or bfloat16 [slots, 2 × intermediate, hidden], the gate's rows first.
        w2: [slots, hidden, intermediate] of the same dtype.
        rows: [pairs, hidden] of the same dtype.
        slots: int32, one for each row.
        weights: float32, one for each row.
        out: [pairs, hidden] of the same dtype, written.

    Raises:
        ValueError: an argument of another shape or dtype, or with gaps.
        IndexError: a slot that is none.
    """

def leave_heir(*, linger_s: float = 0.1) -> int:
    """Let a child process share this one's memory, and give it back slowly once this process has died; the child's pid.

    Otherwise the kernel gives a dead process's memory back at once, on the cores that its peers recover on. The child
    holds no descriptor, takes no signal but SIGKILL, is named "eep-heir", and ends by itself after some ten seconds.

    Args:
        linger_s: from the death until it begins to give back.

    Raises:
        OSError: the kernel refused.
    """

def checksum(buffer: Any) -> int:
    """64-bit checksum of a contiguous buffer at memory speed (slot manifest)."""
