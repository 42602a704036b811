"""etcd's bytes ↔ the core's changes, and a write of the core as one guarded transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlplane.coordinator.state import Change, Kind
from controlplane.etcd import Delete, EventKind, Get, Put, Txn, is_prefix, unchanged
from schemas.codec import RecordError, decode, encode
from schemas.operations import Operation, Recovery
from schemas.placement import Placement, PlacementFormatError
from schemas.policy import Spec
from schemas.records import Ack, Backup, EpochRecord, ExpertLoad, FaultReport, ReceiveWait, Record, Registration, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.coordinator.state import Name, State, Write
    from controlplane.etcd import Compare, Event, KeyValue, TxnResult
    from schemas.keys import Keys


@dataclass(frozen=True)
class _Shelf:
    kind: Kind
    record: type[Record] | None
    """None for placements, which have a format of their own."""
    name: Callable[[str], Name]


def _nothing(_: str) -> str:
    return ""


def _ack_name(rest: str) -> tuple[int, int]:
    epoch, _, rank = rest.partition("/")
    return int(epoch), int(rank)


class Wire:
    """The keys of one instance, both ways."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._shelves = {
            keys.spec: _Shelf(Kind.SPEC, Spec, _nothing),
            keys.epoch: _Shelf(Kind.EPOCH, EpochRecord, _nothing),
            keys.status: _Shelf(Kind.STATUS, Status, _nothing),
            keys.ranks: _Shelf(Kind.RANK, Registration, int),
            keys.reports: _Shelf(Kind.REPORT, FaultReport, int),
            keys.all_acks: _Shelf(Kind.ACK, Ack, _ack_name),
            keys.operations: _Shelf(Kind.OPERATION, Operation, str),
            keys.recoveries: _Shelf(Kind.RECOVERY, Recovery, str),
            keys.backups: _Shelf(Kind.BACKUP, Backup, int),
            keys.placements: _Shelf(Kind.PLACEMENT, None, str),
            keys.loads: _Shelf(Kind.LOAD, ExpertLoad, int),
            keys.waits: _Shelf(Kind.WAIT, ReceiveWait, int),
        }

    def change(self, event: Event) -> Change | None:
        """What a change of a key means to the core; None for keys it does not look at.

        Raises:
            RecordError: the value is not what stands under such a key, or is of a newer version.
        """
        key = event.key
        shelf, rest = self._shelf(key)
        if shelf is None:
            return None
        try:
            name = shelf.name(rest)
        except ValueError as error:
            raise RecordError(key, "key", f"{rest!r} is not a number") from error
        value = None if event.kind is EventKind.DELETE else _read(event.item, shelf)
        return Change(shelf.kind, name, value, event.item.mod_revision)

    def _shelf(self, key: str) -> tuple[_Shelf | None, str]:
        if key in self._shelves:
            return self._shelves[key], ""
        for prefix, shelf in self._shelves.items():
            if is_prefix(prefix) and key.startswith(prefix):
                return shelf, key[len(prefix) :]
        return None, ""

    def transaction(self, write: Write, state: State) -> Txn:
        """``write`` as puts and deletes, guarded by what ``state`` had seen; a failed guard reads what stands there."""
        keys = self._keys
        guarded: list[tuple[Kind, Name, str, Record]] = []
        if write.record is not None:
            guarded.append((Kind.EPOCH, "", keys.epoch, write.record))
        if write.status is not None:
            guarded.append((Kind.STATUS, "", keys.status, write.status))
        guarded += [(Kind.OPERATION, o.id, keys.operation(o.id), o) for o in write.operations]
        when: list[Compare] = [unchanged(key, state.revisions.get((kind, name), 0)) for kind, name, key, _ in guarded]
        puts = [Put(key, encode(record)) for _, _, key, record in guarded]
        puts += [Put(keys.placement(placement.digest), placement.wire) for placement in write.placements]
        puts += [Put(keys.recovery(recovery.id), encode(recovery)) for recovery in write.recoveries]
        if write.past is not None:
            puts.append(Put(keys.past(write.past.decided.epoch), encode(write.past)))
        deletes = [Delete(self._key(kind, name)) for kind, name in write.forget]
        return Txn(when=tuple(when), then=(*puts, *deletes), otherwise=tuple(Get(key) for _, _, key, _ in guarded))

    def _key(self, kind: Kind, name: Name) -> str:
        named: dict[Kind, Callable[[Any], str]] = {
            Kind.ACK: lambda epoch: self._keys.acks(int(epoch)),
            Kind.PAST: lambda epoch: self._keys.past(int(epoch)),
            Kind.RECOVERY: self._keys.recovery,
            Kind.OPERATION: self._keys.operation,
            Kind.PLACEMENT: self._keys.placement,
        }
        return named[kind](name)


def stands(txn: Txn, result: TxnResult) -> int:
    """Revision at which ``txn`` was applied although its answer was lost; 0 when something else stands there."""
    wanted = {put.key: put.value for put in txn.then if isinstance(put, Put)}
    found = [reply.only for reply in result.replies if reply.items]
    if not found or len(found) != len(result.replies):
        return 0
    if any(item is None or item.value != wanted.get(item.key) for item in found):
        return 0
    return max(item.mod_revision for item in found if item is not None)


def _read(item: KeyValue, shelf: _Shelf) -> Record | Placement:
    if shelf.record is not None:
        return decode(item.value, shelf.record, key=item.key)
    try:
        return Placement.from_wire(item.value)
    except PlacementFormatError as error:
        raise RecordError(item.key, "placement", str(error)) from error
