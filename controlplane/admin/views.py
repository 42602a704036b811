"""What the API shows: records as JSON, with times as RFC 3339 and the ids that lead further.

The records themselves leave defaults out and count nanoseconds; a person or a script should not have to know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from controlplane.telemetry import trace_id_of
from schemas.operations import OperationKind, OperationState
from schemas.vocabulary import Cut, Epoch, Evidence, Expert, Fence, Incarnation, Layer, Rank, RankState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas import operations, records


MISSING_SHOWN = 64


def when(unix_ns: int) -> str | None:
    """RFC 3339 in UTC with milliseconds; None for 0, which means never."""
    if not unix_ns:
        return None
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _View(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Leader(_View, frozen=True, kw_only=True):
    """Who leads; the fence grows with every election."""

    replica: str
    admin_url: str
    fence: Fence


class Preparing(_View, frozen=True, kw_only=True):
    """A planned change under way."""

    epoch: Epoch
    members: tuple[Rank, ...]
    reason: str
    cause: str
    prepared: tuple[Rank, ...]
    """Who has acknowledged."""
    waiting_for: tuple[Rank, ...]


class MissingExpert(_View, frozen=True, kw_only=True):
    """An expert of one layer that no active rank holds."""

    layer: Layer
    expert: Expert


class Cluster(_View, frozen=True, kw_only=True):
    """The instance on one page."""

    instance: str
    replica: str
    """Who answers."""
    leading: bool
    leader: Leader | None
    etcd_connected: bool
    revision: int
    """Pass it as ``Last-Event-ID`` to follow from here."""
    epoch: Epoch
    cut: Cut
    reason: str
    decided_at: str | None
    members: tuple[Rank, ...]
    states: dict[str, int]
    """Rank state → how many; states nobody is in are left out."""
    preparing: Preparing | None
    placement: str
    missing: int
    """(layer, expert) pairs without a routed replica on an active rank; above 0 nothing is sampled."""
    missing_experts: tuple[MissingExpert, ...]
    """The first 64 of them."""
    headroom: int
    """How many more ranks may be lost, whichever they are, with every expert still on a live one."""
    capacity: int
    """How many more ranks may be lost one after another before the slots left cannot hold every expert."""
    paused: str
    target: int


class RankRow(_View, frozen=True, kw_only=True):
    """One place in the instance."""

    rank: Rank
    state: RankState
    reason: str
    since: str | None
    incarnation: Incarnation
    host: str
    rack: str
    epoch: Epoch
    """The newest epoch that the rank says it is in or prepared for; 0 when it has said nothing."""
    experts: int
    """Replicas that the rank holds in the committed placement, summed over layers."""
    slots: int
    speed: float
    """Share of nominal speed that the planner counts on: the rank's own × what a slow rank is down-weighted to."""
    waited: float
    """Part of the time that its peers waited for it when it was found slow, beyond what they wait for others."""
    ready: bool
    serve_url: str
    cordoned: str
    draining: str
    lent_to: str
    losses: int
    retry_at: str | None


class PhaseRow(_View, frozen=True, kw_only=True):
    """One stretch of time."""

    name: str
    started_at: str | None
    finished_at: str | None
    seconds: float
    detail: str


class OperationRow(_View, frozen=True, kw_only=True):
    """One thing an operator asked for: who, what, why, when, and how it went."""

    id: str
    kind: OperationKind
    state: OperationState
    who: str
    reason: str
    ranks: tuple[Rank, ...]
    host: str
    parameters: dict[str, str | int | float | bool | tuple[int, ...]]
    deadline_s: float
    created_at: str | None
    finished_at: str | None
    phases: tuple[PhaseRow, ...]
    message: str
    epoch: Epoch
    safe_to_terminate: tuple[Rank, ...]
    cancel_requested: str
    trace_id: str


class EpochRow(_View, frozen=True, kw_only=True):
    """One committed epoch: what it was, who decided it and why."""

    epoch: Epoch
    members: tuple[Rank, ...]
    cut: Cut
    reason: str
    cause: str
    placement: str
    missing: int
    replica: str
    fence: Fence
    recovery: str
    decided_at: str | None


class Forecast(_View, frozen=True, kw_only=True):
    """What a change would do now."""

    epoch: Epoch
    """The committed epoch that it was computed from."""
    members: tuple[Rank, ...]
    """Active ranks afterwards."""
    allowed: bool
    refusal: str
    """Why not, with the figures, when not allowed."""
    epochs: int
    """How many flips it takes."""
    slots_to_load: int
    bytes_to_load: int
    pause_ms: float
    """Longest expected gap between two tokens of one client."""
    prepare_s: float
    """Expected time in the background."""
    balance_before: float
    """Largest rank load ÷ mean, 1.0 is perfect; 0 when unknown."""
    balance_after: float
    missing_experts: tuple[MissingExpert, ...]
    headroom_before: int
    headroom_after: int


