"""How many requests run, how many wait, and what the others are told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlplane.gateway.errors import BusyError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_RETRY_AFTER_S = 1.0


@dataclass
class Admission:
    """A bounded queue in front of a bounded number of running requests, first come first served.

    Attributes:
        most_running: requests with a rank.
        most_queued: requests waiting for that.
    """

    most_running: int
    most_queued: int
    queued: int = 0
    running: int = 0
    closing: bool = False
    """The gateway is about to stop: nothing new is taken."""

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.most_running)
        self._idle = asyncio.Event()
        self._idle.set()

    async def close(self, *, wait_s: float) -> None:
        """Take nothing new, and wait up to ``wait_s`` for what is here to end."""
        self.closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._idle.wait()

    @asynccontextmanager
    async def admitted(self, *, wait_s: float) -> AsyncIterator[None]:
        """Run the block once there is room.

        Raises:
            BusyError: the queue is full.
            UnavailableError: no room within ``wait_s``, or the gateway is closing.
        """
        if self.closing:
            raise UnavailableError("this gateway is stopping; use another one", retry_after_s=_RETRY_AFTER_S)
        if self._slots.locked() and self.queued >= self.most_queued:
            raise BusyError(
                f"{self.running} requests run and {self.queued} wait, which is all this gateway takes",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.queued += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise UnavailableError(
                f"no room for {wait_s:.0f} s; the ranks are overloaded", retry_after_s=_RETRY_AFTER_S
            ) from error
        finally:
            self.queued -= 1
            self._note()
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()
            self._note()

    def _note(self) -> None:
        if not self.running and not self.queued:
            self._idle.set()
