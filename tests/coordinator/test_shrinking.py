"""A loss that only takes a rank out: decided as what the survivors come to by themselves, and evened out later."""

from __future__ import annotations

import msgspec
import numpy as np

from controlplane.coordinator.beginning import EVEN_AFTER
from controlplane.coordinator.changes import shrunk
from controlplane.coordinator.holdings import without
from controlplane.coordinator.state import SECOND, Change, Kind, Observed
from schemas.placement import EMPTY
from schemas.records import ExpertLoad, FaultReport, Suspicion
from schemas.vocabulary import Cut, Evidence, stamp_of
from tests.coordinator.instance import Instance, traffic


def formed(ranks: int = 4, *, slots: int = 4) -> Instance:
    instance = Instance(slots=slots)
    instance.form(ranks)
    instance.elapse(0.2)
    return instance


def lose(instance: Instance, rank: int) -> None:
    instance.report(rank, (rank, Evidence.DEAD), detail="its scheduler ended")


def test_the_version_is_the_one_before_without_the_rank_and_nothing_else():
    instance = formed()
    before = instance.live
    lose(instance, 1)
    version = instance.state.record.committed
    assert (version.epoch, version.shrinks, version.without, version.cut) == (2, 1, 1, Cut.ABORT)
    assert version.stamp == stamp_of(1, without=1)
    assert instance.live == without(before, 1)
    assert instance.members == [0, 2, 3]
    said = "rank 1 is gone (dead: its scheduler ended); every expert has a copy on the ranks that are left"
    assert said in instance.reasons


def test_a_rank_with_a_last_copy_is_more_than_that():
    instance = formed(slots=2)
    lose(instance, 1)
    version = instance.state.record.committed
    assert (version.shrinks, version.without, version.stamp) == (0, -1, stamp_of(version.epoch))


def test_two_ranks_at_once_are_more_than_that():
    instance = formed(6)
    instance.report(0, (1, Evidence.DEAD), (2, Evidence.DEAD))
    assert instance.members == [0, 3, 4, 5]
    assert instance.state.record.committed.shrinks == 0


def test_a_slot_that_a_given_up_change_may_have_written_is_not_taken_for_what_it_was():
    instance = formed(5)
    instance.ask("drain", 1)
    while not overwritten(instance).any():  # first such slots leave the routing, then they are written
        assert instance._worked(())
    lost = next(rank for rank in (0, 4) if shrunk(instance.state, [rank]) is not None)
    uncertain = overwritten(instance)
    uncertain[:, lost] = False
    assert uncertain.any()
    lose(instance, lost)
    assert instance.state.record.committed.without == lost
    assert (instance.live.slots[uncertain] == EMPTY).all()
    instance.work()
    assert instance.live.missing(instance.members) == []


def overwritten(instance: Instance) -> np.ndarray:
    """Slots with something in them that the change under way writes: bool [layers, ranks, slots]."""
    version, live = instance.state.record.preparing, instance.live
    if version is None:
        return np.zeros_like(live.slots, dtype=bool)
    target = instance.state.placements[version.placement].slots
    return (target != live.slots) & (target != EMPTY) & (live.slots != EMPTY)


def test_the_lost_rank_s_share_is_spread_once_the_recovery_is_long_over():
    instance = formed()
    tokens = np.ones((2, 8), dtype="<f2")
    tokens[:, 0] = 6
    instance.put(Kind.LOAD, 0, ExpertLoad(rank=0, layers=2, experts=8, tokens=tokens.tobytes()))
    lose(instance, 1)
    instance.work()
    uneven = instance.live
    instance.elapse(EVEN_AFTER / SECOND - 1)
    assert instance.live == uneven
    instance.elapse(1.5)
    assert instance.state.record.preparing is not None
    instance.work()
    assert (instance.state.record.committed.shrinks, instance.state.record.committed.cut) == (0, Cut.PLANNED)
    assert (instance.live.slots[:, [0, 2, 3]] == uneven.slots[:, [0, 2, 3]]).all(), "something was moved"
    epoch = instance.epoch
    instance.elapse(30)
    instance.work()
    assert instance.epoch == epoch, "it was spread twice"


def test_what_a_rank_s_own_agent_saw_is_the_reason_whatever_else_it_says_with_it():
    instance = formed()
    down = msgspec.structs.replace(instance.state.registrations[2], incarnation=0, ready=False)
    suspicion = Suspicion(2, 1, Evidence.DEAD, "its scheduler ended")
    report = FaultReport(reporter=2, incarnation=1, epoch=1, suspicions=(suspicion,))
    instance.revision += 1
    together = (Change(Kind.RANK, 2, down, instance.revision), Change(Kind.REPORT, 2, report, instance.revision))
    instance.feed(Observed(instance.now, together))
    blamed = list(instance.state.recoveries.values())[-1].blamed
    assert [(blame.rank, blame.evidence, blame.detail) for blame in blamed] == [
        (2, Evidence.DEAD, "its scheduler ended")
    ]
    assert traffic(instance.live)[2] == 0
