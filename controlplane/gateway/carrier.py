"""Carries out one ``Generation``'s instructions: sends to ranks, reads answers, and feeds back what happens.

One attempt is one task; leaving an attempt cancels the task, which closes its connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import msgspec

from controlplane.gateway.errors import GatewayError, UnavailableError
from controlplane.gateway.generation import (
    Abandoned,
    Abort,
    Assigned,
    Begin,
    DeadlinePassed,
    Fail,
    Finish,
    HandOver,
    Lost,
    Piece,
    Received,
    Send,
)
from controlplane.gateway.http_answer import ResponseError
from controlplane.gateway.upstream import AnswerReader, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from controlplane.gateway.generation import Event, Generation, Instruction
    from controlplane.gateway.ranks import Ranks
    from controlplane.gateway.routes import Route, RouteTable

log = logging.getLogger(__name__)

Outcome = Piece | Finish | Fail
_TAIL_S = 1.0
"""After a finish reason a rank still says that this was all; a connection that saw it is used again."""


@dataclass
class _Attempt:
    """The rank that works on the answer now."""

    number: int
    task: asyncio.Task[None]
    struck: bool
    route: Route | None = None
    accepted: bool = False
    sent_at: float = 0.0
    reader: AnswerReader = field(default_factory=AnswerReader)
    refusal: bytes = b""
    """Body of an answer that is not 200."""


class Carrier:
    """One answer under way.

    Attributes:
        generation: its state.
        deliver: called with each piece, and once with how it ended.
    """

    def __init__(self, generation: Generation, ranks: Ranks, deliver: Callable[[Outcome], None]) -> None:
        self.generation = generation
        self._ranks = ranks
        self._deliver = deliver
        self._attempt: _Attempt | None = None
        self._lost_on: set[tuple[int, int]] = set()
        self._started = 0.0

    def start(self) -> None:
        """Ask for the first rank."""
        self._ranks.carriers.add(self)
        self._started = time.monotonic()
        self._feed(Begin())

    def stop(self, error: GatewayError) -> None:
        """End with ``error`` unless it has ended: the client left, or the gateway gave up waiting."""
        self._feed(Abandoned(error))

    def expire(self) -> None:
        """The deadline has passed."""
        self._feed(DeadlinePassed())

    @property
    def route(self) -> Route | None:
        """The rank that works on it, None while there is none."""
        return self._attempt.route if self._attempt else None

    @property
    def waiting_since(self) -> float:
        """When the present rank was asked."""
        return self._attempt.sent_at if self._attempt else 0.0

    def follow(self, table: RouteTable, *, drained: Collection[tuple[int, int]]) -> None:
        """The membership changed: leave a rank that is no longer part of it without waiting for its connection.

        A rank that was ``drained`` left by plan, which says nothing against the request.
        """
        route = self.route
        if route is None or route.key in table:
            return
        reason = f"rank {route.rank} left with epoch {table.epoch}"
        if route.key in drained:
            self.hand_over(reason)
        else:
            self.lose(reason)

    def lose(self, reason: str) -> None:
        """The present rank is gone."""
        attempt = self._attempt
        if attempt is not None and attempt.route is not None:
            self._lost_on.add(attempt.route.key)
            self._feed(Lost(attempt.number, reason, attempt.accepted))

    def hand_over(self, reason: str) -> None:
        """The present rank is to be left although it works."""
        if self._attempt is not None:
            self._feed(HandOver(self._attempt.number, reason))

    def _feed(self, event: Event) -> None:
        for instruction in self.generation.handle(event):
            self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Piece():  # nearly every instruction is one
                self._deliver(instruction)
            case Send():
                self._leave()
                task = asyncio.create_task(self._run(instruction), name=instruction.body["rid"])
                self._attempt = _Attempt(instruction.attempt, task, struck=instruction.settle)
            case Abort():
                self._abort()
            case Finish() | Fail():
                self._ranks.carriers.discard(self)
                self._leave(in_s=_TAIL_S if isinstance(instruction, Finish) else 0.0)
                self._deliver(instruction)
            case _:
                assert_never(instruction)

    def _leave(self, *, in_s: float = 0.0) -> None:
        """Stop listening to the present attempt; its connection closes, unless the answer's end comes before."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        if attempt.route is not None:
            self._ranks.release(attempt.route, struck=attempt.struck)
        if in_s:
            asyncio.get_running_loop().call_later(in_s, attempt.task.cancel)
        elif attempt.task is not asyncio.current_task():
            attempt.task.cancel()

    def _abort(self) -> None:
        """Free the rank's slot at once; SGLang itself notices a closed connection only seconds later."""
        if self._attempt is not None and self._attempt.route is not None:
            self._ranks.abort(self._attempt.route, f"{self.generation.rid}-{self._attempt.number}")

    async def _run(self, send: Send) -> None:
        outlived = await self._ranks.settled() if send.settle else None
        try:
            route = await self._ranks.assign(send.prompt, avoid=self._lost_on, resumed=send.resumed, outlived=outlived)
        except self._ranks.NoRankError as error:
            self._feed(Abandoned(error))
            return
        attempt = self._attempt
        if attempt is None or attempt.number != send.attempt:
            self._ranks.release(route, struck=send.settle)
            return
        attempt.route, attempt.sent_at = route, time.monotonic()
        self._feed(Assigned(route.rank))
        try:
            await self._converse(route, attempt, send.body)
        except (OSError, ResponseError, msgspec.MsgspecError) as error:
            if self._attempt is not attempt:  # only the end mark was still to come
                return
            self._broke(route, attempt, f"{type(error).__name__}: {error}")
        except Exception:  # a fault of ours: no other rank can mend it
            log.exception("request %s", self.generation.rid)
            self._feed(Abandoned(GatewayError("the gateway failed on this request; its log says where")))

    def _broke(self, route: Route, attempt: _Attempt, reason: str) -> None:
        self._ranks.suspect(route)
        self._lost_on.add(route.key)
        if not (attempt.accepted or self.generation.tokens) and self._ranks.patience_ended(self._started):
            self._feed(Abandoned(UnavailableError(f"no rank takes the request: {reason}", retry_after_s=1.0)))
        self._feed(Lost(attempt.number, f"rank {route.rank}: {reason}", attempt.accepted))

    async def _converse(self, route: Route, attempt: _Attempt, body: dict[str, Any]) -> None:
        status = await self._ranks.post(route, body, partial(self._hear, route, attempt))
        if self._attempt is not attempt:  # it ended, or another rank has it
            return
        if status == 200:
            self._broke(route, attempt, "its answer ended without a finish reason")
            return
        if status >= 500:
            self._ranks.suspect(route)
            self._lost_on.add(route.key)
        said = attempt.refusal.decode(errors="replace")[:2000]
        self._feed(Received(attempt.number, Refusal(status, _message(said))))

    def _hear(self, route: Route, attempt: _Attempt, status: int, part: bytes) -> None:
        """A part of the rank's answer."""
        attempt.accepted = True
        if status != 200:
            attempt.refusal += part
            return
        self._ranks.heard(route)
        missing = self._ranks.routes.table.missing
        for what in attempt.reader.feed(part):
            self._feed(Received(attempt.number, what, missing))


def _message(body: str) -> str:
    """SGLang's words out of an error body."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return body
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
