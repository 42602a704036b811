"""etcd's data model in memory, without I/O or clock: revisions, transactions, leases, history and compaction.

It answers as etcd 3.4–3.6 does; ``tests/etcd/test_conformance.py`` runs the same tests against both.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from controlplane.etcd import (
    Batch,
    CompactedError,
    Compare,
    Delete,
    Event,
    EventKind,
    Field,
    Get,
    Grant,
    KeyValue,
    LeaseNotFoundError,
    Listing,
    Operation,
    Put,
    RejectedError,
    Txn,
    TxnResult,
    covers,
    is_prefix,
)


@dataclass
class _Lease:
    ttl_s: int
    expires_s: float
    keys: dict[str, None] = field(default_factory=dict)
    """An ordered set: iteration order has to be the same in every run of a seed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of the history and when it was made."""

    at_s: float
    batch: Batch


class EtcdStore:
    """One replicated state machine, as if raft were instantaneous. Every call brings its own ``now_s``.

    Invariant: ``revision`` grows by exactly one with every transaction that changes something, and every event carries
    the revision that made it.
    """

    def __init__(self, *, least_ttl_s: int = 1) -> None:
        self._least_ttl_s = least_ttl_s
        self.revision = 1
        self.compacted = 0
        """Reads and watches below this revision fail."""
        self._live: dict[str, KeyValue] = {}
        self._past: dict[str, list[KeyValue]] = {}
        self._history: list[Commit] = []
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1

    def get(self, key: str, *, revision: int = 0) -> Listing:
        """Read a key or prefix.

        Raises:
            CompactedError: ``revision`` is gone.
            RejectedError: ``revision`` is still to come.
        """
        if revision <= 0:
            return Listing(self.revision, self._matching(key))
        if revision > self.revision:
            raise RejectedError(f"revision {revision} is in the future, the newest is {self.revision}")
        if revision < self.compacted:
            raise CompactedError(revision, self.compacted)
        found = [self._as_of(name, revision) for name in sorted(self._past) if covers(key, name)]
        return Listing(self.revision, tuple(item for item in found if item is not None))

    def txn(self, txn: Txn, *, now_s: float) -> TxnResult:
        """Apply a transaction.

        Raises:
            LeaseNotFoundError: a put names a lease that is gone; nothing is written.
            RejectedError: a branch writes one key twice, whether it would run or not; nothing is written.
        """
        _refuse_overlaps(txn.then)
        _refuse_overlaps(txn.otherwise)
        succeeded = all(self._holds(guard) for guard in txn.when)
        branch = txn.then if succeeded else txn.otherwise
        self._check_leases(branch)
        events: dict[str, Event] = {}
        replies = tuple(self._apply(op, events) for op in branch)
        self._commit(events, now_s)
        return TxnResult(self.revision, succeeded, tuple(Listing(self.revision, items) for items in replies))

    def grant(self, ttl_s: int, *, now_s: float) -> Grant:
        """Make a lease."""
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        ttl_s = max(ttl_s, self._least_ttl_s)
        self._leases[lease] = _Lease(ttl_s, now_s + ttl_s)
        return Grant(lease, ttl_s)

    def keep_alive(self, lease: int, *, now_s: float) -> int:
        """Renew a lease.

        Raises:
            LeaseNotFoundError: it is gone.
        """
        held = self._lease(lease)
        held.expires_s = now_s + held.ttl_s
        return held.ttl_s

    def revoke(self, lease: int, *, now_s: float) -> None:
        """End a lease; all its keys go in one revision. One that is gone already is fine."""
        if lease in self._leases:
            events: dict[str, Event] = {}
            for key in list(self._leases[lease].keys):
                self._apply(Delete(key), events)
            del self._leases[lease]
            self._commit(events, now_s)

    def expire(self, *, now_s: float) -> None:
        """End the leases whose time is over."""
        due = [(held.expires_s, lease) for lease, held in self._leases.items() if held.expires_s <= now_s]
        for _, lease in sorted(due):
            self.revoke(lease, now_s=now_s)

    def extend_leases(self, *, now_s: float, grace_s: float) -> None:
        """A new etcd leader starts every lease again with its full TTL and an election time-out on top."""
        for held in self._leases.values():
            held.expires_s = now_s + held.ttl_s + grace_s

    def since(self, start: int) -> list[Commit]:
        """The history from revision ``start`` on.

        Raises:
            CompactedError: ``start`` is gone.
        """
        if start < self.compacted:
            raise CompactedError(start, self.compacted)
        first = bisect_left(self._history, start, key=lambda commit: commit.batch.revision)
        return self._history[first:]

    def compact(self, revision: int) -> None:
        """Forget what was before ``revision``; one that is forgotten already is fine.

        Raises:
            RejectedError: ``revision`` is still to come.
        """
        if revision > self.revision:
            raise RejectedError(f"cannot compact at {revision}, the newest revision is {self.revision}")
        if revision <= self.compacted:
            return
        self.compacted = revision
        del self._history[: bisect_left(self._history, revision, key=lambda commit: commit.batch.revision)]
        for key, versions in list(self._past.items()):
            del versions[: max(0, self._index(versions, revision))]
            if len(versions) == 1 and versions[0].version == 0:
                del self._past[key]

    def _holds(self, guard: Compare) -> bool:
        item = self._live.get(guard.key)
        if item is None:
            return guard.revision == 0
        found = item.create_revision if guard.field is Field.CREATE_REVISION else item.mod_revision
        return found == guard.revision

    def _check_leases(self, branch: tuple[Operation, ...]) -> None:
        for op in branch:
            if isinstance(op, Put) and op.lease:
                self._lease(op.lease)

    def _apply(self, op: Operation, events: dict[str, Event]) -> tuple[KeyValue, ...]:
        match op:
            case Get():
                return self._matching(op.key)
            case Put():
                self._put(op, events)
            case Delete():
                for item in self._matching(op.key):
                    self._unbind(item)
                    del self._live[item.key]
                    self._record(EventKind.DELETE, KeyValue(item.key, b"", 0, self.revision + 1, 0), events)
        return ()

    def _put(self, op: Put, events: dict[str, Event]) -> None:
        old = self._live.get(op.key)
        if old is not None:
            self._unbind(old)
        if op.lease:
            self._leases[op.lease].keys[op.key] = None
        new = self.revision + 1
        created, version = (old.create_revision, old.version + 1) if old else (new, 1)
        item = KeyValue(op.key, op.value, created, new, version, op.lease)
        self._live[op.key] = item
        self._record(EventKind.PUT, item, events)

    def _record(self, kind: EventKind, item: KeyValue, events: dict[str, Event]) -> None:
        self._past.setdefault(item.key, []).append(item)
        events[item.key] = Event(kind, item)

    def _commit(self, events: dict[str, Event], now_s: float) -> None:
        if events:
            self.revision += 1
            self._history.append(Commit(now_s, Batch(self.revision, tuple(events.values()))))

    def _matching(self, key: str) -> tuple[KeyValue, ...]:
        if is_prefix(key):
            return tuple(self._live[name] for name in sorted(self._live) if name.startswith(key))
        return (self._live[key],) if key in self._live else ()

    def _as_of(self, key: str, revision: int) -> KeyValue | None:
        versions = self._past[key]
        index = self._index(versions, revision)
        return versions[index] if index >= 0 and versions[index].version else None

    @staticmethod
    def _index(versions: list[KeyValue], revision: int) -> int:
        """Index of the version that was current at ``revision``; −1 if the key was not there yet."""
        return bisect_right(versions, revision, key=lambda item: item.mod_revision) - 1

    def _lease(self, lease: int) -> _Lease:
        if lease not in self._leases:
            raise LeaseNotFoundError(lease)
        return self._leases[lease]

    def _unbind(self, item: KeyValue) -> None:
        if item.lease in self._leases:
            self._leases[item.lease].keys.pop(item.key, None)


def _refuse_overlaps(branch: tuple[Operation, ...]) -> None:
    """Refuse as etcd does: two puts of one key, and a put of a key that the same branch deletes."""
    puts = [op.key for op in branch if isinstance(op, Put)]
    deletes = [op.key for op in branch if isinstance(op, Delete)]
    if len(set(puts)) < len(puts) or any(covers(span, key) for span in deletes for key in puts):
        raise RejectedError("duplicate key given in txn request")
