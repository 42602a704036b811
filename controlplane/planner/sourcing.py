"""From where each slot is loaded, so that the last transfer finishes soonest.

A transfer occupies every link on its way for the time its bytes take there; a link serves one transfer after another.
The finish time is that of the busiest link (what a fair network approaches, and what no schedule can beat).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.placement import EMPTY
from schemas.vocabulary import SourceTier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from controlplane.planner.links import Links
    from controlplane.planner.topology import Topology
    from schemas.placement import Placement
    from schemas.vocabulary import Expert, Layer, Rank, Slot

TIERS = tuple(SourceTier)
"""Cheapest first: what decides between sources that finish at the same time."""


@dataclass(frozen=True)
class Origin:
    """One place a slot can be loaded from; rank and slot are −1 where they mean nothing, host where it is on disk."""

    tier: SourceTier
    rank: Rank = -1
    slot: Slot = -1
    host: str = ""


@dataclass(frozen=True)
class Fetch:
    """One slot to fill and where from; ``spare`` is the next choice should ``origin`` die. None: there is none."""

    layer: Layer
    rank: Rank
    slot: Slot
    expert: Expert
    origin: Origin | None
    spare: Origin | None


@dataclass(frozen=True)
class Transfers:
    """All fetches of one plan.

    Attributes:
        fetches: in the order of the fills.
        seconds: predicted finish of the last one.
        busiest: the link that decides it, in words.
        unobtainable: (layer, expert) pairs without any source.
    """

    fetches: tuple[Fetch, ...]
    seconds: float
    busiest: str
    unobtainable: tuple[tuple[Layer, Expert], ...]


def sources(
    fills: npt.NDArray[np.intp],
    *,
    held: Placement,
    topology: Topology,
    links: Links,
    overwritten: Placement | None = None,
    backups: Mapping[tuple[Layer, Expert], Iterable[str]] | None = None,
) -> Transfers:
    """Choose a source for every slot to fill.

    Args:
        fills: [n, 4] (layer, rank, slot, expert), as ``Plan.fills``.
        held: what slots of live ranks hold now, routed or not.
        topology: live ranks, cordoned ones included: they can give.
        links: bandwidths.
        overwritten: the next placement; slots whose content it changes do not count as sources.
        backups: (layer, expert) → hosts whose memory keeps it.

    Returns:
        A source and a second choice for each fill. Slots on a rank that cannot read a tier do not get it.
    """
    options_of = ways(fills, held=held, topology=topology, links=links, overwritten=overwritten, backups=backups)
    chosen = _Schedule(options_of).run()
    fetches = []
    for fill, options, choice in zip(fills.tolist(), options_of, chosen, strict=True):
        others = [way.origin for index, way in enumerate(options) if index != choice]
        spare = (
            next((o for o in others if o.rank != options[choice].origin.rank or o.rank < 0), None) if options else None
        )
        layer, rank, slot, expert = fill
        origin = options[choice].origin if options else None
        fetches.append(Fetch(layer, rank, slot, expert, origin, spare))
    busy: defaultdict[str, float] = defaultdict(float)
    for options, choice in zip(options_of, chosen, strict=True):
        for link, seconds in options[choice].links if options else ():
            busy[link] += seconds
    busiest = max(busy, key=lambda link: (busy[link], link), default="nothing to load")
    return Transfers(
        fetches=tuple(fetches),
        seconds=busy.get(busiest, 0.0),
        busiest=busiest,
        unobtainable=tuple((f.layer, f.expert) for f in fetches if f.origin is None),
    )


def ways(
    fills: npt.NDArray[np.intp],
    *,
    held: Placement,
    topology: Topology,
    links: Links,
    overwritten: Placement | None = None,
    backups: Mapping[tuple[Layer, Expert], Iterable[str]] | None = None,
) -> list[list[Way]]:
    """Every way to load each fill, cheapest tier first; arguments as of ``sources``."""
    kept = held.slots if overwritten is None else _undisturbed(held, overwritten)
    book = _Options(kept, topology=topology, links=links, backups=backups or {})
    return [book.of(*fill) for fill in fills.tolist()]


def _undisturbed(held: Placement, after: Placement) -> npt.NDArray[np.uint16]:
    stays = (after.slots == held.slots) | (after.slots == EMPTY)
    return np.where(stays, held.slots, EMPTY).astype(np.uint16)


@dataclass(frozen=True)
class Way:
    """An origin with the links it crosses and the seconds that one slot occupies each."""

    origin: Origin
    links: tuple[tuple[str, float], ...]


class _Options:
    """Every way to load an expert onto a rank, cheapest tier first."""

    def __init__(
        self,
        kept: npt.NDArray[np.uint16],
        *,
        topology: Topology,
        links: Links,
        backups: Mapping[tuple[Layer, Expert], Iterable[str]],
    ) -> None:
        self.topology = topology
        self.links = links
        self.backups = backups
        self.holders: defaultdict[tuple[int, int], list[tuple[Rank, Slot]]] = defaultdict(list)
        live = np.zeros(kept.shape[1], dtype=np.bool_)
        live[list(topology.by_rank)] = True
        for layer, rank, slot in np.argwhere((kept != EMPTY) & live[None, :, None]).tolist():
            self.holders[layer, int(kept[layer, rank, slot])].append((rank, slot))

    def of(self, layer: Layer, rank: Rank, slot: Slot, expert: Expert) -> list[Way]:
        """In tier order; empty when nothing has it."""
        spec = self.topology.by_rank[rank]
        ways = [
            self._peer(giver, its, rank) for giver, its in self.holders[layer, expert] if (giver, its) != (rank, slot)
        ]
        ways += [self._backup(host, rank) for host in sorted(self.backups.get((layer, expert), ()))]
        if self.links.disk > 0:
            ways.append(self._disk(f"disk of {spec.host}", self.links.seconds("disk", spec.host), rank, spec.host))
        if self.links.shared_disk > 0:
            ways.append(self._disk("shared disk", self.links.seconds("shared_disk", ""), rank, ""))
        allowed = [way for way in ways if way.origin.tier in spec.tiers]
        return sorted(allowed, key=lambda way: (TIERS.index(way.origin.tier), len(way.links)))

    def _peer(self, giver: Rank, slot: Slot, rank: Rank) -> Way:
        if giver == rank:
            return Way(Origin(SourceTier.SAME_RANK, giver, slot), (self._cross("copy", str(rank)),))
        here, there = self.topology.by_rank[rank].host, self.topology.by_rank[giver].host
        path = (self._cross("peer_out", str(giver)), self._cross("rank_in", str(rank)))
        if here == there:
            return Way(Origin(SourceTier.HOST_PEER, giver, slot, there), path)
        return Way(Origin(SourceTier.REMOTE_PEER, giver, slot, there), path + self._network(there, here))

    def _backup(self, host: str, rank: Rank) -> Way:
        here = self.topology.by_rank[rank].host
        path = (self._cross("memory", host), self._cross("rank_in", str(rank)))
        return Way(
            Origin(SourceTier.HOST_BACKUP, host=host), path if host == here else path + self._network(host, here)
        )

    def _disk(self, name: str, seconds: float, rank: Rank, host: str) -> Way:
        return Way(Origin(SourceTier.CHECKPOINT, host=host), ((name, seconds), self._cross("rank_in", str(rank))))

    def _network(self, source: str, target: str) -> tuple[tuple[str, float], ...]:
        return (self._cross("nic_out", source), self._cross("nic_in", target))

    def _cross(self, kind: str, name: str) -> tuple[str, float]:
        return f"{kind} of {name}", self.links.seconds(kind, name)  # type: ignore[arg-type]


SWEEPS = 12
SHARPNESS = 12
"""Power of the links' occupation that is minimised: high enough that only the busiest ones count."""


