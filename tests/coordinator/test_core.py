"""One story per test: what happened, and what the core wrote."""

import pytest

from controlplane.coordinator.folding import observe
from controlplane.coordinator.state import Change, Kind, Observed, State, Write, Written
from schemas.operations import Phase, Recovery
from schemas.policy import OnTimeout, Spec
from schemas.records import Backup
from schemas.vocabulary import Cut, Evidence
from tests.coordinator.instance import Instance, traffic


def formed(ranks: int = 4, **more) -> Instance:
    instance = Instance(**more)
    instance.form(ranks)
    return instance


def weight_of(instance: Instance, rank: int) -> float:
    """The part of all experts' traffic that the live table sends to a rank, if every expert is as popular."""
    return float(traffic(instance.live)[rank])


def test_the_first_epoch_waits_for_coverage_then_for_the_rest_then_goes():
    instance = Instance(spec=Spec(ranks=4, form_wait_s=2.0))
    instance.register(0)
    instance.elapse(5)
    assert instance.state.record is None
    assert instance.reasons[-1] == "1 ranks are ready with 4 slots for 8 experts"
    instance.register(1)
    instance.elapse(1)
    assert instance.reasons[-1] == "2 of 4 ranks are ready"
    instance.elapse(1.1)
    instance.work()
    assert (instance.members, instance.epoch) == ([0, 1], 1)
    assert instance.state.record.committed.cut is Cut.PLANNED
    assert instance.state_of(0) == "active"


def test_all_expected_ranks_ready_means_no_wait():
    instance = Instance(spec=Spec(ranks=3, form_wait_s=60.0))
    for rank in range(3):
        instance.register(rank)
    instance.work()
    assert instance.members == [0, 1, 2]


def test_a_commit_is_timed_although_the_watch_tells_of_it_before_its_answer():
    begun = Recovery(id="7", epoch_before=6, epoch=7, reason="", phases=(Phase(name="commit", started_unix_ns=1),))
    written = Written(9, Write(reason="", decided=1, recoveries=(begun,)), revision=3)
    told = observe(State(replica="a"), Observed(8, (Change(Kind.RECOVERY, begun.id, begun, 3),)))
    (recovery,) = observe(told, written).recoveries.values()
    assert [(p.name, p.started_unix_ns, p.finished_unix_ns) for p in recovery.phases] == [
        ("commit", 1, 9),
        ("activate", 9, 0),
    ]


def test_a_loss_is_not_counted_from_what_was_said_of_the_rank_s_last_life():
    instance = formed()
    instance.report(1, (2, Evidence.DEAD))
    instance.work()
    instance.register(2, incarnation=2)
    instance.work()
    instance.elapse(30)
    instance.report(3, (2, Evidence.DEAD))
    recovery = instance.state.recoveries[f"{instance.epoch:012d}"]
    assert [blame.incarnation for blame in recovery.blamed] == [2]
    assert recovery.phases[0].name == "detect"
    assert recovery.phases[0].seconds < 1


def test_a_recovery_ends_when_the_last_rank_crossed_not_when_that_was_heard():
    instance = formed()
    instance.report(2, (2, Evidence.DEAD))
    crossed = instance.state.now + 3
    for rank in instance.members:
        instance.ack(rank, activated=True, finished_unix_ns=crossed)
        instance.elapse(0.1)
    (recovery,) = [found for found in instance.state.recoveries.values() if found.unplanned]
    assert (recovery.outcome, recovery.phases[-1].finished_unix_ns) == ("done", crossed)


def test_a_dead_rank_is_excluded_in_the_same_event():
    instance = formed()
    instance.report(2, (2, Evidence.DEAD), detail="pidfd")
    assert instance.members == [0, 1, 3]
    version = instance.state.record.committed
    assert (version.cut, version.missing) == (Cut.ABORT, 0)
    assert "rank 2 is gone (dead: pidfd)" in version.reason
    instance.work()
    recovery = instance.state.recoveries[f"{version.epoch:012d}"]
    assert recovery.outcome == "done"
    assert [b.rank for b in recovery.blamed] == [2]
    assert [p.name for p in recovery.phases] == ["detect", "commit", "activate"]
    assert instance.state_of(2) == "fenced"


def test_losing_a_lease_excludes_too():
    instance = formed()
    instance.gone(1)
    assert instance.members == [0, 2, 3]
    assert instance.state.view(1).reason == "lease: its lease ended"


def test_two_ranks_die_at_once_and_coverage_is_repaired_from_what_survives():
    instance = formed()
    instance.report(2, (2, Evidence.DEAD))
    instance.report(3, (3, Evidence.DEAD))
    instance.work()
    assert instance.members == [0, 1]
    assert instance.live.missing([0, 1]) == []
    assert instance.state.record.committed.missing == 0


