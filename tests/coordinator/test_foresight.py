"""Losses planned before they happen: used for the one question they answer, and equal to what planning would say."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from controlplane.coordinator import foresight
from controlplane.coordinator.foresight import WORDS, Foresight
from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.state import Change, Kind, Observed
from schemas.records import Backup, ExpertLoad
from schemas.vocabulary import Evidence
from tests.coordinator.instance import Instance


class Counting(LoadAwarePlanner):
    """Counts what it is asked."""

    repairs = 0

    def repair(self, instance, *, held, urgent):
        self.repairs += 1
        return super().repair(instance, held=held, urgent=urgent)


def formed(ranks: int = 4, *, slots: int = 3) -> Instance:
    """By default each rank holds an expert that no other one holds."""
    instance = Instance(slots=slots)
    instance.asked = Counting()
    instance.planner = Foresight(instance.asked)
    instance.form(ranks)
    instance.elapse(0.2)
    return instance


def look_ahead(instance: Instance) -> list[str]:
    assert instance.planner.due(instance.state)
    return list(instance.planner.ahead(instance.state))


def loads(instance: Instance, hot: float, *, of: int = 0) -> None:
    tokens = np.ones((2, 8), dtype="<f2")
    tokens[:, of] = hot
    instance.put(Kind.LOAD, 0, ExpertLoad(rank=0, layers=2, experts=8, tokens=tokens.tobytes()))


def test_every_rank_and_every_host_is_planned_for_once():
    instance = formed()
    assert look_ahead(instance) == ["rank 0", "rank 1", "rank 2", "rank 3", "host h0", "host h1"]
    assert not instance.planner.due(instance.state)
    assert list(instance.planner.ahead(instance.state)) == []


def test_a_loss_that_only_takes_a_rank_out_needs_no_plan():
    instance = formed(slots=4)
    assert look_ahead(instance) == ["host h0", "host h1"]
    before = instance.asked.repairs
    instance.report(1, (1, Evidence.DEAD))
    assert (instance.asked.repairs, instance.state.record.committed.without) == (before, 1)


@pytest.mark.parametrize("rank", range(4))
def test_a_loss_is_answered_from_memory_with_what_planning_would_say(rank):
    instance, fresh = formed(), formed()
    look_ahead(instance)
    before = instance.asked.repairs
    for each in (instance, fresh):
        each.report(rank, (rank, Evidence.DEAD))
    assert instance.asked.repairs == before
    assert instance.planner.used == 1
    assert fresh.planner.used == 0
    assert instance.live == fresh.live
    recovery = list(instance.state.recoveries.values())[-1]
    assert recovery.reason.endswith(WORDS)
    instance.work()
    assert instance.live.missing(instance.members) == []


def test_a_host_whose_leases_end_together_is_answered_from_memory_too():
    instance = formed()
    look_ahead(instance)
    before = instance.asked.repairs
    instance.revision += 1
    gone = tuple(Change(Kind.RANK, rank, None, instance.revision) for rank in (2, 3))
    instance.feed(Observed(instance.now, gone))
    assert instance.members == [0, 1]
    assert (instance.asked.repairs, instance.planner.used) == (before, 1)


def test_a_second_loss_is_planned_for_after_the_first():
    instance = formed(5, slots=2)
    look_ahead(instance)
    instance.report(4, (4, Evidence.DEAD))
    assert not instance.planner.due(instance.state)  # the survivors still cross
    instance.work()
    instance.elapse(2)
    assert look_ahead(instance)[:2] == ["rank 0", "rank 1"]
    before = instance.asked.repairs
    instance.gone(3)  # with its acknowledgements
    assert (instance.asked.repairs, instance.planner.used) == (before, 2)


def test_an_epoch_makes_its_answers_void():
    instance = formed(slots=2)
    look_ahead(instance)
    instance.register(4)
    instance.work()
    assert instance.epoch == 2
    before = instance.asked.repairs
    instance.report(1, (1, Evidence.DEAD))
    assert instance.planner.used == 0
    assert instance.asked.repairs == before + 1


def test_another_load_makes_them_void_and_a_like_one_does_not():
    instance = formed()
    loads(instance, 1.0)
    look_ahead(instance)
    loads(instance, 1.5)  # 1.5 of 8.5 instead of 1 of 8
    assert look_ahead(instance) == []
    instance.report(1, (1, Evidence.DEAD))
    assert instance.planner.used == 1
    other = formed()
    loads(other, 1.0)
    look_ahead(other)
    loads(other, 8.0)
    other.report(1, (1, Evidence.DEAD))
    assert other.planner.used == 0
    again = formed()
    loads(again, 1.0)
    look_ahead(again)
    loads(again, 8.0)
    assert len(look_ahead(again)) == 6


@pytest.mark.parametrize("change", ["speed", "checkpoint", "backup", "policy"])
def test_another_speed_source_or_wish_makes_them_void(change):
    instance = formed(3, slots=3)
    for rank in range(3):
        instance.register(rank, checkpoint="")  # every expert has its last source among the ranks
    instance.elapse(1)
    instance.work()
    look_ahead(instance)
    match change:
        case "speed":
            instance.register(0, checkpoint="", speed=0.5)
        case "checkpoint":
            instance.register(0)
        case "backup":
            pairs = tuple((layer, expert) for layer in range(2) for expert in range(8))
            instance.put(Kind.BACKUP, 0, Backup(rank=0, host="h0", address="a", experts=pairs))
        case "policy":
            instance.put(Kind.SPEC, "", msgspec.structs.replace(instance.state.spec, survivability="none"))
    assert instance.planner.due(instance.state)
    instance.report(2, (2, Evidence.DEAD))
    assert instance.planner.used == 0


def test_nothing_is_planned_ahead_while_a_change_is_under_way_or_by_a_follower():
    instance = formed()
    instance.register(4)
    assert instance.state.record.preparing is not None
    assert not instance.planner.due(instance.state)
    instance.work()
    assert not instance.planner.due(replace(instance.state, fence=0))


def test_in_a_large_instance_the_likeliest_are_planned_for_those_in_trouble_first(monkeypatch):
    monkeypatch.setattr(foresight, "LIKELIEST", 3)
    instance = formed(8, slots=1)
    assert look_ahead(instance) == ["rank 0", "rank 1", "rank 2", "host h0", "host h1", "host h2"]
    instance.report(7, (7, Evidence.DEAD))
    instance.work()
    instance.register(7, incarnation=2)
    instance.elapse(5)
    instance.work()
    instance.elapse(2)
    assert look_ahead(instance) == ["rank 7", "host h3"]  # the others as before: they are still known


def test_measurements_like_those_it_planned_with_cost_no_pass():
    instance = formed()
    loads(instance, 1.0)
    look_ahead(instance)
    loads(instance, 1.2)
    assert instance.planner.due(instance.state)
    known = instance.planner._answers
    assert list(instance.planner.ahead(instance.state)) == []
    assert instance.planner._answers is known
    assert not instance.planner.due(instance.state)
