"""For supervisors and load balancers: the status code is the answer, and no token is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.admin.answers import answer

if TYPE_CHECKING:
    from aiohttp import web

    from controlplane.admin.ports import Reader


class Health:
    """``/livez`` the loop turns; ``/readyz`` etcd is connected and the state is read; ``/leader`` this one leads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def live(self, _: web.Request) -> web.StreamResponse:
        """200 whenever it is answered at all."""
        return answer({"ok": True})

    async def ready(self, _: web.Request) -> web.StreamResponse:
        """200 when reads and redirects are worth sending here, else 503."""
        connected = self._reader.snapshot().connected
        return answer({"ok": connected}, status=200 if connected else 503)

    async def leader(self, _: web.Request) -> web.StreamResponse:
        """200 on the leader, 503 elsewhere: a load balancer's check for where mutations go."""
        snapshot = self._reader.snapshot()
        url = snapshot.leader.admin_url if snapshot.leader else ""
        document = {"ok": snapshot.leading, "replica": snapshot.replica, "leader_url": url}
        return answer(document, status=200 if snapshot.leading else 503)
