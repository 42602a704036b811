"""The event stream of one client: answers' news in its dialect, framed and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import HttpVersion11

from controlplane.gateway.generation import Piece

if TYPE_CHECKING:
    from aiohttp import web

    from controlplane.gateway.generation import Finish
    from controlplane.gateway.service import Running

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class EventStream:
    """Writes events, those that can be at once without waiting for a task's turn.

    aiohttp's ``write`` is a coroutine, since it may have to wait for the client to read, and waking a task for every
    token in order to call it was an eighth of what a token cost. While the client reads along there is nothing to wait
    for, and the bytes go to its connection in the call that brings the token.
    """

    def __init__(self, request: web.Request, stream: web.StreamResponse, running: Running) -> None:
        self._request = request
        self._stream = stream
        self._running = running
        self._present = running.job.presenter

    def said(self, index: int, what: Piece | Finish) -> bytes:
        """The event for news of answer ``index``; empty for nothing to say."""
        generation = self._running.generations[index]
        if isinstance(what, Piece):
            event = self._present.piece(index, what, generation)
        else:
            event = self._present.finish(index, what, generation)
        return encoded(event) if event is not None else b""

    async def write(self, events: bytes) -> None:
        """Write, after the headers the first time; wait while the client does not read.

        Raises:
            ConnectionResetError: the client left.
        """
        if not self._stream.prepared:
            await self._stream.prepare(self._request)
        await self._stream.write(events)

    def write_at_once(self, index: int, piece: Piece) -> bool:
        """Write the event for ``piece`` if nothing has to be waited for; whether it was.

        Only after the first ``write``, with which the headers go.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        if self._request.version < HttpVersion11:  # no chunks: aiohttp knows how its answer is framed
            return False
        events = self.said(index, piece)
        if events:
            transport.write(b"%x\r\n%b\r\n" % (len(events), events))
        return True


def encoded(event: Any) -> bytes:
    """One event as it goes over the wire."""
    return b"data: %b\n\n" % _encode(event)
