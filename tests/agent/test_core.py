"""The agent's decisions, event by event: each test asserts the whole list of actions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from schemas.messages import (
    Activated,
    Ask,
    Commit,
    Discard,
    Drain,
    EngineStatus,
    Fault,
    Hello,
    Peer,
    Prepare,
    Prepared,
    Ready,
)
from schemas.records import Ack, AckPhase, EpochRecord, EpochVersion, FaultReport, Registration, Suspicion
from schemas.vocabulary import Cut, Evidence, Member, SourceTier, stamp_of
from worker.agent.core import Policy, State, decide
from worker.agent.events import (
    Begin,
    CallOff,
    ClearAway,
    Committed,
    EndEngine,
    EngineEnded,
    EpochSeen,
    Exit,
    FenceEngine,
    Heard,
    LeaseGone,
    Leave,
    Plan,
    Publish,
    RenewLease,
    Send,
    StartEngine,
    Tick,
    WakeAt,
)

POLICY = Policy(first_backoff_s=0.5, longest_backoff_s=4.0, stable_after_s=60.0, prepare_deadline_s=9.0)
HOLD_S = POLICY.ack_hold_s
ME = Registration(rank=1, incarnation=0, host="a")
HELLO = Hello(
    rank=1,
    incarnation=7,
    pid=99,
    link_address="/l",
    layers=1,
    experts=4,
    slots=3,
    expert_bytes=8,
    model="m",
    checkpoint="c",
)
PLAN = Plan(placement=b"p", digest="d", peers=(), loads=())


def version(epoch, *incarnations, cut=Cut.PLANNED, placement="d"):
    members = tuple(Member(rank, incarnation) for rank, incarnation in enumerate(incarnations) if incarnation)
    return EpochVersion(epoch=epoch, members=members, placement=placement, cut=cut, reason="why")


def seen(committed, preparing=None, now=1.0):
    record = EpochRecord(committed=committed, preparing=preparing, fence=5)
    return EpochSeen(now, record, PLAN, PLAN if preparing else None)


def status(*, running=0, waiting=0):
    return EngineStatus(epoch=1, prepared=2, step=5, running=running, waiting=waiting, draining=True)


def follow(state, *events):
    for event in events:
        state, decision = decide(state, event)
    return state, list(decision.actions)


def up(*incarnations):
    """An agent whose engine (rank 1, incarnation 7) runs under epoch 1."""
    return follow(
        State(identity=ME, policy=POLICY),
        Begin(0.0, 7),
        Heard(0.1, HELLO),
        Heard(0.2, Ready(serve_url="http://r1")),
        seen(version(0), version(1, 3, 7)),
        Heard(0.3, Prepared(epoch=1, ok=True)),
        seen(version(1, 3, 7)),
        Heard(0.4, Activated(epoch=1, step=0, waited_ms=0.1)),
    )[0]


def prepare(epoch, *incarnations, cut=Cut.PLANNED):
    named = version(epoch, *incarnations, cut=cut)
    return Send(
        Prepare(
            epoch=epoch,
            stamp=named.stamp,
            members=named.members,
            peers=(),
            placement=b"p",
            loads=(),
            cut=cut,
            deadline_s=9.0,
        )
    )


def registered(**fields):
    shape = {"layers": 1, "experts": 4, "slots": 3, "expert_bytes": 8, "model": "m", "checkpoint": "c"}
    return Publish(Registration(rank=1, incarnation=7, host="a", link_address="/l", **shape, **fields))


def test_a_fresh_rank_registers_prepares_and_crosses_into_the_first_epoch():
    state, actions = follow(State(identity=ME, policy=POLICY), Begin(0.0, 7))
    assert actions == [StartEngine(7)]
    state, actions = follow(state, Heard(0.1, HELLO))
    assert actions == [registered()]
    state, actions = follow(state, Heard(0.2, Ready(serve_url="http://r1")))
    assert actions == [registered(ready=True, serve_url="http://r1")]
    state, actions = follow(state, seen(version(0), version(1, 3, 7)))
    assert actions == [prepare(1, 3, 7)]
    state, actions = follow(state, seen(version(0), version(1, 3, 7)))
    assert actions == [], "asked once"
    state, actions = follow(state, Heard(0.3, Prepared(epoch=1, ok=True)))
    assert actions == [Publish(Ack(rank=1, incarnation=7, epoch=1, prepared=True))]
    state, actions = follow(state, seen(version(1, 3, 7)))
    assert actions == [Committed(1), Send(Commit(epoch=1, stamp=stamp_of(1), cut=Cut.PLANNED))]
    state, actions = follow(state, Heard(0.4, Activated(epoch=1, step=4, waited_ms=0.1)))
    assert actions == [
        Publish(Ack(rank=1, incarnation=7, epoch=1, prepared=True, activated=True, step=4)),
        registered(ready=True, serve_url="http://r1", holds="d"),
    ]


def test_loss_of_a_peer_calls_the_step_off_before_anything_else():
    _, actions = follow(up(), seen(version(2, 0, 7, cut=Cut.ABORT)))
    assert actions == [
        CallOff(stamp_of(2)),
        prepare(2, 0, 7, cut=Cut.ABORT),
        Committed(2),
        Send(Commit(epoch=2, stamp=stamp_of(2), cut=Cut.ABORT)),
    ]


def test_an_answer_that_is_overtaken_by_the_crossing_does_not_take_it_back():
    state, _ = follow(up(), seen(version(2, 0, 7, cut=Cut.ABORT)), Heard(3.0, Activated(epoch=2, step=9, waited_ms=1)))
    loads = (AckPhase(tier=SourceTier.HOST_PEER, slots=1, bytes=8, seconds=0.1),)
    whole = Ack(rank=1, incarnation=7, epoch=2, prepared=True, activated=True, step=9, loads=loads)
    assert follow(state, Heard(3.1, Prepared(epoch=2, ok=True, loads=loads)))[1] == [Publish(whole, HOLD_S)]
    state, said = follow(up(), seen(version(2, 0, 7, cut=Cut.ABORT)))
    state, said = follow(state, Heard(3.0, Prepared(epoch=2, ok=True, loads=loads)))
    assert said == [], "it crosses at once: one acknowledgement says both"
    assert follow(state, Heard(3.1, Activated(epoch=2, step=9, waited_ms=1)))[1][0] == Publish(whole, HOLD_S)


def test_what_a_rank_holds_is_told_anew_when_its_engine_crossed_before_it_heard_of_the_commit():
    next_one = version(2, 3, 7, placement="e")
    state, _ = follow(up(), seen(version(1, 3, 7), next_one), Heard(2.0, Prepared(epoch=2, ok=True)))
    state, _ = follow(state, Heard(2.1, Activated(epoch=2, step=9, waited_ms=0.1)))
    _, actions = follow(state, seen(next_one))
    assert actions[-1] == registered(ready=True, serve_url="http://r1", holds="e")


def test_an_engine_that_connects_again_is_told_again_what_it_may_have_missed():
    state, told = follow(up(), seen(version(2, 0, 7, cut=Cut.ABORT)))
    state, again = follow(state, Heard(3.0, HELLO))
    assert again == told
    state, _ = follow(state, Heard(3.1, Activated(epoch=2, step=9, waited_ms=1)))
    assert follow(state, Heard(3.2, HELLO))[1] == [], "nothing was missed"


def test_an_engine_that_died_is_reported_first_and_comes_back_anew_after_a_backoff():
    state, actions = follow(up(), EngineEnded(5.0, 7, "killed by signal 9", 123))
    report = FaultReport(
        reporter=1,
        incarnation=7,
        epoch=1,
        suspicions=(Suspicion(1, 7, Evidence.DEAD, "killed by signal 9"),),
        detected_unix_ns=123,
    )
    gone = Registration(rank=1, incarnation=0, host="a", serve_url="http://r1")
    assert actions == [Publish(report), Publish(gone), ClearAway("killed by signal 9"), WakeAt(5.5)]
    assert follow(state, Tick(5.4, 8))[1] == []
    assert follow(state, Tick(5.5, 8))[1] == [StartEngine(8)]


@pytest.mark.parametrize(("deaths", "wait"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (7, 4.0)])
def test_a_rank_that_keeps_dying_waits_longer_each_time(deaths, wait):
    state, now = State(identity=ME, policy=POLICY), 0.0
    state, _ = follow(state, Begin(now, 1))
    for death in range(1, deaths + 1):
        now += 1.0
        state, actions = follow(state, EngineEnded(now, death, "x", 0))
        assert isinstance(actions[-1], WakeAt)
        waited, now = actions[-1].when - now, actions[-1].when
        state, _ = follow(state, Tick(now, death + 1))
    assert waited == wait


def test_a_stable_run_is_forgiven():
    state = replace(up(), restarts=5)
    assert follow(state, EngineEnded(100.0, 7, "x", 0))[1][-1] == WakeAt(100.5)


def test_an_engine_of_an_earlier_incarnation_ends_without_consequence():
    state = up()
    assert follow(state, EngineEnded(5.0, 6, "x", 0)) == (state, [])


def test_exclusion_fences_the_engine_before_it_ends_and_the_rank_comes_back():
    state, actions = follow(up(), seen(version(2, 3, cut=Cut.ABORT), now=9.0))
    gone = Registration(rank=1, incarnation=0, host="a", serve_url="http://r1")
    why = "excluded by epoch 2: why"
    assert actions == [FenceEngine(why), Publish(gone), ClearAway(why), WakeAt(9.5)]
    assert follow(state, Tick(9.5, 8))[1] == [StartEngine(8)]


def test_an_exclusion_that_was_missed_while_etcd_was_away_is_one_all_the_same():
    """The abort that excluded us was followed by a planned epoch, and only that one is seen."""
    _, actions = follow(up(), seen(version(3, 3, 0, 9), now=9.0))
    assert FenceEngine("excluded by epoch 3: why") in actions


def let_go():
    """An agent whose engine was let go by epoch 2, and has not yet crossed out."""
    return follow(
        up(),
        seen(version(1, 3, 7), version(2, 3)),
        Heard(2.0, Prepared(epoch=2, ok=True)),
        Heard(2.1, status()),
        seen(version(2, 3)),
    )[0]


def test_an_engine_that_was_let_go_is_asked_back_only_when_it_has_crossed_out():
    """Until then it runs under the table whose slots the next preparation may write (invariant 1)."""
    state, actions = follow(let_go(), seen(version(2, 3), version(3, 3, 7)))
    assert actions == [CallOff(stamp_of(2))], "nobody waits for it any more, and the flip may never come"
    _, actions = follow(state, Heard(2.4, Activated(epoch=2, step=9, waited_ms=0.1)))
    parked = Ack(rank=1, incarnation=7, epoch=2, prepared=True, activated=True, step=9)
    assert actions == [Publish(parked), prepare(3, 3, 7)]


def test_an_engine_that_crossed_out_before_its_agent_heard_of_the_commit_is_asked_back_at_once():
    state, _ = follow(
        up(),
        seen(version(1, 3, 7), version(2, 3)),
        Heard(2.0, Prepared(epoch=2, ok=True)),
        Heard(2.1, Activated(epoch=2, step=9, waited_ms=0.1)),
        seen(version(2, 3)),
    )
    assert follow(state, seen(version(2, 3), version(3, 3, 7)))[1] == [prepare(3, 3, 7)]


def test_a_released_engine_leaves_the_step_whose_flip_an_abort_made_needless():
    assert follow(let_go(), seen(version(3, 3, cut=Cut.ABORT)))[1] == [CallOff(stamp_of(2))]


def test_a_rank_that_leaves_while_it_crosses_out_stays_for_the_flip():
    state, actions = follow(let_go(), Leave(3.0, "SIGTERM", 20.0))
    assert not any(isinstance(action, EndEngine | Exit) for action in actions)
    _, actions = follow(state, Heard(3.1, Activated(epoch=2, step=9, waited_ms=0.1)))
    assert actions[-1] == Exit("left: SIGTERM")


def test_a_planned_farewell_waits_for_the_last_request_and_parks_the_engine_which_can_be_asked_back():
    state, actions = follow(up(), seen(version(1, 3, 7), version(2, 3)))
    assert actions == [prepare(2, 3)], "it still takes part in the last step of epoch 1"
    state, actions = follow(state, Heard(2.0, Prepared(epoch=2, ok=True)))
    assert actions == [Send(Ask())]
    state, actions = follow(state, Heard(2.0, status(running=1, waiting=2)))
    assert actions == [WakeAt(2.2)]
    state, actions = follow(state, Tick(2.2, 8))
    assert actions == [Send(Ask())]
    state, actions = follow(state, Heard(2.3, status()))
    assert actions == [Publish(Ack(rank=1, incarnation=7, epoch=2, prepared=True))]
    state, actions = follow(state, seen(version(2, 3)))
    assert actions == [Committed(2), Send(Commit(epoch=2, stamp=stamp_of(2), cut=Cut.PLANNED))]
    state, actions = follow(state, Heard(2.4, Activated(epoch=2, step=9, waited_ms=0.1)))
    assert actions == [Publish(Ack(rank=1, incarnation=7, epoch=2, prepared=True, activated=True, step=9))]
    assert follow(state, seen(version(3, 4)))[1] == [], "others' epochs are not its business"
    assert follow(state, seen(version(3, 4), version(4, 4, 7)))[1] == [prepare(4, 4, 7)]


def test_a_rank_that_leaves_is_drained_and_then_exits():
    state, actions = follow(up(), Leave(3.0, "SIGTERM", 20.0))
    asked = registered(ready=True, serve_url="http://r1", holds="d", leaving="SIGTERM")
    assert actions == [asked, Send(Drain(deadline_s=20.0)), WakeAt(23.0)]
    state, _ = follow(state, seen(version(1, 3, 7), version(2, 3)), Heard(4.0, Prepared(epoch=2, ok=True)))
    state, actions = follow(state, seen(version(2, 3)))
    assert actions == [Committed(2), Send(Commit(epoch=2, stamp=stamp_of(2), cut=Cut.PLANNED))], (
        "it takes part in the flip"
    )
    parked = Ack(rank=1, incarnation=7, epoch=2, prepared=True, activated=True, step=9)
    assert follow(state, Heard(5.0, Activated(epoch=2, step=9, waited_ms=0.1)))[1] == [
        Publish(parked),
        Exit("left: SIGTERM"),
    ]


def test_a_rank_that_leaves_exits_when_its_engine_crossed_out_before_the_agent_heard_of_the_commit():
    """A peer's agent heard first, and the peer's engine told ours in the step's row."""
    state, _ = follow(
        up(),
        Leave(3.0, "SIGTERM", 20.0),
        seen(version(1, 3, 7), version(2, 3)),
        Heard(4.0, Prepared(epoch=2, ok=True)),
        Heard(4.1, Activated(epoch=2, step=9, waited_ms=0.1)),
    )
    assert follow(state, seen(version(2, 3)))[1][-1] == Exit("left: SIGTERM")


