"""Where ranks are, what they can hold, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from controlplane.planner.errors import InvalidInputError
from schemas.policy import Survivability
from schemas.vocabulary import SourceTier

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from schemas.vocabulary import Rank


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """One rank that is alive.

    Attributes:
        rank: its place in the instance.
        host: failure domain of machines.
        rack: failure domain of power and switches; breaks ties only.
        slots: usable expert slots per layer.
        speed: relative throughput; a slow rank is given a smaller figure and gets less load.
        cordoned: holds nothing in any new placement, but still serves as a source.
        tiers: where the rank can load weights from.
    """

    rank: Rank
    host: str
    rack: str = ""
    slots: int
    speed: float = 1.0
    cordoned: bool = False
    tiers: frozenset[SourceTier] = frozenset(SourceTier)


@dataclass(frozen=True)
class Topology:
    """The ranks a plan may use. A rank that is not listed is gone: what it held does not count.

    Attributes:
        ranks: one entry for each live rank, in any order.
        max_ranks: rank slots of the instance, live or not: the placement's second dimension.
        width: slots of the widest rank the placement has room for: its third dimension.
    """

    ranks: tuple[RankSpec, ...]
    max_ranks: int
    width: int

    def __post_init__(self) -> None:
        seen: set[Rank] = set()
        for spec in self.ranks:
            if not 0 <= spec.rank < self.max_ranks or spec.rank in seen:
                raise InvalidInputError(f"rank {spec.rank}: must be unique and below max_ranks={self.max_ranks}")
            if not 0 <= spec.slots <= self.width:
                raise InvalidInputError(f"rank {spec.rank}: slots={spec.slots} must be 0 … width={self.width}")
            if not 0 < spec.speed < float("inf"):
                raise InvalidInputError(
                    f"rank {spec.rank}: speed={spec.speed} must be above 0; cordon a rank to give it none"
                )
            seen.add(spec.rank)

    @classmethod
    def uniform(cls, *, ranks: int, slots: int, ranks_per_host: int = 8) -> Topology:
        """Equal ranks, numbered host by host."""
        return cls(
            ranks=tuple(RankSpec(rank=r, host=f"host{r // ranks_per_host}", slots=slots) for r in range(ranks)),
            max_ranks=ranks,
            width=slots,
        )

    @cached_property
    def by_rank(self) -> dict[Rank, RankSpec]:
        """Live ranks by number."""
        return {spec.rank: spec for spec in sorted(self.ranks, key=lambda s: s.rank)}

    @cached_property
    def usable(self) -> tuple[RankSpec, ...]:
        """Ranks that may hold experts in a new placement, in rank order."""
        return tuple(spec for spec in self.by_rank.values() if not spec.cordoned and spec.slots > 0)

    @cached_property
    def hosts(self) -> dict[str, tuple[Rank, ...]]:
        """Live ranks by host, cordoned ones included."""
        hosts: dict[str, list[Rank]] = {}
        for rank, spec in self.by_rank.items():
            hosts.setdefault(spec.host, []).append(rank)
        return {host: tuple(ranks) for host, ranks in sorted(hosts.items())}

    @property
    def slots(self) -> int:
        """Slots per layer that a new placement may use."""
        return sum(spec.slots for spec in self.usable)

    @cached_property
    def capacity(self) -> npt.NDArray[np.int32]:
        """[max_ranks] usable slots; 0 for ranks that are gone or cordoned."""
        capacity = np.zeros(self.max_ranks, dtype=np.int32)
        for spec in self.usable:
            capacity[spec.rank] = spec.slots
        return capacity

    @cached_property
    def speed(self) -> npt.NDArray[np.float64]:
        """[max_ranks] relative speed; 1 where there is no rank."""
        speed = np.ones(self.max_ranks)
        for rank, spec in self.by_rank.items():
            speed[rank] = spec.speed
        return speed

    def domains(self, survivability: Survivability) -> npt.NDArray[np.int32]:
        """[max_ranks] number of the failure domain that one loss takes away."""
        if survivability is not Survivability.HOST:
            return np.arange(self.max_ranks, dtype=np.int32)
        domains = np.full(self.max_ranks, -1, dtype=np.int32)
        for number, ranks in enumerate(self.hosts.values()):
            domains[list(ranks)] = number
        return domains

    def without(self, lost: Iterable[Rank]) -> Topology:
        """What remains after a loss."""
        gone = set(lost)
        return replace(self, ranks=tuple(spec for spec in self.ranks if spec.rank not in gone))
