"""Who is slow, measured: the receive-wait matrix judged, never from one row or one reporter.

Ranks run in lockstep, so a slow rank shows as a column: all its peers spend their time waiting for its rows, while it
waits for nobody. What they wait for the others is the machine's usual jitter and is taken off. After a rank was given
less to do, the same figures say whether that was enough, and its own row whether it could do more again.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlplane.coordinator.state import State
    from schemas.vocabulary import Rank

FEWEST_REPORTERS = 2
"""Of two ranks each waits for the other: nobody can tell who is slow."""
BUSIER = 1.25
"""A rank with more requests than this many times the others' median is busy, not slow: attention is not shared out, so
its peers wait for it in every layer."""
WORTH_A_CHANGE = 0.1
"""A speed that differs by less from what is planned with is not worth a flip."""


@dataclass(frozen=True)
class Pace:
    """What was measured of one rank; both are parts of the time, 0 … 1."""

    waited_for: float
    """How much longer its peers wait for it than for the others: below 0 where they wait less."""
    waiting: float
    """How much longer it waits for the last of its peers than the others wait for theirs."""


def paces(state: State) -> Mapping[Rank, Pace]:
    """Every member that enough reporters have told enough about, under this epoch; empty while there is too little.

    Empty also while slots move toward a goal: what is measured then is not what was wished.
    """
    rows = {} if state.status.goal else _rows(state)
    if len(rows) < FEWEST_REPORTERS or len(rows) * 2 <= len(state.members):
        return {}
    columns = {
        rank: median_low(column)
        for rank in state.members
        if len(column := [row[rank] for reporter, row in rows.items() if reporter != rank]) >= FEWEST_REPORTERS
    }
    idle = {rank: max(share for peer, share in row.items() if peer != rank) for rank, row in rows.items()}
    return {
        rank: Pace(waited_for=_beyond(columns, rank), waiting=_beyond(idle, rank))
        for rank in columns.keys() & rows.keys()
        if not _busier(state, rank, rows.keys())
    }


def _busier(state: State, rank: Rank, reporters: Iterable[Rank]) -> bool:
    running = {reporter: median(row.running for row in state.waits[reporter]) for reporter in reporters}
    return running[rank] > BUSIER * median([other for peer, other in running.items() if peer != rank])


def _beyond(table: Mapping[Rank, float], rank: Rank) -> float:
    """A rank's figure less the median of the others'."""
    return table[rank] - median([other for peer, other in table.items() if peer != rank])


def _rows(state: State) -> dict[Rank, dict[Rank, float]]:
    """Each reporter's row over the members: per peer the median of its last rows."""
    if state.record is None:
        return {}
    epoch, width, found = state.record.committed.epoch, max(state.members, default=0) + 1, {}
    for reporter, kept in state.waits.items():
        about = (epoch, state.members.get(reporter))
        valid = [row.share for row in kept if (row.epoch, row.incarnation) == about and len(row.share) >= width]
        if len(valid) >= max(state.spec.slow_rows, 1) and any(valid[-1]):  # else idle: nothing can be told
            found[reporter] = {rank: median(share[rank] for share in valid) for rank in state.members}
    return found


def complaint(pace: Pace, *, share: float) -> str:
    """Why a rank is slow, in words; empty when it is not."""
    if share >= 1 or pace.waited_for < share:
        return ""
    return f"its peers wait for it {pace.waited_for:.0%} of the time"


def reckoned(pace: Pace, *, planned: float, least: float, slow: bool) -> float:
    """The share of its nominal speed that a rank should be planned with, from how it does with ``planned``.

    Slow: the others finish what they have in the time that they do not wait. Otherwise it can take as much more as it
    idles, if that is worth a change.
    """
    if slow:
        return max(round(planned * (1 - pace.waited_for), 2), least)
    able = min(round(planned / max(1 - pace.waiting, least), 2), 1.0)
    return able if able >= planned * (1 + WORTH_A_CHANGE) or able == 1.0 else planned