def test_a_rank_that_nobody_lets_go_leaves_at_its_deadline():
    state, _ = follow(up(), Leave(3.0, "SIGTERM", 20.0))
    assert follow(state, Tick(22.9, 8))[1] == []
    late = "leave deadline passed"
    assert follow(state, Tick(23.0, 8))[1] == [EndEngine(late, fence=True), Exit(late)]


def test_a_rank_that_serves_nobody_leaves_at_once():
    state, _ = follow(State(identity=ME, policy=POLICY), Begin(0.0, 7))
    assert follow(state, Leave(1.0, "SIGTERM", 20.0))[1] == [EndEngine("SIGTERM", fence=False), Exit("SIGTERM")]


def test_a_rolled_back_plan_is_discarded_and_its_late_answer_ignored():
    state, _ = follow(up(), seen(version(1, 3, 7), version(2, 3, 7, 9)))
    state, actions = follow(state, seen(version(1, 3, 7)))
    assert actions == [Send(Discard(epoch=2))]
    assert follow(state, Heard(3.0, Prepared(epoch=2, ok=True)))[1] == []
    assert follow(state, seen(version(1, 3, 7), version(3, 3, 7, 9)))[1] == [prepare(3, 3, 7, 9)]


def test_a_failed_preparation_is_told():
    state, _ = follow(up(), seen(version(1, 3, 7), version(2, 3, 7, 9)))
    assert follow(state, Heard(3.0, Prepared(epoch=2, ok=False, error="expert 3: no source")))[1] == [
        Publish(Ack(rank=1, incarnation=7, epoch=2, prepared=False, error="expert 3: no source"))
    ]


