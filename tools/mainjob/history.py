"""Reads what etcd and the gateways wrote down, and says which of the architecture's invariants it breaks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from schemas.codec import decode
from schemas.operations import PastEpoch
from schemas.placement import Placement

if TYPE_CHECKING:
    from pathlib import Path

    from tools.mainjob.instance import Instance


async def violations(instance: Instance, *, audited: int = 0, gateway_killed: bool = False) -> list[str]:
    """Every broken invariant in words; empty when all hold. ``audited`` bytes of the audit log were judged before."""
    listing = await instance.etcd.get(instance.keys.history)
    past = [decode(item.value, PastEpoch, key=item.key) for item in listing]
    past.sort(key=lambda one: one.decided.epoch)
    placements = {
        item.key.rpartition("/")[2]: Placement.from_wire(item.value)
        for item in await instance.etcd.get(instance.keys.placements)
    }
    requests = ended_once(instance.audit, audited=audited, gateway_killed=gateway_killed)
    return [*growing(past), *covered(past, placements), *lonely(past), *requests]


def growing(past: list[PastEpoch]) -> list[str]:
    """Invariant 3: epochs only grow, and so do the fences of those who decided them."""
    found = []
    for earlier, later in pairwise(past):
        if later.fence < earlier.fence:
            found.append(f"epoch {later.decided.epoch} was written by fence {later.fence} after {earlier.fence}")
        if later.decided_unix_ns < earlier.decided_unix_ns:
            found.append(f"epoch {later.decided.epoch} was decided before epoch {earlier.decided.epoch}")
    return found


def covered(past: list[PastEpoch], placements: dict[str, Placement]) -> list[str]:
    """Invariant 4: what a committed epoch says of its missing experts is what its placement says."""
    found = []
    for one in past:
        version = one.decided
        placement = placements.get(version.placement)
        if placement is None:
            continue  # older than the placements kept
        missing = placement.missing(member.rank for member in version.members)
        if len(missing) != version.missing:
            found.append(
                f"epoch {version.epoch} says {version.missing} experts are missing, its placement {len(missing)}"
            )
    return found


def lonely(past: list[PastEpoch]) -> list[str]:
    """Invariant 6: an incarnation that was excluded is never a member again."""
    found, excluded = [], set[tuple[int, int]]()
    for earlier, later in pairwise(past):
        before, after = set(earlier.decided.members), set(later.decided.members)
        if later.decided.cut == "abort":
            excluded |= {(member.rank, member.incarnation) for member in before - after}
        found += [
            f"epoch {later.decided.epoch} has rank {member.rank} with the excluded incarnation {member.incarnation}"
            for member in after
            if (member.rank, member.incarnation) in excluded
        ]
    return found


class _Line(msgspec.Struct):
    """The part of an audit line that is judged."""

    event: str
    id: str


def ended_once(audit: Path, *, audited: int = 0, gateway_killed: bool = False) -> list[str]:
    """Invariant 8: every accepted request has exactly one end; what a killed gateway had accepted, at most one.

    Call it when no request is under way, and none was when the log had ``audited`` bytes.
    """
    if not audit.exists():
        return [f"no audit log at {audit}"]
    lines = [
        msgspec.json.decode(line, type=_Line) for line in audit.read_bytes()[audited:].splitlines() if line.strip()
    ]
    ends = Counter(line.id for line in lines if line.event == "ended")
    accepted = {line.id for line in lines if line.event == "accepted"}
    return [
        f"request {id_} ended {ends[id_]} times"
        for id_ in sorted(accepted | set(ends))
        if ends[id_] > 1 or not (ends[id_] or gateway_killed)
    ]
