"""Epochs on real groups: who may link, when tables switch, what a rank does that is left out or lacks experts."""

import numpy as np
import pytest

from schemas.messages import Activated, Fault
from schemas.placement import EMPTY, Placement
from schemas.vocabulary import Cut, stamp_of
from tests.engine.ranks import EXPERTS, Ranks


@pytest.fixture
def ranks(tmp_path):
    made = Ranks(tmp_path, 3)
    yield made
    made.close()


def first_epoch(ranks, members):
    answers = ranks.prepare(1, ranks.placement(members), members)
    assert {answer.ok for answer in answers.values()} == {True}, answers
    ranks.commit(1, members)
    return ranks.step(dict.fromkeys(members, 1))


def test_start_up_is_a_planned_change_from_nothing(ranks):
    assert first_epoch(ranks, [0, 1, 2]) == {0: 1, 1: 1, 2: 1}
    assert ranks.epochs() == {0: 1, 1: 1, 2: 1}
    for engine in ranks.engines.values():
        assert [said.epoch for said in engine.said if isinstance(said, Activated)] == [1]


def test_rounds_are_what_the_busiest_rank_needs(ranks):
    first_epoch(ranks, [0, 1, 2])
    assert ranks.step({0: 0, 1: 33, 2: 16}) == {0: 3, 1: 3, 2: 3}
    assert ranks.step({0: 0, 1: 0, 2: 0}) == {0: 0, 1: 0, 2: 0}


def test_a_commit_waits_for_a_step_boundary_of_everybody(ranks):
    first_epoch(ranks, [0, 1, 2])
    ranks.prepare(2, ranks.placement([0, 1], half=1), [0, 1, 2])
    ranks.commit(2, [0])  # one rank has heard: its row tells the others
    early = ranks.engines[0].enter(4)
    assert early.waits()
    assert ranks.epochs() == {0: 1, 1: 1, 2: 1}
    rest = [ranks.engines[rank].enter(0) for rank in (1, 2)]
    assert [stepping.rounds() for stepping in (early, *rest)] == [1, 1, 1]
    assert ranks.epochs() == {0: 2, 1: 2, 2: 2}


def test_nobody_crosses_while_a_rank_has_not_prepared(ranks):
    first_epoch(ranks, [0, 1, 2])
    ranks.prepare(2, ranks.placement([0, 1, 2], half=1), [0, 1, 2])
    ranks.engines[2].membership.discard(2)
    ranks.commit(2, [0, 1])
    assert ranks.step({0: 1, 1: 1, 2: 1}) == {0: 1, 1: 1, 2: 1}
    assert ranks.epochs() == {0: 1, 1: 1, 2: 1}


def test_a_joiner_meets_the_others_in_the_new_epoch(ranks):
    first_epoch(ranks, [0, 1])
    ranks.prepare(2, ranks.placement([0, 1, 2], half=1), [0, 1, 2])
    ranks.commit(2, [0, 1, 2])
    joiner = ranks.engines[2].enter(0)
    assert joiner.waits()
    assert ranks.step({0: 5, 1: 0}) == {0: 1, 1: 1}
    assert joiner.rounds() == 1
    assert ranks.epochs() == {0: 2, 1: 2, 2: 2}


def test_a_rank_that_leaves_takes_part_in_the_flip_and_then_rests(ranks):
    first_epoch(ranks, [0, 1, 2])
    ranks.prepare(2, ranks.placement([0, 1], half=1), [0, 1], also=[2])
    ranks.commit(2, [0, 1, 2])
    assert ranks.step({0: 3, 1: 0, 2: 0}) == {0: 1, 1: 1, 2: 0}
    assert not ranks.engines[2].lockstep.wanted()
    assert ranks.step({0: 3, 1: 0}) == {0: 1, 1: 1}


def test_an_abort_ends_the_wait_for_a_rank_that_never_comes(ranks):
    first_epoch(ranks, [0, 1, 2])
    stuck = [ranks.engines[rank].enter(1) for rank in (0, 1)]
    assert all(stepping.waits() for stepping in stuck)
    for rank in (0, 1):
        ranks.engines[rank].control.abort(stamp_of(2))
    answers = ranks.prepare(2, ranks.placement([0, 1], half=1), [0, 1], cut=Cut.ABORT)
    assert {answer.ok for answer in answers.values()} == {True}, answers
    ranks.commit(2, [0, 1], Cut.ABORT)
    assert [stepping.rounds() for stepping in stuck] == [1, 1]
    assert ranks.epochs() == {0: 2, 1: 2, 2: 1}
    told = [said for rank in (0, 1) for said in ranks.engines[rank].said if isinstance(said, Fault)]
    assert not told, "rank 2 was suspected before the abort was heeded"


