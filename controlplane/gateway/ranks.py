"""The ranks as the gateway sees them at run time: connections, loads, who is silent, who is to be left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import msgspec

from controlplane.gateway.connections import Connections
from controlplane.gateway.errors import UnavailableError
from controlplane.gateway.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from controlplane.gateway.carrier import Carrier
    from controlplane.gateway.router import Choice
    from controlplane.gateway.routes import Route, Routes, RouteTable
    from controlplane.telemetry import GatewayMetrics
    from schemas.config import GatewayConfig

log = logging.getLogger(__name__)
_ABORT_S = 2.0
_TICK_S = 0.25
_SETTLE_LONGEST_S = 1.0
"""Membership that has not changed by then will not change because of this loss."""
_SETTLE_QUIET_S = 0.15
"""Ranks lost at one moment leave the epoch within this of one another."""
_SETTLE_LOOK_S = 0.01
"""A step is longer."""
_SAME_AGAIN_S = 0.5
"""Before a rank that failed is tried again, when there is no other."""
_SPEAKS_S = 1.0
"""A rank heard within this is one that speaks."""


class Ranks:
    """Everything that answers under way share.

    Attributes:
        routes: where the table in force is.
        carriers: answers under way.
        NoRankError: what ``assign`` raises.
    """

    NoRankError = UnavailableError

    def __init__(self, config: GatewayConfig, routes: Routes, metrics: GatewayMetrics) -> None:
        self.routes = routes
        self.carriers: set[Carrier] = set()
        self._config = config
        self._metrics = metrics
        self._router = Router()
        self._changed = asyncio.Event()
        self._changed_at = 0.0
        self._heard: dict[tuple[int, int], float] = {}
        self._struck: Counter[tuple[int, int]] = Counter()
        self._draining_since: dict[tuple[int, int], float] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        self._connections = Connections()
        self._watch: asyncio.Task[None] | None = None
        self._unsubscribe = routes.subscribe(self._follow)

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._tick(), name="gateway-ranks")
        self._follow(self.routes.table)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._unsubscribe()
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*self._aborts, return_exceptions=True)
        self._connections.close()

    # --- choosing ----------------------------------------------------------------------------------------------------

    async def assign(
        self,
        prompt: Sequence[int],
        *,
        avoid: Collection[tuple[int, int]],
        resumed: bool,
        outlived: Collection[tuple[int, int]] | None = None,
    ) -> Route:
        """The rank for ``prompt``, as soon as there is one; ``release`` it afterwards.

        A request that a loss struck names the ranks that are known to have ``outlived`` it, maybe none, and gets one of
        them where it can. It gets a rank without another such request where there is one: of two that were on a rank
        when it died, one may have killed it, and must not cost the other its second chance.

        Raises:
            UnavailableError: none came; a resumed answer waits as long as its deadline allows instead.
        """
        give_up = float("inf") if resumed else time.monotonic() + self._config.no_rank_wait_s
        while True:
            choice = self._choose(prompt, avoid, outlived) or await self._wait(prompt)
            if choice is not None:
                log.debug("%s", choice.reason)
                self._struck[choice.route.key] += outlived is not None
                self._router.begin(choice.route, prompt)
                self._metrics.inflight.labels(str(choice.route.rank)).inc()
                return choice.route
            if time.monotonic() >= give_up:
                waited = self._config.no_rank_wait_s
                raise UnavailableError(
                    f"no rank has served for {waited:.0f} s (epoch {self.routes.table.epoch}); try again later",
                    retry_after_s=waited,
                )

    def _choose(
        self,
        prompt: Sequence[int],
        avoid: Collection[tuple[int, int]],
        outlived: Collection[tuple[int, int]] | None,
    ) -> Choice | None:
        table, now = self.routes.table, time.monotonic()
        if outlived is not None:
            apart = {*avoid, *(key for key, count in self._struck.items() if count)}
            unproven = {route.key for route in table.open} - set(outlived) if outlived else set()
            for shunned in (apart | unproven, apart):
                if (choice := self._router.choose(prompt, table, now=now, avoid=shunned)) is not None:
                    return choice
        return self._router.choose(prompt, table, now=now, avoid=avoid)

    async def _wait(self, prompt: Sequence[int]) -> Choice | None:
        """Wait for the table to change; if it does not, a rank that failed before is better than none."""
        self._changed.clear()
        try:
            async with asyncio.timeout(_SAME_AGAIN_S):
                await self._changed.wait()
        except TimeoutError:
            return self._router.choose(prompt, self.routes.table, now=float("inf"))
        return None

    def patience_ended(self, since: float) -> bool:
        """A request that began at ``since`` (monotonic) has waited for its first rank long enough."""
        return time.monotonic() - since >= self._config.no_rank_wait_s

    def release(self, route: Route, *, struck: bool = False) -> None:
        """An answer no longer needs ``route``."""
        self._router.end(route)
        self._struck[route.key] -= struck
        self._metrics.inflight.labels(str(route.rank)).dec()

    async def settled(self) -> Collection[tuple[int, int]]:
        """Wait until a rank has spoken: whoever speaks has outlived the loss; those that have.

        Without an answer under way nobody speaks. Then the membership has to change and to come to rest, or clearly not
        to change; nobody is named.
        """
        epoch, started, spoke = self.routes.table.epoch, time.monotonic(), False
        while (now := time.monotonic()) - started < _SETTLE_LONGEST_S:
            if spoke:
                return self._spoke_since(started)
            spoke = bool(self._spoke_since(started))  # the others' tokens of that step come until the next look
            moved = self.routes.table.epoch != epoch or self._changed_at >= started - _SETTLE_QUIET_S
            if moved and now - self._changed_at >= _SETTLE_QUIET_S:
                break
            await asyncio.sleep(_SETTLE_LOOK_S)
        return ()

    def _spoke_since(self, moment: float) -> Collection[tuple[int, int]]:
        return {route.key for route in self.routes.table.open if self._heard.get(route.key, 0.0) > moment}

    # --- talking -----------------------------------------------------------------------------------------------------

    async def post(self, route: Route, body: dict[str, Any], take: Callable[[int, bytes], None]) -> int:
        """Send ``body`` to the rank's ``/generate``. See ``Connections.post``."""
        return await self._connections.post(route.url, "/generate", msgspec.json.encode(body), take)

    def abort(self, route: Route, rid: str) -> None:
        """Tell a rank to forget a request; nobody waits for it."""
        task = asyncio.create_task(self._abort(route, rid), name=f"abort-{rid}")
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _abort(self, route: Route, rid: str) -> None:
        content = msgspec.json.encode({"rid": rid})
        try:
            async with asyncio.timeout(_ABORT_S):
                await self._connections.post(route.url, "/abort_request", content, lambda _status, _part: None)
        except (OSError, ValueError) as error:
            log.debug("abort of %s on rank %d: %s", rid, route.rank, error)  # a dead rank works on nothing

    def heard(self, route: Route) -> None:
        """``route`` said something."""
        self._heard[route.key] = time.monotonic()

    def suspect(self, route: Route) -> None:
        """``route`` broke off or refused."""
        self._router.suspect(route, now=time.monotonic())

    # --- watching ----------------------------------------------------------------------------------------------------

    def _follow(self, table: RouteTable) -> None:
        """A new table: free who waits, take answers away from ranks that left."""
        self._changed_at = now = time.monotonic()
        self._metrics.routable.set(len(table.open))
        draining = {route.key for route in table.routes if route.draining}
        drained = set(self._draining_since)
        self._draining_since = {key: self._draining_since.get(key, now) for key in draining}
        keys = {route.key for route in table.routes}
        self._heard = {key: at for key, at in self._heard.items() if key in keys}
        self._struck = Counter({key: count for key, count in self._struck.items() if count})
        for carrier in tuple(self.carriers):
            carrier.follow(table, drained=drained)
        self._changed.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            for carrier in tuple(self.carriers):
                self._look_at(carrier, now)

    def _look_at(self, carrier: Carrier, now: float) -> None:
        route = carrier.route
        if route is None:
            return
        if self._silent(route, carrier.waiting_since, now):
            self.suspect(route)
            carrier.lose(f"rank {route.rank} was silent for {self._config.stall_s:.1f} s while others spoke")
        elif now - self._draining_since.get(route.key, now) >= self._config.handover_after_s and self._others(route):
            carrier.hand_over(f"rank {route.rank} drains")

    def _silent(self, route: Route, since: float, now: float) -> bool:
        """Nothing came from the rank, for any answer, while another one spoke: lockstep stops all or none."""
        own = max(self._heard.get(route.key, 0.0), since)
        others = max((at for key, at in self._heard.items() if key != route.key), default=0.0)
        return now - own >= self._config.stall_s and now - others <= _SPEAKS_S

    def _others(self, route: Route) -> bool:
        return any(other.key != route.key for other in self.routes.table.open)
