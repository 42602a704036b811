"""Repairs worked out before the loss, so that a recovery does not wait for its plan.

While nothing is under way the leader plans the loss of every rank that takes an expert's only copy along, and of every
host with several; in a large instance that of the likeliest. What it remembers is the answer to one question: these
ranks with these speeds and sources, holding this, under a load like this. A question that differs in anything else is
planned as ever, so nothing needs to be called off when the instance changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from operator import is_
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.changes import repair_of, running, shrunk
from controlplane.coordinator.membership import load_of
from controlplane.coordinator.state import SECOND
from schemas.vocabulary import RankState

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    import numpy.typing as npt

    from controlplane.coordinator.planning import Instance, Plan, Planner
    from controlplane.coordinator.state import State
    from schemas.placement import Placement
    from schemas.vocabulary import Rank

ALIKE = 0.1
"""Loads are alike when no layer's experts differ by more than this part of its tokens: the plan's balance, not its
validity, depends on them."""
WORDS = ", worked out before the loss"
LIKELIEST = 128
"""So many ranks, and so many hosts, are planned for: a pass costs time with the ranks' number, not with its square."""


@dataclass(frozen=True)
class _Answer:
    plan: Plan
    load: npt.NDArray[np.float64] | None


class Foresight:
    """A planner that remembers its answers to losses; ``ahead`` works them out."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._answers: dict[Hashable, _Answer] = {}
        self._seen: tuple[object, ...] = ()
        self._trouble = 0
        self._load: npt.NDArray[np.float64] | None = None
        self.used = 0
        """Repairs that needed no planning."""

    def plan(self, instance: Instance, *, live: Placement | None = None, max_bytes: int = 0) -> Plan:
        """See ``Planner.plan``."""
        return self._planner.plan(instance, live=live, max_bytes=max_bytes)

    def repair(self, instance: Instance, *, held: Placement, urgent: bool) -> Plan:
        """See ``Planner.repair``; of an urgent one the answer may be known."""
        known = self._answers.get(_question(instance, held)) if urgent else None
        if known is not None and _alike(known.load, instance.load):
            self.used += 1
            return replace(known.plan, reason=known.plan.reason + WORDS)
        return self._planner.repair(instance, held=held, urgent=urgent)

    def due(self, state: State) -> bool:
        """Whether something has changed since ``ahead`` last looked, and nothing is under way."""
        record = state.record
        if not state.fence or record is None or record.preparing or record.committed.missing or running(state):
            return False
        return not (self._seen and all(map(is_, self._seen, _basis(state))) and self._trouble == _trouble(state))

    def ahead(self, state: State) -> Iterator[str]:
        """Plan one loss at a time, each named as it is done; what is asked no more is forgotten at the end."""
        stale, basis = not self._current(state), _basis(state)
        self._seen, self._trouble = basis, _trouble(state)
        if not stale:
            return
        self._load, kept = _load(state), {}
        for name, lost in _losses(state):
            if shrunk(state, lost) is not None:
                continue  # nothing is planned for it
            asked = repair_of(state, [rank for rank in sorted(state.members) if rank not in lost])
            if asked is None:
                continue
            instance, held = asked
            question = _question(instance, held)
            known = self._answers.get(question)
            if known is None or not _alike(known.load, instance.load):
                known = _Answer(self._planner.repair(instance, held=held, urgent=True), instance.load)
                self._answers[question] = known
                yield name
            kept[question] = known
        self._answers = kept

    def _current(self, state: State) -> bool:
        """Whether only measurements came since the last pass, which are like those that it planned with."""
        same = bool(self._seen) and all(map(is_, self._seen[:-1], _basis(state)[:-1]))
        return same and self._trouble == _trouble(state) and _alike(self._load, _load(state))


def _basis(state: State) -> tuple[object, ...]:
    """What the questions are made of; each part is replaced when anything in it changes."""
    return state.record, state.registrations, state.status, state.backups, state.spec, state.loads


def _load(state: State) -> npt.NDArray[np.float64] | None:
    live = state.live
    return load_of(state, layers=live.n_layers, experts=live.n_experts) if live else None


def _trouble(state: State) -> int:
    """Counts up while some rank had trouble with its checkpoint, which wears off with time; else 0."""
    retry = max(int(state.spec.source_retry_s * SECOND), 1)
    return state.now // retry if state.failed_loads else 0


def _losses(state: State) -> Iterator[tuple[str, frozenset[Rank]]]:
    """Members alone, then hosts with several of them; those in trouble first."""
    order = sorted(state.members, key=lambda rank: (not _troubled(state, rank), rank))
    hosts: dict[str, set[Rank]] = {}
    for rank in order:
        if there := state.registrations.get(rank):
            hosts.setdefault(there.host, set()).add(rank)
    for rank in order[:LIKELIEST]:
        yield f"rank {rank}", frozenset({rank})
    several = ((host, ranks) for host, ranks in hosts.items() if len(ranks) > 1)
    for host, ranks in islice(several, LIKELIEST):
        yield f"host {host}", frozenset(ranks)


def _troubled(state: State, rank: Rank) -> bool:
    """Whether there are signs that it may go: suspected, slow, leaving, or lost before."""
    view = state.view(rank)
    return view.state is not RankState.ACTIVE or view.slow < 1 or bool(view.losses_unix_ns)


def _question(instance: Instance, held: Placement) -> Hashable:
    """All that a repair depends on, but the load."""
    shape = (instance.layers, instance.experts, instance.max_ranks, instance.slots, instance.expert_bytes)
    sources = (instance.survivability, instance.unavailable, instance.no_disk)
    return (*shape, *sources, tuple(sorted(instance.seats.items())), held.digest)


def _alike(one: npt.NDArray[np.float64] | None, other: npt.NDArray[np.float64] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(np.abs(_parts(one) - _parts(other)).sum(axis=1).max() <= 2 * ALIKE)


def _parts(load: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = load.sum(axis=1, keepdims=True)
    parts: npt.NDArray[np.float64] = np.divide(load, total, out=np.zeros_like(load), where=total > 0)
    return parts