class Blamed(_View, frozen=True, kw_only=True):
    """One rank that was excluded, and on whose word."""

    rank: Rank
    incarnation: Incarnation
    evidence: Evidence
    reporters: tuple[Rank, ...]
    detail: str


class RecoveryRow(_View, frozen=True, kw_only=True):
    """One change of membership or placement, phase by phase."""

    id: str
    cause: str
    unplanned: bool
    reason: str
    blamed: tuple[Blamed, ...]
    acquitted: tuple[Rank, ...]
    joined: tuple[Rank, ...]
    left: tuple[Rank, ...]
    epoch_before: Epoch
    epoch: Epoch
    phases: tuple[PhaseRow, ...]
    started_at: str | None
    seconds: float
    """From the beginning of the first phase to the end of the last one that ended."""
    bytes_by_tier: dict[str, int]
    slots_loaded: int
    missing: int
    outcome: str
    trace_id: str
    fences: tuple[Fence, ...]


def phase_rows(phases: tuple[operations.Phase, ...]) -> tuple[PhaseRow, ...]:
    """Phases in the order in which they began."""
    return tuple(
        PhaseRow(
            name=phase.name,
            started_at=when(phase.started_unix_ns),
            finished_at=when(phase.finished_unix_ns),
            seconds=phase.seconds,
            detail=phase.detail,
        )
        for phase in phases
    )


def operation_row(operation: operations.Operation) -> OperationRow:
    """An operation as shown."""
    return OperationRow(
        id=operation.id,
        kind=operation.kind,
        state=operation.state,
        who=operation.who,
        reason=operation.reason,
        ranks=operation.ranks,
        host=operation.host,
        parameters=operation.parameters,
        deadline_s=operation.deadline_s,
        created_at=when(operation.created_unix_ns),
        finished_at=when(operation.finished_unix_ns),
        phases=phase_rows(operation.phases),
        message=operation.message,
        epoch=operation.epoch,
        safe_to_terminate=operation.safe_to_terminate,
        cancel_requested=operation.cancel_requested,
        trace_id=trace_id_of(operation.traceparent),
    )


def member_ranks(version: records.EpochVersion) -> tuple[Rank, ...]:
    """The active ranks of a version."""
    return tuple(member.rank for member in version.members)


def missing_rows(missing: Iterable[tuple[Layer, Expert]]) -> tuple[MissingExpert, ...]:
    """The first few missing experts."""
    return tuple(MissingExpert(layer=layer, expert=expert) for layer, expert in islice(missing, MISSING_SHOWN))


def forecast(prediction: operations.Prediction) -> Forecast:
    """A prediction as shown."""
    return Forecast(
        epoch=prediction.epoch,
        members=prediction.members,
        allowed=prediction.allowed,
        refusal=prediction.refusal,
        epochs=prediction.epochs,
        slots_to_load=prediction.slots_to_load,
        bytes_to_load=prediction.bytes_to_load,
        pause_ms=prediction.pause_ms,
        prepare_s=prediction.prepare_s,
        balance_before=prediction.balance_before,
        balance_after=prediction.balance_after,
        missing_experts=missing_rows(prediction.missing),
        headroom_before=prediction.headroom_before,
        headroom_after=prediction.headroom_after,
    )


def epoch_row(past: operations.PastEpoch) -> EpochRow:
    """A past epoch as shown."""
    version = past.decided
    return EpochRow(
        epoch=version.epoch,
        members=member_ranks(version),
        cut=version.cut,
        reason=version.reason,
        cause=version.cause,
        placement=version.placement,
        missing=version.missing,
        replica=past.replica,
        fence=past.fence,
        recovery=past.recovery,
        decided_at=when(past.decided_unix_ns),
    )


def recovery_row(recovery: operations.Recovery) -> RecoveryRow:
    """A recovery as shown."""
    started = min((phase.started_unix_ns for phase in recovery.phases), default=0)
    finished = max((phase.finished_unix_ns for phase in recovery.phases), default=0)
    return RecoveryRow(
        id=recovery.id,
        cause=recovery.cause,
        unplanned=recovery.unplanned,
        reason=recovery.reason,
        blamed=tuple(
            Blamed(
                rank=one.rank,
                incarnation=one.incarnation,
                evidence=one.evidence,
                reporters=one.reporters,
                detail=one.detail,
            )
            for one in recovery.blamed
        ),
        acquitted=recovery.acquitted,
        joined=recovery.joined,
        left=recovery.left,
        epoch_before=recovery.epoch_before,
        epoch=recovery.epoch,
        phases=phase_rows(recovery.phases),
        started_at=when(started),
        seconds=max(finished - started, 0) / 1e9,
        bytes_by_tier=recovery.bytes_by_tier,
        slots_loaded=recovery.slots_loaded,
        missing=recovery.missing,
        outcome=recovery.outcome,
        trace_id=trace_id_of(recovery.traceparent),
        fences=recovery.fences,
    )
