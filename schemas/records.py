"""What stands in etcd: one struct per key of ``schemas.keys``.

Records are msgpack maps by field name. Unknown fields are ignored and new fields have defaults, so that replicas of two
neighbouring versions can run side by side during an upgrade.
"""

from __future__ import annotations

import msgspec

from schemas.vocabulary import (
    Cut,
    Epoch,
    Evidence,
    Fence,
    Incarnation,
    Member,
    Rank,
    RankState,
    SourceTier,
    Stamp,
    stamp_of,
)


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
    layers: int = 0
    experts: int = 0
    expert_bytes: int = 0
    model: str = ""
    checkpoint: str = ""
    """Digest of the checkpoint's manifest, empty where this rank cannot read one: ranks of one instance must agree."""
    speed: float = 1.0
    ready: bool = False
    """The engine is up, warm, and can prepare an epoch."""
    holds: str = ""
    """Digest of the placement whose slots this rank really holds, empty for a fresh one."""
    leaving: str = ""
    """Not empty when the rank asks to be drained (SIGTERM on its agent, maintenance notice): the reason."""
    best_effort: bool = False
    """The rank samples although experts are missing: its answers say so."""


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
    missing: int = 0
    """(layer, expert) pairs with no routed replica; above 0 engines link and load but do not sample.
    ``Placement.missing(active)`` says which."""
    deadline_unix_ns: int = 0
    """By when the acknowledgements must be in, 0 for none."""
    shrinks: Epoch = 0
    """The epoch before, when this is that one without the rank ``without`` and nothing else changes: ranks may have
    gone on that way before it was decided. 0 when it is a version of its own."""
    without: Rank = -1

    @property
    def stamp(self) -> Stamp:
        """What the data plane calls it."""
        return stamp_of(self.shrinks, without=self.without) if self.shrinks else stamp_of(self.epoch)


class EpochRecord(Record, frozen=True, kw_only=True):
    """``epoch``: the committed version, and the one being prepared if a planned change is under way. Under 4 KiB.

    ``preparing`` is acknowledged by every rank of ``committed.members`` and of ``preparing.members``: one that leaves
    takes part in the flip that removes it. Epoch 0 (no members, no placement) stands committed while epoch 1 prepares.
    """

    committed: EpochVersion
    preparing: EpochVersion | None = None
    held: str = ""
    """Digest of the placement that says what each slot was known to hold when this record was written (weights have no
    meaning in it; uncertain slots are empty). ``schemas.loads`` derives from it what each rank has to load."""
    loading: bool = False
    """``committed`` was decided before its slots were filled (an unplanned loss): every member loads what is missing,
    then acknowledges. Otherwise a committed version has nothing left to load."""
    issued: Epoch = 0
    """Highest epoch number ever used: a rolled-back number is never used again, or its acknowledgements would count."""
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
    missing: tuple[tuple[int, int], ...] = ()
    """(layer, expert) pairs of this rank's slots that no source could give."""
    loads: tuple[AckPhase, ...] = ()
    started_unix_ns: int = 0
    finished_unix_ns: int = 0


class RankView(Record, frozen=True, kw_only=True):
    """What the leader last decided about a rank; part of ``Status``."""

    rank: Rank
    state: RankState
    incarnation: Incarnation = 0
    reason: str = ""
    since_unix_ns: int = 0
    fenced: Incarnation = 0
    """Highest incarnation that was excluded: it and all before it can never be members again."""
    cordoned: str = ""
    """Why no epoch may add this rank (who: why), empty when one may. An active rank serves on until it leaves."""
    draining: str = ""
    """Why the rank is to leave, empty when it stays; the gateway gives it no new requests."""
    lent_to: str = ""
    losses_unix_ns: tuple[int, ...] = ()
    """Recent losses, for back-off and the flap limit."""
    retry_unix_ns: int = 0
    """Not to be added before."""
    slow: float = 1.0
    """Share of its nominal speed that the planner may count on."""
    waited: float = 0.0
    """Part of the time that its peers waited for it, beyond what they wait for others, when ``slow`` was measured."""


class Status(Record, frozen=True, kw_only=True):
    """``status``: what the leader decided beside the epoch, so that a successor goes on from there."""

    ranks: tuple[RankView, ...] = ()
    paused: str = ""
    """Why automatic recovery is paused (who: why), empty when it runs."""
    target: int = 0
    """How many ranks the operator wants, 0 for all that are there; the others stand by."""
    pause_losses: bool = False
    """While paused, dead ranks are still excluded."""
    victims: tuple[Rank, ...] = ()
    """Ranks that are left out first where more than ``target`` are there."""
    goal: str = ""
    """Digest of the placement that a rebalance moves to, flip by flip; empty when none is wanted."""
    goal_cause: str = ""
    """The operation that wants ``goal``."""
    fence: Fence = 0


class Backup(Record, frozen=True, kw_only=True):
    """``backups/<r>``: the (layer, expert) pairs that this rank's host keeps in memory."""

    rank: Rank
    host: str
    address: str
    experts: tuple[tuple[int, int], ...] = ()


class ReceiveWait(Record, frozen=True, kw_only=True):
    """``waits/<r>``, on the rank's lease: its row of the receive-wait matrix, every few seconds while it runs steps."""

    rank: Rank
    incarnation: Incarnation
    epoch: Epoch
    share: tuple[float, ...] = ()
    """Part of the time since the row before that this rank waited for each rank's rows, 0 … 1."""
    running: int = 0
    """Requests that it was generating for itself: who has more to do is waited for without being slow."""


class ExpertLoad(Record, frozen=True, kw_only=True):
    """``loads/<r>``: what one rank routed lately, for the planner; written seldom (tens of seconds), never per step."""

    rank: Rank
    layers: int
    experts: int
    tokens: bytes
    """float16 [layers, experts]: share of this rank's routed tokens per layer, times its token rate."""
