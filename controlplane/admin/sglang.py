"""SGLang's own names for scaling, so that an orchestrator written for it need not learn ours.

Shapes and codes are those of SGLang 0.5.23 (``sglang/srt/entrypoints/elastic_ep.py``).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from controlplane.admin import decoding, requests
from controlplane.admin.answers import answer
from controlplane.admin.errors import ProblemError
from controlplane.admin.identity import identity_of, note
from controlplane.admin.mutations import leader_only
from controlplane.admin.submission import Asked, Operations
from controlplane.admin.views import member_ranks
from schemas.operations import OperationKind, OperationState

if TYPE_CHECKING:
    from aiohttp import web

    from controlplane.admin.ports import Archive, Reader
    from schemas.operations import Operation


class Sglang:
    """``POST /scale_elastic_ep`` and ``GET /is_scaling_elastic_ep``."""

    def __init__(self, *, reader: Reader, archive: Archive, operations: Operations) -> None:
        self._reader = reader
        self._archive = archive
        self._operations = operations

    def _size(self) -> int:
        epoch = self._reader.snapshot().epoch
        return len(member_ranks(epoch.committed)) if epoch else 0

    async def scale(self, request: web.Request) -> web.StreamResponse:
        """Ask for ``new_ep_size`` ranks; 409 while an earlier request is under way."""
        leader_only(self._reader.snapshot(), request)
        try:
            size = (await decoding.body(request, requests.ScaleElasticEp)).new_ep_size
            if pending := _pending(await self._archive.operations()):
                said = (
                    f"A previous scale operation has not completed yet: {pending.id} to {pending.parameters['target']}."
                )
                return answer({"error": said}, status=HTTPStatus.CONFLICT)
            before = self._size()
            operation, _ = await self._operations.submit(_asked(size, who=identity_of(request).name))
        except ProblemError as problem:
            return answer({"error": str(problem)}, status=problem.status, headers=problem.headers)
        note(request, operation=operation.id)
        said = f"Scaling from {before} to {size} as operation {operation.id}."
        return answer({"message": said, "old_ep_size": before, "new_ep_size": size})

    async def is_scaling(self, _: web.Request) -> web.StreamResponse:
        """What the newest scaling does, or how it ended."""
        scalings = [one for one in await self._archive.operations() if one.kind is OperationKind.SCALE]
        pending = _pending(scalings)
        failed = scalings and scalings[0].state in (OperationState.FAILED, OperationState.REFUSED)
        return answer(
            {
                "is_scaling_elastic_ep": pending is not None,
                "effective_ep_size": self._size(),
                "pending_ep_size": pending.parameters["target"] if pending else None,
                "scale_phase": str(pending.phases[-1].name if pending.phases else pending.state) if pending else None,
                "last_error": scalings[0].message if failed else None,
            }
        )


def _pending(operations: list[Operation]) -> Operation | None:
    running = (one for one in operations if one.kind is OperationKind.SCALE and not one.state.final)
    return next(running, None)


def _asked(size: int, *, who: str) -> Asked:
    return Asked(kind=OperationKind.SCALE, who=who, reason="asked by /scale_elastic_ep", parameters={"target": size})
