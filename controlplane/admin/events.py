"""``GET /v1/events``: everything that changes, as server-sent events whose id is the etcd revision.

All events of one revision come together and only the last of them carries the id, so that ``Last-Event-ID`` never
resumes in the middle of a revision.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from aiohttp_sse import sse_response

from controlplane.admin import decoding
from controlplane.admin.errors import ProblemError
from controlplane.admin.views import epoch_row, operation_row, recovery_row
from schemas.operations import Operation, PastEpoch, Recovery

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp_sse import EventSourceResponse

    from controlplane.admin.ports import Archive, Change, Reader
    from schemas.records import Record

PING_S = 10
RETRY_MS = 1000


def shown(record: Record | None) -> object:
    """A record as JSON: as its page shows it where it has one."""
    match record:
        case Operation():
            return operation_row(record)
        case Recovery():
            return recovery_row(record)
        case PastEpoch():
            return epoch_row(record)
        case _:
            return record


def document(change: Change) -> str:
    """The ``data`` of one event."""
    said = {"revision": change.revision, "topic": change.topic, "key": change.key, "record": shown(change.record)}
    return msgspec.json.encode(said).decode()


class Streams:
    """The streams that are open; they end when the application does, or its end would wait for the last reader."""

    def __init__(self, *, reader: Reader, archive: Archive) -> None:
        self._reader = reader
        self._archive = archive
        self._open: set[EventSourceResponse] = set()

    async def follow(self, request: web.Request) -> EventSourceResponse:
        """Stream until the client goes; a stream that cannot resume ends with one ``reset`` event that says why."""
        after = decoding.last_event(request, default=self._reader.snapshot().revision)
        async with sse_response(request, ping_interval=PING_S) as response:
            await response.send("", event="open", id=str(after), retry=RETRY_MS)
            copying = asyncio.create_task(self._copy(response, after))
            copying.add_done_callback(lambda _: response.stop_streaming())
            self._open.add(response)
            try:
                await response.wait()  # until the copy ends, the reader does not answer pings, or ``close``
            finally:
                self._open.discard(response)
                copying.cancel()
                await asyncio.gather(copying, return_exceptions=True)
        return response

    async def _copy(self, response: EventSourceResponse, after: int) -> None:
        try:
            async with aclosing(self._archive.changes(after=after)) as changes:
                async for change in changes:
                    await _send(response, change)
        except ProblemError as problem:
            await response.send(msgspec.json.encode(problem.document()).decode(), event="reset")
        except ConnectionResetError:
            pass  # the reader went away: that is how a stream ends

    async def close(self, _: web.Application) -> None:
        """End every stream; their readers come back to another replica with their last id."""
        for response in self._open:
            response.stop_streaming()


async def _send(response: EventSourceResponse, change: Change) -> None:
    identity = str(change.revision) if change.last_of_revision else None
    await response.send(document(change), event=change.topic, id=identity)
