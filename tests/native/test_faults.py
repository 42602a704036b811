"""The failure table: what must happen when a peer dies, stops, sleeps, disagrees or scribbles."""

import mmap
import os
import random
import signal
import threading
import time

import pytest

from native import _native
from tests.native import rounds
from tests.native.instances import enter, random_routing, shape_of, start
from tools.benchmarks.fleet import Fleet

Status = _native.Status
OK = Status.OK
TOKENS = [4, 1, 0, 3]
_OWNER_LINE = 896  # layout.hpp: dispatch, combine, four sync lines and gossip of 128 bytes come before
_FUTEX_OWNER_DIED = 0x40000000


def fleet_of(ranks=3, **options):
    shape = shape_of(ranks=4)
    routing = random_routing(shape, ranks)
    fleet = Fleet(shape, **options)
    return fleet, routing, start(fleet, routing, ranks)


def map_chunk(fleet, *, owner, source):
    """The chunk that ``source`` writes into at ``owner``, mapped here as a process that lives on would keep it."""
    number = fleet.ranks[owner].call(rounds.chunk_fd, source)
    fd = os.open(f"/proc/{fleet.ranks[owner].pid}/fd/{number}", os.O_RDWR)
    try:
        return mmap.mmap(fd, fleet.shape.chunk_bytes)
    finally:
        os.close(fd)


def checked_steps(fleet, routing, members, count=5):
    answers = fleet.call_all(rounds.steps, routing.live(members), TOKENS, count, ranks=members)
    assert answers == dict.fromkeys(members, (OK, 0))


def test_the_dead_are_named_by_everybody_and_replaced():
    fleet, routing, members = fleet_of()
    with fleet:
        checked_steps(fleet, routing, members)
        fleet.ranks[1].kill()
        answers = fleet.call_all(rounds.sync, 1, ranks=[0, 2])
        assert {rank: (status, suspects) for rank, (status, _, suspects, _) in answers.items()} == {
            0: (Status.SUSPECT, [1]),
            2: (Status.SUSPECT, [1]),
        }
        faults = fleet.call_all(rounds.fault_of, ranks=[0, 2])
        assert all(fault[:4] == (1, 1, -1, [1]) for fault in faults.values())
        assert {"DEAD"} <= {kind for fault in faults.values() for kind in fault[4]} <= {"DEAD", "GOSSIP"}
        assert fleet.call_all(rounds.sync, 1, ranks=[0, 2])[0][0] == Status.SUSPECT  # until a newer epoch
        enter(fleet, routing, 2, [0, 2])
        checked_steps(fleet, routing, [0, 2])
        fleet.rejoin(1)
        enter(fleet, routing, 3, members)
        checked_steps(fleet, routing, members)


def test_who_dies_after_the_step_broke_is_named_too_and_once():
    fleet, routing, _ = fleet_of(4)
    with fleet:
        assert not any(fleet.call_all(rounds.look_again).values())
        fleet.ranks[1].kill()
        left = [0, 2, 3]
        assert {answer[0] for answer in fleet.call_all(rounds.sync, 1, ranks=left).values()} == {Status.SUSPECT}
        assert not any(fleet.call_all(rounds.look_again, ranks=left).values()), "nobody else has died"
        fleet.ranks[3].kill()
        assert all(fleet.call_all(rounds.look_again, ranks=[0, 2]).values())
        assert all(fault[3] == [1, 3] for fault in fleet.call_all(rounds.fault_of, ranks=[0, 2]).values())
        assert not any(fleet.call_all(rounds.look_again, ranks=[0, 2]).values())
        enter(fleet, routing, 2, [0, 2])
        checked_steps(fleet, routing, [0, 2])


