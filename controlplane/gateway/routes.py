"""Which ranks may be given work now, as the committed epoch and the registrations say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from schemas.records import EpochRecord, Registration
    from schemas.vocabulary import Epoch, Incarnation, Rank


@dataclass(frozen=True)
class Route:
    """One rank that serves.

    Attributes:
        rank: its place.
        incarnation: the process in that place: a request belongs to it, not to the rank.
        url: SGLang's HTTP address.
        draining: finishes what it has, takes nothing new.
    """

    rank: Rank
    incarnation: Incarnation
    url: str
    draining: bool = False

    @property
    def key(self) -> tuple[Rank, Incarnation]:
        """Names the process."""
        return self.rank, self.incarnation


@dataclass(frozen=True)
class RouteTable:
    """All routes of one moment.

    Attributes:
        epoch: the committed epoch; 0 for none.
        routes: ranks of the epoch that are registered and ready, by rank.
        traceparent: of the recovery or operation that made the epoch.
        missing: (layer, expert) pairs without a copy that answers are made without, 0 where ranks wait for them.
    """

    epoch: Epoch = 0
    routes: tuple[Route, ...] = ()
    traceparent: str = ""
    missing: int = 0

    def __contains__(self, key: tuple[Rank, Incarnation]) -> bool:
        return any(route.key == key for route in self.routes)

    @property
    def open(self) -> tuple[Route, ...]:
        """Those that take new requests."""
        return tuple(route for route in self.routes if not route.draining)


def build(record: EpochRecord | None, registrations: Iterable[Registration]) -> RouteTable:
    """Join epoch and registrations: a rank serves if both name the same incarnation and it is ready.

    A rank drains if it asked to leave, or if the change being prepared leaves it out.
    """
    if record is None:
        return RouteTable()
    members = {(member.rank, member.incarnation) for member in record.committed.members}
    serving = [each for each in registrations if (each.rank, each.incarnation) in members]
    staying = {member.rank for member in record.preparing.members} if record.preparing else None
    routes = [
        Route(
            rank=each.rank,
            incarnation=each.incarnation,
            url=each.serve_url.rstrip("/"),
            draining=bool(each.leaving) or (staying is not None and each.rank not in staying),
        )
        for each in serving
        if each.ready and each.serve_url
    ]
    routes.sort(key=lambda route: route.rank)
    return RouteTable(
        epoch=record.committed.epoch,
        routes=tuple(routes),
        traceparent=record.traceparent,
        missing=record.committed.missing if any(each.best_effort for each in serving) else 0,
    )


@dataclass
class Routes:
    """The table in force, and who wants to hear of a new one."""

    table: RouteTable = field(default_factory=RouteTable)
    _listeners: list[Callable[[RouteTable], None]] = field(default_factory=list)

    def replace(self, table: RouteTable) -> None:
        """Put ``table`` in force and tell everybody; nothing happens when it is the same."""
        if table == self.table:
            return
        self.table = table
        for listener in tuple(self._listeners):
            listener(table)

    def subscribe(self, listener: Callable[[RouteTable], None]) -> Callable[[], None]:
        """Call ``listener`` with every new table; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


class RouteSource(Protocol):
    """Where tables come from: etcd in production, a fixed list in tests and for ranks started by hand."""

    async def run(self, routes: Routes) -> None:
        """Keep ``routes`` current until cancelled."""
        ...
