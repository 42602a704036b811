"""What goes into etcd and what comes out: frozen values, no wire types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_OPERATIONS = 128
"""Operations in one branch of a transaction (etcd's default --max-txn-ops)."""
MAX_REQUEST_BYTES = 1_572_864
"""Bytes of one request (etcd's default --max-request-bytes, 1.5 MiB)."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as it stood at some revision."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int = 1
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """What a read found, in key order, and the revision it was true at."""

    revision: int
    items: tuple[KeyValue, ...]

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self.items)

    @property
    def only(self) -> KeyValue | None:
        """The single key asked for, or None."""
        return self.items[0] if self.items else None


class EventKind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; a DELETE has an empty value and its own mod_revision."""

    kind: EventKind
    item: KeyValue

    @property
    def key(self) -> str:
        """The key that changed."""
        return self.item.key


@dataclass(frozen=True, slots=True)
class Batch:
    """All events of one revision, never split; an empty one is a sign of life at that revision."""

    revision: int
    events: tuple[Event, ...] = ()


class Field(Enum):
    """What a compare looks at. Values are not compared: a re-elected process would pass as the old leader."""

    CREATE_REVISION = "create_revision"
    MOD_REVISION = "mod_revision"


@dataclass(frozen=True, slots=True)
class Compare:
    """``field`` of ``key`` equals ``revision``; 0 stands for an absent key."""

    key: str
    field: Field
    revision: int


def absent(key: str) -> Compare:
    """``key`` does not exist."""
    return Compare(key, Field.CREATE_REVISION, 0)


def created_at(key: str, revision: int) -> Compare:
    """``key`` exists since ``revision`` and was not deleted in between."""
    return Compare(key, Field.CREATE_REVISION, revision)


def unchanged(key: str, mod_revision: int) -> Compare:
    """``key`` was last written at ``mod_revision`` (0: it does not exist)."""
    return Compare(key, Field.MOD_REVISION, mod_revision)


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``value``; with a lease the key lives as long as the lease."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete ``key``, or everything below it if it ends in ``/``."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read ``key``, or everything below it if it ends in ``/``."""

    key: str


Operation: TypeAlias = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class Txn:
    """``then`` if every compare of ``when`` holds, else ``otherwise``; atomic, at one revision."""

    when: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice cannot apply it twice: reads only, or its own success breaks one of its compares."""
        if any(not isinstance(op, Get) for op in self.otherwise):
            return False
        writes = [op for op in self.then if not isinstance(op, Get)]
        return not writes or any(_breaks(op, guard) for op in writes for guard in self.when)


def _breaks(op: Put | Delete, guard: Compare) -> bool:
    """Whether ``guard`` cannot hold any more once ``op`` is applied."""
    if op.key != guard.key:
        return False
    if isinstance(op, Delete):
        return guard.revision != 0
    return guard.field is Field.MOD_REVISION or guard.revision == 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Outcome of a transaction; one listing per operation of the branch that ran (empty for puts and deletes)."""

    revision: int
    succeeded: bool
    replies: tuple[Listing, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as etcd granted it; ``ttl_s`` may be longer than asked (etcd's floor is 1.5 election timeouts)."""

    lease: int
    ttl_s: int


def is_prefix(key: str) -> bool:
    """Whether ``key`` stands for everything below it."""
    return key.endswith("/")


def covers(key: str, candidate: str) -> bool:
    """Whether a read, delete or watch of ``key`` touches ``candidate``."""
    return candidate.startswith(key) if is_prefix(key) else candidate == key
