"""The receive-wait matrix judged: who waits for whom, what is made of it, and that it comes to rest."""

from __future__ import annotations

from statistics import median, median_low

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controlplane.coordinator.slowness import paces
from controlplane.coordinator.state import SECOND, Kind
from schemas.policy import Spec
from schemas.records import ReceiveWait
from tests.coordinator.instance import Instance, traffic

EVERY_S = 5.0


def formed(ranks: int = 4, **policy) -> Instance:
    instance = Instance(experts=8, slots=8, spec=Spec(form_wait_s=1.0, **policy))
    instance.form(ranks)
    return instance


def all_wait(instance: Instance, slow: int, share: float, *, rows: int, but: tuple[int, ...] = ()) -> None:
    for _ in range(rows):
        for rank in instance.members:
            if rank not in but:
                instance.waits(rank, **({f"_{slow}": share} if rank != slow else {}))
        instance.elapse(EVERY_S)


def test_a_rank_that_its_peers_wait_for_again_and_again_is_planned_with_less():
    instance = formed()
    all_wait(instance, 2, 0.4, rows=2)
    assert instance.state.view(2).slow == 1.0  # not yet: two rows may be chance
    all_wait(instance, 2, 0.4, rows=1)
    assert instance.state.view(2).slow == pytest.approx(0.61)
    assert instance.state.view(2).waited == pytest.approx(0.39)
    assert "health: rank 2 counts 61%" in instance.reasons
    assert "moving slots to the wanted placement" in instance.reasons
    instance.work()
    assert instance.members == [0, 1, 2, 3]
    assert instance.state_of(2) == "suspect"
    assert instance.state.view(2).reason == (
        "slow: its peers waited for it 39% of the time, planned with 61% of its speed"
    )
    assert traffic(instance.live)[2] < 0.8 * traffic(instance.live)[0]
    assert instance.state.record.committed.cut == "planned"


def test_one_bad_row_is_forgiven():
    instance = formed()
    all_wait(instance, 2, 0.01, rows=3)
    for _ in range(3):
        all_wait(instance, 2, 0.9, rows=1)
        all_wait(instance, 2, 0.01, rows=2)
    assert instance.state.view(2).slow == 1.0
    assert instance.epoch == 1


@pytest.mark.parametrize("silent", [(0, 1), (0, 3)])
def test_half_of_the_peers_do_not_make_a_verdict(silent):
    instance = formed()
    all_wait(instance, 2, 0.9, rows=6, but=silent)
    assert paces(instance.state) == {}
    assert instance.state.view(2).slow == 1.0


def test_one_complainer_alone_is_outvoted():
    instance = formed()
    for _ in range(6):
        for rank in instance.members:
            instance.waits(rank, **({"_2": 0.9} if rank == 0 else {}))
        instance.elapse(EVERY_S)
    assert instance.state.view(2).slow == 1.0


def test_what_everybody_waits_for_everybody_is_nobodys_fault():
    instance = formed()
    for _ in range(6):
        for rank in instance.members:
            instance.waits(rank, _0=0.6, _1=0.5, _2=0.7, _3=0.6)
        instance.elapse(EVERY_S)
    assert instance.epoch == 1
    assert [view.slow for view in instance.state.status.ranks] == [1.0] * 4


@pytest.mark.parametrize(("mine", "others", "judged"), [(1, 0, False), (6, 4, False), (4, 4, True), (5, 4, True)])
def test_a_rank_with_more_requests_than_the_others_is_busy_not_slow(mine, others, judged):
    instance = formed()
    for _ in range(4):
        for rank in instance.members:
            instance.waits(rank, running=mine if rank == 2 else others, **({"_2": 0.5} if rank != 2 else {}))
        instance.elapse(EVERY_S)
    assert (instance.state.view(2).slow < 1.0) is judged


def test_of_two_ranks_nobody_can_tell_who_is_slow():
    instance = formed(2)
    all_wait(instance, 1, 0.9, rows=6)
    assert instance.epoch == 1


def test_rows_of_another_epoch_or_process_count_for_nothing():
    instance = formed()
    for rank in instance.members:
        for epoch, incarnation in ((0, 1), (1, 7)):
            row = ReceiveWait(rank=rank, incarnation=incarnation, epoch=epoch, share=(0.0, 0.0, 0.9, 0.0))
            for _ in range(6):
                instance.put(Kind.WAIT, rank, row)
    instance.elapse(10)
    assert paces(instance.state) == {}
    assert instance.epoch == 1


def test_an_idle_instance_says_nothing_about_anybody():
    instance = formed()
    all_wait(instance, 2, 0.4, rows=3)
    instance.work()
    slow = instance.state.view(2).slow
    all_wait(instance, 2, 0.4, rows=3)
    for rank in instance.members:
        row = ReceiveWait(rank=rank, incarnation=1, epoch=instance.epoch, share=(0.0,) * 4)
        instance.put(Kind.WAIT, rank, row)
    assert paces(instance.state) == {}
    before = instance.state.view(2).slow
    instance.elapse(200)
    instance.work()
    assert 2 in instance.members  # an old complaint does not drain it
    assert instance.state.view(2).slow == before <= slow


def test_the_policy_can_leave_it_to_complaints():
    instance = formed(slow_wait_share=1.0)
    all_wait(instance, 2, 0.99, rows=6)
    assert instance.epoch == 1


def test_nothing_is_judged_while_paused():
    instance = formed()
    instance.ask("pause")
    all_wait(instance, 2, 0.6, rows=6)
    assert instance.epoch == 1
    assert instance.state.view(2).slow == 1.0


