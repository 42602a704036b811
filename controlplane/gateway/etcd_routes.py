"""Routes out of etcd: the epoch record and the ranks' registrations, followed for ever.

While etcd is away the last table stays in force (fail static): the epoch that runs goes on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlplane.etcd import Watch
from controlplane.gateway.routes import RouteTable, build
from schemas.codec import RecordError, decode
from schemas.records import EpochRecord, Registration

if TYPE_CHECKING:
    from controlplane.etcd import Etcd
    from controlplane.gateway.routes import Routes
    from schemas.keys import Keys

log = logging.getLogger(__name__)


@dataclass
class EtcdRoutes:
    """A ``RouteSource``.

    Attributes:
        etcd: any client of the session layer.
        keys: of the instance.
        listed: set once both watches have delivered what stands in etcd.
    """

    etcd: Etcd
    keys: Keys
    listed: asyncio.Event = field(default_factory=asyncio.Event)
    _record: EpochRecord | None = None
    _registrations: dict[str, Registration] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    async def run(self, routes: Routes) -> None:
        """Keep ``routes`` current until cancelled.

        Raises:
            ExceptionGroup: an ``EtcdError`` that time does not heal.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_epoch(routes), name="gateway-epoch")
            group.create_task(self._follow_ranks(routes), name="gateway-ranks")

    async def _follow_epoch(self, routes: Routes) -> None:
        watch = Watch(self.etcd, self.keys.epoch)
        async for _ in watch:
            found = watch.items.get(self.keys.epoch)
            try:
                self._record = None if found is None else decode(found.value, EpochRecord, key=found.key)
            except RecordError:
                log.exception("the epoch record is unreadable; the routes stay as they are")
                continue
            self._rebuild("epoch", routes)

    async def _follow_ranks(self, routes: Routes) -> None:
        watch = Watch(self.etcd, self.keys.ranks)
        async for _ in watch:
            self._registrations = {}
            for key, item in watch.items.items():
                try:
                    self._registrations[key] = decode(item.value, Registration, key=key)
                except RecordError:
                    log.exception("a registration is unreadable; its rank gets no requests")
            self._rebuild("ranks", routes)

    def _rebuild(self, what: str, routes: Routes) -> None:
        self._seen.add(what)
        if len(self._seen) < 2:
            return
        table = build(self._record, self._registrations.values())
        if table != routes.table:
            log.info("routes: %s", _words(table))
        routes.replace(table)
        self.listed.set()


def _words(table: RouteTable) -> str:
    serving = ", ".join(f"{route.rank}{' (drains)' if route.draining else ''}" for route in table.routes)
    return f"epoch {table.epoch}: ranks {serving or 'none'}"
