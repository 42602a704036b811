"""The stream on which leases are renewed: opened once on the member in use, and used until it fails.

A stream for each renewal would cost both sides several times what the renewal itself does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from controlplane.etcd import rpc as wire
from controlplane.etcd.errors import LeaseNotFoundError, UnavailableError
from controlplane.etcd.rpc import AioRpcError, rpc

if TYPE_CHECKING:
    from controlplane.etcd.endpoints import Endpoint
    from controlplane.etcd.session import Session


class Renewals:
    """Renews leases, one after the other: the next answer on the stream is that of the one request under way."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asking = asyncio.Lock()
        self._member: Endpoint | None = None
        self._call: Any = None

    async def renew(self, lease: int, *, within_s: float) -> int:
        """See ``Etcd.keep_alive``."""
        deadline = asyncio.get_running_loop().time() + within_s
        member = await self._session.endpoints.ready(deadline)
        try:
            async with asyncio.timeout_at(deadline), self._asking:
                reply = await self._answer(member, rpc.LeaseKeepAliveRequest(ID=lease))
        except TimeoutError as error:
            self._session.endpoints.leave(member, "no answer to a renewal")
            raise UnavailableError(f"{member.address}: no answer to a renewal within {within_s:.1f} s") from error
        except AioRpcError as error:
            raise wire.translate(error, wrote=False, lease=lease) from error
        if reply.TTL <= 0:
            raise LeaseNotFoundError(lease)
        return int(reply.TTL)

    def close(self) -> None:
        """End the stream."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _answer(self, member: Endpoint, request: Any) -> Any:
        if self._call is not None and self._member is member:
            try:
                return await self._exchange(member, request)
            except (AioRpcError, UnavailableError):
                pass  # it ended while nobody used it, as when etcd was started again: what counts is a new one's answer
        self.close()
        metadata = await self._session.metadata(member)
        self._member, self._call = member, member.lease.LeaseKeepAlive(metadata=metadata)
        try:
            return await self._exchange(member, request)
        except AioRpcError as error:
            self._session.judge(member, error, metadata)
            raise
        except UnavailableError:
            self._session.endpoints.leave(member, "it ended the keep-alive stream")
            raise

    async def _exchange(self, member: Endpoint, request: Any) -> Any:
        """One request and its answer; a stream on which that was broken off is not used again."""
        reply = None
        try:
            await wire.send(self._call, request)
            reply = await self._call.read()
        finally:
            if not isinstance(reply, rpc.LeaseKeepAliveResponse):
                self.close()
        if not isinstance(reply, rpc.LeaseKeepAliveResponse):
            raise UnavailableError(f"{member.address} ended the keep-alive stream")
        return reply
