"""What an operator asks for, what was predicted, and how each change of membership went.

The admin API writes ``operations/<id>`` in a transaction that requires ``create_revision == 0`` and nothing else; the
leader's core consumes it and writes every later state. The only later write of the API is ``cancel_requested``, guarded
by the record's mod_revision. An id made from (who, idempotency key) makes a repeated request the same operation.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.records import EpochVersion, Record
from schemas.vocabulary import Epoch, Evidence, Expert, Fence, Incarnation, Layer, Rank


class OperationKind(StrEnum):
    """What can be asked; ``ranks`` and ``parameters`` mean what each line says."""

    DRAIN = "drain"
    """Take ``ranks`` (or all of ``host``) out without losing a request, and keep them out until ``rejoin``."""
    CORDON = "cordon"
    """Let no epoch add ``ranks``; active ones serve on."""
    UNCORDON = "uncordon"
    """Undo ``cordon``; the flap limit's hold too."""
    REJOIN = "rejoin"
    """Undo a drain, a cordon, a loan or a flap hold of ``ranks``, and wait until they are active."""
    REPLACE = "replace"
    """Exchange ``ranks`` for the spare ranks ``parameters["by"]`` in one epoch."""
    SCALE = "scale"
    """Keep ``parameters["target"]`` ranks; ``ranks`` leave first where too many are active."""
    REBALANCE = "rebalance"
    """Give the same members the planner's best placement within ``parameters["max_bytes"]``."""
    NOTICE = "notice"
    """``ranks`` (or all of ``host``) will be gone in ``deadline_s``: drain what can be drained until then."""
    PAUSE = "pause"
    """Change membership only when an operator asks; ``parameters["losses"]`` = true still excludes dead ranks."""
    RESUME = "resume"
    """Undo ``pause``."""
    LEND = "lend"
    """Drain ``ranks`` and mark them lent to ``parameters["to"]``."""
    RECLAIM = "reclaim"
    """Undo ``lend``, and wait until they are active."""


class OperationState(StrEnum):
    """Where an operation is; the last four are final."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Nothing will happen to the operation any more."""
        return self not in (OperationState.PENDING, OperationState.RUNNING)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of an operation or a recovery; ``finished_unix_ns`` is 0 while it runs."""

    name: str
    started_unix_ns: int
    finished_unix_ns: int = 0
    detail: str = ""

    @property
    def seconds(self) -> float:
        """How long it took, 0 while it runs."""
        return max(self.finished_unix_ns - self.started_unix_ns, 0) / 1e9


class Operation(Record, frozen=True, kw_only=True):
    """``operations/<id>``."""

    id: str
    kind: OperationKind
    who: str
    reason: str
    ranks: tuple[Rank, ...] = ()
    host: str = ""
    """Instead of ``ranks``: every rank registered there."""
    parameters: dict[str, str | int | float | bool | tuple[int, ...]] = msgspec.field(default_factory=dict)
    deadline_s: float = 0.0
    """After this the operation fails and is rolled back, 0 for the policy's ``operation_deadline_s``."""
    created_unix_ns: int = 0
    idempotency_key: str = ""
    body_digest: str = ""
    """SHA-256 of the canonical request: the same key with another body is a conflict."""
    traceparent: str = ""
    cancel_requested: str = ""
    """Who wants it cancelled, empty for nobody."""
    state: OperationState = OperationState.PENDING
    phases: tuple[Phase, ...] = ()
    message: str = ""
    """What is being waited for, or the result or the refusal in words."""
    epoch: Epoch = 0
    """The epoch that fulfilled it."""
    safe_to_terminate: tuple[Rank, ...] = ()
    """Of ``ranks``: those whose hosts may be switched off now."""
    finished_unix_ns: int = 0


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation would do now; pure arithmetic on the leader's state, nothing is written."""

    epoch: Epoch
    """The committed epoch it was computed from."""
    members: tuple[Rank, ...]
    """Active ranks afterwards."""
    allowed: bool
    refusal: str = ""
    """Why not, with the figures, when not allowed."""
    epochs: int = 0
    """How many flips it takes (slots in use are first taken out of the routing, then written)."""
    slots_to_load: int = 0
    bytes_to_load: int = 0
    pause_ms: float = 0.0
    """Longest expected gap between two tokens of one client."""
    prepare_s: float = 0.0
    """Expected time in the background, from the bandwidth of past loads."""
    balance_before: float = 0.0
    """Largest rank load ÷ mean, 1.0 is perfect; 0 when unknown."""
    balance_after: float = 0.0
    missing: tuple[tuple[Layer, Expert], ...] = ()
    """Experts that would have no replica (the first 64)."""
    headroom_before: int = 0
    """How many more ranks could be lost, whichever they are, with every expert still on a live rank."""
    headroom_after: int = 0


class Blame(msgspec.Struct, frozen=True, kw_only=True):
    """One rank that was excluded, and on whose word."""

    rank: Rank
    incarnation: Incarnation
    evidence: Evidence
    reporters: tuple[Rank, ...] = ()
    detail: str = ""


class Recovery(Record, frozen=True, kw_only=True):
    """``recoveries/<id>``: one change of membership or placement, from its cause to the last rank's activation."""

    id: str
    cause: str = ""
    """The operation's id, empty for what the leader did by itself."""
    unplanned: bool = False
    reason: str = ""
    blamed: tuple[Blame, ...] = ()
    acquitted: tuple[Rank, ...] = ()
    """Ranks that were accused but not excluded."""
    joined: tuple[Rank, ...] = ()
    left: tuple[Rank, ...] = ()
    epoch_before: Epoch = 0
    epoch: Epoch = 0
    phases: tuple[Phase, ...] = ()
    """detect, decide, plan, publish, prepare, commit, activate: those that happened, in order."""
    bytes_by_tier: dict[str, int] = msgspec.field(default_factory=dict)
    slots_loaded: int = 0
    missing: int = 0
    outcome: str = ""
    """``done``, ``rolled back: why``, ``superseded by epoch N``; empty while it runs."""
    traceparent: str = ""
    """Its root span; the trace id is made from the recovery's id, so a successor continues the same trace."""
    fences: tuple[Fence, ...] = ()
    """Every leader that worked on it."""


class PastEpoch(Record, frozen=True, kw_only=True):
    """``history/<epoch>``: what one committed epoch was, who decided it and why."""

    decided: EpochVersion
    fence: Fence
    replica: str
    recovery: str
    decided_unix_ns: int
