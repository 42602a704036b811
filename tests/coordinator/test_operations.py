"""What operators ask for, and what becomes of it."""

import msgspec
import numpy as np

from controlplane.coordinator.state import Kind, Planned
from schemas.policy import Spec
from schemas.records import ExpertLoad
from schemas.vocabulary import Evidence
from tests.coordinator.instance import Instance


def formed(ranks: int = 4, **more) -> Instance:
    instance = Instance(**more)
    instance.form(ranks)
    return instance


def test_a_drain_takes_the_rank_out_and_keeps_it_out():
    instance = formed()
    name = instance.ask("drain", 2)
    assert instance.operation(name).state == "running"
    assert instance.state_of(2) == "draining"
    assert instance.operation(name).safe_to_terminate == ()
    instance.work()
    operation = instance.operation(name)
    assert (operation.state, operation.safe_to_terminate) == ("done", (2,))
    assert operation.epoch == instance.epoch
    assert instance.members == [0, 1, 3]
    instance.elapse(5)
    assert instance.state_of(2) == "cordoned"
    name = instance.ask("rejoin", 2)
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.members == [0, 1, 2, 3]


def test_every_flip_of_a_drain_keeps_coverage():
    instance = formed(4, experts=8, slots=4, layers=3)
    for rank in (0, 1):
        name = instance.ask("drain", rank)
        instance.work()
        assert instance.operation(name).state == "done", instance.reasons[-3:]
        assert instance.live.missing(instance.members) == []
    assert instance.members == [2, 3]


def test_a_drain_below_coverage_is_refused_with_figures():
    instance = formed(2)
    name = instance.ask("drain", 0)
    operation = instance.operation(name)
    assert operation.state == "refused"
    assert operation.message == (
        "coverage would break: 1 ranks have 4 slots for 8 experts (4 too few); add a rank first"
    )
    assert instance.members == [0, 1]


def test_a_host_is_drained_whole():
    instance = formed(6)
    name = instance.ask("drain", host="h1")
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.members == [0, 1, 4, 5]


def test_a_notice_is_never_refused_and_waits_for_room():
    instance = formed(2)
    name = instance.ask("notice", 0, deadline_s=30.0)
    assert instance.operation(name).state == "running"
    instance.register(2)
    instance.elapse(1)
    instance.work()
    instance.elapse(1)
    instance.work()
    assert instance.members == [1, 2]
    assert instance.operation(name).state == "done"


def test_cordon_keeps_an_active_rank_and_stops_its_return():
    instance = formed()
    name = instance.ask("cordon", 3)
    assert instance.operation(name).state == "done"
    assert 3 in instance.members
    instance.report(3, (3, Evidence.DEAD))
    instance.register(3, incarnation=2)
    instance.elapse(5)
    instance.work()
    assert instance.members == [0, 1, 2]
    assert instance.state_of(3) == "cordoned"
    instance.ask("uncordon", 3)
    instance.work()
    assert instance.members == [0, 1, 2, 3]


def test_replace_exchanges_ranks_in_one_epoch():
    instance = formed()
    instance.ask("cordon", 4)
    instance.register(4)
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    name = instance.ask("replace", 2, parameters={"by": (4,)})
    assert sorted(instance.state.joining) == [0, 1, 3, 4]
    instance.work()
    assert instance.members == [0, 1, 3, 4]
    assert instance.operation(name).state == "done"


def test_replace_needs_a_substitute_that_is_ready():
    instance = formed()
    name = instance.ask("replace", 2, parameters={"by": (9,)})
    assert instance.operation(name).message == "substitute rank 9 is not ready: it must be registered and warm first"