def test_a_fault_of_the_data_plane_goes_up_as_evidence_only():
    fault = Fault(
        epoch=1, step=8, suspicions=(Suspicion(0, 3, Evidence.SILENT),), receive_wait_us=(5, 0), detected_unix_ns=1
    )
    assert follow(up(), Heard(3.0, fault))[1] == [
        Publish(
            FaultReport(
                reporter=1,
                incarnation=7,
                epoch=1,
                step=8,
                suspicions=fault.suspicions,
                receive_wait_us=(5, 0),
                detected_unix_ns=1,
            )
        )
    ]


def witness(*faults):
    """Rank 1 of five on one host and a sixth elsewhere, and what it does about ``faults`` at 3.0."""
    members = version(1, 3, 7, 3, 3, 3, 3)
    peers = tuple(Peer(rank=n, incarnation=3, host="b" if n == 5 else "a", link_address="/l") for n in range(6))
    plan = replace(PLAN, peers=peers)
    state = replace(up(), seen=EpochSeen(1.0, EpochRecord(committed=members, fence=5), plan, None))
    return follow(state, *(Heard(3.0, dead) for dead in faults))


def fault_of(*ranks):
    suspicions = tuple(Suspicion(rank, 3, Evidence.DEAD) for rank in ranks)
    return Fault(epoch=1, step=8, suspicions=suspicions, receive_wait_us=(), detected_unix_ns=1)


