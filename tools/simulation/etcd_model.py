"""A cluster in memory: clients with latency, partitions, lost replies and lost quorum, all on an injected clock.

Deterministic: with a virtual clock and a seeded ``latency_s`` the same calls give the same history.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from controlplane.etcd import (
    Batch,
    Delete,
    Get,
    Grant,
    Listing,
    LoopClock,
    OutcomeUnknownError,
    Put,
    TooLargeError,
    Txn,
    TxnResult,
    UnavailableError,
    covers,
)
from controlplane.etcd.values import MAX_OPERATIONS, MAX_REQUEST_BYTES
from tools.simulation.etcd_store import EtcdStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from controlplane.etcd import Clock

T = TypeVar("T")
_EXPIRY_PERIOD_S = 0.5
"""How often etcd looks for leases that are over."""
_OVERHEAD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTiming:
    """How long things take where no fault says otherwise; the same meanings as in ``EtcdConfig``."""

    request_timeout_s: float = 1.0
    deadline_s: float = 5.0
    notice_s: float = 1.2
    """Until a watch on a dead connection gives up."""
    election_s: float = 0.5
    least_ttl_s: int = 1


class EtcdModel:
    """The cluster and its verbs for faults; use it as an async context manager.

    Args:
        clock: whose time leases, latencies and time-outs run on.
        latency_s: seconds that the next message takes, one way; called once per message.
        timing: time-outs.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        latency_s: Callable[[], float] | None = None,
        timing: ModelTiming | None = None,
    ) -> None:
        self.clock = clock or LoopClock()
        self.timing = timing or ModelTiming()
        self.latency_s = latency_s
        self.store = EtcdStore(least_ttl_s=self.timing.least_ttl_s)
        self.has_quorum = True
        self._cut: dict[str, None] = {}
        self._lost_replies: dict[str, int] = {}
        self._watchers: dict[_Watcher, None] = {}
        self._expiring: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._expiring = asyncio.create_task(self._expire(), name="etcd model: lease expiry")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._expiring is not None:
            self._expiring.cancel()
            with suppress(asyncio.CancelledError):
                await self._expiring

    def client(self, name: str) -> EtcdModelClient:
        """A client whose link can be cut by ``name``."""
        return EtcdModelClient(self, name)

    # --- faults -------------------------------------------------------------------------------------------------------

    def partition(self, name: str) -> None:
        """Cut a client off: requests and replies in flight are lost too."""
        self._cut[name] = None
        self.wake()

    def heal(self, name: str) -> None:
        """Connect it again."""
        self._cut.pop(name, None)

    def lose_reply(self, name: str, *, count: int = 1) -> None:
        """Apply the client's next ``count`` requests and lose their replies."""
        self._lost_replies[name] = self._lost_replies.get(name, 0) + count

    def lose_quorum(self) -> None:
        """No leader: nothing is read or written, watches end, leases stand still."""
        self.has_quorum = False
        self.wake()

    def restore_quorum(self) -> None:
        """A new leader: every lease starts again with its full TTL."""
        self.has_quorum = True
        self.store.extend_leases(now_s=self.clock.now(), grace_s=self.timing.election_s)

    # --- what clients use ---------------------------------------------------------------------------------------------

    def reaches(self, name: str) -> bool:
        """Whether messages pass between the client and the cluster now."""
        return name not in self._cut

    def reply_lost(self, name: str) -> bool:
        """Whether this reply is one of those to lose."""
        left = self._lost_replies.get(name, 0)
        if left:
            self._lost_replies[name] = left - 1
        return left > 0

    async def travel(self) -> None:
        """The time of one message."""
        if self.latency_s is not None:
            await self.clock.sleep(self.latency_s())

    def watch(self, watcher: _Watcher) -> None:
        """Wake ``watcher`` at every commit and fault from now on."""
        self._watchers[watcher] = None

    def unwatch(self, watcher: _Watcher) -> None:
        """Forget it."""
        self._watchers.pop(watcher, None)

    def wake(self) -> None:
        """Let every watcher look."""
        for watcher in self._watchers:
            watcher.changed.set()

    async def _expire(self) -> None:
        while True:
            await self.clock.sleep(_EXPIRY_PERIOD_S)
            if self.has_quorum:
                before = self.store.revision
                self.store.expire(now_s=self.clock.now())
                if self.store.revision != before:
                    self.wake()


