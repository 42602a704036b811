"""What happens to a worker agent, and what it does about it: the vocabulary of its core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from schemas.messages import Activated, EngineStatus, Fault, Hello, Load, Peer, Prepared, Ready, ToEngine
    from schemas.records import Ack, EpochRecord, FaultReport, Registration
    from schemas.vocabulary import Epoch, Incarnation, Stamp

# --- events: each carries the time it was seen, in seconds of a monotonic clock -------------------------------------


@dataclass(frozen=True)
class Begin:
    """The agent is up and holds a lease."""

    now: float
    incarnation: Incarnation
    """A number no earlier process of this rank had."""


@dataclass(frozen=True)
class Heard:
    """The engine said something."""

    now: float
    message: Hello | Ready | Prepared | Activated | Fault | EngineStatus


@dataclass(frozen=True)
class EngineEnded:
    """The engine's scheduler is gone (its pidfd says so), or its process tree is."""

    now: float
    incarnation: Incarnation
    how: str
    unix_ns: int


@dataclass(frozen=True)
class Plan:
    """What one epoch asks of this rank, worked out from its placement and who is where."""

    placement: bytes
    digest: str
    peers: tuple[Peer, ...]
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class EpochSeen:
    """The epoch record changed (or was read again). Plans are there for the versions that it names."""

    now: float
    record: EpochRecord
    committed: Plan
    preparing: Plan | None = None


@dataclass(frozen=True)
class LeaseGone:
    """etcd says that our lease does not exist any more: others may have been told that we are dead."""

    now: float


@dataclass(frozen=True)
class Leave:
    """Someone asks the rank to go: SIGTERM, or a maintenance notice."""

    now: float
    reason: str
    deadline_s: float


@dataclass(frozen=True)
class Tick:
    """Time passed up to a moment that an earlier ``WakeAt`` asked for."""

    now: float
    incarnation: Incarnation
    """A number for the engine, should one be started now."""


Event: TypeAlias = Begin | Heard | EngineEnded | EpochSeen | LeaseGone | Leave | Tick

# --- actions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartEngine:
    """Start the engine's process tree as this incarnation."""

    incarnation: Incarnation


@dataclass(frozen=True)
class EndEngine:
    """End the whole process tree now; ``fence`` first makes its data plane stop writing to anyone."""

    reason: str
    fence: bool


@dataclass(frozen=True)
class FenceEngine:
    """Make the engine's data plane stop writing to anyone, and kill the process that steps, now."""

    reason: str


@dataclass(frozen=True)
class ClearAway:
    """The engine is dead: end what is left of its process tree, once those that recover do not need the processor."""

    reason: str


@dataclass(frozen=True)
class Publish:
    """Put a record under this rank's key, on the lease.

    Attributes:
        hold_s: how long it may be kept back, unless another one goes before.
    """

    record: Registration | Ack | FaultReport
    hold_s: float = 0.0


@dataclass(frozen=True)
class Send:
    """Send a message to the engine."""

    message: ToEngine


@dataclass(frozen=True)
class CallOff:
    """Control block: steps under earlier versions are abandoned at once."""

    stamp: Stamp


@dataclass(frozen=True)
class Committed:
    """Control block: this epoch is decided."""

    epoch: Epoch


@dataclass(frozen=True)
class RenewLease:
    """Take a new lease and put every record again."""

    reason: str


@dataclass(frozen=True)
class WakeAt:
    """Send a ``Tick`` at this time."""

    when: float


@dataclass(frozen=True)
class Exit:
    """The agent's work is done."""

    reason: str


Action: TypeAlias = (
    StartEngine
    | EndEngine
    | FenceEngine
    | ClearAway
    | Publish
    | Send
    | CallOff
    | Committed
    | RenewLease
    | WakeAt
    | Exit
)


@dataclass(frozen=True)
class Decision:
    """Actions in order, and why, in words for the log and the trace."""

    actions: tuple[Action, ...] = ()
    reason: str = ""
    attributes: dict[str, int | str] = field(default_factory=dict)
