"""``ClusterView``: what this replica knows, frozen, for what only shows it (API, dashboard, metrics)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.state import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.coordinator.state import State
    from schemas.placement import Placement
    from schemas.records import LeaderRecord
    from schemas.vocabulary import Rank


@dataclass(frozen=True)
class ClusterView:
    """One reading; leaders and followers hold the same records."""

    instance: str
    state: State
    leader: LeaderRecord | None
    """Who leads, None while nobody does."""
    leader_fence: int
    revision: int
    """Everything up to this etcd revision is in ``state``."""
    connected: bool
    """etcd showed a sign of life lately; if not, everything here is what was last known."""

    @property
    def leading(self) -> bool:
        """Whether this replica leads."""
        return self.state.fence != 0

    @property
    def epoch_revision(self) -> int:
        """mod_revision of the epoch record, 0 before there is one."""
        return self.state.revisions.get((Kind.EPOCH, ""), 0)

    @property
    def summary(self) -> str:
        """One line for ``systemctl status``."""
        record = self.state.record
        role = "leader" if self.leading else "follower"
        if record is None:
            return f"{role}, no epoch yet, {len(self.state.registrations)} ranks registered"
        known = len(self.state.registrations.keys() | self.state.members.keys())
        trouble = "" if self.connected else ", etcd is away"
        lacking = f", {record.committed.missing} experts missing" if record.committed.missing else ""
        return f"{role} epoch {record.committed.epoch}, {len(self.state.members)}/{known} ranks{lacking}{trouble}"


def headroom(placement: Placement, members: Iterable[Rank]) -> int:
    """How many ranks may be lost, whichever they are, with every expert still held by a live one."""
    live = sorted(members)
    if not live or placement.n_experts == 0:
        return 0
    fewest = len(live)
    for layer in range(placement.n_layers):
        held = np.zeros((len(live), placement.n_experts + 1), dtype=bool)
        rows = np.minimum(placement.slots[layer, live].astype(np.intp), placement.n_experts)
        np.put_along_axis(held, rows, values=True, axis=1)
        fewest = min(fewest, int(held[:, :-1].sum(axis=0).min()))
    return max(fewest - 1, 0)
