"""Who is slow, measured: the receive-wait matrix judged, never from one row or one reporter.

Ranks run in lockstep, so a slow rank shows as a column: all its peers spend their time waiting for its rows, while it
waits for nobody. What they wait for the others is the machine's usual jitter and is taken off. After a rank was given
less to do, the same figures say whether that was enough, and its own row whether it could do more again.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.state import SECOND, Judged, Pace

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from controlplane.coordinator.state import State
    from schemas.vocabulary import Rank

    Row = npt.NDArray[np.float64]

FEWEST_REPORTERS = 2
"""Of two ranks each waits for the other: nobody can tell who is slow."""
BUSIER = 1.25
"""A rank with more requests than this many times the others' median is busy, not slow: attention is not shared out, so
its peers wait for it in every layer."""
WORTH_A_CHANGE = 0.1
"""A speed that differs by less from what is planned with is not worth a flip."""
JUDGE_EVERY = SECOND
"""Rows come every few seconds from each rank, and each comes alone."""


def paced(state: State) -> State:
    """``state`` with every member's pace as of now, or as of the last ``JUDGE_EVERY``: there are ranks² figures."""
    subject = (state.record.committed.epoch if state.record else 0, state.status.goal)
    known = state.pace
    if known is None and not state.waits:
        return state
    same = known is not None and known.subject == subject
    if known is not None and same and (known.waits is state.waits or not state.reached(known.at + JUDGE_EVERY)):
        return state
    return replace(state, pace=Judged(at=state.now, waits=state.waits, subject=subject, paces=paces(state)))


def paces(state: State) -> Mapping[Rank, Pace]:
    """Every member that enough reporters have told enough about, under this epoch; empty while there is too little.

    Empty also while slots move toward a goal: what is measured then is not what was wished.
    """
    rows, at_work = ({}, {}) if state.status.goal else _rows(state)
    if len(rows) < FEWEST_REPORTERS or len(rows) * 2 <= len(state.members):
        return {}
    rows |= at_work
    members, reporters = np.array(sorted(state.members)), np.array(sorted(rows))
    table = np.array([rows[rank][members] for rank in reporters.tolist()])
    own = reporters[:, None] == members[None, :]
    columns = _median_low(np.where(own, np.inf, table), counted=len(reporters) - own.sum(axis=0))
    idle = np.where(own, -np.inf, table).max(axis=1)
    running = np.array([median(row.running for row in state.waits[rank]) for rank in reporters.tolist()])
    heard = len(reporters) - own.sum(axis=0) >= FEWEST_REPORTERS
    if heard.sum() < FEWEST_REPORTERS:
        return {}
    beyond = dict(zip(members[heard].tolist(), _beyond(columns[heard]).tolist(), strict=True))
    waiting = dict(zip(reporters.tolist(), _beyond(idle).tolist(), strict=True))
    busier = set(reporters[running > BUSIER * (running - _beyond(running))].tolist())
    return {
        rank: Pace(waited_for=beyond[rank], waiting=waiting[rank])
        for rank in sorted(beyond.keys() & waiting.keys() - busier)
    }


def _median_low(table: npt.NDArray[np.float64], *, counted: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Per column the lower median of its ``counted`` smallest entries; what does not count is infinite."""
    ordered = np.sort(table, axis=0)
    found: npt.NDArray[np.float64] = ordered[np.maximum(counted - 1, 0) // 2, np.arange(table.shape[1])]
    return found


def _beyond(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each figure less the median of the others'; there are at least two."""
    order = np.argsort(values, kind="stable")
    ordered, others = values[order], len(values) - 1
    place = np.empty_like(order)
    place[order] = np.arange(len(values))

    def other(nth: int) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = ordered[np.where(place <= nth, nth + 1, nth)]
        return found

    low, high = other((others - 1) // 2), other(others // 2)
    return values - (low + high) / 2


def _rows(state: State) -> tuple[dict[Rank, Row], dict[Rank, Row]]:
    """Each reporter's row, per rank the median of its last rows; and rows of those that wait for nobody.

    A rank says only once that it waits for nobody. That is because all are idle, or, if others do wait, because it is
    the one that they wait for: the slowest rank has no other row to show.
    """
    found: dict[Rank, Row] = {}
    at_work: dict[Rank, Row] = {}
    if state.record is None:
        return found, at_work
    epoch, width = state.record.committed.epoch, max(state.members, default=0) + 1
    for reporter, kept in state.waits.items():
        about = (epoch, state.members.get(reporter))
        valid = [row.share for row in kept if (row.epoch, row.incarnation) == about and len(row.share) >= width]
        if valid and not any(valid[-1]):
            at_work[reporter] = np.zeros(width)
        elif len(valid) >= max(state.spec.slow_rows, 1):
            found[reporter] = np.median([share[:width] for share in valid], axis=0)
    return found, at_work


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
