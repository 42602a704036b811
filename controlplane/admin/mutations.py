"""POST and DELETE: what changes the instance. Each becomes an operation, or with ``?dry_run=1`` a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from controlplane.admin import decoding, requests
from controlplane.admin.answers import answer
from controlplane.admin.errors import NoLeaderError
from controlplane.admin.identity import identity_of, note
from controlplane.admin.rollback import opposite
from controlplane.admin.submission import Asked, Operations
from controlplane.admin.views import forecast, operation_row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controlplane.admin.ports import Archive, Reader, Snapshot
    from schemas.operations import Operation, OperationKind
    from schemas.vocabulary import Rank

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def leader_only(snapshot: Snapshot, request: web.Request) -> None:
    """Send the caller to the leader unless this replica leads.

    Raises:
        aiohttp.web.HTTPTemporaryRedirect: 307, method and body kept.
        NoLeaderError: nobody leads now, or this replica no more or not yet: a redirect would lead back here.
    """
    if snapshot.leading:
        return
    leader = snapshot.leader
    if leader is None or not leader.admin_url or leader.replica == snapshot.replica:
        raise NoLeaderError("No replica leads at this moment.", remedy="Repeat with the same Idempotency-Key.")
    raise web.HTTPTemporaryRedirect(f"{leader.admin_url.rstrip('/')}{request.path_qs}")


def accepted(operation: Operation, *, made: bool) -> web.Response:
    """202 with the operation and where to follow it."""
    headers = {"Location": f"/v1/operations/{operation.id}"}
    if not made:
        headers["Idempotent-Replayed"] = "true"
    return answer(operation_row(operation), status=202, headers=headers)


class Mutations:
    """The handlers that change something; only the leader runs them."""

    def __init__(self, *, reader: Reader, archive: Archive, operations: Operations) -> None:
        self._reader = reader
        self._archive = archive
        self._operations = operations

    def on_rank(self, kind: OperationKind, body: type[requests.Body]) -> Handler:
        """``POST /v1/ranks/{rank}:<kind>``."""

        async def handler(request: web.Request) -> web.StreamResponse:
            leader_only(self._reader.snapshot(), request)
            rank = decoding.rank(request)
            return await self._perform(request, kind, await decoding.body(request, body), ranks=(rank,))

        return handler

    def on_host(self, kind: OperationKind, body: type[requests.Body]) -> Handler:
        """``POST /v1/hosts/{host}:<kind>``."""

        async def handler(request: web.Request) -> web.StreamResponse:
            leader_only(self._reader.snapshot(), request)
            host = request.match_info["host"]
            return await self._perform(request, kind, await decoding.body(request, body), host=host)

        return handler

    def on_instance(self, kind: OperationKind, body: type[requests.Body]) -> Handler:
        """``POST /v1/<kind>``; ``body`` may be a union whose members say the kind themselves."""

        async def handler(request: web.Request) -> web.StreamResponse:
            leader_only(self._reader.snapshot(), request)
            said = await decoding.body(request, body)
            return await self._perform(request, said.kind or kind, said, ranks=said.named_ranks, host=said.named_host)

        return handler

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """``DELETE /v1/operations/{id}``."""
        leader_only(self._reader.snapshot(), request)
        who = identity_of(request).name
        return accepted(await self._operations.cancel(request.match_info["id"], who=who), made=True)

    async def rollback(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/operations/{id}:rollback``: a new operation that undoes one that has ended."""
        leader_only(self._reader.snapshot(), request)
        said = await decoding.body(request, requests.Remarked)
        operation, _ = await self._operations.find(request.match_info["id"])
        asked = await opposite(
            operation,
            archive=self._archive,
            snapshot=self._reader.snapshot(),
            who=identity_of(request).name,
            reason=said.reason,
            key=decoding.idempotency_key(request),
        )
        return await self._finish(request, asked)

    async def _perform(
        self,
        request: web.Request,
        kind: OperationKind,
        said: requests.Body,
        *,
        ranks: tuple[Rank, ...] = (),
        host: str = "",
    ) -> web.StreamResponse:
        note(request, reason=said.reason)
        asked = Asked(
            kind=kind,
            who=identity_of(request).name,
            reason=said.reason,
            ranks=ranks,
            host=host,
            parameters=said.parameters,
            deadline_s=said.deadline_s,
            key=decoding.idempotency_key(request),
            expected_epoch=decoding.expected_epoch(request),
            traceparent=request.headers.get("traceparent", ""),
        )
        return await self._finish(request, asked)

    async def _finish(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        if decoding.flag(request, "dry_run"):
            return answer(forecast(await self._operations.predict(asked)))
        operation, made = await self._operations.submit(asked)
        note(request, operation=operation.id)
        return accepted(operation, made=made)
