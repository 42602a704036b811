"""From a snapshot to the two pages that operators look at most: the cluster and its ranks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from controlplane.admin.views import Cluster, Leader, Preparing, RankRow, member_ranks, missing_rows, when
from controlplane.coordinator.cluster import headroom
from schemas.placement import EMPTY
from schemas.records import RankView
from schemas.vocabulary import Cut, Rank, RankState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.admin.ports import Snapshot
    from schemas.placement import Placement
    from schemas.records import Registration


def capacity(placement: Placement, active: Iterable[Rank]) -> int:
    """How many may be lost one after another until the slots left cannot hold every expert once: N − ⌈E ÷ slots⌉."""
    needed = -(-placement.n_experts // placement.slots_per_rank)
    return max(len(set(active)) - needed, 0)


def rank_numbers(snapshot: Snapshot) -> list[Rank]:
    """Every rank that anything is known of."""
    known = set(snapshot.registrations) | {view.rank for view in snapshot.status.ranks}
    if snapshot.epoch:
        known.update(member_ranks(snapshot.epoch.committed))
    return sorted(known)


def _preparing(snapshot: Snapshot) -> Preparing | None:
    record = snapshot.epoch
    if record is None or record.preparing is None:
        return None
    version = record.preparing
    concerned = set(member_ranks(version)) | set(member_ranks(record.committed))
    prepared = {rank for rank, ack in snapshot.acks.items() if ack.epoch == version.epoch and ack.prepared}
    return Preparing(
        epoch=version.epoch,
        members=member_ranks(version),
        reason=version.reason,
        cause=version.cause,
        prepared=tuple(sorted(concerned & prepared)),
        waiting_for=tuple(sorted(concerned - prepared)),
    )


def cluster(snapshot: Snapshot) -> Cluster:
    """``GET /v1/cluster``."""
    record, placement = snapshot.epoch, snapshot.placement
    version = record.committed if record else None
    members = member_ranks(version) if version else ()
    missing = placement.missing(members) if placement and members else []
    leader = snapshot.leader
    return Cluster(
        instance=snapshot.instance,
        replica=snapshot.replica,
        leading=snapshot.leading,
        leader=Leader(replica=leader.replica, admin_url=leader.admin_url, fence=snapshot.fence) if leader else None,
        etcd_connected=snapshot.connected,
        revision=snapshot.revision,
        epoch=version.epoch if version else 0,
        cut=version.cut if version else Cut.PLANNED,
        reason=version.reason if version else "",
        decided_at=when(record.decided_unix_ns) if record else None,
        members=members,
        states=dict(sorted(Counter(str(row.state) for row in ranks(snapshot)).items())),
        preparing=_preparing(snapshot),
        placement=version.placement if version else "",
        missing=len(missing),
        missing_experts=missing_rows(missing),
        headroom=headroom(placement, members) if placement and members else 0,
        capacity=capacity(placement, members) if placement and members else 0,
        paused=snapshot.status.paused,
        target=snapshot.status.target,
    )


def _unseen(snapshot: Snapshot, rank: Rank) -> RankView:
    """What is shown of a rank that the leader has not yet said anything about."""
    registration = snapshot.registrations.get(rank)
    if registration is None:
        return RankView(rank=rank, state=RankState.EMPTY)
    return RankView(rank=rank, state=RankState.JOINING, incarnation=registration.incarnation)


def _replicas(placement: Placement | None, rank: Rank) -> int:
    if placement is None or rank >= placement.max_ranks:
        return 0
    return int(np.count_nonzero(placement.slots[:, rank] != EMPTY))


def _row(snapshot: Snapshot, rank: Rank, view: RankView, found: Registration | None) -> RankRow:
    ack = snapshot.acks.get(rank)
    return RankRow(
        rank=rank,
        state=view.state,
        reason=view.reason,
        since=when(view.since_unix_ns),
        incarnation=view.incarnation or (found.incarnation if found else 0),
        host=found.host if found else "",
        rack=found.rack if found else "",
        epoch=ack.epoch if ack else 0,
        experts=_replicas(snapshot.placement, rank),
        slots=found.slots if found else 0,
        speed=(found.speed if found else 1.0) * view.slow,
        waited=view.waited,
        ready=bool(found and found.ready),
        serve_url=found.serve_url if found else "",
        cordoned=view.cordoned,
        draining=view.draining,
        lent_to=view.lent_to,
        losses=len(view.losses_unix_ns),
        retry_at=when(view.retry_unix_ns),
    )


def ranks(snapshot: Snapshot) -> list[RankRow]:
    """``GET /v1/ranks``, in rank order."""
    views = {view.rank: view for view in snapshot.status.ranks}
    return [
        _row(snapshot, rank, views.get(rank) or _unseen(snapshot, rank), snapshot.registrations.get(rank))
        for rank in rank_numbers(snapshot)
    ]