def test_a_survivor_blamed_by_the_dead_rank_stays():
    instance = formed()
    instance.report(3, (0, Evidence.DEAD), (3, Evidence.DEAD))
    assert instance.members == [0, 1, 2]
    blamed = list(instance.state.recoveries.values())[-1]
    assert [b.rank for b in blamed.blamed] == [3]
    assert blamed.acquitted == (0,)


def test_silence_needs_a_majority_of_those_that_can_tell():
    instance = formed()
    instance.report(0, (3, Evidence.SILENT))
    assert instance.members == [0, 1, 2, 3]
    instance.elapse(0.3)
    assert instance.state_of(3) == "suspect"
    instance.report(1, (3, Evidence.SILENT))
    assert instance.members == [0, 1, 2]


def test_two_silent_ranks_are_both_excluded():
    instance = formed()
    for reporter in (0, 1):
        instance.report(reporter, (2, Evidence.SILENT), (3, Evidence.SILENT))
    assert instance.members == [0, 1]


def test_two_ranks_that_accuse_each_other_lose_one_after_patience():
    instance = formed(2)
    instance.report(0, (1, Evidence.SILENT))
    instance.put(Kind.REPORT, 0, None)
    instance.report(1, (0, Evidence.SILENT))
    instance.put(Kind.REPORT, 1, None)
    instance = formed(3)
    instance.report(0, (1, Evidence.SILENT))
    instance.report(1, (0, Evidence.SILENT))
    assert instance.members == [0, 1, 2]
    instance.elapse(1.2)
    assert len(instance.members) == 2
    assert 2 in instance.members


def test_slowness_never_excludes_but_costs_share_and_then_drains():
    instance = formed(spec=Spec(form_wait_s=1.0, slow_after_s=1.0, slow_drain_s=5.0, slow_clear_s=3.0))
    for reporter in (0, 1):
        instance.report(reporter, (3, Evidence.SLOW))
    instance.elapse(1.5)
    assert instance.state.view(3).slow == 0.5
    assert "moving slots to the wanted placement" in instance.reasons  # a planned change gives it less
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert weight_of(instance, 3) < weight_of(instance, 0)
    for reporter in (0, 1):
        instance.put(Kind.REPORT, reporter, None)
    instance.elapse(2)
    assert instance.state.view(3).slow == 0.5  # hysteresis
    instance.elapse(1.5)
    assert instance.state.view(3).slow == 1.0
    instance.work()
    assert weight_of(instance, 3) == pytest.approx(weight_of(instance, 0), rel=0.1)
    for reporter in (0, 1):
        instance.report(reporter, (3, Evidence.SLOW))
    instance.elapse(1.5)
    instance.work()
    for reporter in (0, 1):
        instance.report(reporter, (3, Evidence.SLOW))  # under the new epoch: less to do did not help
    instance.elapse(4)
    instance.work()
    assert instance.members == [0, 1, 2]
    assert instance.state_of(3) == "cordoned"


def test_reports_about_another_epoch_or_process_count_for_nothing():
    instance = formed()
    instance.report(0, (3, Evidence.SILENT), epoch=0)
    instance.report(1, (3, Evidence.SILENT), epoch=0)
    assert instance.members == [0, 1, 2, 3]
    instance.report(2, (2, Evidence.DEAD))
    instance.register(2, incarnation=2)
    instance.elapse(0.1)
    instance.work()
    assert instance.members == [0, 1, 2, 3]  # the old report about incarnation 1 does not kill incarnation 2


def test_a_new_process_rejoins_by_itself_without_touching_slots_in_use():
    instance = formed()
    before = instance.live
    instance.report(2, (2, Evidence.DEAD))
    instance.register(2, incarnation=2, ready=False)
    instance.work()
    assert instance.members == [0, 1, 3]
    instance.register(2, incarnation=2)
    assert instance.state.record.preparing is not None
    assert instance.state_of(2) in ("joining", "fenced")
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.state.members[2] == 2
    assert before is not None


def test_the_same_process_never_returns_after_it_was_excluded():
    instance = formed()
    instance.report(2, (2, Evidence.DEAD))
    instance.work()
    instance.elapse(30)
    instance.work()
    assert instance.members == [0, 1, 3]


def test_a_joiner_that_dies_is_rolled_back_and_its_number_is_not_used_again():
    instance = formed(3)
    instance.register(3)
    number = instance.state.record.preparing.epoch
    instance.ack(0)
    instance.gone(3)
    assert instance.state.record.preparing is None
    assert instance.members == [0, 1, 2]
    assert instance.state.record.issued == number
    instance.register(3, incarnation=2)
    instance.elapse(3)
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.epoch > number


