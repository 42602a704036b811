"""Who is excluded, decided from all reports at once; each verdict carries its reason.

A report is evidence, never a decision. What a rank says counts only while it is a member under the reporting
incarnation; the accusations of a rank that is itself excluded count for nothing (a survivor blamed by the dead rank is
not excluded).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.operations import Blame
from schemas.vocabulary import Evidence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.records import FaultReport, Registration
    from schemas.vocabulary import Epoch, Incarnation, Rank


@dataclass(frozen=True)
class Accusation:
    """One eligible suspicion of one member by another."""

    accused: Rank
    reporter: Rank
    evidence: Evidence
    detail: str


@dataclass(frozen=True)
class Verdict:
    """``excluded`` go at once; ``suspected`` stay and are shown; ``tied`` says accusations wait for a majority."""

    excluded: tuple[Blame, ...]
    acquitted: tuple[Rank, ...]
    suspected: Mapping[Rank, str]
    slow: Mapping[Rank, str]
    leaving: Mapping[Rank, str]
    tied: bool


def judge(
    *,
    epoch: Epoch,
    members: Mapping[Rank, Incarnation],
    registrations: Mapping[Rank, Registration],
    reports: Mapping[Rank, FaultReport],
    patient: bool,
) -> Verdict:
    """Weigh the evidence against ``members`` of ``epoch``.

    Args:
        epoch: the committed epoch; SILENT and SLOW are about its steps and are void in another one.
        members: who may be excluded, and as which incarnation.
        registrations: a member without one under its incarnation is gone.
        reports: the latest of every reporter.
        patient: whether accusations without a majority may wait for more.
    """
    accusations = eligible(epoch=epoch, members=members, reports=reports)
    guilty = {  # what its own agent saw says most
        accusation.accused: _blame(members, [accusation])
        for accusation in accusations
        if accusation.evidence is Evidence.DEAD and accusation.accused == accusation.reporter
    }
    guilty = _gone(members, registrations) | guilty
    _convict_dead(guilty, accusations, members, registrations)
    silent = [a for a in accusations if a.evidence is Evidence.SILENT and a.accused != a.reporter]
    tied = _convict_silent(guilty, silent, members, patient=patient)
    heard = [a for a in accusations if a.reporter not in guilty and a.accused not in guilty]
    accused = {a.accused for a in accusations if a.evidence in (Evidence.DEAD, Evidence.SILENT)}
    return Verdict(
        excluded=tuple(guilty[rank] for rank in sorted(guilty)),
        acquitted=tuple(sorted(accused - guilty.keys())),
        suspected=_spoken([a for a in heard if a.evidence is Evidence.SILENT]),
        slow=_slow(heard, members, guilty),
        leaving=_spoken([a for a in heard if a.evidence is Evidence.NOTICE]),
        tied=tied,
    )


def eligible(
    *, epoch: Epoch, members: Mapping[Rank, Incarnation], reports: Mapping[Rank, FaultReport]
) -> list[Accusation]:
    """Suspicions by members about members, both under their present incarnation, in a fixed order."""
    return [
        Accusation(suspicion.rank, reporter, suspicion.evidence, suspicion.detail)
        for reporter, report in sorted(reports.items())
        if members.get(reporter) == report.incarnation
        for suspicion in report.suspicions
        if members.get(suspicion.rank) == suspicion.incarnation
        # A death holds for ever; silence and slowness are about one epoch's steps.
        and (suspicion.evidence in (Evidence.DEAD, Evidence.NOTICE) or report.epoch == epoch)
    ]


def _gone(members: Mapping[Rank, Incarnation], registrations: Mapping[Rank, Registration]) -> dict[Rank, Blame]:
    gone = {}
    for rank, incarnation in members.items():
        there = registrations.get(rank)
        if there is None:
            detail = "its lease ended"
            gone[rank] = Blame(rank=rank, incarnation=incarnation, evidence=Evidence.LEASE, detail=detail)
        elif there.incarnation != incarnation:
            again = f"registered again as incarnation {there.incarnation}"
            detail = again if there.incarnation else "its agent has no process for it"
            gone[rank] = Blame(rank=rank, incarnation=incarnation, evidence=Evidence.DEAD, detail=detail)
    return gone


def _convict_dead(
    guilty: dict[Rank, Blame],
    accusations: list[Accusation],
    members: Mapping[Rank, Incarnation],
    registrations: Mapping[Rank, Registration],
) -> None:
    """Most accused first: of two that accuse each other one is excluded, and its own word then counts no more."""
    deaths = [a for a in accusations if a.evidence is Evidence.DEAD and a.accused != a.reporter]
    while True:
        open_ = [a for a in deaths if a.reporter not in guilty and a.accused not in guilty]
        if not open_:
            return

        def weight(rank: Rank, among: list[Accusation] = open_) -> tuple[int, int, Rank]:
            mine = [a for a in among if a.accused == rank]
            near = sum(_same_host(registrations, a.reporter, rank) for a in mine)  # pidfd, not a reset connection
            return len(mine), near, rank

        worst = max({a.accused for a in open_}, key=weight)
        guilty[worst] = _blame(members, [a for a in open_ if a.accused == worst])


def _convict_silent(
    guilty: dict[Rank, Blame], silent: list[Accusation], members: Mapping[Rank, Incarnation], *, patient: bool
) -> bool:
    """A majority of those that could tell; a rank that itself reports is evidently not silent to everybody."""
    while True:
        heard = [a for a in silent if a.reporter not in guilty and a.accused not in guilty]
        if not heard:
            return False
        speaking = {a.reporter for a in heard}
        mute = {a.accused for a in heard} - speaking
        jury = members.keys() - guilty.keys() - mute
        votes = {accused: {a.reporter for a in heard if a.accused == accused} for accused in {a.accused for a in heard}}
        worst = max(votes, key=lambda rank: (len(votes[rank]), rank in mute, rank))
        majority = len(votes[worst]) * 2 > len(jury - {worst})
        rivals = [r for r in speaking & votes.keys() if r != worst and len(votes[r]) == len(votes[worst])]
        if patient and (not majority or (worst in speaking and rivals)):
            return True
        guilty[worst] = _blame(members, [a for a in heard if a.accused == worst])


def _blame(members: Mapping[Rank, Incarnation], accusations: list[Accusation]) -> Blame:
    first = accusations[0]
    return Blame(
        rank=first.accused,
        incarnation=members[first.accused],
        evidence=first.evidence,
        reporters=tuple(sorted({a.reporter for a in accusations})),
        detail=first.detail,
    )


def _same_host(registrations: Mapping[Rank, Registration], one: Rank, other: Rank) -> bool:
    here, there = registrations.get(one), registrations.get(other)
    return here is not None and there is not None and here.host == there.host


def _spoken(accusations: list[Accusation]) -> dict[Rank, str]:
    said: dict[Rank, list[Accusation]] = {}
    for accusation in accusations:
        said.setdefault(accusation.accused, []).append(accusation)
    return {
        rank: f"{mine[0].evidence} by {', '.join(str(a.reporter) for a in mine)}"
        + (f": {mine[0].detail}" if mine[0].detail else "")
        for rank, mine in said.items()
    }


def _slow(
    accusations: list[Accusation], members: Mapping[Rank, Incarnation], guilty: Mapping[Rank, Blame]
) -> dict[Rank, str]:
    """Called slow by a majority of the others: one complaint alone may be about the complainer."""
    slow = [a for a in accusations if a.evidence is Evidence.SLOW and a.accused != a.reporter]
    others = len(members.keys() - guilty.keys()) - 1
    said = _spoken(slow)
    return {
        rank: why for rank, why in said.items() if len({a.reporter for a in slow if a.accused == rank}) * 2 > others
    }