def test_scale_is_an_absolute_target_with_the_caller_s_victims():
    instance = formed()
    name = instance.ask("scale", 0, parameters={"target": 3})
    instance.work()
    assert instance.members == [1, 2, 3]
    assert instance.operation(name).state == "done"
    again = instance.ask("scale", 0, parameters={"target": 3})
    assert instance.operation(again).state == "done"
    assert instance.members == [1, 2, 3]
    instance.report(1, (1, Evidence.DEAD))  # a standby steps in for a lost rank
    instance.work()
    assert instance.members == [0, 2, 3]
    up = instance.ask("scale", parameters={"target": 0})
    instance.register(1, incarnation=2)
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.operation(up).state == "done"


def test_scale_below_coverage_or_with_nonsense_is_refused():
    instance = formed()
    assert instance.operation(instance.ask("scale", parameters={"target": 1})).state == "refused"
    assert "target is 'x'" in instance.operation(instance.ask("scale", parameters={"target": "x"})).message


def test_lend_and_reclaim():
    instance = formed()
    name = instance.ask("lend", 3, parameters={"to": "batch"})
    instance.work()
    assert instance.operation(name).safe_to_terminate == (3,)
    instance.elapse(1)
    assert instance.state.view(3).reason == "lent to batch"
    name = instance.ask("reclaim", 3)
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.operation(name).state == "done"


def test_a_cancelled_drain_is_rolled_back():
    instance = formed()
    name = instance.ask("drain", 2)
    assert instance.state.record.preparing is not None
    cancelled = msgspec.structs.replace(instance.operation(name), cancel_requested="ops")
    instance.put(Kind.OPERATION, name, cancelled)
    assert instance.operation(name).state == "cancelled"
    assert instance.state.record.preparing is None
    instance.elapse(3)
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.state_of(2) == "active"


def test_an_operation_that_takes_too_long_fails_and_says_what_it_waited_for():
    instance = formed(spec=Spec(form_wait_s=1.0))
    name = instance.ask("rejoin", 7, deadline_s=3.0)
    assert instance.operation(name).message == "rank 7: not registered yet"
    instance.elapse(3.2)
    assert instance.operation(name).state == "failed"
    assert "rank 7: not registered yet" in instance.operation(name).message


def test_operations_while_paused_are_still_done():
    instance = formed()
    instance.ask("pause")
    name = instance.ask("drain", 3)
    instance.work()
    assert instance.operation(name).state == "done"
    name = instance.ask("rejoin", 3)
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.members == [0, 1, 2, 3]


def test_rebalance_reaches_its_goal_without_writing_a_slot_in_use():
    instance = formed(4, experts=8, slots=4)
    goal = instance.live.slots.copy()
    goal[:, [0, 1]] = goal[:, [1, 0]]

    class Swapping(type(instance.planner)):
        def plan(self, shape, *, live=None, max_bytes=0):
            made = super().plan(shape, live=live, max_bytes=max_bytes)
            return (
                made
                if live is None
                else type(made)(
                    placement=type(live)(slots=goal, weights=np.ones_like(goal), n_experts=8), reason="swap"
                )
            )

    instance.planner = Swapping()
    name = instance.ask("rebalance")
    instance.work()
    assert instance.operation(name).state == "done"
    assert (instance.live.slots == goal).all()
    assert instance.epoch > 2  # out of the routing first, then written


def test_a_leader_that_dies_in_a_drain_is_succeeded_by_one_that_ends_it_once():
    instance = formed()
    name = instance.ask("drain", 2)
    instance.ack(0)
    instance.succeed()
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.members == [0, 1, 3]
    assert [p.name for p in instance.operation(name).phases] == ["running"]


def test_a_loss_during_a_drain_does_not_lose_the_drain():
    instance = formed(5)
    name = instance.ask("drain", 2)
    instance.ack(0)
    instance.report(4, (4, Evidence.DEAD))
    instance.work()
    instance.elapse(2)
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.members == [0, 1, 3]


def test_old_operations_and_recoveries_are_forgotten():
    instance = formed(4, spec=Spec(form_wait_s=1.0, history=5))
    for _ in range(8):
        instance.ask("drain", 2, id=f"d{len(instance.writes)}")
        instance.work()
        instance.ask("rejoin", 2, id=f"r{len(instance.writes)}")
        instance.work()
    instance.elapse(3)
    assert len(instance.state.operations) <= 5
    assert len(instance.state.recoveries) <= 5
    assert len(instance.state.placements) <= 12


