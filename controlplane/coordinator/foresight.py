"""Repairs worked out before the loss, so that a recovery does not wait for its plan.

While nothing is under way the leader plans the loss of every rank and of every host with several. What it remembers is
the answer to one question: these ranks with these speeds and sources, holding this, under a load like this. A question
that differs in anything else is planned as ever, so nothing needs to be called off when the instance changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import is_
from typing import TYPE_CHECKING

import numpy as np

from controlplane.coordinator.changes import repair_of, running
from controlplane.coordinator.state import SECOND

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
        self._seen, self._trouble, kept = _basis(state), _trouble(state), {}
        for name, lost in _losses(state):
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


def _basis(state: State) -> tuple[object, ...]:
    """What the questions are made of; each part is replaced when anything in it changes."""
    return state.record, state.registrations, state.status, state.backups, state.loads, state.spec


def _trouble(state: State) -> int:
    """Counts up while some rank had trouble with its checkpoint, which wears off with time; else 0."""
    retry = max(int(state.spec.source_retry_s * SECOND), 1)
    return state.now // retry if state.failed_loads else 0


def _losses(state: State) -> Iterator[tuple[str, frozenset[Rank]]]:
    """Every member alone, then every host with several of them."""
    hosts: dict[str, set[Rank]] = {}
    for rank in sorted(state.members):
        yield f"rank {rank}", frozenset({rank})
        if there := state.registrations.get(rank):
            hosts.setdefault(there.host, set()).add(rank)
    for host, ranks in sorted(hosts.items()):
        if len(ranks) > 1:
            yield f"host {host}", frozenset(ranks)


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