def test_a_returning_rank_is_linked_anew_and_its_former_self_is_refused(ranks):
    first_epoch(ranks, [0, 1, 2])
    former = ranks.engines.pop(2)
    for rank in (0, 1):
        ranks.engines[rank].control.abort(stamp_of(2))
    stuck = [ranks.engines[rank].enter(1) for rank in (0, 1)]
    ranks.prepare(2, ranks.placement([0, 1], half=1), [0, 1], cut=Cut.ABORT)
    ranks.commit(2, [0, 1], Cut.ABORT)
    assert [stepping.rounds() for stepping in stuck] == [1, 1]

    ranks.engines[2] = ranks.start(2, 9)
    answers = ranks.prepare(3, ranks.placement([0, 1, 2]), [0, 1, 2])
    assert {answer.ok for answer in answers.values()} == {True}, answers
    assert (2, 9) in ranks.engines[0].membership.linkable()
    assert former.links.linked(0, 1)
    ranks.commit(3, [0, 1, 2])
    assert ranks.step({0: 1, 1: 0, 2: 0}) == {0: 1, 1: 1, 2: 1}
    former.close()


def test_who_is_in_no_epoch_gets_no_link(ranks):
    first_epoch(ranks, [0, 1])
    stranger = ranks.engines[2]
    stranger.preparing._membership.begin(5, (stranger.member, ranks.engines[0].member), Cut.PLANNED, stamp=stamp_of(5))
    with pytest.raises(Exception, match="rank 0: rank 2 incarnation 3 is in no epoch known here"):
        stranger.links.connect_all([_peer(ranks, 0)], epoch=5, go_on=lambda: False)


def _peer(ranks, rank):
    from schemas.messages import Peer

    engine = ranks.engines[rank]
    return Peer(rank=rank, incarnation=engine.member.incarnation, host="h", link_address=engine.address)


def test_a_peer_that_never_listens_fails_the_preparation_by_its_deadline(ranks):
    ranks.engines[2].links.close()
    answers = ranks.prepare(1, ranks.placement([0, 1, 2]), [0, 1, 2], deadline_s=0.5)
    assert not answers[0].ok
    assert "rank 2: " in answers[0].error


def test_a_newer_preparation_supersedes_an_older_one(ranks):
    first_epoch(ranks, [0, 1, 2])
    whole = ranks.placement([0, 1, 2], half=1)
    ranks.prepare(2, whole, [0, 1, 2])
    ranks.prepare(3, whole, [0, 1, 2])
    ranks.commit(3, [0, 1, 2])
    ranks.step(dict.fromkeys([0, 1, 2], 1))
    assert ranks.epochs() == {0: 3, 1: 3, 2: 3}
    assert ranks.engines[0].membership.prepared == 3


def test_a_placement_of_another_shape_is_refused(ranks):
    other = Placement.round_robin(layers=1, experts=6, ranks=[0], max_ranks=4, slots=12)
    answer = ranks.prepare(1, other, [0])[0]
    assert not answer.ok
    assert "(layers, ranks, experts) = (1, 4, 6), this engine for (2, 4, 6)" in answer.error


def test_a_live_slot_cannot_be_planned_over(ranks):
    first_epoch(ranks, [0, 1])
    placement = ranks.placement([0, 1])
    slots = placement.slots.copy()
    slots[:, 0, [0, 1]] = slots[:, 0, [1, 0]]
    swapped = Placement(slots=slots, weights=placement.weights.copy(), n_experts=6)
    answers = ranks.prepare(2, swapped, [0, 1])
    assert not answers[0].ok
    assert "slot 0 of layer 0 is in the live table" in answers[0].error
    assert answers[1].ok
    assert ranks.step({0: 1, 1: 1}) == {0: 1, 1: 1}


def lacking(placement, expert):
    """The placement without any routed copy of ``expert`` in layer 1."""
    slots = placement.slots.copy()
    slots[1][slots[1] == expert] = EMPTY
    return Placement(slots=slots, weights=np.where(slots == EMPTY, 0, 1).astype(np.uint16), n_experts=EXPERTS)


def test_nothing_runs_while_an_expert_has_no_live_copy(ranks):
    first_epoch(ranks, [0, 1])
    for rank in (0, 1):
        ranks.engines[rank].control.abort(stamp_of(2))
    answers = ranks.prepare(2, lacking(ranks.placement([0, 1], half=1), 4), [0, 1], cut=Cut.ABORT)
    assert {answer.missing for answer in answers.values()} == {((1, 4),)}
    ranks.commit(2, [0, 1], Cut.ABORT)
    waiting = ranks.engines[0].enter(3)
    assert waiting.waits()
    assert ranks.engines[1].enter(0).rounds() == 0  # crosses, and rests
    assert ranks.epochs() == {0: 2, 1: 2, 2: 0}

    ranks.prepare(3, ranks.placement([0, 1]), [0, 1])
    ranks.commit(3, [0, 1])
    assert ranks.engines[1].enter(0).rounds() == 1
    assert waiting.rounds() == 1


def test_best_effort_runs_without_the_expert(tmp_path):
    ranks = Ranks(tmp_path, 2, strict=False)
    try:
        answers = ranks.prepare(1, lacking(ranks.placement([0, 1]), 4), [0, 1])
        assert {answer.missing for answer in answers.values()} == {((1, 4),)}
        ranks.commit(1, [0, 1])
        assert ranks.step({0: 1, 1: 0}) == {0: 1, 1: 1}
    finally:
        ranks.close()
