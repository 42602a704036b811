"""``GET /v1/events``: everything that changes, as server-sent events whose id is the etcd revision.

All events of one revision come together and only the last of them carries the id, so that ``Last-Event-ID`` never
resumes in the middle of a revision.
"""

from __future__ import annotations

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


async def follow(request: web.Request, *, reader: Reader, archive: Archive) -> EventSourceResponse:
    """Stream until the client goes; a stream that cannot resume ends with one ``reset`` event that says why."""
    after = decoding.last_event(request, default=reader.snapshot().revision)
    async with sse_response(request, ping_interval=PING_S) as response:
        await response.send("", event="open", id=str(after), retry=RETRY_MS)
        try:
            async with aclosing(archive.changes(after=after)) as changes:
                async for change in changes:
                    await _send(response, change)
        except ProblemError as problem:
            await response.send(msgspec.json.encode(problem.document()).decode(), event="reset")
        except ConnectionResetError:
            pass  # the reader went away: that is how a stream ends
    return response


async def _send(response: EventSourceResponse, change: Change) -> None:
    identity = str(change.revision) if change.last_of_revision else None
    await response.send(document(change), event=change.topic, id=identity)
