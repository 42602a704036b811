"""One request from admission to its end: queue, deadline, audit line, metrics and span."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlplane.gateway.audit import Ending
from controlplane.gateway.carrier import Carrier
from controlplane.gateway.errors import GatewayError, UnavailableError
from controlplane.gateway.generation import Fail, Finish, Generation, Patience, Piece
from controlplane.gateway.job import Answered
from controlplane.telemetry import link_to, span
from controlplane.telemetry.names import REQUEST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from opentelemetry.trace import Span

    from controlplane.gateway.admission import Admission
    from controlplane.gateway.audit import Audit, Entry
    from controlplane.gateway.carrier import Outcome
    from controlplane.gateway.job import Job
    from controlplane.gateway.model import ServedModel
    from controlplane.gateway.ranks import Ranks
    from controlplane.telemetry import GatewayMetrics
    from schemas.config import GatewayConfig

News = tuple[int, Piece | Finish]
"""(number of the answer, what is new about it)."""


@dataclass
class Running:
    """A request whose answers are under way.

    Attributes:
        generations: one for each answer.
        reader: takes a piece at once, or says that it cannot; None while nobody reads along.
    """

    job: Job
    entry: Entry
    generations: list[Generation]
    carriers: list[Carrier] = field(default_factory=list)
    reader: Callable[[int, Piece], bool] | None = None
    _box: deque[tuple[int, Outcome]] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, index: int, outcome: Outcome) -> None:
        """Something happened to answer ``index``."""
        if isinstance(outcome, Piece):
            if outcome.ids:
                self.entry.token(time.monotonic())
            if self.reader is not None and not self._box and self.reader(index, outcome):
                return
        self._box.append((index, outcome))
        self._news.set()

    async def news(self) -> AsyncIterator[list[News]]:
        """What is new, in batches: whatever came while the last batch was written is one batch.

        Raises:
            GatewayError: an answer failed, and the request with it.
        """
        open_answers = len(self.generations)
        while open_answers:
            await self._news.wait()
            self._news.clear()
            batch: list[News] = []
            failure: GatewayError | None = None
            while self._box and failure is None:
                index, outcome = self._box.popleft()
                if isinstance(outcome, Fail):
                    failure = outcome.error
                else:
                    batch.append((index, outcome))
                    open_answers -= isinstance(outcome, Finish)
            if batch:
                yield batch
            if failure is not None:
                raise failure

    async def whole(self) -> list[Answered]:
        """All answers, once all are complete. Raises as ``news``."""
        pieces: list[list[Piece]] = [[] for _ in self.generations]
        ends: dict[int, Finish] = {}
        async for batch in self.news():
            for index, what in batch:
                if isinstance(what, Finish):
                    ends[index] = what
                else:
                    pieces[index].append(what)
        return [
            Answered(generation, tuple(pieces[index]), ends[index]) for index, generation in enumerate(self.generations)
        ]


@dataclass(frozen=True)
class Service:
    """What every request needs."""

    config: GatewayConfig
    model: ServedModel
    ranks: Ranks
    admission: Admission
    audit: Audit
    metrics: GatewayMetrics

    @asynccontextmanager
    async def run(self, job: Job, *, deadline_s: float = 0.0, traceparent: str = "") -> AsyncIterator[Running]:
        """Admit ``job``, start its answers, and see to it that it ends exactly once, however the block is left.

        Args:
            job: what to do.
            deadline_s: the client's own, 0 for none; the gateway's holds as well.
            traceparent: of the client's span, empty for none.

        Raises:
            GatewayError: it was not admitted, or the block raised it.
        """
        deadline = min(deadline_s or self.config.request_deadline_s, self.config.request_deadline_s)
        try:
            async with self.admission.admitted(wait_s=deadline):
                with span(REQUEST, parent=traceparent, attributes=_attributes(job)) as current:
                    async with self._accepted(job, deadline, current) as running:
                        yield running
        except GatewayError as error:
            self.metrics.refused.labels(error.code).inc()
            raise

    @asynccontextmanager
    async def _accepted(self, job: Job, deadline_s: float, current: Span) -> AsyncIterator[Running]:
        running = Running(job, self.audit.accept(job, now=time.monotonic()), self._generations(job))
        for index, generation in enumerate(running.generations):
            carrier = Carrier(generation, self.ranks, _Deliver(running, index))
            running.carriers.append(carrier)
            carrier.start()
        timer = asyncio.get_running_loop().call_later(deadline_s, _expire, running)
        ending, failure = Ending.ABANDONED, None
        try:
            yield running
            ending = Ending.COMPLETED
        except GatewayError as error:
            ending, failure = Ending.FAILED, error
            raise
        finally:
            timer.cancel()
            for carrier in running.carriers:
                carrier.stop(UnavailableError("the request was abandoned"))
            self.audit.end(running.entry, ending, running.generations, now=time.monotonic(), error=failure)
            self._count(running, ending, current)

    def _generations(self, job: Job) -> list[Generation]:
        patience = Patience(strikes=self.config.crash_limit)
        return [
            Generation(
                spec,
                self.model.tokenizer,
                patience,
                seeded_ranks=self.config.seeded_ranks,
                rid=f"{job.id}-{index}",
            )
            for index, spec in enumerate(job.specs)
        ]

    def _count(self, running: Running, ending: Ending, current: Span) -> None:
        entry, made = running.entry, running.generations
        resumed = sum(each.resumed for each in made)
        self.metrics.requests.labels(entry.job.dialect, ending.value).inc()
        self.metrics.resumes.inc(resumed)
        self.metrics.retries.inc(sum(each.retried for each in made))
        self.metrics.inexact.inc(sum(bool(each.inexact) for each in made))
        self.metrics.best_effort.inc(sum(bool(each.missing) for each in made))
        if entry.first_token:
            self.metrics.first_token.observe(entry.first_token - entry.accepted)
        if resumed:
            self.metrics.stall.observe(entry.longest_gap_s)
            for link in link_to(self.ranks.routes.table.traceparent):
                current.add_link(link.context)
        current.set_attribute("eep.outcome", ending.value)
        current.set_attribute("eep.resumed", resumed)
        current.set_attribute("eep.tokens", sum(len(each.tokens) for each in made))
        current.set_attribute("eep.ranks", [rank for each in made for rank in each.ranks])


def _attributes(job: Job) -> dict[str, str | int]:
    return {"eep.request.id": job.id, "eep.route": job.dialect, "eep.answers": len(job.specs)}


@dataclass(frozen=True)
class _Deliver:
    """Puts one answer's outcomes into its request's box."""

    running: Running
    index: int

    def __call__(self, outcome: Outcome) -> None:
        self.running.put(self.index, outcome)


def _expire(running: Running) -> None:
    for carrier in running.carriers:
        carrier.expire()
