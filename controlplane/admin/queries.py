"""GET: what is shown. The cluster and its ranks come from memory, the rest from etcd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.admin import decoding, reading
from controlplane.admin.answers import answer
from controlplane.admin.errors import NotFoundError
from controlplane.admin.views import epoch_row, operation_row, recovery_row

if TYPE_CHECKING:
    from aiohttp import web

    from controlplane.admin.ports import Archive, Reader
    from controlplane.admin.submission import Operations

LIMIT, MAX_LIMIT = 50, 1000


def _limit(request: web.Request) -> int:
    return decoding.number(request, "limit", default=LIMIT, low=1, high=MAX_LIMIT)


class Queries:
    """The handlers that read; every replica answers them."""

    def __init__(self, *, reader: Reader, archive: Archive, operations: Operations) -> None:
        self._reader = reader
        self._archive = archive
        self._operations = operations

    async def cluster(self, _: web.Request) -> web.StreamResponse:
        """``GET /v1/cluster``."""
        page = reading.cluster(self._reader.snapshot())
        return answer(page, headers={"ETag": f'"{page.epoch}"'})

    async def ranks(self, _: web.Request) -> web.StreamResponse:
        """``GET /v1/ranks``."""
        return answer({"ranks": reading.ranks(self._reader.snapshot())})

    async def rank(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/ranks/{rank}``."""
        wanted = decoding.rank(request)
        rows = reading.ranks(self._reader.snapshot())
        for row in rows:
            if row.rank == wanted:
                return answer(row)
        raise NotFoundError(
            f"Nothing is known of rank {wanted}.",
            field="path.rank",
            value=wanted,
            remedy=f"Known ranks: {[row.rank for row in rows]}.",
        )

    async def operations(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/operations``, newest first."""
        kept = (await self._archive.operations())[: _limit(request)]
        return answer({"operations": [operation_row(operation) for operation in kept]})

    async def operation(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/operations/{id}``."""
        operation, _ = await self._operations.find(request.match_info["id"])
        return answer(operation_row(operation))

    async def epochs(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/epochs``, newest first."""
        kept = (await self._archive.epochs())[: _limit(request)]
        return answer({"epochs": [epoch_row(past) for past in kept]})

    async def epoch(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/epochs/{epoch}``."""
        wanted = decoding.epoch(request)
        past = await self._archive.epoch(wanted)
        if past is None:
            raise NotFoundError(
                f"Epoch {wanted} is not kept.",
                field="path.epoch",
                value=wanted,
                remedy="GET /v1/epochs lists the kept.",
            )
        return answer(epoch_row(past))

    async def recoveries(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/recoveries``, newest first."""
        kept = (await self._archive.recoveries())[: _limit(request)]
        return answer({"recoveries": [recovery_row(recovery) for recovery in kept]})

    async def recovery(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/recoveries/{id}``."""
        wanted = request.match_info["id"]
        recovery = await self._archive.recovery(wanted)
        if recovery is None:
            raise NotFoundError(
                f"Recovery {wanted} is not kept.",
                field="path.id",
                value=wanted,
                remedy="GET /v1/recoveries lists those that are.",
            )
        return answer(recovery_row(recovery))
