"""Requests to ranks over HTTP/1.1: each part of an answer is handed over in the call that brings it.

aiohttp's client hands a body to a task that waits for it, which was a fifth of what a token cost here, and that is time
of processors that the ranks on the same host could use. What a rank is asked needs little of HTTP: one POST at a time
on a connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from controlplane.gateway.http_answer import ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECT_S = 1.0
_NEXT_ADDRESS_S = 0.25
"""A name may have an address that does not answer beside one that does (RFC 8305)."""
_KEEP_S = 3.0
"""Below uvicorn's 5 s: a connection that the rank is about to close must not be taken for a request."""


class Connections:
    """Connections to any number of servers, kept for a while after each answer; ``close`` at the end."""

    def __init__(self) -> None:
        self._idle: defaultdict[str, list[_Connection]] = defaultdict(list)

    async def post(self, url: str, path: str, content: bytes, take: Callable[[int, bytes], None]) -> int:
        """Send JSON and take the answer; its status once all of it was taken.

        Args:
            url: scheme, host and port, and what stands before ``path``.
            path: of the request.
            content: the body.
            take: called with the status and a part of the body, first when the head has come.

        Raises:
            OSError: the server could not be reached or broke off.
            TimeoutError: no connection in time.
            ResponseError: what came is no answer.
            Exception: what ``take`` raised.
        """
        place = urlsplit(url)
        connection = self._kept(url) or await _connect(place.hostname or "", place.port, tls=place.scheme == "https")
        head = (
            f"POST {place.path}{path} HTTP/1.1\r\nhost: {place.netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        try:
            return await connection.ask(head.encode() + content, take)
        finally:
            if connection.free:
                self._idle[url].append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close what is kept."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _kept(self, url: str) -> _Connection | None:
        """The one used last; those that were not used for long are closed, and those that servers closed forgotten."""
        found, now = self._idle[url], time.monotonic()
        while found:
            connection = found.pop()
            if connection.free and now - connection.freed_at < _KEEP_S:
                return connection
            connection.close()
        for other in [other for other, kept in self._idle.items() if not any(each.free for each in kept)]:
            del self._idle[other]  # a rank that came back answers elsewhere
        return None


async def _connect(host: str, port: int | None, *, tls: bool) -> _Connection:
    async with asyncio.timeout(_CONNECT_S):
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection,
            host,
            port or (443 if tls else 80),
            ssl=tls or None,
            happy_eyeballs_delay=_NEXT_ADDRESS_S,
        )
    return connection


class _Connection(asyncio.Protocol):
    """One request at a time; it is broken off when the asking task is cancelled."""

    def __init__(self) -> None:
        self.freed_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._answer: asyncio.Future[int] | None = None
        self._take: Callable[[int, bytes], None] | None = None

    async def ask(self, request: bytes, take: Callable[[int, bytes], None]) -> int:
        """See ``Connections.post``."""
        if self._transport is None:
            raise ConnectionResetError("closed before it was asked")
        self._reader = ResponseReader()
        self._take = take
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            return await self._answer
        finally:
            self._answer = self._take = None
            self.freed_at = time.monotonic()

    @property
    def free(self) -> bool:
        """Whether it may be asked again."""
        return self._transport is not None and self._reader.ended and self._reader.kept

    def close(self) -> None:
        """Close it; twice is no harm."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand over what it brings."""
        take, reader = self._take, self._reader
        if take is None:  # nobody asked
            self.close()
            return
        try:
            part = reader.feed(data)
            if reader.status:
                take(reader.status, part)
        except Exception as error:  # noqa: BLE001  it is for whoever asked, and this is the loop's call
            self._break(error)
            return
        if reader.ended and self._answer is not None and not self._answer.done():
            self._answer.set_result(reader.status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who asked."""
        self._transport = None
        self._break(exc or ConnectionResetError("the connection was closed"))

    def _break(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()