def told(*ranks):
    seen = tuple(Suspicion(rank, 3, Evidence.DEAD) for rank in ranks)
    report = FaultReport(reporter=1, incarnation=7, epoch=1, step=8, suspicions=seen, detected_unix_ns=1)
    return [Publish(report)]


def test_the_first_witness_of_a_death_speaks_at_once():
    assert witness(fault_of(0))[1] == told(0)


@pytest.mark.parametrize(("dead", "ahead"), [(4, 1), (3, 2), (2, 3)])
def test_the_others_leave_the_word_to_those_before_them(dead, ahead):
    """After 4 comes 0, then 1; rank 5 is on another host and cannot see it."""
    state, actions = witness(fault_of(dead))
    due = 3.0 + ahead * POLICY.accuse_turn_s
    assert actions == [WakeAt(due)]
    assert follow(state, Tick(due - 0.001, 8))[1] == []
    assert follow(state, Tick(due, 8))[1] == told(dead)


def test_nobody_speaks_of_a_death_that_an_epoch_has_answered():
    state, _ = witness(fault_of(3))
    state, _ = follow(state, seen(version(2, 3, 7, 3, 0, 3, 3, cut=Cut.ABORT)))
    assert follow(state, Tick(4.0, 8))[1] == []


def test_a_second_death_is_told_with_the_first_that_was_not_told_yet():
    state, _ = witness(fault_of(3), fault_of(2))
    assert follow(state, Tick(4.0, 8))[1] == told(3, 2)


def test_silence_is_told_by_everyone_at_once():
    fault = structs.replace(fault_of(4), suspicions=(Suspicion(4, 3, Evidence.SILENT),))
    assert isinstance(witness(fault)[1][0], Publish)


def test_a_step_left_on_a_peers_word_is_no_evidence():
    fault = Fault(epoch=1, step=8, suspicions=(), receive_wait_us=(5, 0), detected_unix_ns=1)
    assert follow(up(), Heard(3.0, fault)) == (up(), [])


def test_a_lost_lease_changes_nothing_but_the_lease():
    state = up()
    assert follow(state, LeaseGone(4.0)) == (state, [RenewLease("the lease is gone")])


def test_an_older_record_that_comes_late_changes_nothing():
    state, _ = follow(up(), seen(version(2, 0, 7, cut=Cut.ABORT)))
    assert follow(state, seen(version(1, 3, 7)))[1] == []
