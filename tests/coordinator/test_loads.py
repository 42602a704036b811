"""Every agent derives the same work from the record."""

import numpy as np
import pytest

from schemas.loads import loads_for
from schemas.placement import EMPTY, Placement
from schemas.records import Backup, EpochRecord, EpochVersion, Registration
from schemas.vocabulary import Cut, Member, SourceTier


def placement(*rows: tuple[int, ...]) -> Placement:
    slots = np.array([rows], dtype=np.uint16)
    return Placement(slots=slots, weights=np.where(slots == EMPTY, 0, 1).astype(np.uint16), n_experts=4)


def version(epoch: int, ranks: tuple[int, ...]) -> EpochVersion:
    members = tuple(Member(rank, 1) for rank in ranks)
    return EpochVersion(epoch=epoch, members=members, placement="", cut=Cut.PLANNED, reason="")


def registrations(**hosts: str) -> dict[int, Registration]:
    return {
        int(rank[1:]): Registration(rank=int(rank[1:]), incarnation=1, host=host, link_address=f"at-{rank}")
        for rank, host in hosts.items()
    }


def test_sources_come_nearest_first_and_skip_slots_that_are_overwritten():
    held = placement((0, 1), (2, 3), (0, 2), (0, EMPTY))
    target = placement((0, 1), (2, 3), (3, 2), (0, 2))
    record = EpochRecord(committed=version(1, (0, 1, 2, 3)))
    there = registrations(r0="a", r1="b", r2="a", r3="a")
    (load,) = loads_for(
        3,
        record=record,
        target=target,
        held=held,
        registrations=there,
        backups=[Backup(rank=1, host="b", address="mem-b", experts=((0, 2),))],
    )
    assert (load.layer, load.slot, load.expert) == (0, 1, 2)
    assert [(s.tier, s.rank, s.slot, s.address) for s in load.sources] == [
        (SourceTier.HOST_PEER, 2, 1, "at-r2"),
        (SourceTier.REMOTE_PEER, 1, 0, "at-r1"),
        (SourceTier.HOST_BACKUP, 1, -1, "mem-b"),
    ]
    (load,) = loads_for(2, record=record, target=target, held=held, registrations=there)
    assert [(s.tier, s.rank) for s in load.sources] == [(SourceTier.REMOTE_PEER, 1)]


def test_a_leaving_rank_still_gives_and_a_lost_one_does_not():
    held = placement((0, 1), (2, 3))
    target = placement((2, 1), (EMPTY, EMPTY))
    change = EpochRecord(committed=version(1, (0, 1)), preparing=version(2, (0,)))
    lost = EpochRecord(committed=version(2, (0,)))
    there = registrations(r0="a", r1="a")
    (planned,) = loads_for(0, record=change, target=target, held=held, registrations=there)
    assert [s.rank for s in planned.sources] == [1]
    (unplanned,) = loads_for(0, record=lost, target=target, held=held, registrations=there)
    assert unplanned.sources == ()


@pytest.mark.parametrize("checkpoint", ["", "digest"])
def test_a_fresh_instance_loads_everything_from_the_checkpoint_where_there_is_one(checkpoint):
    target = placement((0, 1), (2, 3))
    there = {r: Registration(rank=r, incarnation=1, host="a", checkpoint=checkpoint) for r in (0, 1)}
    record = EpochRecord(committed=version(0, ()), preparing=version(1, (0, 1)))
    loads = loads_for(1, record=record, target=target, held=None, registrations=there)
    assert [(x.slot, x.expert) for x in loads] == [(0, 2), (1, 3)]
    tiers = [SourceTier.CHECKPOINT] if checkpoint else []
    assert [[s.tier for s in x.sources] for x in loads] == [tiers, tiers]


def test_equal_sources_take_turns():
    held = placement((0, 1), (0, 1), (EMPTY, EMPTY))
    target = placement((0, 1), (0, 1), (0, 1))
    record = EpochRecord(committed=version(1, (0, 1)), preparing=version(2, (0, 1, 2)))
    loads = loads_for(2, record=record, target=target, held=held, registrations=registrations(r0="a", r1="a", r2="a"))
    assert [x.sources[0].rank for x in loads] == [0, 1]