# --- plans that take long ---------------------------------------------------------------------------------------------


def pondering() -> Instance:
    instance = Instance(ponders=True)
    instance.form(4)
    return instance


def popular(instance: Instance, expert: int) -> None:
    tokens = np.ones((2, 8), dtype="<f2")
    tokens[:, expert] = 200.0
    instance.put(Kind.LOAD, 0, ExpertLoad(rank=0, layers=2, experts=8, tokens=tokens.tobytes()))


def test_a_loss_is_decided_while_a_rebalance_is_planned_and_its_plan_is_worked_out_anew():
    instance = pondering()
    popular(instance, 3)
    name = instance.ask("rebalance")
    first = instance.question
    assert first.cause == name
    assert instance.operation(name).state == "pending"
    instance.report(2, (2, Evidence.DEAD))
    instance.work()
    assert instance.members == [0, 1, 3]
    assert instance.question is first  # the planner is busy with it: no second one waits behind
    instance.answer()
    assert instance.state.status.goal == ""
    assert instance.question.epoch == instance.epoch > first.epoch
    instance.answer()
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.live.missing(instance.members) == []


def test_a_cancelled_rebalance_does_not_wait_for_its_plan():
    instance = pondering()
    name = instance.ask("rebalance")
    operation = msgspec.structs.replace(instance.operation(name), cancel_requested="ops")
    instance.put(Kind.OPERATION, name, operation)
    assert instance.operation(name).state == "cancelled"
    before = len(instance.writes)
    instance.answer()
    assert len(instance.writes) == before
    assert instance.state.question is None


def test_two_rebalances_are_planned_one_after_the_other():
    instance = pondering()
    popular(instance, 3)
    names = [instance.ask("rebalance", id=f"op{index}") for index in range(2)]
    assert instance.question.cause == names[0]
    instance.answer()
    assert instance.question.cause == names[1]
    instance.work()
    instance.answer()  # the first has moved slots since it was asked: void, and asked anew
    assert instance.question.epoch == instance.epoch
    instance.answer()
    instance.work()
    assert [instance.operation(name).state for name in names] == ["done", "done"]


def test_a_plan_that_cannot_be_had_fails_its_operation_with_the_planners_words():
    instance = pondering()
    name = instance.ask("rebalance")
    question, instance.question = instance.question, None
    instance.feed(Planned(instance.now, question, None, "load: shape (1,) must be [layers, experts]"))
    assert instance.operation(name).state == "failed"
    assert instance.operation(name).message == "no plan: load: shape (1,) must be [layers, experts]"
    assert instance.state.question is None


def test_a_successor_asks_anew_and_does_not_take_an_answer_that_was_not_meant_for_it():
    instance = pondering()
    popular(instance, 3)
    name = instance.ask("rebalance")
    stale = instance.question
    instance.succeed()
    asked = instance.question
    assert asked is not stale
    plan = instance.planner.plan(stale.instance, live=stale.live)
    instance.feed(Planned(instance.now, stale, plan))
    assert instance.operation(name).state == "pending"
    instance.answer()
    instance.work()
    assert instance.operation(name).state == "done"


def test_a_slow_rank_is_drained_while_the_plan_that_would_relieve_another_is_worked_out():
    instance = Instance(ponders=True, slots=8, spec=Spec(form_wait_s=1.0, slow_after_s=1.0))
    instance.form(5)
    for reporter in (0, 1, 3, 4):
        instance.report(reporter, (2, Evidence.SLOW))
    instance.elapse(2)
    assert instance.question.cause == ""
    assert instance.state.view(2).slow == 1.0
    name = instance.ask("drain", 4)
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.members == [0, 1, 2, 3]
    instance.answer()  # for members that are no more: void
    assert instance.state.status.goal == ""
