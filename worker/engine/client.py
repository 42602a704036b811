"""The agent's end of the engine's socket (asyncio): it listens, the engine connects and says Hello."""

from __future__ import annotations

import asyncio
import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from schemas.messages import Activated, Ask, EngineStatus, Hello, Prepare, Prepared, Ready, ToAgent, ToEngine
from worker.engine import frames
from worker.engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from schemas.vocabulary import Epoch, Incarnation

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class EngineGoneError(EngineError):
    """The engine is not connected: it has not started yet, or has ended."""


class EngineClient:
    """One engine as its agent sees it. ``async with EngineClient(path) as client``.

    Every message is put into ``messages()``; the last of each kind that matters is kept for whoever comes later.
    A connection of another incarnation than ``expect`` is closed.
    """

    def __init__(self, path: str, *, expect: Incarnation | None = None) -> None:
        self.path = path
        self.expect = expect
        self.hello: Hello | None = None
        self.ready: Ready | None = None
        self.activated: Activated | None = None
        self.prepared: dict[Epoch, Prepared] = {}
        self.status: EngineStatus | None = None
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._messages: asyncio.Queue[ToAgent | None] = asyncio.Queue()
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        _remove(self.path)
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.close()
        _remove(self.path)

    @property
    def connected(self) -> bool:
        """Whether an engine is on the line."""
        return self._writer is not None

    async def messages(self) -> AsyncIterator[ToAgent | None]:
        """Everything the engine says, in order; None each time it hangs up."""
        while True:
            yield await self._messages.get()

    async def send(self, message: ToEngine) -> None:
        """Hand one message over.

        Raises:
            EngineGoneError: no engine is connected.
        """
        if self._writer is None:
            raise EngineGoneError(f"no engine on {self.path}; {type(message).__name__} was not sent")
        self._writer.write(frames.pack(msgspec.msgpack.encode(message)))
        try:
            await self._writer.drain()
        except OSError as error:
            raise EngineGoneError(f"the engine on {self.path} hung up: {error}") from error

    async def prepare(self, request: Prepare) -> Prepared:
        """Send ``Prepare`` and wait for its answer.

        Raises:
            EngineGoneError: no engine, or it hung up.
            TimeoutError: no answer by the request's deadline and two seconds more.
        """
        await self.send(request)
        return await self.wait(lambda: self.prepared.get(request.epoch), within_s=request.deadline_s + 2.0)

    async def ask(self, *, within_s: float = 2.0) -> EngineStatus:
        """The engine's status now."""
        self.status = None
        await self.send(Ask())
        return await self.wait(lambda: self.status, within_s=within_s)

    async def wait(self, look: Callable[[], _T | None], *, within_s: float) -> _T:
        """Wait until ``look`` finds something among what the engine has said.

        Raises:
            TimeoutError: it did not in time.
        """
        async with asyncio.timeout(within_s), self._news:
            while (found := look()) is None:
                await self._news.wait()
            return found

    # --- the socket ---------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await _read(reader)
            if isinstance(first, Hello) and self.expect in (None, first.incarnation):
                self._forget()
                self._writer = writer
                await self._note(first)
                while True:
                    await self._note(await _read(reader))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            log.debug("the engine on %s hung up", self.path)
        except msgspec.MsgspecError:
            log.exception("the engine on %s says what cannot be read; it may connect again", self.path)
        writer.close()
        if self._writer is writer:
            self._writer = None
            self._messages.put_nowait(None)
            async with self._news:
                self._news.notify_all()

    def _forget(self) -> None:
        self.hello = self.ready = self.activated = self.status = None
        self.prepared.clear()

    async def _note(self, message: ToAgent) -> None:
        match message:
            case Hello():
                self.hello = message
            case Ready():
                self.ready = message
            case Prepared():
                self.prepared[message.epoch] = message
            case Activated():
                self.activated = message
            case EngineStatus():
                self.status = message
        self._messages.put_nowait(message)
        async with self._news:
            self._news.notify_all()


def _remove(path: str) -> None:
    """A socket's name outlives its listener."""
    Path(path).unlink(missing_ok=True)


async def _read(reader: asyncio.StreamReader) -> ToAgent:
    (length,) = struct.unpack("<I", await reader.readexactly(4))
    if length > frames.LIMIT:
        raise asyncio.IncompleteReadError(b"", length)
    message: ToAgent = msgspec.msgpack.decode(await reader.readexactly(length), type=ToAgent)
    return message
