"""The etcd session layer, for both sides: the control plane and the workers.

    async with EtcdClient(config.etcd) as etcd:
        lease = await LoopLease.take(etcd, 3)
        await etcd.put(keys.rank(3), encode(registration), lease=lease.lease)

        async for change in (watch := Watch(etcd, keys.prefix)):   # the listing first, then every revision, for ever
            ...change.revision, change.events, watch.items, watch.trouble

        election = Election(etcd, keys.election, lease, encode(leader_record))
        leadership = await election.campaign()                     # leadership.fence goes into every message
        txn = Txn(when=(unchanged(keys.epoch, seen),), then=(Put(keys.epoch, encode(record)),))
        result = await fenced(etcd, leadership, txn)               # DeposedError: stop leading

``OutcomeUnknownError`` means: it may have been written, read before deciding. ``UnavailableError``: nothing was
written, keep the last known state. A key that ends in ``/`` stands for everything below it. Everything here speaks to
the ``Etcd`` protocol, so that the in-memory model can take the place of a cluster.
"""

from controlplane.etcd.client import EtcdClient
from controlplane.etcd.election import Election, Leadership, fenced, leader_of, observe
from controlplane.etcd.errors import (
    AuthenticationError,
    CompactedError,
    DeposedError,
    EtcdError,
    LeaseLostError,
    LeaseNotFoundError,
    NoSpaceError,
    OutcomeUnknownError,
    PermissionDeniedError,
    RejectedError,
    TooLargeError,
    UnavailableError,
    WrongClusterError,
)
from controlplane.etcd.interface import Clock, Etcd, LoopClock
from controlplane.etcd.kept import KeptLease
from controlplane.etcd.lease import Lease, LeaseState, LoopLease
from controlplane.etcd.values import (
    Batch,
    Compare,
    Delete,
    Event,
    EventKind,
    Field,
    Get,
    Grant,
    KeyValue,
    Listing,
    Operation,
    Put,
    Txn,
    TxnResult,
    absent,
    covers,
    created_at,
    is_prefix,
    unchanged,
)
from controlplane.etcd.watch import Change, Watch

__all__ = [
    "AuthenticationError",
    "Batch",
    "Change",
    "Clock",
    "CompactedError",
    "Compare",
    "Delete",
    "DeposedError",
    "Election",
    "Etcd",
    "EtcdClient",
    "EtcdError",
    "Event",
    "EventKind",
    "Field",
    "Get",
    "Grant",
    "KeptLease",
    "KeyValue",
    "Leadership",
    "Lease",
    "LeaseLostError",
    "LeaseNotFoundError",
    "LeaseState",
    "Listing",
    "LoopClock",
    "LoopLease",
    "NoSpaceError",
    "Operation",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "Put",
    "RejectedError",
    "TooLargeError",
    "Txn",
    "TxnResult",
    "UnavailableError",
    "Watch",
    "WrongClusterError",
    "absent",
    "covers",
    "created_at",
    "fenced",
    "is_prefix",
    "leader_of",
    "observe",
    "unchanged",
]
