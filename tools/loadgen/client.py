"""The client: N streams at once through ``/generate``, of a gateway or of a rank directly."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from tools.loadgen.answers import Answer, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tools.loadgen.answers import Ask

_END = b"[DONE]"
_LIMITED_S = 0.05
"""How often a client that may not send now looks whether it may."""


@dataclass(frozen=True)
class Target:
    """Where requests go; clients are dealt out over several addresses, and try the next one when theirs refuses.

    Each keeps to its own, so that the load stays even however long single answers take. With fewer clients than
    addresses the last ones get nothing.

    Attributes:
        urls: e.g. ``http://127.0.0.1:8000``.
        timeout_s: for one whole answer.
        tries: how often a request is sent before its failure counts; more than 1 only where clients are told to retry
            (a killed gateway).
        retry_wait_s: before the next try.
    """

    urls: tuple[str, ...]
    timeout_s: float = 120.0
    tries: int = 1
    retry_wait_s: float = 0.2


class _Chunk(msgspec.Struct):
    """The part of a ``/generate`` event that is used here."""

    output_ids: list[int] = []
    meta_info: dict[str, Any] = {}
    error: dict[str, Any] | None = None


@dataclass
class Load:
    """Keeps ``concurrency`` requests under way until told to stop or until the requests are used up.

    Use as ``answers = await Load(target, asks, concurrency=8).run()``, or start ``run`` as a task, make faults, then
    ``stop()`` and await the task: requests under way are finished.

    Attributes:
        on_token: called with the answer after each arrival, e.g. to show text or to trigger a fault at a token.
        answers: every answer so far, those under way included.
        limit: so many of the clients send new requests now; None for all.
    """

    target: Target
    asks: Iterable[Ask]
    concurrency: int
    on_token: Callable[[Answer], None] | None = None
    answers: list[Answer] = field(default_factory=list)
    limit: int | None = None
    _stopped: bool = False

    def stop(self) -> None:
        """Send no further requests."""
        self._stopped = True

    async def run(self) -> list[Answer]:
        """Send, receive, and return all answers in the order in which they were sent."""
        pending = iter(self.asks)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self.target.timeout_s)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        async with session, asyncio.TaskGroup() as group:
            for number in range(self.concurrency):
                group.create_task(self._worker(number, session, pending))
        return self.answers

    async def _worker(self, number: int, session: aiohttp.ClientSession, pending: Iterator[Ask]) -> None:
        while not self._stopped:
            if self.limit is not None and number >= self.limit:
                await asyncio.sleep(_LIMITED_S)
                continue
            ask = next(pending, None)
            if ask is None:
                return
            answer = Answer(ask=ask, sent_ns=time.monotonic_ns())
            self.answers.append(answer)
            await self._ask(session, answer, client=number)
            answer.ended_ns = time.monotonic_ns()

    async def _ask(self, session: aiohttp.ClientSession, answer: Answer, *, client: int) -> None:
        for number in range(self.target.tries):
            answer.tries = number + 1
            answer.outcome, answer.error = Outcome.CUT, ""
            answer.tokens.clear()
            answer.arrived_ns.clear()
            url = self.target.urls[(client + number) % len(self.target.urls)]
            try:
                await self._stream(session, url, answer)
            except (aiohttp.ClientError, TimeoutError) as error:
                answer.outcome, answer.error = Outcome.ERROR, f"{type(error).__name__}: {error}"
            if answer.outcome is Outcome.COMPLETE:
                return
            if number + 1 < self.target.tries:
                await asyncio.sleep(self.target.retry_wait_s)

    async def _stream(self, session: aiohttp.ClientSession, url: str, answer: Answer) -> None:
        headers = {"EEP-Stream": "incremental"}
        async with session.post(f"{url}/generate", json=_body(answer.ask), headers=headers) as response:
            if response.status != 200:
                answer.outcome = Outcome.ERROR
                answer.error = f"HTTP {response.status}: {(await response.text())[:300]}"
                return
            buffered = b""
            async for data in response.content.iter_any():
                *events, buffered = (buffered + data).split(b"\n\n")
                for event in events:
                    self._event(event, answer)

    def _event(self, event: bytes, answer: Answer) -> None:
        if not event.startswith(b"data: "):
            return
        if event[6:] == _END:
            if answer.finish and answer.outcome is Outcome.CUT:
                answer.outcome = Outcome.COMPLETE
            return
        chunk = msgspec.json.decode(event[6:], type=_Chunk)
        if chunk.error is not None:
            answer.outcome, answer.error = Outcome.ERROR, str(chunk.error.get("message", chunk.error))
            return
        _take(chunk, answer)
        if self.on_token is not None:
            self.on_token(answer)


def _take(chunk: _Chunk, answer: Answer) -> None:
    """Add the chunk's new tokens. A rank sends all tokens so far in each event, or only the new ones, as configured."""
    seen, total = len(answer.tokens), int(chunk.meta_info.get("completion_tokens", 0))
    only_new = seen + len(chunk.output_ids) <= total
    new = chunk.output_ids if only_new else chunk.output_ids[seen:]
    answer.tokens.extend(new)
    answer.arrived_ns.extend([time.monotonic_ns()] * len(new))
    own = chunk.meta_info.get("eep") or {}
    answer.resumed = int(own.get("resumed", answer.resumed))
    answer.exact = bool(own.get("exact", answer.exact))
    answer.ranks = list(own.get("ranks", answer.ranks))
    finish = chunk.meta_info.get("finish_reason")
    if finish:
        answer.finish = str(finish["type"])
        if answer.finish not in ("length", "stop"):
            answer.outcome, answer.error = Outcome.ERROR, str(finish.get("message", finish))


def _body(ask: Ask) -> dict[str, Any]:
    sampling: dict[str, Any] = {
        "max_new_tokens": ask.max_new_tokens,
        "temperature": ask.temperature,
        "ignore_eos": ask.ignore_eos,
    }
    if ask.temperature:
        sampling["sampling_seed"] = ask.seed
    return {"input_ids": list(ask.prompt), "sampling_params": sampling, "stream": True}
