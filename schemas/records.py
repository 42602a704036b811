"""What stands in etcd: one struct per key of ``schemas.keys``.

Records are msgpack maps by field name. Unknown fields are ignored and new fields have defaults, so that replicas of two
neighbouring versions can run side by side during an upgrade.
"""

from __future__ import annotations

import msgspec

from schemas.vocabulary import Cut, Epoch, Evidence, Fence, Incarnation, Member, Rank, RankState, SourceTier


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything stored; ``version`` grows only when an old reader would misread a new record."""

    version: int = 1


class LeaderRecord(Record, frozen=True, kw_only=True):
    """Who leads. The key's create_revision is the fence."""

    replica: str
    admin_url: str


class Registration(Record, frozen=True, kw_only=True):
    """``ranks/<r>``, on the rank's lease: a process that can fill the rank, and where to reach it."""

    rank: Rank
    incarnation: Incarnation
    host: str
    rack: str = ""
    agent_pid: int = 0
    link_address: str = ""
    """Where peers exchange inbox descriptors with this engine (an AF_UNIX path on one host)."""
    serve_url: str = ""
    """SGLang's own HTTP address, for the gateway."""
    slots: int = 0
    speed: float = 1.0
    ready: bool = False
    """The engine is up, warm, and can prepare an epoch."""
    holds: str = ""
    """Digest of the placement whose slots this rank really holds, empty for a fresh one."""
    leaving: str = ""
    """Not empty when the rank asks to be drained (SIGTERM on its agent, maintenance notice): the reason."""


class Suspicion(msgspec.Struct, frozen=True):
    """One reporter's evidence against one rank."""

    rank: Rank
    incarnation: Incarnation
    evidence: Evidence
    detail: str = ""


class FaultReport(Record, frozen=True, kw_only=True):
    """``reports/<r>``, on the reporter's lease: evidence only; the leader decides."""

    reporter: Rank
    incarnation: Incarnation
    epoch: Epoch
    step: int = 0
    suspicions: tuple[Suspicion, ...] = ()
    receive_wait_us: tuple[int, ...] = ()
    """Decayed mean wait for each rank's rows, µs: the reporter's row of the receive-wait matrix."""
    detected_unix_ns: int = 0
    traceparent: str = ""


class EpochVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of (members, placement)."""

    epoch: Epoch
    members: tuple[Member, ...]
    placement: str
    """Digest; the bytes are under ``placements/<digest>``."""
    cut: Cut
    reason: str
    cause: str = ""
    """Id of what led here: a recovery or an operation."""


class EpochRecord(Record, frozen=True, kw_only=True):
    """``epoch``: the committed version, and the one being prepared if a planned change is under way. Under 4 KiB."""

    committed: EpochVersion
    preparing: EpochVersion | None = None
    fence: Fence = 0
    decided_unix_ns: int = 0
    traceparent: str = ""


class AckPhase(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and time that one source tier took while a rank prepared."""

    tier: SourceTier
    slots: int
    bytes: int
    seconds: float


class Ack(Record, frozen=True, kw_only=True):
    """``acks/<epoch>/<r>``, on the rank's lease."""

    rank: Rank
    incarnation: Incarnation
    epoch: Epoch
    prepared: bool
    """Links made, weights loaded and verified, table staged."""
    activated: bool = False
    """The engine has crossed into the epoch."""
    step: int = 0
    error: str = ""
    loads: tuple[AckPhase, ...] = ()
    finished_unix_ns: int = 0


class RankView(Record, frozen=True, kw_only=True):
    """What the leader last decided about a rank; part of ``Status``."""

    rank: Rank
    state: RankState
    incarnation: Incarnation = 0
    reason: str = ""


class Backup(Record, frozen=True, kw_only=True):
    """``backups/<r>``: the (layer, expert) pairs that this rank's host keeps in memory."""

    rank: Rank
    host: str
    address: str
    experts: tuple[tuple[int, int], ...] = ()