class _Watcher:
    """One watch's own wake-up: each is delivered to at its own pace."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()


class EtcdModelClient:
    """An ``Etcd``."""

    def __init__(self, model: EtcdModel, name: str) -> None:
        self._model = model
        self.name = name

    async def get(self, key: str, *, revision: int = 0) -> Listing:
        """See ``Etcd.get``."""
        return await self._call(lambda: self._model.store.get(key, revision=revision), repeat=True, wrote=False)

    async def txn(self, txn: Txn) -> TxnResult:
        """See ``Etcd.txn``."""
        _check_limits(txn)
        wrote = any(not isinstance(op, Get) for op in (*txn.then, *txn.otherwise))
        unknown: list[OutcomeUnknownError] = []
        result = await self._call(
            lambda: self._model.store.txn(txn, now_s=self._model.clock.now()),
            repeat=txn.repeatable,
            wrote=wrote,
            unknown=unknown,
        )
        if unknown and not result.succeeded:
            raise unknown[0]
        return result

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """See ``Etcd.put``."""
        return (await self.txn(Txn(then=(Put(key, value, lease),)))).revision

    async def delete(self, key: str) -> int:
        """See ``Etcd.delete``."""
        return (await self.txn(Txn(then=(Delete(key),)))).revision

    async def grant(self, ttl_s: int) -> Grant:
        """See ``Etcd.grant``."""
        return await self._call(
            lambda: self._model.store.grant(ttl_s, now_s=self._model.clock.now()), repeat=True, wrote=False
        )

    async def keep_alive(self, lease: int, *, within_s: float) -> int:
        """See ``Etcd.keep_alive``."""
        return await self._call(
            lambda: self._model.store.keep_alive(lease, now_s=self._model.clock.now()),
            repeat=True,
            wrote=False,
            deadline_s=within_s,
        )

    async def revoke(self, lease: int) -> None:
        """See ``Etcd.revoke``."""
        await self._call(
            lambda: self._model.store.revoke(lease, now_s=self._model.clock.now()), repeat=True, wrote=False
        )

    async def compact(self, revision: int) -> None:
        """See ``Etcd.compact``."""
        await self._call(lambda: self._model.store.compact(revision), repeat=True, wrote=False)

    async def close(self) -> None:
        """See ``Etcd.close``; there is nothing to close."""

    async def stream(self, key: str, *, start: int) -> AsyncGenerator[Batch, None]:
        """See ``Etcd.stream``; no signs of life but the first, which would only cost a simulation time."""
        await self._call(lambda: None, repeat=True, wrote=False)
        watcher = _Watcher()
        self._model.watch(watcher)
        try:
            yield Batch(self._model.store.revision)
            arrived_s = 0.0
            while True:
                watcher.changed.clear()
                for commit in self._model.store.since(start):
                    start = commit.batch.revision + 1
                    events = tuple(event for event in commit.batch.events if covers(key, event.key))
                    if events:
                        arrived_s = await self._deliver(commit.at_s, arrived_s)
                        yield Batch(commit.batch.revision, events)
                await self._connected()
                await watcher.changed.wait()
        finally:
            self._model.unwatch(watcher)

    async def _deliver(self, sent_s: float, last_s: float) -> float:
        """Wait until an event of ``sent_s`` arrives, never before the one ahead of it; return when it did."""
        await self._connected()
        model = self._model
        if model.latency_s is not None:
            due_s = max(last_s, sent_s + model.latency_s())
            if due_s > model.clock.now():
                await model.clock.sleep(due_s - model.clock.now())
        await self._connected()
        return model.clock.now()

    async def _connected(self) -> None:
        """End the watch if the link is cut or there is no leader, after the time it takes to notice."""
        if not (self._model.reaches(self.name) and self._model.has_quorum):
            await self._model.clock.sleep(self._model.timing.notice_s)
            raise UnavailableError(f"{self.name}: the watch's member is gone")

    async def _call(
        self,
        apply: Callable[[], T],
        *,
        repeat: bool,
        wrote: bool,
        deadline_s: float | None = None,
        unknown: list[OutcomeUnknownError] | None = None,
    ) -> T:
        """One call with the real client's rule for sending it again."""
        clock, timing = self._model.clock, self._model.timing
        deadline = clock.now() + (timing.deadline_s if deadline_s is None else deadline_s)
        doubts = [] if unknown is None else unknown
        while True:
            try:
                return await self._attempt(apply, deadline)
            except OutcomeUnknownError as error:
                fault: UnavailableError | OutcomeUnknownError = error
                if wrote:
                    doubts.append(error)
                else:
                    fault = UnavailableError(str(error))
            except UnavailableError as error:
                fault = error
            if clock.now() >= deadline or (doubts and not repeat):
                raise doubts[0] if doubts else fault

    async def _attempt(self, apply: Callable[[], T], deadline: float) -> T:
        model = self._model
        sent_s = model.clock.now()
        await model.travel()
        if not model.reaches(self.name):
            await self._time_out(sent_s, deadline)
            raise OutcomeUnknownError(f"{self.name}: no answer")
        if not model.has_quorum:
            await self._time_out(sent_s, deadline)
            raise UnavailableError(f"{self.name}: etcdserver: no leader")
        before = model.store.revision
        try:
            result = apply()
        finally:
            if model.store.revision != before:
                model.wake()
        lost = model.reply_lost(self.name)
        await model.travel()
        if lost or not model.reaches(self.name):
            await self._time_out(sent_s, deadline)
            raise OutcomeUnknownError(f"{self.name}: the reply was lost")
        return result

    async def _time_out(self, sent_s: float, deadline: float) -> None:
        clock = self._model.clock
        until = min(deadline, sent_s + self._model.timing.request_timeout_s)
        await clock.sleep(max(0.0, until - clock.now()))


def _check_limits(txn: Txn) -> None:
    longest = max(len(txn.when), len(txn.then), len(txn.otherwise))
    if longest > MAX_OPERATIONS:
        raise TooLargeError(f"transaction of {longest} operations, etcd takes {MAX_OPERATIONS}: split it")
    puts = [op for op in (*txn.then, *txn.otherwise) if isinstance(op, Put)]
    size = sum(len(op.key) + len(op.value) for op in puts) + _OVERHEAD_BYTES
    if size > MAX_REQUEST_BYTES:
        raise TooLargeError(f"{puts[0].key}: request of {size} bytes, etcd takes {MAX_REQUEST_BYTES}: split the value")