class _Schedule:
    """Greedy, fewest choices first; then each fetch in turn takes the way that loads busy links least.

    The sum of a high power of the links' occupation stands for the maximum: unlike the maximum it falls with every
    good change, so that several links that are equally busy do not stop the search.
    """

    def __init__(self, ways: list[list[Way]]) -> None:
        self.ways = ways
        self.chosen = [-1] * len(ways)
        self.busy: defaultdict[str, float] = defaultdict(float)

    def run(self) -> list[int]:
        """Index of the chosen way by fill; −1 where there is none."""
        order = sorted((i for i, ways in enumerate(self.ways) if ways), key=lambda i: (len(self.ways[i]), i))
        for fill in order:
            self._take(fill, self._soonest(fill))
        best, finish = list(self.chosen), self._makespan()
        movable = [fill for fill in order if len(self.ways[fill]) > 1]
        for _ in range(SWEEPS):
            unit = self._makespan()
            moved = sum([self._reconsider(fill, unit) for fill in movable])
            if self._makespan() < finish * (1 - 1e-9):
                best, finish = list(self.chosen), self._makespan()
            if not moved:
                break
        return best

    def _makespan(self) -> float:
        return max(self.busy.values(), default=0.0)

    def _soonest(self, fill: int) -> int:
        options = self.ways[fill]
        finish = [max(self.busy[link] + seconds for link, seconds in way.links) for way in options]
        return finish.index(min(finish))

    def _reconsider(self, fill: int, unit: float) -> bool:
        before = self.chosen[fill]
        self._add(fill, before, -1)
        cost = [
            sum(
                ((self.busy[link] + seconds) / unit) ** SHARPNESS - (self.busy[link] / unit) ** SHARPNESS
                for link, seconds in way.links
            )
            for way in self.ways[fill]
        ]
        choice = cost.index(min(cost))
        if cost[before] <= cost[choice] * (1 + 1e-9):
            choice = before
        self._take(fill, choice)
        return choice != before

    def _take(self, fill: int, choice: int) -> None:
        self.chosen[fill] = choice
        self._add(fill, choice, 1)

    def _add(self, fill: int, choice: int, sign: int) -> None:
        for link, seconds in self.ways[fill][choice].links:
            self.busy[link] = max(self.busy[link] + sign * seconds, 0.0)