def test_a_member_that_dies_while_another_joins_aborts_and_the_join_is_tried_again():
    instance = formed(3)
    instance.register(3)
    instance.ack(0)
    instance.report(1, (1, Evidence.DEAD))
    assert instance.state.record.preparing is None or 1 not in instance.state.joining
    instance.elapse(1.5)
    instance.work()
    assert instance.members == [0, 2, 3]


def test_a_joiner_that_never_acknowledges_is_left_out_then_tried_later():
    instance = formed(3, spec=Spec(form_wait_s=1.0, prepare_deadline_s=5.0, backoff_s=2.0))
    instance.register(3)
    instance.work(but=(3,))
    instance.elapse(5.1)
    instance.work(but=(3,))
    assert instance.members == [0, 1, 2]
    assert "did not prepare" in instance.state.recoveries["000000000002"].outcome
    instance.elapse(3)
    instance.work()
    assert instance.members == [0, 1, 2, 3]


@pytest.mark.parametrize(("policy", "left"), [(OnTimeout.ROLLBACK, [0, 1, 2, 3]), (OnTimeout.EXCLUDE, [0, 1, 3])])
def test_a_member_that_never_acknowledges_is_dealt_with_by_policy(policy, left):
    instance = formed(4, spec=Spec(form_wait_s=1.0, prepare_deadline_s=5.0, on_timeout=policy))
    instance.ask("drain", 0)
    instance.work(but=(2,))
    instance.elapse(5.2)
    assert instance.members == left


def test_a_survivor_that_never_crosses_is_excluded_after_its_deadline():
    instance = formed(spec=Spec(form_wait_s=1.0, abort_deadline_s=3.0))
    instance.report(3, (3, Evidence.DEAD))
    instance.work(but=(1,))
    instance.elapse(3.2)
    instance.work(but=(1,))
    assert instance.members == [0, 2]


def test_when_more_than_half_are_late_nobody_is_to_blame():
    instance = formed(spec=Spec(form_wait_s=1.0, abort_deadline_s=3.0))
    instance.report(3, (3, Evidence.DEAD))
    instance.work(but=(0, 1))
    instance.elapse(10)
    assert instance.members == [0, 1, 2]
    assert "more than half" in instance.reasons[-1]


def test_a_rank_that_keeps_dying_waits_longer_each_time_and_then_stays_out():
    instance = formed(spec=Spec(form_wait_s=1.0, flap_limit=3, backoff_s=2.0))
    for incarnation in (2, 3):
        instance.report(2, (2, Evidence.DEAD))
        instance.register(2, incarnation=incarnation)
        instance.work()
        waits = incarnation == 3
        assert (2 in instance.members) is not waits
        instance.elapse(2.5)
        instance.work()
        assert 2 in instance.members
    instance.report(2, (2, Evidence.DEAD))
    instance.register(2, incarnation=4)
    instance.elapse(700, step_s=10)
    instance.work()
    assert 2 not in instance.members
    assert "flap limit: 3 losses" in instance.state.view(2).cordoned
    name = instance.ask("uncordon", 2)
    instance.work()
    assert instance.operation(name).state == "done"
    assert 2 in instance.members


def test_a_rank_that_wants_to_leave_is_drained_and_its_next_process_returns():
    instance = formed()
    instance.register(3, leaving="SIGTERM")
    assert instance.state.record.preparing is not None
    assert instance.state_of(3) == "active" or instance.state_of(3) == "draining"
    instance.work()
    assert instance.members == [0, 1, 2]
    instance.elapse(2)
    assert instance.members == [0, 1, 2]
    instance.gone(3)
    instance.register(3, incarnation=2)
    instance.elapse(1.5)
    instance.work()
    assert instance.members == [0, 1, 2, 3]


def test_a_leaving_rank_that_coverage_needs_serves_on():
    instance = formed(2)
    instance.register(1, leaving="SIGTERM")
    instance.elapse(2)
    assert instance.members == [0, 1]


def test_below_coverage_the_instance_names_what_is_missing_and_recovers_when_a_source_appears():
    instance = Instance()
    for rank in range(2):
        instance.register(rank)
    instance.elapse(1.2)
    instance.work()
    instance.register(0, checkpoint="")
    instance.report(1, (1, Evidence.DEAD))
    instance.work()
    version = instance.state.record.committed
    assert version.missing == 8  # four experts of each of two layers
    assert len(instance.live.missing([0])) == 8
    assert "layer 0 expert" in instance.state.recoveries[f"{version.epoch:012d}"].reason
    instance.register(1, incarnation=2)
    instance.work()
    version = instance.state.record.committed
    assert (version.missing, version.cut, instance.members) == (0, Cut.ABORT, [0, 1])


