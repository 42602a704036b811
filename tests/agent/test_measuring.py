from __future__ import annotations

import msgspec
import numpy as np
import pytest

from schemas.records import ExpertLoad, ReceiveWait
from tests.agent.test_loads import HELLO, status
from worker.agent import loads, waits
from worker.agent.measuring import Measurements

COUNTS = np.ones((2, 3))


def answer(*, step: int, wait_us: tuple[int, ...] = (0, 2000, 500), epoch: int = 4):
    return msgspec.structs.replace(status(COUNTS), step=step, receive_wait_us=wait_us, epoch=epoch)


def rows(found):
    return [record for record in found if isinstance(record, ReceiveWait)]


def test_a_row_is_the_part_of_the_time_spent_waiting_for_each_rank():
    measured = Measurements()
    assert rows(measured.taken(HELLO, answer(step=100), now_s=10.0)) == []
    (row,) = rows(measured.taken(HELLO, answer(step=350), now_s=15.0))
    exchanges = 250 * (2 * HELLO.layers + 1)
    assert row == ReceiveWait(
        rank=3, incarnation=1, epoch=4, share=(0.0, pytest.approx(exchanges * 2e-3 / 5), exchanges * 5e-4 / 5)
    )


def test_shares_end_at_one_and_an_epoch_begins_anew():
    measured = Measurements()
    measured.taken(HELLO, answer(step=0), now_s=0.0)
    (row,) = rows(measured.taken(HELLO, answer(step=10_000), now_s=5.0))
    assert row.share == (0.0, 1.0, 1.0)
    assert rows(measured.taken(HELLO, answer(step=20_000, epoch=5), now_s=10.0)) == []
    again = msgspec.structs.replace(HELLO, incarnation=2)
    assert rows(measured.taken(again, answer(step=1, epoch=5), now_s=15.0)) == []
    assert rows(measured.taken(again, answer(step=2, epoch=5), now_s=20.0))[0].incarnation == 2


def test_an_idle_engine_says_so_once():
    measured = Measurements()
    told = [rows(measured.taken(HELLO, answer(step=7), now_s=5.0 * turn)) for turn in range(6)]
    assert [len(found) for found in told] == [0, 1, 0, 0, 0, 0]
    assert not any(told[1][0].share)


def test_frequent_answers_do_not_make_frequent_records():
    measured = Measurements()
    found = [
        record
        for turn in range(301)
        for record in measured.taken(HELLO, answer(step=turn), now_s=turn * 0.2)  # the pace of a drain
    ]
    assert len(rows(found)) <= 60 / waits.EVERY_S / 0.9
    assert len([r for r in found if isinstance(r, ExpertLoad)]) <= 60 / loads.EVERY_S / 0.9 + 1
