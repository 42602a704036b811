"""Survivors run a broken step again before the loss is decided, and hold what comes out until it is."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from schemas.messages import Activated, Fault
from schemas.placement import EMPTY, Placement
from schemas.vocabulary import Cut, Evidence, stamp_of
from tests.engine.ranks import EXPERTS, LAYERS, Ranks
from worker.engine.errors import StepAbandonedError

ALL = [0, 1, 2]


@pytest.fixture
def ranks(tmp_path):
    made = Ranks(tmp_path, 3)
    yield made
    made.close()


def everywhere(ranks, members=ALL, *, slots=12):
    """Every expert on every member."""
    table = np.full((LAYERS, ranks.max_ranks, slots), EMPTY, dtype=np.uint16)
    table[:, members, :EXPERTS] = np.arange(EXPERTS)
    return Placement(slots=table, weights=np.where(table == EMPTY, 0, 1).astype(np.uint16), n_experts=EXPERTS)


def formed(ranks, placement):
    ranks.prepare(1, placement, ALL)
    ranks.commit(1, ALL)
    assert ranks.step(dict.fromkeys(ALL, 1)) == dict.fromkeys(ALL, 1)


def die(ranks, rank):
    ranks.engines[rank].group.close()


def went_on(ranks, lost, tokens):
    """Everybody else steps without ``lost``."""
    die(ranks, lost)
    assert ranks.step(tokens) == dict.fromkeys(tokens, 1)
    views = [ranks.engines[rank].membership.current for rank in tokens]
    assert {(view.epoch, view.stamp, view.decided) for view in views} == {(1, stamp_of(1, without=lost), False)}


class Holding:
    """``lockstep.hold`` on a thread of its own."""

    def __init__(self, engine):
        self.failure = None
        self._thread = threading.Thread(target=self._run, args=(engine,), daemon=True)
        self._thread.start()

    def _run(self, engine):
        try:
            engine.lockstep.hold()
        except StepAbandonedError as failure:
            self.failure = failure

    def waits(self, seconds=0.2):
        self._thread.join(seconds)
        return self._thread.is_alive()

    def ended(self):
        self._thread.join(10.0)
        assert not self._thread.is_alive(), "the step's result is still held"
        return self.failure


def test_stamps_order_what_may_follow_what():
    order = [stamp_of(1), stamp_of(1, without=0), stamp_of(1, without=127), stamp_of(2), stamp_of(2, without=3)]
    assert order == sorted(set(order))
    assert stamp_of(2**24 - 1, without=127) < 2**32


def test_the_step_runs_at_once_and_what_comes_out_is_held_until_an_epoch_says_the_same(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 2, 1: 1})
    holding = [Holding(ranks.engines[rank]) for rank in (0, 1)]
    assert all(one.waits() for one in holding)
    faults = [said for said in ranks.engines[0].said if isinstance(said, Fault)]
    assert [(s.rank, s.evidence) for fault in faults for s in fault.suspicions] == [(2, Evidence.DEAD)]
    assert {fault.epoch for fault in faults} == {1}

    stamp = stamp_of(1, without=2)
    answers = ranks.prepare(2, everywhere(ranks, [0, 1]), [0, 1], cut=Cut.ABORT, stamp=stamp)
    ranks.commit(2, [0, 1], Cut.ABORT, stamp=stamp)
    assert [one.ended() for one in holding] == [None, None]
    assert all(answer.ok for answer in answers.values())
    assert ranks.epochs() == {0: 2, 1: 2, 2: 1}
    assert [said.epoch for said in ranks.engines[0].said if isinstance(said, Activated)] == [1, 2]
    assert 2 not in ranks.engines[0].group.linked(), "the link to the dead stays"
    assert ranks.step({0: 1, 1: 1}) == {0: 1, 1: 1}
    assert ranks.engines[0].membership.current.stamp == stamp


def test_who_goes_on_after_a_preparation_came_and_before_it_begins_runs_under_that_version(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 2, 1: 1})
    holding = Holding(ranks.engines[0])
    membership = ranks.engines[0].membership
    members = tuple(ranks.engines[rank].member for rank in (0, 1))
    assert not membership.begin(2, members, Cut.ABORT, stamp=stamp_of(1, without=2)), "nothing is to be prepared"
    assert holding.ended() is None
    assert (membership.current.epoch, membership.current.decided, membership.overruled) == (2, True, False)


def test_an_idle_rank_tells_that_it_is_decided(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 2, 1: 0})
    ranks.prepare(2, everywhere(ranks, [0, 1]), [0, 1], cut=Cut.ABORT, stamp=stamp_of(1, without=2))
    assert not ranks.engines[1].lockstep.wanted()
    assert [said.epoch for said in ranks.engines[1].said if isinstance(said, Activated)] == [1, 2]


def test_when_something_else_is_decided_the_step_is_given_up(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 2, 1: 1})
    holding = Holding(ranks.engines[0])
    assert holding.waits()
    ranks.prepare(2, everywhere(ranks, [0, 1]), [0, 1], cut=Cut.ABORT)
    ranks.commit(2, [0, 1], Cut.ABORT)
    failure = holding.ended()
    assert failure is not None
    ranks.engines[0].lockstep.abandon(failure)
    assert ranks.step({0: 2, 1: 1}) == {0: 1, 1: 1}
    assert ranks.epochs() == {0: 2, 1: 2, 2: 1}
    assert {ranks.engines[rank].membership.current.stamp for rank in (0, 1)} == {stamp_of(2)}


def test_an_expert_without_another_copy_is_waited_for(ranks):
    formed(ranks, ranks.placement(ALL))
    die(ranks, 2)
    assert ranks.engines[0].enter(1).waits()
    assert ranks.engines[0].membership.current.decided


def test_two_deaths_are_waited_for(ranks):
    formed(ranks, everywhere(ranks))
    die(ranks, 1)
    die(ranks, 2)
    assert ranks.engines[0].enter(1).waits()
    assert ranks.engines[0].membership.current.decided


def test_a_second_death_before_the_first_is_decided_is_waited_for(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 1, 1: 1})
    die(ranks, 1)
    step = ranks.engines[0].enter(1)
    assert step.waits()
    ranks.prepare(2, everywhere(ranks, [0]), [0], cut=Cut.ABORT)
    ranks.commit(2, [0], Cut.ABORT)
    assert step.rounds() == 1
    assert ranks.epochs()[0] == 2


def test_what_breaks_before_the_first_death_is_decided_is_told_again_of_the_decided_epoch(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 1, 1: 1})
    die(ranks, 1)
    engine = ranks.engines[0]
    assert engine.enter(1).waits()
    ranks.prepare(2, everywhere(ranks, [0, 1]), [0], cut=Cut.ABORT, stamp=stamp_of(1, without=2))

    def told():
        faults = [(said.epoch, s.rank) for said in engine.said if isinstance(said, Fault) for s in said.suspicions]
        return [epoch for epoch, rank in faults if rank == 1]

    limit = time.monotonic() + 10.0
    while told() != [1, 2] and time.monotonic() < limit:
        time.sleep(0.01)
    assert told() == [1, 2]
    assert [said.epoch for said in engine.said if isinstance(said, Activated)] == [1, 2]
    ranks.prepare(3, everywhere(ranks, [0]), [0], cut=Cut.ABORT)
    ranks.commit(3, [0], Cut.ABORT)


def test_who_has_not_seen_the_death_joins_the_others_when_it_is_decided(ranks):
    formed(ranks, everywhere(ranks))
    die(ranks, 2)
    step = ranks.engines[0].enter(1)
    assert step.waits(), "rank 1 is not there yet"
    stamp = stamp_of(1, without=2)
    ranks.engines[1].control.abort(stamp)
    ranks.prepare(2, everywhere(ranks, [0, 1]), [0, 1], cut=Cut.ABORT, stamp=stamp)
    ranks.commit(2, [0, 1], Cut.ABORT, stamp=stamp)
    assert ranks.engines[1].enter(0).rounds() == 1
    assert step.rounds() == 1
    assert ranks.epochs() == {0: 2, 1: 2, 2: 1}


def test_who_went_on_without_another_rank_says_so_and_follows_a_version_of_its_own(ranks):
    formed(ranks, everywhere(ranks))
    went_on(ranks, 2, {0: 1, 1: 1})
    other = stamp_of(1, without=1)
    refused = ranks.prepare(2, everywhere(ranks, [0, 2]), [0], cut=Cut.ABORT, stamp=other)[0]
    assert not refused.ok
    assert "went on without another one" in refused.error
    ranks.prepare(3, everywhere(ranks, [0, 1]), [0, 1], cut=Cut.ABORT)
    ranks.commit(3, [0, 1], Cut.ABORT)
    assert ranks.step({0: 1, 1: 1}) == {0: 1, 1: 1}
    assert ranks.epochs() == {0: 3, 1: 3, 2: 1}


def test_a_planned_epoch_that_was_staged_before_the_death_can_still_be_crossed_into(ranks):
    formed(ranks, everywhere(ranks))
    ranks.prepare(2, everywhere(ranks, [0, 1]), [0, 1], also=[2])
    went_on(ranks, 2, {0: 1, 1: 1})
    ranks.commit(2, [0, 1])
    assert ranks.step({0: 1, 1: 1}) == {0: 1, 1: 1}
    assert ranks.epochs()[0] == ranks.epochs()[1] == 2
    assert ranks.engines[0].membership.current.decided