def test_a_backup_is_a_source_too():
    instance = formed(2)
    for rank in range(2):
        instance.register(rank, checkpoint="")
    instance.register(0, checkpoint="", slots=8)
    experts = tuple((layer, expert) for layer in range(2) for expert in range(8))
    instance.put(Kind.BACKUP, 0, Backup(rank=0, host="h0", address="mem", experts=experts))
    instance.report(1, (1, Evidence.DEAD))
    instance.work()
    assert instance.state.record.committed.missing == 0


def test_a_rank_that_cannot_load_is_not_asked_for_the_same_again():
    instance = formed(4, slots=3)
    instance.report(3, (3, Evidence.DEAD))
    lost = [(layer, e) for layer in range(2) for e in range(8)]
    target = instance.live
    before = instance.state.placements[instance.state.record.held]
    todo = {
        rank: [
            (layer, e)
            for layer, e in lost
            if (target.slots[layer, rank] == e).any() and not (before.slots[layer, rank] == e).any()
        ]
        for rank in (0, 1, 2)
    }
    broken = next(rank for rank in todo if todo[rank])
    for rank in (0, 1, 2):
        if rank == broken:
            instance.ack(rank, activated=True, prepared=False, missing=tuple(todo[rank]), error="no such file")
        else:
            instance.ack(rank, activated=True)
    instance.work()
    assert instance.state.record.committed.missing == 0
    assert instance.members == [0, 1, 2]
    held = instance.state.placements[instance.state.record.held]
    assert held is not None


def test_everything_dies_and_the_instance_forms_again():
    instance = formed()
    for rank in range(4):
        instance.gone(rank)
    assert instance.members == []
    before = instance.epoch
    for rank in range(4):
        instance.register(rank, incarnation=2)
    instance.elapse(20)
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.epoch > before


def test_a_successor_goes_on_in_the_middle_of_a_change():
    instance = formed(3)
    instance.register(3)
    instance.ack(0)
    instance.succeed()
    assert instance.state.record.preparing is not None
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    recovery = instance.state.recoveries[f"{instance.epoch:012d}"]
    assert len(recovery.fences) == 2
    assert recovery.outcome == "done"


def test_a_successor_goes_on_in_the_middle_of_a_loss():
    instance = formed()
    instance.report(2, (2, Evidence.DEAD))
    instance.succeed()
    instance.work()
    assert instance.members == [0, 1, 3]
    assert instance.state.recoveries[f"{instance.epoch:012d}"].outcome == "done"


def test_paused_means_nothing_changes_by_itself_until_resumed():
    instance = formed()
    instance.ask("pause")
    instance.report(2, (2, Evidence.DEAD))
    assert instance.members == [0, 1, 2, 3]
    instance.ask("resume")
    instance.work()
    assert instance.members == [0, 1, 3]
    instance.ask("pause", parameters={"losses": True})
    instance.report(1, (1, Evidence.DEAD))
    instance.work()
    assert instance.members == [0, 3]


def test_a_follower_decides_nothing():
    instance = Instance()
    instance.state = type(instance.state)(replica="follower")
    for rank in range(4):
        instance.register(rank)
    instance.elapse(10)
    assert instance.writes == []
    assert len(instance.state.registrations) == 4


def test_the_death_of_the_lowest_rank_is_repaired_although_its_next_engine_has_not_spoken_yet():
    instance = formed()
    instance.register(0, incarnation=0, ready=False, layers=0, experts=0, slots=0, model="", checkpoint="")
    instance.work()
    assert instance.members == [1, 2, 3]
    assert instance.state.record.committed.missing == 0


def test_a_rank_that_dies_between_its_release_and_the_flip_does_not_hold_up_the_others():
    instance = formed()
    instance.ask("drain", 3)
    for rank in range(4):
        instance.ack(rank)
    assert instance.members == [0, 1, 2]
    before = instance.live
    instance.gone(3)
    version = instance.state.record.committed
    assert (version.cut, instance.members) == (Cut.ABORT, [0, 1, 2])
    assert "went before" in version.reason
    assert (instance.live.slots == before.slots).all()
    instance.work()
    assert instance.state.recoveries[f"{version.epoch:012d}"].outcome == "done"


def test_an_acknowledgement_of_a_member_does_not_work_the_views_out_anew():
    instance = Instance()
    instance.form(4)
    instance.report(3, (3, Evidence.DEAD))
    instance.elapse(0.5)
    shown = instance.state.shown
    assert shown
    instance.ack(0, activated=True)
    assert instance.state.shown is shown
    instance.work()
    instance.elapse(0.5)
    assert instance.state.shown is not shown
