"""The wire: aetcd's generated messages and stubs, in and out of our values. No other module knows them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aetcd import rpc
from grpc import StatusCode
from grpc.aio import AioRpcError

from controlplane.etcd.errors import (
    AuthenticationError,
    CompactedError,
    EtcdError,
    LeaseNotFoundError,
    NoSpaceError,
    OutcomeUnknownError,
    PermissionDeniedError,
    RejectedError,
    TooLargeError,
    UnavailableError,
)
from controlplane.etcd.values import (
    MAX_OPERATIONS,
    MAX_REQUEST_BYTES,
    Batch,
    Compare,
    Delete,
    Event,
    EventKind,
    Field,
    Get,
    KeyValue,
    Listing,
    Operation,
    Put,
    Txn,
    TxnResult,
    is_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AioRpcError", "StatusCode", "rpc"]

OVERHEAD_BYTES = 512
"""etcd counts its own envelope (headers, auth) in the limit; what we send has to stay this much below."""
_COMPARED = {Field.CREATE_REVISION: rpc.Compare.CREATE, Field.MOD_REVISION: rpc.Compare.MOD}
_NEVER_APPLIED = ("no leader", "too many requests", "not capable", "auth token", "auth store is old")
"""etcd says so before it proposes anything to raft: sending again cannot write twice."""

_BY_PHRASE: dict[str, type[EtcdError]] = {
    "too large": TooLargeError,
    "too many operations": TooLargeError,
    "larger than max": TooLargeError,
    "authentication failed": AuthenticationError,
    "user name is empty": AuthenticationError,
}
_BY_CODE: dict[StatusCode, type[EtcdError]] = {
    StatusCode.RESOURCE_EXHAUSTED: NoSpaceError,
    StatusCode.UNAUTHENTICATED: AuthenticationError,
    StatusCode.PERMISSION_DENIED: PermissionDeniedError,
}


def span(key: str) -> dict[str, bytes]:
    """``key`` and ``range_end`` fields for a key or a prefix."""
    raw = key.encode()
    return {"key": raw, "range_end": raw[:-1] + b"0"} if is_prefix(key) else {"key": raw}  # "0" follows "/"


def item(kv: Any) -> KeyValue:
    """One key as etcd sent it."""
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def listing(reply: Any, revision: int) -> Listing:
    """A range reply."""
    return Listing(revision, tuple(item(kv) for kv in reply.kvs))


def operation(op: Operation) -> Any:
    """One operation of a transaction."""
    match op:
        case Put():
            put = rpc.PutRequest(key=op.key.encode(), value=op.value, lease=op.lease)
            return rpc.RequestOp(request_put=put)
        case Delete():
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(**span(op.key)))
        case Get():
            return rpc.RequestOp(request_range=rpc.RangeRequest(**span(op.key)))


def compare(guard: Compare) -> Any:
    """One compare of a transaction."""
    return rpc.Compare(
        key=guard.key.encode(),
        target=_COMPARED[guard.field],
        result=rpc.Compare.EQUAL,
        **{guard.field.value: guard.revision},
    )


def txn_request(txn: Txn) -> Any:
    """A transaction, refused here already if etcd would refuse it.

    Raises:
        TooLargeError: over 128 operations in one branch, or over 1.5 MiB.
    """
    longest = max(len(txn.when), len(txn.then), len(txn.otherwise))
    if longest > MAX_OPERATIONS:
        raise TooLargeError(f"transaction of {longest} operations, etcd takes {MAX_OPERATIONS}: split it")
    request = rpc.TxnRequest(
        compare=[compare(guard) for guard in txn.when],
        success=[operation(op) for op in txn.then],
        failure=[operation(op) for op in txn.otherwise],
    )
    check_size(request, txn.then[0].key if txn.then else "")
    return request


def check_size(request: Any, key: str) -> None:
    """Refuse what etcd would refuse, with the key's name.

    Raises:
        TooLargeError: over 1.5 MiB with etcd's own envelope.
    """
    size = request.ByteSize() + OVERHEAD_BYTES
    if size > MAX_REQUEST_BYTES:
        raise TooLargeError(f"{key}: request of {size} bytes, etcd takes {MAX_REQUEST_BYTES}: split the value")


def txn_result(reply: Any) -> TxnResult:
    """The outcome of a transaction."""
    revision = reply.header.revision
    listings = tuple(
        listing(answer.response_range, revision)
        if answer.WhichOneof("response") == "response_range"
        else Listing(revision, ())
        for answer in reply.responses
    )
    return TxnResult(revision, reply.succeeded, listings)


def batches(response: Any) -> Iterator[Batch]:
    """The events of one watch response, one batch per revision, in order."""
    gathered: list[Event] = []
    for event in response.events:
        kind = EventKind.DELETE if event.type == rpc.Event.DELETE else EventKind.PUT
        if gathered and gathered[0].item.mod_revision != event.kv.mod_revision:
            yield Batch(gathered[0].item.mod_revision, tuple(gathered))
            gathered = []
        gathered.append(Event(kind, item(event.kv)))
    if gathered:
        yield Batch(gathered[0].item.mod_revision, tuple(gathered))


async def send(call: Any, message: Any) -> None:
    """Write to a stream; if the call has ended, the next read says why (grpc.aio's write only says that it did)."""
    with suppress(asyncio.InvalidStateError):
        await call.write(message)


def token_refused(error: AioRpcError) -> bool:
    """Whether a fresh authentication can help."""
    details = error.details() or ""
    return error.code() is StatusCode.UNAUTHENTICATED or "auth token" in details or "auth store is old" in details


def never_applied(error: AioRpcError) -> bool:
    """Whether etcd refused before writing anything."""
    return any(phrase in (error.details() or "") for phrase in _NEVER_APPLIED)


def transient(error: AioRpcError) -> bool:
    """Whether another member, or the same one later, may answer."""
    return error.code() in {
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.CANCELLED,
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
    } or never_applied(error)


def translate(error: AioRpcError, *, wrote: bool, lease: int = 0) -> EtcdError:
    """The exception a caller sees for a failed request; ``wrote`` says that it could have changed something."""
    details = error.details() or error.code().name
    code = error.code()
    if transient(error):
        return OutcomeUnknownError(details) if wrote and not never_applied(error) else UnavailableError(details)
    if "lease not found" in details:
        return LeaseNotFoundError(lease)
    if "compacted" in details:
        return CompactedError(0)
    kind = next((kind for phrase, kind in _BY_PHRASE.items() if phrase in details), _BY_CODE.get(code, RejectedError))
    return kind(f"{code.name}: {details}")
