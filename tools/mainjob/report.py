"""From tokens' arrival times and etcd's records to the figures of one fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from controlplane.telemetry import trace_id_of
from schemas.codec import decode
from schemas.operations import Phase, Recovery

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from schemas.vocabulary import Rank
    from tools.loadgen import Answer
    from tools.mainjob.faults import Moment
    from tools.mainjob.instance import Instance

_SETTLED_NS = 1_000_000_000
"""A gap that begins this long after a fault's end is not the fault's."""


@dataclass
class FaultReport:
    """What one fault cost; times in ms, None where it did not happen.

    Attributes:
        name: the fault.
        rank: whom it hit, −1 for no rank.
        detected_ms: from the fault to the first evidence.
        committed_ms: from the fault to the committed epoch.
        pause_ms: longest gap between two tokens seen by any client of a surviving rank.
        pause_at_ms: when that gap began, from the fault: a gap long after it has another cause than the recovery.
        resume_ms: the same for clients of the dead rank.
        coverage: ``intact``, or ``repaired`` when experts had to be loaded.
        loaded_bytes: by source tier.
        rejoin_ms: from the fault until the rank serves again.
        rejoin_pause_ms: longest gap of any client around the rank's return.
        epochs: (before, after the loss, after the return).
        blamed: ranks that were excluded.
        trace_id: of the recovery.
        phases: seconds by phase.
    """

    name: str
    rank: Rank
    detected_ms: float | None = None
    committed_ms: float | None = None
    pause_ms: float = 0.0
    pause_at_ms: float | None = None
    resume_ms: float | None = None
    coverage: str = "intact"
    loaded_bytes: dict[str, int] = field(default_factory=dict)
    rejoin_ms: float | None = None
    rejoin_pause_ms: float | None = None
    epochs: tuple[int, ...] = ()
    blamed: tuple[Rank, ...] = ()
    trace_id: str = ""
    phases: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to what was measured."""
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}


async def recoveries(instance: Instance, *, since_unix_ns: int = 0) -> list[Recovery]:
    """Recoveries that began after a moment, oldest first."""
    listing = await instance.etcd.get(instance.keys.recoveries)
    found = [decode(item.value, Recovery, key=item.key) for item in listing]
    begun = [recovery for recovery in found if recovery.phases and _last_phase_ns(recovery) >= since_unix_ns]
    return sorted(begun, key=lambda recovery: recovery.epoch or recovery.epoch_before)


def _last_phase_ns(recovery: Recovery) -> int:
    return max(max(phase.started_unix_ns, phase.finished_unix_ns) for phase in recovery.phases)


def describe_loss(report: FaultReport, recoveries: Sequence[Recovery], moment: Moment) -> None:
    """Fill in what the recoveries' records say; several, oldest first, when one fault hit several ranks."""
    if not recoveries:
        return
    first, last = recoveries[0], recoveries[-1]
    if (detect := _phase(first, "detect")) is not None:
        seen = detect.started_unix_ns if detect.started_unix_ns >= moment.unix_ns else detect.finished_unix_ns
        report.detected_ms = (seen - moment.unix_ns) / 1e6
    if (commit := _phase(last, "publish") or _phase(last, "commit")) is not None:
        report.committed_ms = (commit.finished_unix_ns - moment.unix_ns) / 1e6
    loaded: Counter[str] = Counter()
    for recovery in recoveries:
        loaded.update(recovery.bytes_by_tier)
    report.loaded_bytes = dict(loaded)
    report.coverage = "repaired" if any(recovery.slots_loaded for recovery in recoveries) else "intact"
    if last.missing:
        report.coverage = f"{last.missing} experts missing"
    report.blamed = tuple(sorted({blame.rank for recovery in recoveries for blame in recovery.blamed}))
    report.trace_id = trace_id_of(first.traceparent)
    report.phases = {phase.name: round(phase.seconds, 4) for phase in last.phases}


def _phase(recovery: Recovery, name: str) -> Phase | None:
    return next((phase for phase in recovery.phases if phase.name == name), None)


class Gap(NamedTuple):
    """Between two tokens of one answer.

    Attributes:
        ms: its length.
        began_ns: when the first of them came, monotonic.
    """

    ms: float = 0.0
    began_ns: int = 0


def longest_gap(answers: Iterable[Answer], *, since_ns: int, until_ns: int) -> Gap:
    """The longest gap that overlaps the time between two moments."""
    return max(
        (
            Gap((later - earlier) / 1e6, earlier)
            for answer in answers
            for earlier, later in pairwise(answer.arrived_ns)
            if later >= since_ns and earlier <= until_ns
        ),
        default=Gap(),
    )


def longest_gap_ms(answers: Iterable[Answer], *, since_ns: int, until_ns: int) -> float:
    """Its length, ms."""
    return longest_gap(answers, since_ns=since_ns, until_ns=until_ns).ms


def split_by_rank(
    answers: Sequence[Answer], ranks: Collection[Rank], moment: Moment
) -> tuple[list[Answer], list[Answer]]:
    """Answers under way at ``moment``: (of other ranks, of ``ranks``). A resumed answer names its ranks in order."""
    under_way = [
        answer
        for answer in answers
        if answer.sent_ns <= moment.monotonic_ns and (not answer.ended_ns or answer.ended_ns >= moment.monotonic_ns)
    ]
    hit = [
        answer
        for answer in under_way
        if any(rank in answer.ranks and (answer.resumed or answer.ranks[-1] == rank) for rank in ranks)
    ]
    return [answer for answer in under_way if answer not in hit], hit


def gaps_of_loss(report: FaultReport, answers: Sequence[Answer], moment: Moment, until_ns: int) -> None:
    """Fill in what clients saw of a loss."""
    others, hit = split_by_rank(answers, report.blamed or (report.rank,), moment)
    window = {"since_ns": moment.monotonic_ns, "until_ns": until_ns + _SETTLED_NS}
    pause = longest_gap(others, **window)
    report.pause_ms = pause.ms
    report.pause_at_ms = (pause.began_ns - moment.monotonic_ns) / 1e6 if pause.ms else None
    report.resume_ms = longest_gap_ms(hit, **window) if hit else None


def longest_gaps(answers: Iterable[Answer], *, count: int = 5) -> list[dict[str, Any]]:
    """The longest gaps of all, with the moment each began: what to look at first."""
    gaps = [(later - earlier, earlier, answer) for answer in answers for earlier, later in pairwise(answer.arrived_ns)]
    gaps.sort(key=lambda gap: -gap[0])
    first = min((earlier for _, earlier, _ in gaps), default=0)
    return [
        {
            "ms": round(gap / 1e6, 1),
            "at_s": round((earlier - first) / 1e9, 3),
            "request": answer.ask.id,
            "ranks": answer.ranks,
            "resumed": answer.resumed,
        }
        for gap, earlier, answer in gaps[:count]
    ]