def test_the_kernel_tells_of_a_death_in_the_link_itself():
    fleet, _, _ = fleet_of(2)
    with fleet:
        chunk = map_chunk(fleet, owner=1, source=0)
        line = chunk[_OWNER_LINE : _OWNER_LINE + 4]
        assert 0 < int.from_bytes(line, "little") < _FUTEX_OWNER_DIED
        fleet.ranks[1].kill()
        assert int.from_bytes(chunk[_OWNER_LINE : _OWNER_LINE + 4], "little") & _FUTEX_OWNER_DIED


def test_a_stopped_rank_is_silent_and_fences_itself_when_it_wakes():
    fleet, routing, _ = fleet_of(timeout_s=0.3)
    with fleet:
        fleet.ranks[2].begin(rounds.late_sync, 0.2)
        time.sleep(0.05)
        os.kill(fleet.ranks[2].pid, signal.SIGSTOP)
        answers = fleet.call_all(rounds.sync, 1, ranks=[0, 1])
        assert all((status, suspects) == (Status.SUSPECT, [2]) for status, _, suspects, _ in answers.values())
        kinds = {kind for fault in fleet.call_all(rounds.fault_of, ranks=[0, 1]).values() for kind in fault[4]}
        assert "SILENT" in kinds
        enter(fleet, routing, 2, [0, 1])
        os.kill(fleet.ranks[2].pid, signal.SIGCONT)
        assert fleet.ranks[2].answer()[0] == OK  # every row of that sync had come while it was stopped
        assert fleet.ranks[2].call(rounds.sync, 1)[0] == Status.FENCED
        checked_steps(fleet, routing, [0, 1])


def test_every_survivor_is_a_witness_of_silence_itself():
    fleet, _, _ = fleet_of(4, timeout_s=0.4)
    with fleet:
        os.kill(fleet.ranks[3].pid, signal.SIGSTOP)
        time.sleep(0.05)
        for rank, delay_s in enumerate((0.0, 0.05, 0.1)):  # the first one's time-out ends before the others'
            fleet.ranks[rank].begin(rounds.late_sync, delay_s)
        assert [fleet.ranks[rank].answer()[2] for rank in range(3)] == [[3]] * 3
        faults = fleet.call_all(rounds.fault_of, ranks=[0, 1, 2])
        assert {rank: fault[3:] for rank, fault in faults.items()} == dict.fromkeys(range(3), ([3], ["SILENT"]))
        os.kill(fleet.ranks[3].pid, signal.SIGCONT)


def test_whoever_sees_the_accused_move_leaves_on_the_accusers_word_only():
    fleet, _, _ = fleet_of(3, timeout_s=0.2, hard_timeout_s=1.0)
    with fleet:
        fleet.ranks[0].begin(rounds.sync, 0)
        fleet.ranks[1].begin(rounds.late_sync, 0.6)  # rank 2 lives, and takes no part
        assert [fleet.ranks[rank].answer()[2] for rank in (0, 1)] == [[2], [2]]
        faults = fleet.call_all(rounds.fault_of, ranks=[0, 1])
        assert [faults[rank][4] for rank in (0, 1)] == [["SLOW"], ["GOSSIP"]]


def test_a_slow_rank_is_waited_for():
    fleet, _, members = fleet_of(timeout_s=0.2)
    with fleet:
        for rank in members:
            fleet.ranks[rank].begin(rounds.late_sync, 0.7 if rank == 1 else 0.0)
        assert [fleet.ranks[rank].answer()[0] for rank in members] == [OK] * 3
        assert fleet.ranks[0].call(rounds.fault_of)[3:] == ([1], ["SLOW"])  # told, not acted upon


