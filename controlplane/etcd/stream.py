"""One watch on one member, and the pulse that tells whether that member still lives."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any

from controlplane.etcd import rpc as wire
from controlplane.etcd.errors import CompactedError, EtcdError, PermissionDeniedError, UnavailableError
from controlplane.etcd.rpc import AioRpcError, rpc
from controlplane.etcd.values import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from controlplane.etcd.endpoints import Endpoint
    from controlplane.etcd.session import Metadata, Session
    from schemas.config import EtcdConfig


SOLE_PACE = 5
"""A probe is there to leave a hung member in time. With one member it only tells that etcd is away, and is a good part
of what an idle instance costs: each wakes etcd and the process that asks."""


class Step(Enum):
    """What a silent stream calls for."""

    WAIT = "wait"
    ASK = "ask"
    CONFIRM = "confirm"


class Pulse:
    """When to probe, and what silence means. Pure: times come in as arguments.

    Any message counts as a sign of life. A probe that stays unanswered is confirmed by a read before the member is
    left, because etcd before 3.4.29 and 3.5.13 may not answer probes on a new quiet watch (etcd issue 17507).
    """

    def __init__(self, config: EtcdConfig, *, now: float) -> None:
        self._config = config
        self._quiet_s = config.probe_interval_s * (SOLE_PACE if len(config.endpoints) == 1 else 1)
        self._due = now + self._quiet_s
        self._asked = False
        self._behind_since: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until the next step."""
        return max(0.0, self._due - now)

    def step(self, now: float) -> Step:
        """What to do now."""
        if now < self._due:
            return Step.WAIT
        return Step.CONFIRM if self._asked else Step.ASK

    def asked(self, now: float) -> None:
        """A probe was sent."""
        self._asked = True
        self._due = now + self._config.silence_timeout_s

    def heard(self, now: float) -> None:
        """Something arrived, or a read confirmed the member."""
        self._asked = False
        self._due = now + self._quiet_s

    def answered(self, now: float, *, behind: bool) -> bool:
        """A probe's answer; False if the member has been behind the cluster for too long."""
        self.heard(now)
        if not behind:
            self._behind_since = None
        else:
            self._due = now + self._config.probe_interval_s
            self._behind_since = now if self._behind_since is None else self._behind_since
        return self._behind_since is None or now - self._behind_since < self._config.silence_timeout_s


async def member_stream(session: Session, key: str, *, start: int) -> AsyncGenerator[Batch, None]:
    """Yield one batch per revision from ``start`` on, and empty ones as signs of life. Raises as ``Etcd.stream``."""
    member = await session.endpoints.ready(asyncio.get_running_loop().time() + session.config.deadline_s)
    metadata = await session.metadata(member)
    stream = _MemberStream(session, member, member.watch.Watch(metadata=metadata))
    try:
        await stream.create(key, start)
        while True:
            response = await stream.receive()
            if response.canceled:
                raise _cancelled(session, member, response, metadata, start)
            for batch in wire.batches(response):
                yield batch
            if not response.events:
                yield Batch(response.header.revision)
    except AioRpcError as error:
        session.judge(member, error, metadata)
        raise wire.translate(error, wrote=False) from error
    finally:
        stream.close()


class _MemberStream:
    """The gRPC call of one watch, read with a pulse."""

    def __init__(self, session: Session, member: Endpoint, call: Any) -> None:
        self._session = session
        self._member = member
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse(session.config, now=self._loop.time())
        self._mark = session.endpoints.mark
        self._reading: asyncio.Future[Any] | None = None

    async def create(self, key: str, start: int) -> None:
        """Ask for the watch."""
        request = rpc.WatchCreateRequest(start_revision=start, **wire.span(key))
        await wire.send(self._call, rpc.WatchRequest(create_request=request))

    async def receive(self) -> Any:
        """The next response, probing the member while there is none.

        Raises:
            UnavailableError: the member is hung, has ended the stream or lags behind the cluster.
        """
        reading = self._reading or self._read()
        while not reading.done():
            await asyncio.wait({reading}, timeout=self._pulse.wait(self._loop.time()))
            if not reading.done():
                await self._beat()
        response = reading.result()
        if not isinstance(response, rpc.WatchResponse):
            raise self._left("it ended the watch")
        if response.events or response.created or response.canceled:
            self._pulse.heard(self._loop.time())
        elif not self._pulse.answered(self._loop.time(), behind=self._behind(response.header)):
            raise self._left("its data is older than what was seen before")
        self._read()  # the next one comes in while this one is dealt with
        return response

    def _read(self) -> asyncio.Future[Any]:
        reading: asyncio.Future[Any] = asyncio.ensure_future(self._call.read())
        self._reading = reading
        reading.add_done_callback(_retrieved)
        return reading

    def close(self) -> None:
        """End the call."""
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()

    async def _beat(self) -> None:
        step = self._pulse.step(self._loop.time())
        if step is Step.ASK:
            self._mark = self._session.endpoints.mark
            self._pulse.asked(self._loop.time())
            await wire.send(self._call, rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        elif step is Step.CONFIRM:
            await self._confirm()
            self._pulse.heard(self._loop.time())

    async def _confirm(self) -> None:
        request = rpc.RangeRequest(key=b"/", serializable=True, keys_only=True)
        try:
            await self._member.kv.Range(
                request,
                timeout=self._session.config.confirm_timeout_s,
                metadata=await self._session.metadata(self._member),
            )
        except AioRpcError as error:
            if wire.transient(error):
                raise self._left(f"no answer to probe and read: {error.details()}") from error

    def _behind(self, header: Any) -> bool:
        return not self._session.endpoints.accept(header, self._mark)

    def _left(self, why: str) -> UnavailableError:
        self._session.endpoints.leave(self._member, why)
        return UnavailableError(f"{self._member.address}: {why}")


def _retrieved(reading: asyncio.Future[Any]) -> None:
    """A stream that is closed does not ask how its last read ended."""
    if not reading.cancelled():
        reading.exception()


def _cancelled(session: Session, member: Endpoint, response: Any, metadata: Metadata, start: int) -> EtcdError:
    """The error of a watch that the server cancelled."""
    reason = response.cancel_reason
    if response.compact_revision:
        return CompactedError(start, response.compact_revision)
    if "permission denied" in reason:
        return PermissionDeniedError(f"watch: {reason}")
    if "auth token" in reason:
        session.forget_token(metadata)
    else:
        session.endpoints.leave(member, f"it cancelled the watch: {reason}")
    return UnavailableError(f"{member.address} cancelled the watch: {reason}")