def test_a_rank_that_stays_slow_with_little_to_do_is_drained():
    instance = formed(slow_drain_s=60.0)
    for _ in range(6):
        all_wait(instance, 2, 0.7, rows=4)
        instance.work()
    assert instance.members == [0, 1, 3]
    assert "slow for" in instance.state.view(2).reason


def test_a_successor_waits_for_rows_of_its_own_and_keeps_what_was_decided():
    instance = formed()
    all_wait(instance, 2, 0.4, rows=3)
    instance.work()
    slow = instance.state.view(2).slow
    all_wait(instance, 2, 0.4, rows=2)
    instance.succeed()
    instance.elapse(1)
    assert paces(instance.state) == {}
    assert instance.state.view(2).slow == slow


@pytest.mark.parametrize("true_speed", [0.8, 0.6, 0.5])
def test_measure_and_shift_come_to_rest_and_go_back_when_the_rank_is_well_again(true_speed):
    instance = formed(slow_drain_s=600.0)
    speed = dict.fromkeys(instance.members, 1.0) | {2: true_speed}
    steps(instance, speed, rows=30)
    settled = instance.epoch
    steps(instance, speed, rows=20)
    assert instance.epoch == settled, instance.reasons[-10:]
    worst = max(traffic(instance.live)[rank] / speed[rank] for rank in instance.members)
    assert (
        worst * sum(speed.values()) < 1.45
    )  # step time ÷ the best there is; the threshold of 0.3 allows 1 / (1 - 0.3)
    steps(instance, dict.fromkeys(speed, 1.0), rows=60)
    assert instance.state.view(2).slow > 0.85
    assert instance.members == [0, 1, 2, 3]


def steps(instance: Instance, speed: dict[int, float], *, rows: int) -> None:
    """What ranks of these speeds see of each other under the table that is live: the last one is waited for."""
    for _ in range(rows):
        took = {rank: float(traffic(instance.live)[rank]) / speed[rank] for rank in instance.members}
        longest = max(took.values())
        for rank in instance.members:
            shares = {f"_{peer}": max(took[peer] - took[rank], 0.0) / longest + 0.01 for peer in instance.members}
            instance.waits(rank, **shares)
        instance.elapse(EVERY_S, step_s=1.0)
        instance.work()


def plain(instance: Instance) -> dict[int, tuple[float, float]]:
    """The paces as they are defined, one rank at a time: (waited for, waiting)."""
    state, members = instance.state, instance.members
    rows = {
        reporter: {rank: median(row.share[rank] for row in kept) for rank in members}
        for reporter, kept in state.waits.items()
    }
    columns = {r: [row[r] for reporter, row in rows.items() if reporter != r] for r in members}
    heard = {r: median_low(column) for r, column in columns.items() if len(column) >= 2}
    idle = {r: max(share for peer, share in row.items() if peer != r) for r, row in rows.items()}
    running = {r: median(row.running for row in state.waits[r]) for r in rows}

    def beyond(table, rank):
        return table[rank] - median([other for peer, other in table.items() if peer != rank])

    judged = [r for r in heard if r in rows and running[r] <= 1.25 * (running[r] - beyond(running, r))]
    return {r: (beyond(heard, r), beyond(idle, r)) for r in judged}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.integers(3, 7))
def test_the_matrix_is_judged_as_it_is_defined(data, ranks):
    instance = Instance(spec=Spec(form_wait_s=1.0, slow_wait_share=1.0))
    instance.form(ranks)
    speaking = data.draw(st.sets(st.integers(0, ranks - 1), min_size=max(ranks // 2 + 1, 2)))
    share = st.floats(0, 1)
    for rank in speaking:
        for _ in range(3):
            row = tuple(data.draw(st.lists(share, min_size=ranks, max_size=ranks)))
            wait = ReceiveWait(
                rank=rank, incarnation=1, epoch=1, share=(*row, 1.0), running=data.draw(st.integers(1, 9))
            )
            instance.put(Kind.WAIT, rank, wait)
    assume(all(any(kept[-1].share) for kept in instance.state.waits.values()))
    found = {rank: (pace.waited_for, pace.waiting) for rank, pace in paces(instance.state).items()}
    wanted = plain(instance)
    assert found.keys() == wanted.keys()
    assert all(found[rank] == pytest.approx(wanted[rank]) for rank in wanted)


def test_the_matrix_is_judged_at_most_once_a_second():
    instance = formed()
    all_wait(instance, 2, 0.01, rows=3)
    instance.waits(0, _2=0.5)
    judged = instance.state.pace
    assert judged.at == instance.now, "nothing is waited for that came alone"
    instance.waits(1, _2=0.5)
    instance.elapse(0.5)
    assert instance.state.pace is judged
    instance.elapse(0.6)
    assert instance.state.pace.at == judged.at + SECOND
    instance.elapse(5.0)
    assert instance.state.pace.at == judged.at + SECOND, "the same rows are not judged again"


@pytest.mark.parametrize("ranks", [3, 4])
def test_a_rank_so_slow_that_it_waits_for_nobody_is_judged_although_it_says_so_only_once(ranks):
    instance = formed(ranks)
    nobody = ReceiveWait(rank=1, incarnation=1, epoch=instance.epoch, share=(0.0,) * ranks, running=4)
    instance.put(Kind.WAIT, 1, nobody)
    for _ in range(3):
        for rank in instance.members:
            if rank != 1:
                instance.waits(rank, _1=0.5)
        instance.elapse(EVERY_S)
    assert instance.state.view(1).slow < 0.6
    assert [instance.state.view(rank).slow for rank in instance.members if rank != 1] == [1.0] * (ranks - 1)