def test_warm_up_is_no_silence():
    fleet, _, _ = fleet_of(2, timeout_s=0.2)
    with fleet:
        fleet.ranks[1].begin(rounds.late_sync, 0.1, _native.Phase.WARMING)
        fleet.ranks[0].begin(rounds.sync, 0)
        time.sleep(0.1)
        os.kill(fleet.ranks[1].pid, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(fleet.ranks[1].pid, signal.SIGCONT)
        assert fleet.ranks[0].answer()[0] == OK
        assert fleet.ranks[1].answer()[0] == OK


def test_no_wait_is_longer_than_its_hard_deadline():
    fleet, _, _ = fleet_of(2, timeout_s=0.1, hard_timeout_s=0.5)
    with fleet:
        status, _, suspects, seconds = fleet.ranks[0].call(rounds.sync, 0)
        assert (status, suspects) == (Status.SUSPECT, [1])
        assert 0.5 <= seconds < 1.5
        assert fleet.ranks[0].call(rounds.fault_of)[4] == ["SLOW"]


@pytest.mark.parametrize("how", ["abort", "fence"])
def test_the_agent_ends_a_wait(how):
    fleet, routing, _ = fleet_of(2)
    with fleet:
        fleet.ranks[0].begin(rounds.sync, 0)
        time.sleep(0.1)
        if how == "abort":
            fleet.ranks[0].control.abort(2)
        else:
            fleet.ranks[0].control.fenced = True
        status, rows, suspects, seconds = fleet.ranks[0].answer()
        assert (status, suspects) == (Status.ABORTED if how == "abort" else Status.FENCED, [])
        assert len(rows) == 1
        assert seconds < 5
        if how == "abort":
            enter(fleet, routing, 2, [0, 1])
            checked_steps(fleet, routing, [0, 1])


def test_a_rank_in_an_older_epoch_is_told():
    fleet, routing, members = fleet_of(2)
    with fleet:
        fleet.ranks[1].begin(rounds.sync, 0)
        incarnations = {rank: fleet.ranks[rank].incarnation for rank in members}
        fleet.ranks[0].call(rounds.stage, routing, 2, incarnations)
        fleet.ranks[0].call(rounds.activate, 2)
        assert fleet.ranks[1].answer()[0] == Status.EPOCH_SKEW
        fleet.ranks[0].begin(rounds.steps, routing, TOKENS, 3)
        fleet.ranks[1].call(rounds.stage, routing, 2, incarnations)
        fleet.ranks[1].call(rounds.activate, 2)
        assert fleet.ranks[1].call(rounds.steps, routing, TOKENS, 3) == (OK, 0)
        assert fleet.ranks[0].answer() == (OK, 0)


def test_two_ranks_that_blame_each_other_both_say_so():
    fleet, routing, _ = fleet_of(3, timeout_s=0.3)
    with fleet:
        enter(fleet, routing, 2, [2])  # leave ranks 0 and 1 a moment in which neither counts on the other
        enter(fleet, routing, 2, [0])
        enter(fleet, routing, 2, [1])
        fleet.ranks[0].call(rounds.renew, 1)  # what one writes, the other never sees, in both directions
        fleet.ranks[1].call(rounds.renew, 0)
        enter(fleet, routing, 3, [0, 1])
        answers = fleet.call_all(rounds.sync, 0, ranks=[0, 1])
        assert [answers[rank][::2][:2] for rank in (0, 1)] == [(Status.SUSPECT, [1]), (Status.SUSPECT, [0])]


def test_a_zombie_that_scribbles_on_all_it_ever_mapped_changes_nothing():
    fleet, routing, members = fleet_of()
    with fleet:
        held = [map_chunk(fleet, owner=owner, source=1) for owner in (0, 2)]
        held += [map_chunk(fleet, owner=1, source=source) for source in (0, 2)]
        checked_steps(fleet, routing, members)
        fleet.ranks[1].kill()
        fleet.call_all(rounds.sync, 0, ranks=[0, 2])
        enter(fleet, routing, 2, [0, 2])
        stop = threading.Event()
        scribbler = threading.Thread(target=scribble, args=(held, stop))
        scribbler.start()
        try:
            checked_steps(fleet, routing, [0, 2], count=40)
            fleet.rejoin(1)
            enter(fleet, routing, 3, members)
            checked_steps(fleet, routing, members, count=40)
        finally:
            stop.set()
            scribbler.join()


def scribble(chunks, stop):
    dice = random.Random(7)
    while not stop.is_set():
        for chunk in chunks:
            chunk[:] = dice.choice([b"\xff" * len(chunk), dice.randbytes(len(chunk))])


def test_an_excluded_rank_is_written_to_by_nobody():
    fleet, routing, members = fleet_of()
    with fleet:
        checked_steps(fleet, routing, members)
        guards = [map_chunk(fleet, owner=1, source=source) for source in (0, 2)]
        enter(fleet, routing, 2, [0, 2])
        before = [guard[:_OWNER_LINE] + guard[4096:] for guard in guards]
        checked_steps(fleet, routing, [0, 2], count=20)
        assert [guard[:_OWNER_LINE] + guard[4096:] for guard in guards] == before


def test_a_hundred_rejoins_into_one_slot_leak_nothing_and_touch_no_healthy_pair():
    fleet, routing, members = fleet_of()
    with fleet:
        healthy = [0, 2]
        for epoch in range(2, 104):
            fleet.ranks[1].kill()
            assert fleet.call_all(rounds.sync, 0, ranks=healthy)[0][0] == Status.SUSPECT
            fleet.rejoin(1)
            enter(fleet, routing, epoch, members)
            checked_steps(fleet, routing, members, count=1)
            if epoch == 3:
                settle(fleet)
                before = fleet.call_all(rounds.resources, ranks=healthy)
        settle(fleet)
        after = fleet.call_all(rounds.resources, ranks=healthy)
        for rank, other in ((0, 2), (2, 0)):
            assert after[rank][0] == before[rank][0]
            assert after[rank][1] < before[rank][1] + 10  # the C library may map an arena; a leak would be a hundred
            assert dict(after[rank][2])[other] == dict(before[rank][2])[other]
        assert all(fleet.ranks[rank].call(rounds.counters)["renewed_inboxes"] == 102 for rank in healthy)


def settle(fleet):
    """The next spare chunk is made in the background; it counts once it is there."""
    time.sleep(0.2)
    fleet.call_all(rounds.counters)


def test_an_active_rank_is_not_fenced():
    fleet, _, _ = fleet_of(2)
    with fleet, pytest.raises(RuntimeError, match="active in epoch 1"):
        fleet.link(1, 0, fresh=True)


def test_an_idle_rank_sleeps_until_a_peer_begins():
    fleet, _, _ = fleet_of(2)
    with fleet:
        fleet.ranks[1].begin(rounds.sleep_until_rung, 10.0)
        time.sleep(0.2)
        fleet.ranks[0].begin(rounds.sync, 0)
        assert fleet.ranks[1].answer() == [False, True]
        assert fleet.ranks[1].call(rounds.sync, 0)[0] == OK
        assert fleet.ranks[0].answer()[0] == OK


def test_the_agents_word_rings_the_doorbell():
    fleet, _, _ = fleet_of(2)
    with fleet:
        fleet.ranks[1].begin(rounds.sleep_until_rung, 2.0)
        time.sleep(0.2)
        fleet.ranks[1].control.commit(2)
        time.sleep(0.2)
        fleet.ranks[0].begin(rounds.sync, 0)
        assert fleet.ranks[1].answer() == [False, False, True]


def test_a_wait_leaves_other_threads_running_and_takes_one_caller():
    fleet, _, _ = fleet_of(2)
    with fleet:
        fleet.ranks[0].begin(rounds.ticks_while_waiting)
        fleet.ranks[1].begin(rounds.late_sync, 0.3)
        status, ticks = fleet.ranks[0].answer()
        assert status == OK
        assert ticks > 10
        fleet.ranks[1].answer()
        fleet.ranks[0].begin(rounds.reentered)
        fleet.ranks[1].begin(rounds.late_sync, 0.3)
        assert "one step at a time" in fleet.ranks[0].answer()


def test_an_idle_rank_costs_next_to_nothing():
    fleet, _, _ = fleet_of(2)
    with fleet:
        assert fleet.ranks[0].call(rounds.idle_share, 3.0) < 0.01
