from __future__ import annotations

import json

from schemas.operations import PastEpoch
from schemas.placement import Placement
from schemas.records import EpochVersion
from schemas.vocabulary import Cut, Member
from tools.mainjob.history import covered, ended_once, growing, lonely

PLACEMENT = Placement.round_robin(layers=1, experts=4, ranks=[0, 1], max_ranks=2, slots=2)


def past(epoch, *members, cut=Cut.PLANNED, fence=5, decided=None, missing=0):
    version = EpochVersion(
        epoch=epoch,
        members=tuple(Member(*member) for member in members),
        placement=PLACEMENT.digest,
        cut=cut,
        reason="",
        missing=missing,
    )
    return PastEpoch(decided=version, fence=fence, replica="a", recovery="r", decided_unix_ns=decided or epoch)


def test_a_write_by_a_deposed_leader_is_found():
    assert growing([past(1), past(2), past(3, fence=6)]) == []
    assert growing([past(1, fence=6), past(2, fence=5)]) == ["epoch 2 was written by fence 5 after 6"]


def test_an_uncovered_epoch_that_says_nothing_is_found():
    placements = {PLACEMENT.digest: PLACEMENT}
    assert covered([past(1, (0, 1), (1, 1)), past(2, (0, 1), missing=2)], placements) == []
    assert covered([past(2, (0, 1))], placements) == ["epoch 2 says 0 experts are missing, its placement 2"]


def test_an_excluded_incarnation_that_is_a_member_again_is_found():
    lost = [past(1, (0, 1), (1, 1)), past(2, (0, 1), cut=Cut.ABORT)]
    assert lonely([*lost, past(3, (0, 1), (1, 2))]) == []
    assert lonely([*lost, past(3, (0, 1), (1, 1))]) == ["epoch 3 has rank 1 with the excluded incarnation 1"]


def test_a_request_that_does_not_end_exactly_once_is_found(tmp_path):
    log = tmp_path / "audit.jsonl"
    assert ended_once(log) == [f"no audit log at {log}"]
    lines = [(event, id_) for id_ in "ab" for event in ("accepted", "ended")]

    def write(chosen):
        log.write_text("\n".join(json.dumps({"event": event, "id": id_, "more": 1}) for event, id_ in chosen))

    write(lines)
    assert ended_once(log) == []
    write([*lines, ("ended", "a")])
    assert ended_once(log) == ["request a ended 2 times"]
    write(lines[:3])
    assert ended_once(log) == ["request b ended 0 times"]
    assert ended_once(log, gateway_killed=True) == []
