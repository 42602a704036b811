from __future__ import annotations

from schemas.operations import Blame, Phase, Recovery
from schemas.vocabulary import Evidence
from tools.loadgen import Answer, Ask
from tools.mainjob.faults import Moment
from tools.mainjob.report import FaultReport, describe_loss, gaps_of_loss, longest_gap_ms, split_by_rank

MS = 1_000_000


def answer(*arrived_ms, ranks=(0,), resumed=0, sent_ms=0, ended_ms=0):
    ask = Ask(id=1, prompt=(1,), max_new_tokens=len(arrived_ms))
    return Answer(
        ask=ask,
        arrived_ns=[moment * MS for moment in arrived_ms],
        sent_ns=sent_ms * MS,
        ended_ns=ended_ms * MS,
        ranks=list(ranks),
        resumed=resumed,
    )


def test_gaps_count_that_overlap_the_window():
    answers = [answer(0, 10, 60, 70), answer(0, 400)]
    assert longest_gap_ms(answers, since_ns=20 * MS, until_ns=50 * MS) == 400
    assert longest_gap_ms(answers[:1], since_ns=20 * MS, until_ns=50 * MS) == 50
    assert longest_gap_ms(answers[:1], since_ns=61 * MS, until_ns=65 * MS) == 10
    assert longest_gap_ms([], since_ns=0, until_ns=1) == 0


def test_clients_of_the_dead_rank_are_told_from_the_others():
    moment = Moment(monotonic_ns=100 * MS, unix_ns=0)
    dead = answer(90, 140, ranks=(2, 0), resumed=1)
    other = answer(90, 110, ranks=(1,))
    over = answer(10, 20, ranks=(2,), ended_ms=50)
    assert split_by_rank([dead, other, over], (2,), moment) == ([other], [dead])
    report = FaultReport("SIGKILL", 2)
    gaps_of_loss(report, [dead, other, over], moment, 200 * MS)
    assert (report.pause_ms, report.pause_at_ms, report.resume_ms) == (20, -10, 50)


def test_a_recoverys_record_becomes_figures():
    moment = Moment(monotonic_ns=0, unix_ns=1_000 * MS)
    recovery = Recovery(
        id="r",
        unplanned=True,
        blamed=(Blame(rank=2, incarnation=5, evidence=Evidence.DEAD),),
        phases=(
            Phase(name="detect", started_unix_ns=1_002 * MS, finished_unix_ns=1_003 * MS),
            Phase(name="publish", started_unix_ns=1_004 * MS, finished_unix_ns=1_008 * MS),
        ),
        bytes_by_tier={"host_peer": 10},
        slots_loaded=3,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    report = FaultReport("SIGKILL", 2)
    describe_loss(report, [recovery], moment)
    assert (report.detected_ms, report.committed_ms) == (2.0, 8.0)
    assert (report.coverage, report.loaded_bytes, report.blamed) == ("repaired", {"host_peer": 10}, (2,))
    assert report.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert report.as_json()["phases"] == {"detect": 0.001, "publish": 0.004}


def test_a_fault_that_took_two_recoveries_is_told_as_one():
    def recovery(rank, began_ms, **fields):
        blamed = (Blame(rank=rank, incarnation=5, evidence=Evidence.DEAD),)
        phases = tuple(
            Phase(name=name, started_unix_ns=(began_ms + at) * MS, finished_unix_ns=(began_ms + at + 1) * MS)
            for at, name in enumerate(("detect", "commit"))
        )
        return Recovery(id=str(rank), unplanned=True, blamed=blamed, phases=phases, **fields)

    report = FaultReport("SIGKILL of two", 3)
    first = recovery(3, 1_002, bytes_by_tier={"host_peer": 10})
    describe_loss(
        report, [first, recovery(1, 1_020, bytes_by_tier={"host_peer": 5}, slots_loaded=2)], Moment(0, 1_000 * MS)
    )
    assert (report.detected_ms, report.committed_ms, report.blamed) == (2.0, 22.0, (1, 3))
    assert (report.coverage, report.loaded_bytes) == ("repaired", {"host_peer": 15})
    describe_loss(report, [], Moment(0, 0))
    assert report.detected_ms == 2.0, "nothing is known, nothing changes"
