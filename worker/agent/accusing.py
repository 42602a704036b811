"""Who tells of a death that every survivor saw: one after the other, so that the first word is not held up by the rest.

A process that died is proved dead by any one of its neighbours. When all of them report it at the same instant, their
writes and the watches on them take the processor from the recovery that the first one set off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.vocabulary import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from schemas.messages import Peer
    from schemas.records import FaultReport
    from schemas.vocabulary import Rank


def turn(report: FaultReport, *, peers: Iterable[Peer], host: str) -> int:
    """How many of the suspect's neighbours speak before ``report``'s author; 0 when it has to speak at once.

    Args:
        report: what the author saw.
        peers: the epoch's members.
        host: the author's; a death is seen only there, so nobody waits for ranks elsewhere.
    """
    suspects = {suspicion.rank for suspicion in report.suspicions}
    if any(suspicion.evidence is not Evidence.DEAD for suspicion in report.suspicions):
        return 0  # silence is judged by how many heard it
    first = min(suspects, default=report.reporter)
    witnesses = sorted(
        {peer.rank for peer in peers if peer.host == host} - suspects, key=lambda rank: _after(first, rank)
    )
    return witnesses.index(report.reporter) if report.reporter in witnesses else 0


def _after(suspect: Rank, rank: Rank) -> tuple[bool, Rank]:
    """Order around the ring of ranks: not always the same one has the first word."""
    return rank < suspect, rank
