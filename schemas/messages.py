"""Agent ↔ engine, over a local stream socket: one msgpack message per frame (4-byte little-endian length).

The control block in shared memory carries what must be fast (fault words, beacon, abort, the committed epoch); this
socket carries what has structure. The agent listens; the engine connects as soon as its scheduler starts.
"""

from __future__ import annotations

import msgspec

from schemas.records import AckPhase, Suspicion
from schemas.vocabulary import Cut, Epoch, Expert, Incarnation, Layer, Member, Rank, Slot, SourceTier, Stamp


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine reaches another one."""

    rank: Rank
    incarnation: Incarnation
    host: str
    link_address: str


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One place a slot's weights can come from."""

    tier: SourceTier
    rank: Rank = -1
    slot: Slot = -1
    address: str = ""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One slot to fill; sources in the order to try."""

    layer: Layer
    slot: Slot
    expert: Expert
    sources: tuple[Source, ...]


# --- agent → engine ---------------------------------------------------------------------------------------------------


class Prepare(_Message, frozen=True, kw_only=True):
    """Link, load and stage ``epoch`` without touching what the live table references; answered by ``Prepared``."""

    epoch: Epoch
    stamp: Stamp = 0
    """What the data plane calls it; 0 only in what earlier versions wrote."""
    members: tuple[Member, ...]
    peers: tuple[Peer, ...]
    placement: bytes
    loads: tuple[Load, ...] = ()
    cut: Cut
    deadline_s: float
    traceparent: str = ""


class Commit(_Message, frozen=True, kw_only=True):
    """``epoch`` is decided: cross at the next common step boundary, or at once when the cut is ABORT."""

    epoch: Epoch
    stamp: Stamp = 0
    cut: Cut


class Discard(_Message, frozen=True, kw_only=True):
    """The planned ``epoch`` was rolled back: forget what was staged for it."""

    epoch: Epoch


class Drain(_Message, frozen=True, kw_only=True):
    """Take no new requests; finish those that run."""

    deadline_s: float


class Ask(_Message, frozen=True, kw_only=True):
    """Answered by ``EngineStatus``."""


# --- engine → agent ---------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True):
    """First message of an engine: the model's shape, as the planner needs it."""

    rank: Rank
    incarnation: Incarnation
    pid: int
    """The scheduler process: the one whose death is the rank's death."""
    link_address: str
    layers: int
    experts: int
    slots: int
    expert_bytes: int
    model: str
    checkpoint: str
    """Digest of the checkpoint's manifest: ranks of one instance must agree."""


class Ready(_Message, frozen=True, kw_only=True):
    """The server answers HTTP and the scheduler ticks."""

    serve_url: str


class Prepared(_Message, frozen=True, kw_only=True):
    """The end of a ``Prepare``."""

    epoch: Epoch
    ok: bool
    error: str = ""
    loads: tuple[AckPhase, ...] = ()
    missing: tuple[tuple[Layer, Expert], ...] = ()
    started_unix_ns: int = 0
    finished_unix_ns: int = 0


class Activated(_Message, frozen=True, kw_only=True):
    """The engine crossed into ``epoch``; ``step`` is the first step under it."""

    epoch: Epoch
    step: int
    waited_ms: float
    unix_ns: int = 0
    """When it crossed."""


class Fault(_Message, frozen=True, kw_only=True):
    """A step was abandoned: evidence as the data plane saw it."""

    epoch: Epoch
    step: int
    suspicions: tuple[Suspicion, ...]
    receive_wait_us: tuple[int, ...]
    detected_unix_ns: int


class EngineStatus(_Message, frozen=True, kw_only=True):
    """What an engine is doing now."""

    epoch: Epoch
    prepared: Epoch
    step: int
    running: int
    waiting: int
    draining: bool
    tokens_per_expert: bytes = b""
    """float32 [layers, experts], decayed counts of tokens routed from this rank."""
    masked: int = 0
    """(token, expert) pairs left out so far for want of a live copy; best effort only."""
    receive_wait_us: tuple[int, ...] = ()
    """Decayed mean wait per exchange for each rank's rows, µs."""


ToEngine = Prepare | Commit | Discard | Drain | Ask
ToAgent = Hello | Ready | Prepared | Activated | Fault | EngineStatus
