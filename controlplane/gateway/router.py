"""Choosing a rank: least loaded, unless another one has most of the prompt in its cache and is hardly busier.

Pure: loads are told to it, the moment is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from controlplane.gateway.routes import Route, RouteTable
    from schemas.vocabulary import Incarnation, Rank

    Key = tuple[Rank, Incarnation]


@dataclass(frozen=True, kw_only=True)
class RouterPolicy:
    """How to choose."""

    block_tokens: int = 16
    """Prompts are remembered in blocks of so many tokens."""
    remembered_blocks: int = 65536
    affinity_share: float = 0.5
    """A rank that holds at least this share of the prompt is preferred …"""
    affinity_slack: int = 4
    """… unless it has so many more requests than the least loaded one."""
    suspect_s: float = 2.0
    """A process that broke off or refused a connection is not chosen for this long."""


@dataclass(frozen=True)
class Choice:
    """The rank, and why in words."""

    route: Route
    reason: str


@dataclass
class Router:
    """Remembers loads, prefixes and recent failures by process (rank, incarnation)."""

    policy: RouterPolicy = field(default_factory=RouterPolicy)
    _loads: dict[Key, int] = field(default_factory=dict)
    _prefixes: OrderedDict[int, Key] = field(default_factory=OrderedDict)
    _suspects: dict[Key, float] = field(default_factory=dict)
    _turn: int = 0

    def choose(
        self, prompt: Sequence[int], table: RouteTable, *, now: float, avoid: Collection[Key] = ()
    ) -> Choice | None:
        """The best open rank for ``prompt``; None when there is none that did not just fail.

        Args:
            prompt: token ids.
            table: the routes in force.
            now: seconds, of the same clock as ``suspect``'s.
            avoid: processes that lost this very request.
        """
        candidates = [
            route for route in table.open if route.key not in avoid and self._suspects.get(route.key, 0.0) <= now
        ]
        if not candidates:
            return None
        self._turn += 1
        least = min(candidates, key=lambda route: (self.load(route.key), (route.rank + self._turn) % 256))
        held, known = self._longest_prefix(prompt, {route.key: route for route in candidates})
        if held is not None and self.load(held.key) <= self.load(least.key) + self.policy.affinity_slack:
            return Choice(held, f"rank {held.rank} has {known} of {len(prompt)} prompt tokens in its cache")
        return Choice(least, f"rank {least.rank} is the least loaded with {self.load(least.key)} requests")

    def begin(self, route: Route, prompt: Sequence[int]) -> None:
        """``route`` was given a request with this prompt."""
        self._loads[route.key] = self._loads.get(route.key, 0) + 1
        for block in self._blocks(prompt):
            self._prefixes[block] = route.key
            self._prefixes.move_to_end(block)
        while len(self._prefixes) > self.policy.remembered_blocks:
            self._prefixes.popitem(last=False)

    def end(self, route: Route) -> None:
        """One of its requests is over."""
        left = self._loads.get(route.key, 0) - 1
        if left > 0:
            self._loads[route.key] = left
        else:
            self._loads.pop(route.key, None)

    def load(self, key: Key) -> int:
        """Requests under way on a process, of this gateway."""
        return self._loads.get(key, 0)

    def suspect(self, route: Route, *, now: float) -> None:
        """``route`` failed at ``now``."""
        self._suspects = {key: until for key, until in self._suspects.items() if until > now}
        self._suspects[route.key] = now + self.policy.suspect_s

    def _longest_prefix(self, prompt: Sequence[int], routes: dict[Key, Route]) -> tuple[Route | None, int]:
        """The process that was last given the longest part of ``prompt``, if that part is worth it."""
        holder, known = None, 0
        for number, block in enumerate(self._blocks(prompt), start=1):
            key = self._prefixes.get(block)
            if key is None:
                break
            if key in routes:
                holder, known = routes[key], number * self.policy.block_tokens
        if known < len(prompt) * self.policy.affinity_share:
            return None, 0
        return holder, known

    def _blocks(self, prompt: Sequence[int]) -> Iterator[int]:
        """A hash for each whole block, of everything up to its end."""
        size, chained = self.policy.block_tokens, 0
        for start in range(0, len(prompt) - size + 1, size):
            chained = hash((chained, *prompt[start : start + size]))
            yield chained
