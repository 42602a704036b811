"""The client of a real cluster: each call of ``Etcd`` as one request."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Self

from controlplane.etcd import rpc as wire
from controlplane.etcd.errors import CompactedError, LeaseNotFoundError
from controlplane.etcd.renewing import Renewals
from controlplane.etcd.rpc import rpc
from controlplane.etcd.session import Session
from controlplane.etcd.stream import member_stream
from controlplane.etcd.values import Batch, Get, Grant, Listing, Txn, TxnResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from schemas.config import EtcdConfig


class EtcdClient:
    """An ``Etcd`` over gRPC; make one per process, inside its loop, and close it at the end."""

    def __init__(self, config: EtcdConfig) -> None:
        self.session = Session(config)
        self._renewals = Renewals(self.session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, key: str, *, revision: int = 0) -> Listing:
        """See ``Etcd.get``."""
        request = rpc.RangeRequest(revision=revision, **wire.span(key))
        try:
            reply, _ = await self.session.call(lambda member: member.kv.Range, request, repeat=True, wrote=False)
        except CompactedError as error:
            raise CompactedError(revision) from error
        return wire.listing(reply, reply.header.revision)

    async def txn(self, txn: Txn) -> TxnResult:
        """See ``Etcd.txn``."""
        request = wire.txn_request(txn)
        wrote = any(not isinstance(op, Get) for op in (*txn.then, *txn.otherwise))
        reply, unknown = await self.session.call(
            lambda member: member.kv.Txn, request, repeat=txn.repeatable, wrote=wrote
        )
        if unknown and not reply.succeeded:  # its compares failed because an attempt before was applied, or not
            raise unknown
        return wire.txn_result(reply)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """See ``Etcd.put``."""
        request = rpc.PutRequest(key=key.encode(), value=value, lease=lease)
        wire.check_size(request, key)
        reply, _ = await self.session.call(lambda member: member.kv.Put, request, repeat=False, wrote=True, lease=lease)
        return int(reply.header.revision)

    async def delete(self, key: str) -> int:
        """See ``Etcd.delete``."""
        request = rpc.DeleteRangeRequest(**wire.span(key))
        reply, _ = await self.session.call(lambda member: member.kv.DeleteRange, request, repeat=False, wrote=True)
        return int(reply.header.revision)

    async def grant(self, ttl_s: int) -> Grant:
        """See ``Etcd.grant``."""
        request = rpc.LeaseGrantRequest(TTL=ttl_s)
        reply, _ = await self.session.call(lambda member: member.lease.LeaseGrant, request, repeat=True, wrote=False)
        return Grant(reply.ID, reply.TTL)

    async def keep_alive(self, lease: int, *, within_s: float) -> int:
        """See ``Etcd.keep_alive``."""
        return await self._renewals.renew(lease, within_s=within_s)

    async def revoke(self, lease: int) -> None:
        """See ``Etcd.revoke``."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        try:
            await self.session.call(
                lambda member: member.lease.LeaseRevoke, request, repeat=True, wrote=False, lease=lease
            )
        except LeaseNotFoundError:
            return

    async def stream(self, key: str, *, start: int) -> AsyncGenerator[Batch, None]:
        """See ``Etcd.stream``."""
        async with aclosing(member_stream(self.session, key, start=start)) as batches:
            async for batch in batches:
                yield batch

    async def compact(self, revision: int) -> None:
        """See ``Etcd.compact``."""
        request = rpc.CompactionRequest(revision=revision)
        try:
            await self.session.call(lambda member: member.kv.Compact, request, repeat=True, wrote=False)
        except CompactedError:
            return

    async def close(self) -> None:
        """See ``Etcd.close``."""
        self._renewals.close()
        await self.session.endpoints.close()
